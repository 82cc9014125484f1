"""Rows of a problem set: JSON Lines, Parquet, a TFDS dataset or a Hugging Face dataset.

Every row comes with its place, so that whoever has to correct it finds it. TFDS is read without
TensorFlow.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

KINDS = (
    "a .jsonl or .parquet file, a folder of TFDS or of Hugging Face datasets, tfds:NAME, or"
    " hf:NAME[,CONFIG]"
)

# The row's place ("file, line 3") and its content, or a ValueError where that cannot be read.
Row = tuple[str, Any]


def read_rows(name: str, split: str, field: str) -> Iterator[Row]:
    """Read the rows of a problem set.

    Args:
        name: name of the set, in one of the forms of KINDS.
        split: the split to read, for a set that has splits.
        field: the configuration's field that holds the name, for error messages.

    Raises:
        ValueError: there is no such set, or an extra is missing.
    """
    if name.startswith("tfds:"):
        return _tfds(name, lambda tfds: tfds.builder(name.removeprefix("tfds:")), split, field)
    path = Path(name)
    if (path / "features.json").is_file():
        return _tfds(name, lambda tfds: tfds.builder_from_directory(name), split, field)
    if name.startswith("hf:") or path.is_dir():
        return _hugging_face(name, split, field)
    if not path.is_file():
        raise ValueError(f"{field}={name!r}: no such file; accepted: {KINDS}")
    return _parquet(name, field) if path.suffix == ".parquet" else _jsonl(path)


def _jsonl(path: Path) -> Iterator[Row]:
    # By newlines alone: a question may hold other characters that end lines.
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except ValueError as error:
                    yield f"{path}, line {number}", error


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", _as_json(row)


def _as_json(value: Any) -> Any:
    """Convert arrays, bytes and numpy scalars to values that JSON has."""
    if isinstance(value, dict):
        return {k: _as_json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _as_json(value.tolist())  # of an array without axes: the value
    if isinstance(value, list | tuple):
        return [_as_json(v) for v in value]
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


def _parquet(name: str, field: str) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        return _numbered(name, pyarrow.parquet.read_table(name).to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{field}={name!r}: no Parquet file: {error}") from error


def _tfds(name: str, builder: Callable[[Any], Any], split: str, field: str) -> Iterator[Row]:
    """Return the rows of a TFDS dataset; `builder` makes its builder from the TFDS module."""
    import tensorflow_datasets as tfds

    try:
        return _numbered(name, builder(tfds).as_data_source(split))
    except Exception as error:  # TFDS and ArrayRecord each raise kinds of their own
        raise ValueError(
            f"{field}={name!r}, split {split!r}: TFDS cannot open it ({type(error).__name__}:"
            f" {error}); a dataset prepared with file_format='array_record' is accepted"
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
            f" {error}); accepted: {KINDS}"
        ) from error
    return _numbered(name, dataset)
