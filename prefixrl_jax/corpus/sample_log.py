"""A log of samples and traces that survives a kill at any byte.

Whatever was flushed is still there when the log is opened again. The log is a folder of parts; a
writer appends to the part that it has begun itself and to no other, and no part is ever changed or
removed later. This module imports no jax.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prefixrl_jax.corpus.log_parts import (
    LONGEST_LINE,
    PartReader,
    PartWriter,
    decode,
    encode,
    reading,
)
from prefixrl_jax.corpus.log_parts import to_json as to_json  # the dataset uses it too
from prefixrl_jax.runtime.parts import Manifest, Part
from prefixrl_jax.runtime.store import LocalStore, Store
from prefixrl_jax.runtime.store import sync as sync  # the dataset uses it too

SYNC_SECONDS = 2.0  # longest time for which flushed records may be missing on the disk
PART_BYTES = 32 << 20  # a part that has reached this size is closed

PART = re.compile(r"part-(\d{6,})\.jsonl")


class Log:
    """A log of JSON records, safe against kills, full disks and damaged bytes.

    It is the folder `path` of files part-000001.jsonl, part-000002.jsonl, ... Each line is the
    crc32 of a JSON object (8 hex digits), a space, and the JSON. The first line of each part is a
    header that says what the log belongs to. manifest.json lists the closed parts with their
    checksums. The one file `path`.jsonl that version 0.1.0 wrote is read as the first part.

    Opening and reading write nothing. The first flush begins a new part; it is closed when it has
    `part_bytes`, and when the log is closed. Several writers cannot damage each other's parts.

    Attributes:
        path: the folder.
        dropped: one sentence (file, line number, reason) for each damaged line, and each part that
            is missing or has changed, that the last pass over the records has met. What was damaged
            already when its part was closed is not told again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Mapping[str, Any],
        store: Store | None = None,
        part_bytes: int = PART_BYTES,
    ):
        """Open the log with this header; there need not be one yet.

        Args:
            path: the folder; with the ending .jsonl, the folder of that name without it.
            header: JSON object.
            store: where the folder is; the local disk by default.
            part_bytes: size at which a part is closed.

        Raises:
            ValueError: the header of a part is unreadable or differs from `header`.
            OSError: a file cannot be read.
        """
        path = pathlib.Path(path)
        self.path = path.with_suffix("") if path.suffix == ".jsonl" else path
        self.dropped: list[str] = []
        self._store: Store = store or LocalStore(self.path.parent)
        header_line = encode(header, self.path)
        self._header = decode(header_line)  # as JSON returns it: tuples become lists
        self._manifest = Manifest(self._store, f"{self.path.name}/manifest.json")
        if self._manifest.header is not None:
            self._check_header(self._manifest.header, f"{self.path.name}/manifest.json")
        names = self._part_names()
        self._unlisted = [name for name in names if name not in self._manifest.parts]
        for name in self._unlisted:
            self._check_unlisted(name)
        # What there is to read, with what the manifest says of it.
        self._at_opening: dict[str, Part | None] = dict.fromkeys(names) | self._manifest.parts
        self._scanned: dict[str, Part] = {}  # unlisted parts that have been read to the end
        last = max(map(self._number, [*names, *self._manifest.parts]), default=0)
        self._writer = PartWriter(self._store, self.path.name, header_line, last)
        self._part_bytes = part_bytes
        self._buffer = bytearray()  # encoded records not yet flushed
        self._buffered = 0  # their number
        self._is_open = True
        self._synced_at = time.monotonic()

    # --- reading

    @property
    def records(self) -> Iterator[dict[str, Any]]:
        """The sound records that the log had when it was opened, in order, read from the files.

        Each use is another pass; `dropped` tells what the last one has met.
        """
        return (record for _, _, record in self._pass())

    def read(self, take: Callable[[dict[str, Any]], None]) -> None:
        """Call `take` with each of `records`; one for which it raises ValueError is dropped."""
        for part, line, record in self._pass():
            try:
                take(record)
            except ValueError as error:
                part.report(line, str(error))

    def _pass(self) -> Iterator[tuple[PartReader, int, dict[str, Any]]]:
        """Yield each record with the part and the line it stands in; fill `dropped`."""
        self.dropped = [self._manifest.damage] if self._manifest.damage else []
        for name, listed in self._at_opening.items():
            part = PartReader(self._store, name, self._header, listed)
            for line, record in part.records():
                yield part, line, record
            self.dropped += part.findings()
            if listed is None:
                self._scanned[name] = part.part()

    # --- writing

    def append(self, record: Mapping[str, Any]) -> None:
        """Buffer a record of JSON values until the next `flush`.

        Raises:
            ValueError: JSON cannot hold the record; NaN and infinity are not accepted either.
        """
        self._require_open()
        self._buffer += encode(record, self.path)
        self._buffered += 1

    def flush(self, wait: bool = True) -> None:
        """Write the buffered records, and wait until the disk has them.

        Once written, they survive a kill of this process; once on the disk, also a power cut. A
        store without appending gets them as a part of their own, and only when it is waited for.

        Args:
            wait: False leaves the waiting to a later call, unless the last wait is more than
                SYNC_SECONDS ago.

        Raises:
            OSError: the records could not be written. They stay buffered, and the next flush
                writes them again at the same offset.
        """
        self._require_open()
        if not self._buffer and not (wait and self._writer.unsynced):
            return
        wait = wait or time.monotonic() - self._synced_at > SYNC_SECONDS
        unsaved = self._buffered + self._writer.unsynced
        failure = f"{unsaved} records were not saved in the log; those before them are intact"
        with _failing(failure, self._writer):
            self._list_unlisted()
            if self._writer.write(bytes(self._buffer), self._buffered, wait):
                self._buffer.clear()
                self._buffered = 0
        if wait:
            self._synced_at = time.monotonic()
        if self._writer.size >= self._part_bytes:
            self._close_part()

    def close(self) -> None:
        """Flush, close the part and list it; does nothing if the log is closed already.

        Raises:
            OSError: the records or the manifest could not be written.
        """
        if not self._is_open:
            return
        try:
            self.flush()
            self._close_part()
        finally:
            self._writer.release()
            self._is_open = False

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if not self._is_open:
            raise ValueError(f"{self.path}: the log is closed")

    def _close_part(self) -> None:
        """Close this writer's part, if it has begun one, and list it."""
        with _failing("the part of the log was not closed; its records are intact", self._writer):
            if parts := self._writer.finish():
                self._manifest.add(parts, self._header)

    def _list_unlisted(self) -> None:
        """Close the parts of earlier writers, as they are; nobody goes on with them."""
        if not self._unlisted and not self._manifest.damage:
            return
        parts = []
        for name in self._unlisted:
            if name not in self._scanned:
                reader = PartReader(self._store, name, self._header, None)
                for _ in reader.records():
                    pass
                self._scanned[name] = reader.part()
            parts.append(self._scanned[name])
        self._manifest.add(parts, self._header)
        self._unlisted = []

    # --- opening

    @property
    def _earlier_file(self) -> str:
        """Name of the file that was the whole log in version 0.1.0."""
        return f"{self.path.name}.jsonl"

    def _part_names(self) -> list[str]:
        """Return the names of the parts in the store: the earlier file, then by number."""
        parts = [name for name in self._store.list(f"{self.path.name}/") if self._number(name)]
        earlier = [n for n in self._store.list(self._earlier_file) if n == self._earlier_file]
        return earlier + sorted(parts, key=self._number)

    def _number(self, name: str) -> int:
        """Return the number of a part, or 0 for any other file."""
        match = PART.fullmatch(name.removeprefix(f"{self.path.name}/"))
        return int(match[1]) if match else 0

    def _check_unlisted(self, name: str) -> None:
        """Check the header of a part that no manifest vouches for.

        A part without a whole line is no error: its writer was killed while it began it, or the
        disk was full. Nothing can be read in it.
        """
        with reading(self._store, name) as file:
            first_line = file.readline(LONGEST_LINE)
            if not first_line.endswith(b"\n") and len(first_line) < LONGEST_LINE:
                return
        try:
            part_header = decode(first_line)
        except ValueError as error:
            raise ValueError(
                f"{self._store.place(name)}, line 1: not the header of a log: {error}; move the"
                " file away, and the samples in it are drawn again"
            ) from error
        self._check_header(part_header, name)

    def _check_header(self, header: Mapping[str, Any], name: str) -> None:
        """Raise a ValueError that names the differing keys unless this is the log's header."""
        if header != self._header:
            raise ValueError(
                f"{self._store.place(name)}: the log was written under another header;"
                f" {_differences(header, self._header)}"
            )


def _differences(header: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    absent = "(absent)"
    return "; ".join(
        f"{key}: {header.get(key, absent)!r} in the file, {expected.get(key, absent)!r} here"
        for key in sorted(header.keys() | expected.keys())
        if (key in header) != (key in expected) or header.get(key) != expected.get(key)
    )


@contextlib.contextmanager
def _failing(failure: str, writer: PartWriter) -> Iterator[None]:
    """Say in an OSError what follows from it, and which file it was."""
    try:
        yield
    except OSError as error:
        message = f"{error.strerror}: {failure}"
        raise OSError(error.errno, message, error.filename or writer.place) from error
