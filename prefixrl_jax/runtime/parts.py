"""The manifest of a set of closed parts: files that are never written again, with their checksums.

The manifest is one JSON file that is replaced as a whole. If it is lost it can be made anew from
the parts; what is then no longer noticed is that a part is missing or has changed. This module
imports no jax.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from prefixrl_jax.runtime.store import Store

FORMAT = 1
LARGEST = 64 << 20  # bytes of a manifest; a file that has more is none


@dataclasses.dataclass(frozen=True)
class Part:
    """A closed part.

    Attributes:
        name: in the store.
        records: sound records in it.
        bytes: its size.
        sha256: of its bytes, in hex.
    """

    name: str
    records: int
    bytes: int
    sha256: str


class NewerFormat(ValueError):
    """The manifest was written by a later version of this program."""


class Manifest:
    """The list of closed parts in a store, and what all of them belong to.

    Attributes:
        parts: the closed parts by name, in the order in which they were closed.
        header: JSON object that says what the parts belong to; None if there is no manifest.
        damage: one sentence if there is a file that cannot be read as a manifest, else "".
    """

    def __init__(self, store: Store, name: str):
        """Read the manifest, if there is one.

        Raises:
            NewerFormat: a later version has written it.
            OSError: it could not be read.
        """
        self._store = store
        self._name = name
        self.parts: dict[str, Part] = {}
        self.header: dict[str, Any] | None = None
        self.damage = ""
        try:
            with store.open(name) as file:
                data = file.read(LARGEST + 1)
        except FileNotFoundError:
            return
        try:
            self.header, self.parts = _decode(data)
        except NewerFormat as error:
            raise NewerFormat(f"{store.place(name)}: {error}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.damage = (
                f"{store.place(name)}: not a manifest ({error}); the parts are read without it, and"
                f" the next writer keeps it as {name}.damaged and makes another"
            )

    def add(self, parts: Iterable[Part], header: Mapping[str, Any]) -> None:
        """Enter parts, replacing entries of the same name, and write the manifest.

        A file that is no manifest is kept under another name.

        Raises:
            OSError: it could not be written; the one before it is intact.
        """
        self._set_damaged_aside()
        entries = self.parts | {part.name: part for part in parts}
        self._store.put(self._name, _encode(header, entries))
        self.header = dict(header)
        self.parts = entries

    def _set_damaged_aside(self) -> None:
        """Copy a file that is no manifest to another name, which is free."""
        if not self.damage:
            return
        with self._store.open(self._name) as file:
            data = file.read()
        number = 1
        while True:
            suffix = ".damaged" if number == 1 else f".damaged-{number}"
            try:
                self._store.put_if_absent(self._name + suffix, data)
            except FileExistsError:
                number += 1
            else:
                self.damage = ""
                return


def _encode(header: Mapping[str, Any], parts: Mapping[str, Part]) -> bytes:
    entries = [dataclasses.asdict(part) for part in parts.values()]
    body = {"format": FORMAT, "header": dict(header), "parts": entries}
    return (json.dumps({"crc32": _checksum(body)} | body, indent=1) + "\n").encode()


def _checksum(body: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(body, sort_keys=True).encode()):08x}"


def _decode(data: bytes) -> tuple[dict[str, Any], dict[str, Part]]:
    """Return header and parts of a manifest; a ValueError says why the bytes are none."""
    if not data:
        raise ValueError("the file is empty")
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    body = json.loads(data.decode())
    if not isinstance(body, dict):
        raise ValueError("a JSON object is expected")
    if body.pop("crc32", None) != _checksum(body):
        raise ValueError("the checksum differs")
    if body.get("format") != FORMAT:
        raise NewerFormat(
            f"format {body.get('format')!r}, and this version reads {FORMAT}; go on with the"
            " version that wrote it"
        )
    parts = [Part(**entry) for entry in body["parts"]]
    return body["header"], {part.name: part for part in parts}
