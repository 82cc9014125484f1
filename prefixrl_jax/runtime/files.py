"""Files that are there as a whole or not at all, and what tells whether they are as they were."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write or replace a UTF-8 file; its directory is created if needed.

    After a kill, or a power cut, the file has either its old content or its new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write or replace a file that holds one JSON value, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON value that a file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a damaged file or directory to NAME.damaged, or NAME.damaged-2 and so on.

    Returns:
        The new path.
    """
    number = 1
    while True:
        suffix = ".damaged" if number == 1 else f".damaged-{number}"
        target = path.with_name(path.name + suffix)
        if not os.path.lexists(target):
            path.rename(target)
            return target
        number += 1
