"""Remember what slow checks of a user's files came to, so that the next start is quick.

A result is found again under a key that names all it was made from, by checksums. It is never
needed: a memo that is missing, damaged or of other inputs only makes a start slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from prefixrl_jax.runtime.files import read_object, write_json

# Libraries that decide which token ids a text has.
LIBRARIES = ("tokenizers", "transformers")


def memo_key(*parts: Any) -> str:
    """Return a key made of JSON values and of the versions of LIBRARIES."""
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    return hashlib.sha256(json.dumps([versions, *parts]).encode()).hexdigest()


class Memo:
    """JSON values by name, each with the key of what it was made from.

    The file is read when the memo is made, and written by `save` alone.
    """

    def __init__(self, path: Path | None = None):
        """Read the memo in a file; without a path nothing is kept."""
        self._path = path
        self._entries: dict[str, dict[str, Any]] = {}
        self._changed = False
        if path is not None:
            with contextlib.suppress(ValueError, OSError):
                saved = read_object(path)
                if saved.get("checksum") == _digest(saved.get("entries")):
                    self._entries = saved["entries"]

    def get(self, name: str, key: str) -> Any:
        """Return the value of a name if it was made from `key`, else None."""
        entry = self._entries.get(name, {})
        return entry.get("value") if entry.get("key") == key else None

    def put(self, name: str, key: str, value: Any) -> None:
        """Keep a JSON value under a name; an earlier one is replaced."""
        self._entries[name] = {"key": key, "value": value}
        self._changed = True

    def save(self) -> None:
        """Write the file if anything is new; raises OSError if that fails."""
        if self._changed and self._path is not None:
            write_json(self._path, {"entries": self._entries, "checksum": _digest(self._entries)})
            self._changed = False


def _digest(entries: Any) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
