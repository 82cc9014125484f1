"""Check the layout of a GGUF file before the gguf package reads it.

The package believes every count and every length in the file, and makes Python objects by them.
Here the metadata is walked without keeping any of it: what does not fit into the file, or is larger
than any real model's, is refused.

Layout (all little-endian): magic, version, number of tensors, number of fields; each field a name,
a type and a value; each tensor a name, its dimensions, a type and an offset.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Bytes of a value of each type; STRING and ARRAY have lengths of their own.
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
# Beyond all real models: vocabularies have some 300,000 tokens, 400 layers some 5,000 tensors.
MAX_FIELDS = 10_000
MAX_TENSORS = 200_000
MAX_ENTRIES = 4_000_000  # of all arrays together
MAX_NAME = 1_000  # bytes of a field's or a tensor's name
MAX_TEXT = 16 * 2**20  # bytes of a string, such as the chat template
MAX_DIMENSIONS = 4


class _Damaged(ValueError):
    """The layout is not that of a GGUF file, or claims more than there is."""


def check_layout(path: Path) -> None:
    """Raise ValueError naming the file and what is wrong with it."""
    try:
        with path.open("rb") as file:
            _Walk(file, path.stat().st_size).check()
    except _Damaged as error:
        raise ValueError(f"{path}: not a readable GGUF file ({error})") from error


class _Walk:
    """One pass over the metadata of a file."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size
        self._entries = 0  # of the arrays so far

    def check(self) -> None:
        """Walk over header, fields and tensors."""
        if self._take(4, "the magic number") != MAGIC:
            raise _Damaged("it does not begin with GGUF")
        version = self._number("<I", "the version")
        if version not in VERSIONS:
            raise _Damaged(f"version {version}; {' and '.join(map(str, VERSIONS))} are accepted")
        tensors = self._count("tensors", MAX_TENSORS)
        fields = self._count("fields", MAX_FIELDS)
        for index in range(fields):
            name = self._name(f"the name of field {index}")
            self._skip_value(self._number("<I", f"the type of {name}"), name)
        for index in range(tensors):
            name = self._name(f"the name of tensor {index}")
            dimensions = self._number("<I", f"the dimensions of tensor {name}")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise _Damaged(f"tensor {name} has {dimensions} dimensions")
            self._check_elements(name, dimensions)
            self._skip(4 + 8, f"the type and the offset of tensor {name}")

    def _check_elements(self, name: str, dimensions: int) -> None:
        elements = 1
        for _ in range(dimensions):
            elements *= self._number("<Q", f"the dimensions of tensor {name}")
        # No type has fewer than 1.5 bits an element.
        if elements > self._size * 8:
            raise _Damaged(f"tensor {name} claims {elements} elements, the file has fewer")

    def _skip_value(self, value_type: int, name: str) -> None:
        """Pass over the value of a field."""
        if value_type in SCALAR_BYTES:
            self._skip(SCALAR_BYTES[value_type], f"field {name}")
        elif value_type == STRING:
            self._skip_text(f"field {name}")
        elif value_type == ARRAY:
            self._skip_array(name)
        else:
            raise _Damaged(f"field {name} is of the unknown type {value_type}")

    def _skip_array(self, name: str) -> None:
        entry_type = self._number("<I", f"field {name}")
        length = self._number("<Q", f"field {name}")
        self._entries += length
        if self._entries > MAX_ENTRIES:
            raise _Damaged(f"field {name} claims {length} entries; in all {MAX_ENTRIES} may be")
        if entry_type in SCALAR_BYTES:
            self._skip(length * SCALAR_BYTES[entry_type], f"field {name}")
        elif entry_type == STRING:
            for _ in range(length):
                self._skip_text(f"field {name}")
        else:
            raise _Damaged(f"field {name} is an array of the type {entry_type}")

    def _count(self, kind: str, largest: int) -> int:
        count = self._number("<Q", f"the number of {kind}")
        if count > largest:
            raise _Damaged(f"it claims {count} {kind}; at most {largest} are accepted")
        return count

    def _name(self, part: str) -> str:
        length = self._number("<Q", part)
        if length > MAX_NAME:
            raise _Damaged(f"{part} claims {length} bytes; at most {MAX_NAME} are accepted")
        name = self._take(length, part).decode("utf-8", errors="replace")
        if not name.isprintable():
            raise _Damaged(f"{part} has characters that cannot be printed")
        return name

    def _skip_text(self, part: str) -> None:
        length = self._number("<Q", part)
        if length > MAX_TEXT:
            raise _Damaged(f"{part} claims {length} bytes; at most {MAX_TEXT} are accepted")
        self._skip(length, part)

    def _number(self, form: str, part: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form), part))[0])

    def _take(self, count: int, part: str) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise _Damaged(f"it ends within {part}")
        return data

    def _skip(self, count: int, part: str) -> None:
        if self._file.tell() + count > self._size:
            raise _Damaged(f"it ends within {part}")
        self._file.seek(count, 1)
