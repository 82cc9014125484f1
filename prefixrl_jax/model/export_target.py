"""Whether a folder may take an export: where it stands, and whose files are in it.

An export holds MANIFEST, which lists its files with size and SHA-256. In a folder with a manifest,
the files that are as it says belong to the earlier export; every other file belongs to somebody
else.
"""

from __future__ import annotations

import fnmatch
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from prefixrl_jax.runtime.files import checksum

MANIFEST = "prefixrl_export.json"
PROGRAM = "prefixrl_jax.export"  # stands in every manifest
CONFIG = "config.json"
CARD = "README.md"
CARD_HEADER = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
# Files that an export writes, or that a loader would read in place of an export's own.
MODEL_FILES = (
    CONFIG,
    "generation_config.json",
    CARD,
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates",
    "adapter_config.json",
)
EXPORT_OF_RUN = "hf"  # the folder in a work directory that the export stage writes
# By its configuration or one of these records a work directory is recognised.
RECORDS = [
    Path("stages", f"{stage}.json")
    for stage in ("base", "corpus", "prefixes", "sft", "train", "baseline", "evaluate", "export")
]
SECTIONS_OF_RUN = {"task", "model", "sampling", "train"}
MAX_MANIFEST_BYTES = 2**24


class Content(TypedDict):
    """What a file holds."""

    bytes: int
    sha256: str


# Where the folder stands


def check_place(directory: Path) -> None:
    """Raise for a symbolic link, a file, and a folder that cannot be made or written to."""
    if directory.is_symlink():
        raise ValueError(
            f"{directory}: a symbolic link to {os.readlink(directory)}; the folder itself is"
            " accepted, or a name that is not taken"
        )
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: a file; a folder or a name that is not taken is accepted")
    existing = directory.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{directory}: {existing} is in the way, which is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{directory}: {existing} is not writable")


def check_runs(directory: Path, of_run: bool) -> None:
    """Raise ValueError for a work directory, a folder in one, and one directly above one.

    Args:
        directory: an absolute path without links.
    """
    for ancestor in (directory, *directory.parents):
        if _is_workdir(ancestor):
            if of_run and directory == ancestor / EXPORT_OF_RUN:
                return
            raise ValueError(
                f"{directory}: belongs to the run in {ancestor}; a folder outside of it is accepted"
            )
    for child in entries_of(directory):
        if child.is_dir(follow_symlinks=False) and _is_workdir(Path(child.path)):
            raise ValueError(
                f"{directory}: holds the run {child.name}; a folder without runs is accepted, such"
                f" as {directory / 'export'}"
            )


def _is_workdir(directory: Path) -> bool:
    """Return whether a folder is the work directory of a run, by what every run puts there."""
    if any(os.path.isfile(directory / record) for record in RECORDS):
        return True
    return object_or_empty(directory / CONFIG).keys() >= SECTIONS_OF_RUN


def entries_of(directory: Path) -> list[os.DirEntry[str]]:
    """Return what a directory holds, by name; nothing if it is none."""
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


# What is there


def previous_files(directory: Path) -> dict[str, list[Content]]:
    """Return the unchanged files of the earlier export in a folder, with their contents.

    Raises ValueError for a manifest that no export wrote.
    """
    path = directory / MANIFEST
    if not os.path.lexists(path):
        return _files_without_manifest(directory)
    manifest = object_or_empty(path)
    files = manifest.get("files")
    if manifest.get("program") != PROGRAM or not isinstance(files, dict):
        raise ValueError(
            f"{path}: not the list of files of an earlier export; move it away, or give another"
            " folder"
        )
    return {
        name: contents
        for name, contents in files.items()
        if is_inside(name) and _is_regular(directory, name) and _holds(directory / name, contents)
    }


def _files_without_manifest(directory: Path) -> dict[str, list[Content]]:
    """Return the files of a run's export by version 0.1.0, which wrote no manifest.

    It is recognised by its place, its card and the two spellings of RoPE in its config.json.
    """
    in_run = directory.name == EXPORT_OF_RUN and _is_workdir(directory.resolve().parent)
    fields = object_or_empty(directory / CONFIG)
    if not in_run or not {"rope_scaling", "rope_parameters", "torch_dtype"} <= fields.keys():
        return {}
    card = directory / CARD
    if not _is_regular(directory, CARD) or not card.read_bytes().startswith(CARD_HEADER.encode()):
        return {}
    names = [
        entry.name
        for entry in entries_of(directory)
        if _is_model_file(entry.name) and entry.is_file(follow_symlinks=False)
    ]
    return {name: [content_of(directory / name)] for name in names}


def check_foreign(directory: Path, previous: Iterable[str]) -> None:
    """Raise ValueError for files that are not an earlier export's and that a loader would read."""
    previous = set(previous)
    foreign = []
    for entry in entries_of(directory):
        if not _is_model_file(entry.name) or entry.name in previous:
            continue
        parts = [f"{entry.name}/{part.name}" for part in entries_of(Path(entry.path))]
        if not parts or not set(parts) <= previous:
            foreign.append(entry.name)
    refuse_foreign(directory, foreign)


def refuse_foreign(directory: Path, names: list[str]) -> None:
    """Raise ValueError if there are any names of files that an export may not replace."""
    if names:
        raise ValueError(
            f"{directory}: {', '.join(names[:10])} would be replaced, which no export of this"
            " program wrote or which was changed since; a new or empty folder or an unchanged"
            " earlier export is accepted"
        )


def _is_model_file(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def is_inside(name: str) -> bool:
    """Return whether a name in a manifest is that of a file in the folder or one folder below."""
    path = PurePosixPath(name)
    return (
        1 <= len(path.parts) <= 2 and not path.is_absolute() and not {"..", "."} & set(path.parts)
    )


def _is_regular(directory: Path, name: str) -> bool:
    """Return whether there is such a file, reached without any link."""
    path = directory / name
    try:
        if path.parent != directory and path.parent.is_symlink():
            return False
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _holds(path: Path, contents: Any) -> bool:
    """Return whether a file has one of these contents."""
    if not isinstance(contents, list):
        return False
    sizes = [content.get("bytes") for content in contents if isinstance(content, dict)]
    return path.stat().st_size in sizes and content_of(path) in contents


# Files


def content_of(path: Path) -> Content:
    """Return the size and the checksum of a file."""
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def object_or_empty(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if it holds none or is larger than a manifest."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
