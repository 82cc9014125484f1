"""Correct traces, and the TFDS dataset they make once the corpus is complete (ArrayRecord files,
readable without TensorFlow).

This module imports no jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from prefixrl_jax.corpus.sample_log import sync, to_json

FINISH_REASONS = ("stop", "length")
# by this model; brought as token ids; brought as text, and tokenised here
SOURCES = ("sampled", "imported", "foreign")


@dataclasses.dataclass(frozen=True)
class Trace:
    """The first correct continuation sampled for a problem, or one that was brought."""

    problem_id: str
    sample_id: int
    context_ids: list[int]  # the rendered problem
    token_ids: list[int]  # the continuation, the stop id included
    # float32 values: of each continuation token when it was sampled; none if it was brought
    logprobs: list[float]
    finish_reason: str  # "stop" or "length"
    samples: int  # begun for the problem until this one was found
    flops: float  # spent on the problem, in paper accounting
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
        if len(self.logprobs) != len(self.token_ids) and (
            self.logprobs or self.source == "sampled"
        ):
            raise ValueError(
                f"{self._name()} has {len(self.logprobs)} logprobs for {len(self.token_ids)}"
                " token_ids; one each"
            )

    def _name(self) -> str:
        return f"sample {self.sample_id} of problem {self.problem_id!r}"

    def to_record(self) -> dict[str, Any]:
        """JSON values, also when the fields hold numpy scalars or arrays."""
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
        """The inverse of to_record; raises ValueError naming the fields that are missing or
        unknown.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        record = {"source": "sampled", **record}  # older ones know no other
        if record.keys() != fields:
            missing, unknown = sorted(fields - record.keys()), sorted(record.keys() - fields)
            raise ValueError(
                f"not the record of a trace: missing fields {missing}, unknown fields {unknown}"
            )
        return cls(**record)


def write_dataset(
    traces: Iterable[Trace], directory: str | os.PathLike[str], metadata: Mapping[str, Any]
) -> None:
    """Writes the traces, in order, as a TFDS dataset with one split, "train", that opens without
    TensorFlow: `tfds.builder_from_directory(directory).as_data_source("train")`.

    It is built beside `directory` and renamed into place; an earlier dataset there is replaced.

    Args:
      traces: at least one.
      directory: the dataset's own directory.
      metadata: JSON values, found again as `builder.info.metadata`: fingerprints of model and
          tokenizer, statistics.

    Raises ValueError if there are no traces or metadata is not JSON, FileExistsError if `directory`
    holds other files.
    """
    target = pathlib.Path(directory).absolute()
    records = [trace.to_record() for trace in traces]
    if not records:
        raise ValueError(f"{target}: there are no traces to write; a dataset needs at least one")
    to_json(dict(metadata), target)  # now, rather than after the traces are written
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
    """The traces of a dataset made by write_dataset, in order.

    Raises FileNotFoundError if there is none, Damaged if a file of it is missing, cut short or
    altered.
    """
    import tensorflow_datasets as tfds

    if not _is_dataset(pathlib.Path(directory)):
        raise FileNotFoundError(f"{directory}: no dataset here (dataset_info.json is missing)")
    try:
        with _quiet():
            rows = tfds.builder_from_directory(directory).as_data_source("train")
            return [_from_row(row) for row in rows]
    except Exception as error:  # TFDS, protobuf and ArrayRecord each raise what they like
        raise Damaged(f"{directory}: the dataset is damaged: {error}") from error


def _is_dataset(directory: pathlib.Path) -> bool:
    return (directory / "dataset_info.json").is_file()


def _from_row(row: Mapping[str, Any]) -> Trace:
    """A trace from a dataset's row, whose values are numpy arrays, numpy scalars and byte
    strings.
    """
    return Trace.from_record(
        {
            name: value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
            for name, value in row.items()
        }
    )


def _build(
    records: list[dict[str, Any]], root: pathlib.Path, metadata: dict[str, Any]
) -> pathlib.Path:
    """Writes the dataset's files below root.

    Returns the directory that holds them (root/name/version).
    """
    import tensorflow_datasets as tfds

    tokens = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    features = {
        "problem_id": tfds.features.Text(),
        "sample_id": np.int64,
        "context_ids": tokens,
        "token_ids": tokens,
        "logprobs": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        "finish_reason": tfds.features.Text(),
        "samples": np.int64,
        # As bytes: TFDS would round a plain float64 to float32.
        "flops": tfds.features.Tensor(
            shape=(), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
        ),
        "source": tfds.features.Text(),
    }

    class PrefixrlTraces(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS is lazy
        """The first correct trace of each problem, with the log-probability of each token when it
        was sampled.
        """

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=PrefixrlTraces.__doc__,
                features=tfds.features.FeaturesDict(features),
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
    """Keeps TFDS from talking of downloads and drawing progress bars."""
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
