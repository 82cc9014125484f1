"""Rows of a problem set: JSON Lines, Parquet, a TFDS dataset or a Hugging Face dataset.

Every row comes with its place, so that whoever has to correct it finds it. TFDS is read without
TensorFlow.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prefixrl_jax.runtime.files import read_json_lines

KINDS = (
    "a .jsonl or .parquet file, a folder of TFDS or of Hugging Face datasets, tfds:NAME, or"
    " hf:NAME[,CONFIG]"
)
# How files begin that are often taken for JSON Lines, and what to do with them.
BEGINNINGS = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"PAR1": "is a Parquet file; its name must end in .parquet",
    b"\xff\xfe": "is UTF-16; UTF-8 is expected",
    b"\xfe\xff": "is UTF-16; UTF-8 is expected",
}

# The row's place ("file, line 3") and its content, or a ValueError where that cannot be read.
Row = tuple[str, Any]


class NotFinite:
    """The place of a NaN, an infinity or a number beyond float64 in a row.

    It is no number, so that a task refuses it in a field that it reads, and not in another.
    """

    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return self._text


def finite_number(text: str) -> float | NotFinite:
    """Return the number that a text writes, or the NotFinite that stands for it."""
    value = float(text)
    return value if math.isfinite(value) else NotFinite(text)


def excerpt(value: Any, longest: int = 80) -> str:
    """Return the repr of a value for an error message, cut to `longest` characters."""
    text = repr(value[: longest + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def one_line(error: Exception, longest: int = 500) -> str:
    """Return an error's message as one line of at most `longest` characters."""
    message = " ".join(str(error).split())
    return message if len(message) <= longest else f"{message[: longest - 3]}..."


def read_rows(name: str, split: str, field: str) -> Iterator[Row]:
    """Read the rows of a problem set.

    Args:
        name: name of the set, in one of the forms of KINDS.
        split: the split to read, for a set that has splits.
        field: the configuration's field that holds the name, for error messages.

    Raises:
        ValueError: there is no such set, it cannot be read, or an extra is missing.
        OSError: a file cannot be read.
    """
    if name.startswith("tfds:"):
        return _tfds(name, lambda tfds: tfds.builder(name.removeprefix("tfds:")), split, field)
    if name.startswith("hf:"):
        return _hugging_face(name, split, field)
    path = Path(name)
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
        has_features = is_directory and (path / "features.json").is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or not readable
        raise ValueError(f"{field}={name!r}: {one_line(error)}; accepted: {KINDS}") from error
    if has_features:
        return _tfds(name, lambda tfds: tfds.builder_from_directory(name), split, field)
    if is_directory:
        return _hugging_face(name, split, field)
    if not is_file:
        reason = "neither a file nor a folder" if path.exists() else "no such file"
        raise ValueError(f"{field}={name!r}: {reason}; accepted: {KINDS}")
    return _parquet(name, field) if path.suffix == ".parquet" else _jsonl(path, field)


def count_rows(name: str) -> int:
    """Return about how many rows a file has, for a progress; 0 for anything but a file."""
    path = Path(name)
    if name.startswith(("tfds:", "hf:")) or not path.is_file():
        return 0
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(name).num_rows)
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def _jsonl(path: Path, field: str) -> Iterator[Row]:
    with path.open("rb") as file:
        start = file.read(4)
    for beginning, advice in BEGINNINGS.items():
        if start.startswith(beginning):
            raise ValueError(f"{field}={str(path)!r}: the file {advice}; accepted: {KINDS}")
    return _json_rows(path)


def _json_rows(path: Path) -> Iterator[Row]:
    for number, value in read_json_lines(path, finite_number, characters_only=True):
        if isinstance(value, ValueError):
            value = ValueError(f"{value}; a line holds one JSON object")
        yield f"{path}, line {number}", value


def _numbered(name: str, field: str, rows: Iterable[Any]) -> Iterator[Row]:
    """Yield the rows of a table; one that cannot be read any further raises ValueError."""
    number = 0
    rows = iter(rows)
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # each format raises kinds of its own for damaged files
            raise ValueError(
                f"{field}={name!r}, row {number}: cannot be read ({type(error).__name__}:"
                f" {one_line(error)})"
            ) from error
        yield f"{name}, row {number}", _as_row(row)


def _as_row(row: Any) -> Any:
    try:
        return row if isinstance(row, ValueError) else _as_json(row)
    except UnicodeDecodeError as error:
        return ValueError(f"a text in it is not UTF-8: {error.reason}")
    except RecursionError:
        return ValueError("lists or objects in it are nested too deeply to be read")


def _as_json(value: Any) -> Any:
    """Convert arrays, bytes and numpy scalars to values that JSON has."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()  # of an array without axes: the value
    if isinstance(value, dict):
        return {k: _as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(v) for v in value]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and not math.isfinite(value):
        return NotFinite(str(value))
    return value


def _parquet(name: str, field: str) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(name)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{field}={name!r}: no Parquet file: {one_line(error)}") from error
    return _numbered(name, field, _parquet_rows(file))


def _parquet_rows(file: Any) -> Iterator[Any]:
    for batch in file.iter_batches():
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):  # a value that Python cannot hold, such as a date
            rows = [_parquet_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
        yield from rows


def _parquet_row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return ValueError(f"a value in it cannot be read: {one_line(error)}")


def _tfds(name: str, builder: Callable[[Any], Any], split: str, field: str) -> Iterator[Row]:
    """Return the rows of a TFDS dataset; `builder` makes its builder from the TFDS module."""
    import tensorflow_datasets as tfds

    try:
        return _numbered(name, field, builder(tfds).as_data_source(split))
    except Exception as error:  # TFDS and ArrayRecord each raise kinds of their own
        raise ValueError(
            f"{field}={name!r}, split {split!r}: TFDS cannot open it ({type(error).__name__}:"
            f" {one_line(error)}); a dataset prepared with file_format='array_record' is accepted"
        ) from error


def _hugging_face(name: str, split: str, field: str) -> Iterator[Row]:
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"{field}={name!r} needs the [hf] extra: pip install 'prefixrl_jax[hf]'")
    import datasets

    try:
        if name.startswith("hf:"):
            dataset = datasets.load_dataset(*name.removeprefix("hf:").split(",", 1), split=split)
        else:
            dataset = datasets.load_from_disk(name)
            if isinstance(dataset, dict):
                dataset = dataset[split]
    # No network, no such set, no such split: the hub raises kinds of its own.
    except Exception as error:
        raise ValueError(
            f"{field}={name!r}, split {split!r}: cannot be loaded ({type(error).__name__}:"
            f" {one_line(error)}); accepted: {KINDS}"
        ) from error
    return _numbered(name, field, dataset)
