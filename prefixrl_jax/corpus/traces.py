"""Correct traces, and the TFDS dataset that stores them once the corpus is complete.

The dataset consists of ArrayRecord files and can be read without TensorFlow. This module imports no
jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from prefixrl_jax.corpus.sample_log import sync, to_json

FINISH_REASONS = ("stop", "length")
# Sampled by this model; imported as token ids; imported as text and tokenised on import.
SOURCES = ("sampled", "imported", "foreign")

# Stored in dataset_info.json.
DESCRIPTION = (
    "The first correct trace of each problem, with the log-probability of each token when it was"
    " sampled."
)


@dataclasses.dataclass(frozen=True)
class Trace:
    """The first correct continuation sampled for a problem, or an imported one.

    Attributes:
        problem_id: of the problem it solves.
        sample_id: number of the sample among those of the problem; the line in its file if it was
            imported.
        context_ids: token ids of the rendered problem.
        token_ids: token ids of the continuation, the stop id included.
        logprobs: float32 value of each continuation token when it was sampled; empty if the trace
            was imported.
        finish_reason: one of FINISH_REASONS; "length" if it ended at the largest number of tokens.
        samples: how many samples of the problem were begun until this one was known to be the
            first correct one; 0 if it was imported.
        flops: spent on the problem in paper accounting, or declared with an imported trace.
        source: one of SOURCES.
    """

    problem_id: str
    sample_id: int
    context_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    samples: int
    flops: float
    source: str = "sampled"

    def __post_init__(self):
        if self.finish_reason not in FINISH_REASONS:
            raise ValueError(
                f"finish_reason {self.finish_reason!r} of {self._name()}; accepted:"
                f" {', '.join(FINISH_REASONS)}"
            )
        if self.source not in SOURCES:
            raise ValueError(
                f"source {self.source!r} of {self._name()}; accepted: {', '.join(SOURCES)}"
            )
        may_lack_logprobs = self.source != "sampled" and len(self.logprobs) == 0
        if len(self.logprobs) != len(self.token_ids) and not may_lack_logprobs:
            raise ValueError(
                f"{self._name()} has {len(self.logprobs)} logprobs for {len(self.token_ids)}"
                " token_ids; one each"
            )

    def _name(self) -> str:
        return f"sample {self.sample_id} of problem {self.problem_id!r}"

    def to_record(self) -> dict[str, Any]:
        """Return the fields as JSON values, also where they hold numpy scalars or arrays."""
        return {
            "problem_id": self.problem_id,
            "sample_id": int(self.sample_id),
            "context_ids": np.asarray(self.context_ids, np.int64).tolist(),
            "token_ids": np.asarray(self.token_ids, np.int64).tolist(),
            "logprobs": np.asarray(self.logprobs, np.float64).tolist(),
            "finish_reason": self.finish_reason,
            "samples": int(self.samples),
            "flops": float(self.flops),
            "source": self.source,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trace:
        """Return the trace of a record that `to_record` has made.

        Raises:
            ValueError: fields are missing, unknown or of another type; the message names them.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        record = {"source": "sampled", **record}  # older records lack the field
        if record.keys() != fields:
            missing = sorted(fields - record.keys())
            unknown = sorted(record.keys() - fields)
            raise ValueError(
                f"not the record of a trace: missing fields {missing}, unknown fields {unknown}"
            )
        for name, is_right in FIELD_TYPES.items():
            if not is_right(record[name]):
                raise ValueError(
                    f"not the record of a trace: field {name!r} is {repr(record[name])[:80]}"
                )
        return cls(**record)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    # An int may be larger than any float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _are_ids(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_whole, values))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


# Whether a value of a record is of a field's type.
FIELD_TYPES: dict[str, Callable[[Any], bool]] = {
    "problem_id": _is_text,
    "sample_id": _is_whole,
    "context_ids": _are_ids,
    "token_ids": _are_ids,
    "logprobs": _are_numbers,
    "finish_reason": _is_text,
    "samples": _is_whole,
    "flops": _is_number,
    "source": _is_text,
}


def write_dataset(
    traces: Iterable[Trace], directory: str | os.PathLike[str], metadata: Mapping[str, Any]
) -> None:
    """Write the traces, in order, as a TFDS dataset with the single split "train".

    It opens without TensorFlow: `tfds.builder_from_directory(directory).as_data_source("train")`.
    It is built beside `directory` and renamed into place; an earlier dataset there is replaced.

    Args:
        traces: at least one.
        directory: the dataset's own directory.
        metadata: JSON values, read back as `builder.info.metadata`: fingerprints of model and
            tokenizer, statistics.

    Raises:
        ValueError: there are no traces, or `metadata` is not JSON.
        FileExistsError: `directory` holds other files.
    """
    target = pathlib.Path(directory).absolute()
    records = [trace.to_record() for trace in traces]
    if not records:
        raise ValueError(f"{target}: there are no traces to write; a dataset needs at least one")
    to_json(dict(metadata), target)  # TFDS would complain only after the traces are written
    if target.exists() and not _is_dataset(target) and any(target.iterdir()):
        raise FileExistsError(
            f"{target}: holds files that are no dataset; name a new or an empty directory"
        )
    work = target.with_name(f".{target.name}.partial")
    if work.exists():
        shutil.rmtree(work)
    built = _build(records, work, dict(metadata))
    for path in (*built.iterdir(), built):
        sync(path)
    if target.exists():
        os.replace(target, work / "replaced")
    os.replace(built, target)
    sync(target.parent)
    shutil.rmtree(work)


class Damaged(ValueError):
    """A dataset that cannot be read whole."""


def read_dataset(directory: str | os.PathLike[str]) -> list[Trace]:
    """Return the traces of a dataset that `write_dataset` has made, in order.

    Raises:
        FileNotFoundError: there is no dataset in the directory.
        Damaged: a file of the dataset is missing, cut short or altered.
        OSError: a file could not be read this time, which says nothing about what it holds.
    """
    if not _is_dataset(pathlib.Path(directory)):
        raise FileNotFoundError(f"{directory}: no dataset here (dataset_info.json is missing)")
    try:
        return _read_dataset(directory)
    except Damaged:  # TFDS takes a reading error, which may pass, for damage
        return _read_dataset(directory)


def _read_dataset(directory: str | os.PathLike[str]) -> list[Trace]:
    import tensorflow_datasets as tfds

    try:
        with _quiet():
            rows = tfds.builder_from_directory(directory).as_data_source("train")
            return [_from_row(row) for row in rows]
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise Damaged(f"{directory}: the dataset is damaged: {error}") from error
        raise
    except Exception as error:  # TFDS, protobuf and ArrayRecord have no error type in common
        raise Damaged(f"{directory}: the dataset is damaged: {error}") from error


def _is_dataset(directory: pathlib.Path) -> bool:
    return (directory / "dataset_info.json").is_file()


def _from_row(row: Mapping[str, Any]) -> Trace:
    """Return the trace of a dataset's row: numpy arrays, numpy scalars and byte strings."""
    record = {
        name: value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
        for name, value in row.items()
    }
    return Trace.from_record(record)


def _features() -> dict[str, Any]:
    """Return the TFDS feature of each field of `Trace`."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    tokens = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    logprobs = tfds.features.Tensor(shape=(None,), dtype=np.float32)
    # Encoded as bytes: TFDS would round a plain float64 to float32.
    exact_float = tfds.features.Tensor(
        shape=(), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
    )
    return {
        "problem_id": text,
        "sample_id": np.int64,
        "context_ids": tokens,
        "token_ids": tokens,
        "logprobs": logprobs,
        "finish_reason": text,
        "samples": np.int64,
        "flops": exact_float,
        "source": text,
    }


def _build(
    records: list[dict[str, Any]], root: pathlib.Path, metadata: dict[str, Any]
) -> pathlib.Path:
    """Write the dataset's files below `root`, and return their directory (root/name/version)."""
    import tensorflow_datasets as tfds

    # TFDS derives the dataset's name from that of the class. mypy cannot check the keyword: TFDS
    # imports its parts lazily, so the base class has no type.
    class PrefixrlTraces(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Builds the dataset from `records`."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=DESCRIPTION,
                features=tfds.features.FeaturesDict(_features()),
                metadata=tfds.core.MetadataDict(metadata),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(records)

    with _quiet():
        builder = PrefixrlTraces(data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS from printing about downloads and drawing progress bars."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
