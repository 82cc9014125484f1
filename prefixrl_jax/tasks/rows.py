"""Rows of a problem set, wherever it lies: JSON Lines, Parquet, a TFDS dataset, a Hugging Face
dataset.

Every row comes with the place it stands in, for whoever has to mend it. TFDS is read without
TensorFlow.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

KINDS = (
    "a .jsonl or .parquet file, a folder of TFDS or of Hugging Face datasets, tfds:NAME, or"
    " hf:NAME[,CONFIG]"
)

# where it stands ("file, line 3"), and what stands there; a ValueError where that cannot be read
Row = tuple[str, Any]


def read_rows(name: str, split: str, field: str) -> Iterator[Row]:
    """The rows of the problem set `name`, which the configuration's `field` holds; `split` where
    the set has splits.

    Raises ValueError naming the field when there is no such set, or an extra is missing.
    """
    path = Path(name)
    if name.startswith("tfds:"):
        return _tfds(name, lambda tfds: tfds.builder(name.removeprefix("tfds:")), split, field)
    if name.startswith("hf:"):
        return _hugging_face(name, split, field)
    if path.is_dir():
        if (path / "features.json").is_file():
            return _tfds(name, lambda tfds: tfds.builder_from_directory(name), split, field)
        return _hugging_face(name, split, field)
    if not path.is_file():
        raise ValueError(f"{field}={name!r}: no such file; accepted: {KINDS}")
    return _parquet(name, field) if path.suffix == ".parquet" else _jsonl(path)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except ValueError as error:
                    yield f"{path}, line {number}", error


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", _plain(row)


def _plain(value: Any) -> Any:
    """Arrays, bytes and numpy scalars as JSON has them."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())  # of one with no axis: the value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


def _parquet(name: str, field: str) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        return _numbered(name, pyarrow.parquet.read_table(name).to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{field}={name!r}: no Parquet file: {error}") from error


def _tfds(name: str, builder, split: str, field: str) -> Iterator[Row]:
    import tensorflow_datasets as tfds

    try:
        return _numbered(name, builder(tfds).as_data_source(split))
    except Exception as error:  # TFDS and ArrayRecord each raise what they like
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
            found = datasets.load_dataset(*name.removeprefix("hf:").split(",", 1), split=split)
        else:
            found = datasets.load_from_disk(name)
            found = found[split] if isinstance(found, dict) else found
    # no network, no such set, no such split: the hub raises its own kinds
    except Exception as error:
        raise ValueError(
            f"{field}={name!r}, split {split!r}: cannot be loaded ({type(error).__name__}:"
            f" {error}); accepted: {KINDS}"
        ) from error
    return _numbered(name, found)
