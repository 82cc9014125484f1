"""The append-only log of samples and traces: what was flushed survives a kill at any byte, what was
torn is cut off and named.

This module imports no jax.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
import zlib
from collections.abc import Mapping
from typing import Any

SYNC_SECONDS = 2.0


class Log:
    """An append-only file of JSON records, one a line: crc32 of the JSON (8 hex digits), a space,
    the JSON.

    The first line is a header that says what the log belongs to. One writer at a time; safe against
    a kill, a full disk and damaged bytes.

    Attributes:
      path: the file.
      records: the sound records found when the log was opened, in order, without the header and
          later appends.
      dropped: one sentence for each damaged or torn line found when the log was opened (file, line
          number, why).
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]):
        """Opens the log, or creates it (and its directory) with this header.

        Raises ValueError if the file's header is unreadable or differs from `header`, OSError if it
        cannot be written.
        """
        self.path = pathlib.Path(path)
        self.records: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self._buffer = bytearray()
        self._unsaved = 0  # records that the disk may not have
        if not self.path.exists():
            self._create(header)
        self._end = self._read(header)
        self._file: int | None = os.open(self.path, os.O_RDWR)
        os.ftruncate(self._file, self._end)
        self._synced, self._synced_at = self._end, time.monotonic()

    def append(self, record: Mapping[str, Any]) -> None:
        """Buffers a record of JSON values; raises ValueError for anything JSON cannot hold (NaN and
        infinity included).
        """
        self._require_open()
        self._buffer += _encode(record, self.path)
        self._unsaved += 1

    def flush(self, wait: bool = True) -> None:
        """Hands the buffered records to the system, where they survive a kill of this process, and
        waits until the disk has them.

        wait=False leaves the waiting to a later call, but not for longer than SYNC_SECONDS: what a
        power cut can cost. Raises OSError if it cannot; the records stay buffered, and a later
        flush writes them again in the same place.
        """
        file = self._require_open()
        if not self._buffer and (self._synced == self._end or not wait):
            return
        wait = wait or time.monotonic() - self._synced_at > SYNC_SECONDS
        failure = f"{self._unsaved} records were not saved in the log; those before them are intact"
        _write(file, self._buffer, self._end, self.path, failure, wait)
        self._end += len(self._buffer)
        if wait:
            self._synced, self._synced_at, self._unsaved = self._end, time.monotonic(), 0
        self._buffer.clear()

    def close(self) -> None:
        """Flushes and closes; closing twice is harmless."""
        if self._file is None:
            return
        try:
            self.flush()
        finally:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path}: the log is closed")
        return self._file

    def _create(self, header: Mapping[str, Any]) -> None:
        """The file appears under its name only once its header is whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _write(
                file,
                _encode(header, self.path),
                0,
                self.path,
                "the log could not be created",
                wait=True,
            )
        finally:
            os.close(file)
        os.replace(partial, self.path)
        sync(self.path.parent)

    def _read(self, header: Mapping[str, Any]) -> int:
        """Fills records and dropped. Returns the offset in bytes at which the next record
        belongs.
        """
        with open(self.path, "rb") as file:
            first = file.readline()
            try:
                found = _decode(first)
            except ValueError as error:
                raise ValueError(
                    f"{self.path}, line 1: not the header of a log: {error}; move the file away"
                ) from error
            self._check_header(found, header)
            end = len(first)
            for number, line in enumerate(file, start=2):
                try:
                    self.records.append(_decode(line))
                except ValueError as error:
                    self.dropped.append(
                        f"{self.path}, line {number}: dropped {len(line)} bytes: {error}"
                    )
                    if not line.endswith(b"\n"):
                        return end
                end += len(line)
        return end

    def _check_header(self, found: dict[str, Any], header: Mapping[str, Any]) -> None:
        expected = _decode(_encode(header, self.path))
        if found == expected:
            return
        absent = "(absent)"
        differences = [
            f"{key}: {found.get(key, absent)!r} in the file, {expected.get(key, absent)!r} here"
            for key in sorted(found.keys() | expected.keys())
            if (key in found, found.get(key)) != (key in expected, expected.get(key))
        ]
        raise ValueError(
            f"{self.path}: the log was written under another header; {'; '.join(differences)}"
        )


def to_json(value: Any, path: pathlib.Path) -> str:
    """Compact JSON; raises ValueError, naming the file it was meant for, for anything JSON cannot
    hold.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot hold this, JSON values are accepted: {error}") from error


def _encode(record: Mapping[str, Any], path: pathlib.Path) -> bytes:
    text = to_json(dict(record), path).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Any:
    """The JSON value of a log line; raises ValueError saying what is wrong with it."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is torn")
    text = line[9:-1]
    if line[:9] != b"%08x " % zlib.crc32(text):
        raise ValueError("the checksum differs")
    return json.loads(text)


def _write(
    file: int, data: bytes | bytearray, offset: int, path: pathlib.Path, failure: str, wait: bool
) -> None:
    """Writes all of data at offset, and waits until the disk has it; an OSError names the file and
    says what is lost.
    """
    written = 0
    try:
        while written < len(data):  # one call may write only a part
            written += os.pwrite(file, data[written:], offset + written)
        if wait:
            os.fsync(file)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {failure}", str(path)) from error


def sync(path: pathlib.Path) -> None:
    """Waits until the disk has a file's bytes, or a directory's entries."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
