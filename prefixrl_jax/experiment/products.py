"""The files that a stage has written: whether they are as its record says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefixrl_jax.experiment.stages import METRICS, PRODUCTS, READ_BACK, READ_BACK_IF_ANY
from prefixrl_jax.runtime.console import say
from prefixrl_jax.runtime.files import checksum, set_aside

Listing = dict[str, dict[str, Any]]  # by path below the work directory: bytes, and a checksum


def listing(root: Path, stage: str) -> Listing:
    """Return the files of a stage: the size of each, and the SHA-256 of those that are read back.

    Args:
        root: the work directory.
        stage: has written its files.
    """
    files: Listing = {}
    for path in _files(root, PRODUCTS.get(stage, ())):
        files[path.relative_to(root).as_posix()] = {"bytes": path.stat().st_size}
    for path in _files(root, METRICS.get(stage, ())):
        files[path.relative_to(root).as_posix()] = {"metrics": checksum(path)}
    for path in _files(root, READ_BACK.get(stage, ()) + READ_BACK_IF_ANY.get(stage, ())):
        entry = {"bytes": path.stat().st_size, "sha256": checksum(path)}
        files[path.relative_to(root).as_posix()] = entry
    return files


def _files(root: Path, names: Iterable[str]) -> list[Path]:
    paths = []
    for name in names:
        path = root / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        paths += [file for file in found if file.is_file()]
    return paths


def missing_or_damaged(root: Path, stage: str, record: dict[str, Any]) -> list[str]:
    """Check the files of a complete stage, and set aside those that are damaged.

    A product that a user has changed stays as it is, and is named on the console.

    Args:
        root: the work directory.
        stage: is complete.
        record: of the stage; that of version 0.1.0 lists no files, which then have to be there.

    Returns:
        A sentence for each file that has to be made again.
    """
    files: Listing | None = record.get("files")
    if files is None:
        names = PRODUCTS.get(stage, ()) + READ_BACK.get(stage, ())
        return [f"{root / name} is missing" for name in names if not (root / name).exists()]
    sentences = []
    for name, entry in files.items():
        path = root / name
        if "metrics" in entry:
            if not path.is_file() or checksum(path) != entry["metrics"]:
                say(
                    f"{stage}: {path} is missing or not as it was written; reports show what is"
                    " there"
                )
        elif not path.is_file():
            sentences.append(f"{path} is missing")
        elif "sha256" not in entry:
            if path.stat().st_size != entry["bytes"]:
                say(
                    f"{stage}: {path} has {path.stat().st_size:,} bytes, {entry['bytes']:,} were"
                    " written; it is left as it is. To have it made again, move it away"
                )
        elif path.stat().st_size != entry["bytes"] or checksum(path) != entry["sha256"]:
            whole = next(
                (root / part for part in READ_BACK_IF_ANY.get(stage, ()) if _is_below(name, part)),
                path,
            )
            if whole.exists():
                sentences.append(f"{path} is not as it was written, and is now {set_aside(whole)}")
    return sentences


def _is_below(name: str, folder: str) -> bool:
    return name.startswith(folder + "/")
