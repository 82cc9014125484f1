"""Files of a model's folder, which a stranger may have written: where they lie, and JSON in them.

Every file that is read from such a folder passes `plain_file` first, be it read here or by
transformers: a link must not bring a file of this machine into the model, or into its export.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefixrl_jax.model.fields import shown

# Of a JSON file. The largest index files of public models have a few megabytes.
MAX_JSON_BYTES = 64 * 2**20
MAX_TOKENIZER_BYTES = 2**28  # of each file; the largest of public models have 35 million
TEMPLATES = "additional_chat_templates"  # the folder in which transformers looks for more of them
# How the names of all files end that transformers may read for a tokenizer.
TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")


def plain_file(
    directory: Path, name: str, accepted: str = "a folder with such a file is accepted"
) -> Path:
    """Return the path of a regular file of the folder.

    A symbolic link may stay in the folder, or lead from a snapshot of the hub's cache to its blobs.

    Args:
        accepted: the end of the message when there is no such file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a link to another place, or no regular file.
    """
    path = directory / name
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path}: not found; {accepted}")
    target = _target(directory, path)
    if not target.exists() or not stat.S_ISREG(target.stat().st_mode):
        raise ValueError(f"{path}: not a file; a regular file is accepted")
    return path


def _target(directory: Path, path: Path) -> Path:
    """Return where a path of the folder leads; raise ValueError if it is a link out of it."""
    # Unlike Path.resolve, realpath raises nothing for a circle of links.
    target, folder = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    inside = target.is_relative_to(folder)
    in_cache = folder.parent.name == "snapshots" and target.parent == folder.parents[1] / "blobs"
    if not inside and not in_cache:
        shown_target = str(target) if str(target).isprintable() else repr(str(target))
        raise ValueError(f"{path}: a link to {shown_target}; a file inside the folder is accepted")
    return target


def check_tokenizer_files(directory: Path) -> None:
    """Raise ValueError for a file that transformers may read which is a link out, or too large.

    tokenizer_config.json may name other versions of tokenizer.json; they are in the same folder.
    """
    for path in _tokenizer_files(directory):
        target = _target(directory, path)
        size = target.stat().st_size if target.is_file() else 0
        if size > MAX_TOKENIZER_BYTES:
            raise ValueError(f"{path}: {size} bytes; at most {MAX_TOKENIZER_BYTES} are accepted")
    versions = read_object_if_any(directory, "tokenizer_config.json").get("fast_tokenizer_files")
    is_list = isinstance(versions, list)
    if versions is not None and not (is_list and all(map(_is_tokenizer_name, versions))):
        raise ValueError(
            f"{directory / 'tokenizer_config.json'}: fast_tokenizer_files={shown(versions)}: a list"
            " of tokenizer.json and tokenizer.VERSION.json is accepted"
        )


def _is_tokenizer_name(name: Any) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"tokenizer(\.[\w.]+)?\.json", name))


def _tokenizer_files(directory: Path) -> Iterator[Path]:
    """Yield the files that transformers may read for a tokenizer, and the folder of templates."""
    for path in sorted(directory.iterdir()):
        if path.name == TEMPLATES:
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from sorted(path.iterdir())
        elif path.name.endswith(TOKENIZER_SUFFIXES) or path.name.startswith("tokenizer"):
            yield path


def read_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises ValueError for a file that is too large, not UTF-8, not JSON, or holds another value.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path}: {size} bytes; at most {max_bytes} are accepted")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (nested too deeply)") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer without end
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is accepted, not {shown(content)}")
    return content


def read_object_if_any(directory: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of the folder; {} if there is no such file."""
    if not (directory / name).is_file():
        return {}
    return read_object(plain_file(directory, name))
