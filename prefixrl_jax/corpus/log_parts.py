"""The parts of a log: how a line is encoded, how a part is read, and how one is written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

from prefixrl_jax.runtime.parts import Part
from prefixrl_jax.runtime.store import Appender, AppendingStore, Store

LONGEST_LINE = 64 << 20  # bytes; a damaged file without line ends is read in pieces of this size
MOST_REPORTED = 10  # damaged lines of a part that are told one by one


def to_json(value: Any, path: pathlib.Path) -> str:
    """Return compact JSON.

    Raises:
        ValueError: JSON cannot hold the value; the message names `path`, for which it was meant.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot hold this, JSON values are accepted: {error}") from error


def encode(record: Mapping[str, Any], path: pathlib.Path) -> bytes:
    """Return the line of a record; raise ValueError as `to_json` does."""
    text = to_json(dict(record), path).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def decode(line: bytes) -> dict[str, Any]:
    """Return the record of a line; a ValueError says what is wrong with the line."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is torn")
    text = line[9:-1]
    if line[:9] != b"%08x " % zlib.crc32(text):
        raise ValueError("the checksum differs")
    try:
        record = _DECODER.decode(text.decode())
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("a JSON object is expected")
    return record


@contextlib.contextmanager
def reading(store: Store, name: str) -> Iterator[BinaryIO]:
    """Open a part for reading; an OSError of a read names it."""
    try:
        with store.open(name) as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: the log could not be read, and nothing in it was changed",
            store.place(name),
        ) from error


class PartReader:
    """One pass over a part, which gathers what is damaged in it and what a manifest says of it."""

    def __init__(self, store: Store, name: str, header: Mapping[str, Any], listed: Part | None):
        """Read the part of this name.

        Args:
            store: where it is.
            name: of the part.
            header: the log's; the records of a part with another one are left out.
            listed: what the manifest says of the part, if it is closed.
        """
        self._store = store
        self._name = name
        self._place = store.place(name)
        self._header = header
        self._listed = listed
        self._damage: list[str] = []
        self._damaged = 0  # lines
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._records = 0
        self._missing = False

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the sound records with the number of their line.

        Raises:
            OSError: the part cannot be read.
        """
        try:
            with reading(self._store, self._name) as file:
                yield from self._records_in(file)
        except FileNotFoundError:
            if self._listed is None:
                raise
            self._missing = True

    def _records_in(self, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        is_ours = True
        while line := file.readline(LONGEST_LINE):
            number += 1
            self._sha256.update(line)
            self._bytes += len(line)
            try:
                record = decode(line)
            except ValueError as error:
                self.report(number, f"{len(line)} bytes: {error}")
                continue
            if number == 1:
                is_ours = record == self._header
                if not is_ours:
                    self.report(1, "this part and all its records: it has another log's header")
            elif is_ours:
                self._records += 1
                yield number, record
        if not number:
            self._damage.append(f"{self._place}: empty; there are no records in it")

    def report(self, line: int, reason: str) -> None:
        """Note why a line was dropped."""
        self._damaged += 1
        if self._damaged <= MOST_REPORTED:
            self._damage.append(f"{self._place}, line {line}: dropped {reason}")

    def part(self) -> Part:
        """Return what the part holds; the pass must have come to its end."""
        return Part(self._name, self._records, self._bytes, self._sha256.hexdigest())

    def findings(self) -> list[str]:
        """Return a sentence for each thing that is wrong with the part, after the pass.

        What was so already when the part was closed was told then.
        """
        if self._missing:
            assert self._listed is not None
            return [
                f"{self._place}: missing; its {self._listed.records} records are lost, and what is"
                " still needed of them is drawn again"
            ]
        part = self.part()
        if part == self._listed:
            return []
        findings = list(self._damage)
        if self._damaged > MOST_REPORTED:
            findings.append(f"{self._place}: dropped {self._damaged} lines in all")
        if self._listed and part.records != self._listed.records:
            findings.append(
                f"{self._place}: has changed since it was closed; {part.records} of its"
                f" {self._listed.records} records are sound"
            )
        elif self._listed and not findings:
            findings.append(
                f"{self._place}: has changed since it was closed; all its records are sound"
            )
        return findings


class PartWriter:
    """Writes the parts of one writer: each begins with the header and has a number of its own.

    Where files can grow, a part is begun and appended to. Where they cannot, every write that is
    waited for makes a small part, which is closed at once.

    Attributes:
        unsynced: number of records that were written and that the disk may not have.
    """

    def __init__(self, store: Store, folder: str, header_line: bytes, after: int):
        """Write parts into the folder `folder` of the store, with numbers above `after`."""
        self._store = store
        self._folder = folder
        self._header_line = header_line
        self._number = after
        self._closed: list[Part] = []
        self._file: Appender | None = None  # of the part that is open
        self._end = 0  # offset in it at which the next record is written
        self._records = 0
        self._sha256 = hashlib.sha256()
        self.unsynced = 0

    @property
    def size(self) -> int:
        """Bytes of the parts that `finish` would return."""
        return self._end + sum(part.bytes for part in self._closed)

    @property
    def place(self) -> str:
        """What a person calls the part that was begun last, or the one that comes first."""
        return self._store.place(self._name(max(self._number, 1)))

    def write(self, lines: bytes, count: int, wait: bool) -> bool:
        """Write encoded records.

        Args:
            lines: the records; may be empty.
            count: their number.
            wait: whether to wait until the disk has these and all before them.

        Returns:
            Whether they were written; else they must be handed over again.

        Raises:
            OSError: they could not be written. To try again writes them at the same place.
        """
        if not isinstance(self._store, AppendingStore):
            if wait:
                self._put(lines, count)
            return wait
        if self._file is None:
            self._begin(self._store)
        assert self._file is not None
        self._file.write(lines, self._end)
        if wait:
            self._file.sync()
        self._sha256.update(lines)
        self._end += len(lines)
        self._records += count
        self.unsynced = 0 if wait else self.unsynced + count
        return True

    def finish(self) -> list[Part]:
        """Close the part that is open, if any; return all parts closed since the last call.

        Raises:
            OSError: the disk could not take what was written.
        """
        if self._file is not None:
            if self.unsynced:
                self.write(b"", 0, wait=True)
            name = self._name(self._number)
            self._closed.append(Part(name, self._records, self._end, self._sha256.hexdigest()))
            self.release()
        closed = self._closed
        self._closed = []
        return closed

    def release(self) -> None:
        """Close the file that is open; the next write begins another part."""
        file = self._file
        self._file = None
        self._end = 0
        if file is not None:
            file.close()

    def _begin(self, store: AppendingStore) -> None:
        self._create(self._header_line)
        self._file = store.extend(self._name(self._number))
        self._end = len(self._header_line)
        self._sha256 = hashlib.sha256(self._header_line)
        self._records = 0

    def _put(self, lines: bytes, count: int) -> None:
        """Write a part of its own."""
        data = self._header_line + lines
        self._create(data)
        digest = hashlib.sha256(data).hexdigest()
        self._closed.append(Part(self._name(self._number), count, len(data), digest))

    def _create(self, data: bytes) -> None:
        """Create the part with the next number that is free."""
        while True:
            self._number += 1
            try:
                self._store.put_if_absent(self._name(self._number), data)
            except FileExistsError:
                continue  # another writer has taken the number
            return

    def _name(self, number: int) -> str:
        return f"{self._folder}/part-{number:06d}.jsonl"
