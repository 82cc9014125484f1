"""Correct traces and where they are kept: an append-only log while they are collected, a TFDS dataset once complete.

The log survives a kill at any byte: what was flushed is read back, what was torn is cut off and named. The dataset
(ArrayRecord files, readable without TensorFlow) is what other programs open. This module imports no jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

FINISH_REASONS = ("stop", "length")


class Log:
    """An append-only file of JSON records, one a line: crc32 of the JSON (8 hex digits), a space, the JSON.

    The first line is a header that says what the log belongs to. One writer at a time; safe against a kill, a full
    disk and damaged bytes.

    Attributes:
      path: the file.
      records: the sound records found when the log was opened, in order, without the header and later appends.
      dropped: one sentence for each damaged or torn line found when the log was opened (file, line number, why).
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]):
        """Opens the log, or creates it (and its directory) with this header.

        Raises ValueError if the file's header is unreadable or differs from `header`, OSError if it cannot be written.
        """
        self.path = pathlib.Path(path)
        self.records: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self._buffer = bytearray()
        self._buffered = 0
        if not self.path.exists():
            self._create(header)
        self._end = self._read(header)
        self._file: int | None = os.open(self.path, os.O_RDWR)
        os.ftruncate(self._file, self._end)

    def append(self, record: Mapping[str, Any]) -> None:
        """Buffers a record of JSON values; raises ValueError for anything JSON cannot hold (NaN and infinity included)."""
        self._require_open()
        self._buffer += _encode(record, self.path)
        self._buffered += 1

    def flush(self) -> None:
        """Writes the buffered records and waits until the disk has them.

        Raises OSError if it cannot; the records stay buffered, and a later flush writes them again in the same place.
        """
        file = self._require_open()
        if not self._buffer:
            return
        failure = f"{self._buffered} records were not saved in the log; those before them are intact"
        _write_synced(file, self._buffer, self._end, self.path, failure)
        self._end += len(self._buffer)
        self._buffer.clear()
        self._buffered = 0

    def close(self) -> None:
        """Flushes and closes; closing twice is harmless."""
        if self._file is None:
            return
        try:
            self.flush()
        finally:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path}: the log is closed")
        return self._file

    def _create(self, header: Mapping[str, Any]) -> None:
        """The file appears under its name only once its header is whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _write_synced(file, _encode(header, self.path), 0, self.path, "the log could not be created")
        finally:
            os.close(file)
        os.replace(partial, self.path)
        _sync(self.path.parent)

    def _read(self, header: Mapping[str, Any]) -> int:
        """Fills records and dropped. Returns the offset in bytes at which the next record belongs."""
        with open(self.path, "rb") as file:
            first = file.readline()
            try:
                found = _decode(first)
            except ValueError as error:
                raise ValueError(f"{self.path}, line 1: not the header of a log: {error}; move the file away") from error
            self._check_header(found, header)
            end = len(first)
            for number, line in enumerate(file, start=2):
                try:
                    self.records.append(_decode(line))
                except ValueError as error:
                    self.dropped.append(f"{self.path}, line {number}: dropped {len(line)} bytes: {error}")
                    if not line.endswith(b"\n"):
                        return end
                end += len(line)
        return end

    def _check_header(self, found: dict[str, Any], header: Mapping[str, Any]) -> None:
        expected = _decode(_encode(header, self.path))
        if found == expected:
            return
        absent = "(absent)"
        differences = [
            f"{key}: {found.get(key, absent)!r} in the file, {expected.get(key, absent)!r} here"
            for key in sorted(found.keys() | expected.keys())
            if (key in found, found.get(key)) != (key in expected, expected.get(key))
        ]
        raise ValueError(f"{self.path}: the log was written under another header; {'; '.join(differences)}")


def _to_json(value: Any, path: pathlib.Path) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot hold this, JSON values are accepted: {error}") from error


def _encode(record: Mapping[str, Any], path: pathlib.Path) -> bytes:
    text = _to_json(dict(record), path).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Any:
    """The JSON value of a log line; raises ValueError saying what is wrong with it."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is torn")
    text = line[9:-1]
    if line[:9] != b"%08x " % zlib.crc32(text):
        raise ValueError("the checksum differs")
    return json.loads(text)


def _write_synced(file: int, data: bytes | bytearray, offset: int, path: pathlib.Path, failure: str) -> None:
    """Writes all of data at offset and waits until the disk has it; an OSError names the file and says what is lost."""
    written = 0
    try:
        while written < len(data):  # one call may write only a part
            written += os.pwrite(file, data[written:], offset + written)
        os.fsync(file)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {failure}", str(path)) from error


def _sync(path: pathlib.Path) -> None:
    """Waits until the disk has a file's bytes, or a directory's entries."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@dataclasses.dataclass(frozen=True)
class Trace:
    """The first correct continuation sampled for a problem."""

    problem_id: str
    sample_id: int
    context_ids: list[int]  # the rendered problem
    token_ids: list[int]  # the continuation, the stop id included
    logprobs: list[float]  # float32 values: of each continuation token when it was sampled
    finish_reason: str  # "stop" or "length"
    samples: int  # begun for the problem until this one was found
    flops: float  # spent on the problem, in paper accounting

    def __post_init__(self):
        if self.finish_reason not in FINISH_REASONS:
            raise ValueError(f"finish_reason {self.finish_reason!r} of {self._name()}; accepted: {', '.join(FINISH_REASONS)}")
        if len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{self._name()} has {len(self.logprobs)} logprobs for {len(self.token_ids)} token_ids; one each")

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
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trace:
        """The inverse of to_record; raises ValueError naming the fields that are missing or unknown."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if record.keys() != fields:
            missing, unknown = sorted(fields - record.keys()), sorted(record.keys() - fields)
            raise ValueError(f"not the record of a trace: missing fields {missing}, unknown fields {unknown}")
        return cls(**record)


def write_dataset(traces: Iterable[Trace], directory: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Writes the traces, in order, as a TFDS dataset with one split, "train", that opens without TensorFlow:
    `tfds.builder_from_directory(directory).as_data_source("train")`.

    It is built beside `directory` and renamed into place; an earlier dataset there is replaced.

    Args:
      traces: at least one.
      directory: the dataset's own directory.
      metadata: JSON values, found again as `builder.info.metadata`: fingerprints of model and tokenizer, statistics.

    Raises ValueError if there are no traces or metadata is not JSON, FileExistsError if `directory` holds other files.
    """
    target = pathlib.Path(directory).absolute()
    records = [trace.to_record() for trace in traces]
    if not records:
        raise ValueError(f"{target}: there are no traces to write; a dataset needs at least one")
    _to_json(dict(metadata), target)  # now, rather than after the traces are written
    if target.exists() and not _is_dataset(target) and any(target.iterdir()):
        raise FileExistsError(f"{target}: holds files that are no dataset; name a new or an empty directory")
    work = target.with_name(f".{target.name}.partial")
    if work.exists():
        shutil.rmtree(work)
    built = _build(records, work, dict(metadata))
    for path in (*built.iterdir(), built):
        _sync(path)
    if target.exists():
        os.replace(target, work / "replaced")
    os.replace(built, target)
    _sync(target.parent)
    shutil.rmtree(work)


def read_dataset(directory: str | os.PathLike[str]) -> list[Trace]:
    """The traces of a dataset made by write_dataset, in order; raises FileNotFoundError if there is none."""
    import tensorflow_datasets as tfds

    if not _is_dataset(pathlib.Path(directory)):
        raise FileNotFoundError(f"{directory}: no dataset here (dataset_info.json is missing)")
    with _quiet():
        rows = tfds.builder_from_directory(directory).as_data_source("train")
        return [_from_row(row) for row in rows]


def _is_dataset(directory: pathlib.Path) -> bool:
    return (directory / "dataset_info.json").is_file()


def _from_row(row: Mapping[str, Any]) -> Trace:
    """A trace from a dataset's row, whose values are numpy arrays, numpy scalars and byte strings."""
    return Trace.from_record(
        {name: value.decode() if isinstance(value, bytes) else np.asarray(value).tolist() for name, value in row.items()}
    )


def _build(records: list[dict[str, Any]], root: pathlib.Path, metadata: dict[str, Any]) -> pathlib.Path:
    """Writes the dataset's files below root. Returns the directory that holds them (root/name/version)."""
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
        "flops": tfds.features.Tensor(shape=(), dtype=np.float64, encoding=tfds.features.Encoding.BYTES),
    }

    class PrefixrlTraces(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The first correct trace of each problem, with the log-probability of each token when it was sampled."""

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
