"""An append-only log of samples and traces that survives a kill at any byte.

Whatever was flushed is still there when the log is opened again. A line that the kill has cut short
is removed and reported. This module imports no jax.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
import zlib
from collections.abc import Mapping
from typing import Any

SYNC_SECONDS = 2.0  # longest time for which flushed records may be missing on the disk


class Log:
    """An append-only file of JSON records, safe against kills, full disks and damaged bytes.

    Each line is the crc32 of the JSON (8 hex digits), a space, and the JSON. The first line is a
    header that says what the log belongs to. Only one writer may have the log open.

    Attributes:
        path: the file.
        records: the sound records that the file had when it was opened, in order, without the
            header; records appended later are not added.
        dropped: one sentence (file, line number, reason) for each damaged or torn line that the
            file had when it was opened.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]):
        """Open the log, or create it, and its directory, with this header.

        Raises:
            ValueError: the header in the file is unreadable or differs from `header`.
            OSError: the file cannot be written.
        """
        self.path = pathlib.Path(path)
        self.records: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self._buffer = bytearray()  # encoded records not yet flushed
        self._unsaved = 0  # number of records that the disk may not have
        if not self.path.exists():
            self._create(header)
        self._end = self._read(header)  # offset at which the next record is written
        self._file: int | None = os.open(self.path, os.O_RDWR)
        os.ftruncate(self._file, self._end)
        self._synced = self._end  # offset up to which the disk has the file
        self._synced_at = time.monotonic()

    def append(self, record: Mapping[str, Any]) -> None:
        """Buffer a record of JSON values until the next `flush`.

        Raises:
            ValueError: JSON cannot hold the record; NaN and infinity are not accepted either.
        """
        self._require_open()
        self._buffer += _encode(record, self.path)
        self._unsaved += 1

    def flush(self, wait: bool = True) -> None:
        """Write the buffered records to the file, and wait until the disk has them.

        Once written, they survive a kill of this process; once on the disk, also a power cut.

        Args:
            wait: False leaves the waiting to a later call, unless the last wait is more than
                SYNC_SECONDS ago.

        Raises:
            OSError: the records could not be written. They stay buffered, and the next flush
                writes them again at the same offset.
        """
        file = self._require_open()
        everything_synced = self._synced == self._end
        if not self._buffer and (everything_synced or not wait):
            return
        wait = wait or time.monotonic() - self._synced_at > SYNC_SECONDS
        failure = f"{self._unsaved} records were not saved in the log; those before them are intact"
        _write(file, self._buffer, self._end, self.path, failure, wait)
        self._end += len(self._buffer)
        if wait:
            self._synced = self._end
            self._synced_at = time.monotonic()
            self._unsaved = 0
        self._buffer.clear()

    def close(self) -> None:
        """Flush and close; does nothing if the log is closed already."""
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
        """Write a file that holds the header alone; it gets its name once the header is whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        line = _encode(header, self.path)
        failure = "the log could not be created"
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _write(file, line, 0, self.path, failure, wait=True)
        finally:
            os.close(file)
        os.replace(partial, self.path)
        sync(self.path.parent)

    def _read(self, header: Mapping[str, Any]) -> int:
        """Check the header and fill `records` and `dropped`.

        Returns:
            The offset in bytes at which the next record belongs.
        """
        with open(self.path, "rb") as file:
            first_line = file.readline()
            try:
                file_header = _decode(first_line)
            except ValueError as error:
                raise ValueError(
                    f"{self.path}, line 1: not the header of a log: {error}; move the file away"
                ) from error
            self._check_header(file_header, header)
            end = len(first_line)
            for number, line in enumerate(file, start=2):
                try:
                    self.records.append(_decode(line))
                except ValueError as error:
                    self.dropped.append(
                        f"{self.path}, line {number}: dropped {len(line)} bytes: {error}"
                    )
                    # A torn last line is overwritten. A damaged line before it stays in the file,
                    # so that the records after it keep their place.
                    if not line.endswith(b"\n"):
                        return end
                end += len(line)
        return end

    def _check_header(self, file_header: dict[str, Any], header: Mapping[str, Any]) -> None:
        """Raise a ValueError that names the differing keys unless the two headers are equal."""
        expected = _decode(_encode(header, self.path))  # as JSON returns it: tuples become lists
        if file_header == expected:
            return
        absent = "(absent)"
        differences = [
            f"{key}: {file_header.get(key, absent)!r} in the file,"
            f" {expected.get(key, absent)!r} here"
            for key in sorted(file_header.keys() | expected.keys())
            if (key in file_header) != (key in expected)
            or file_header.get(key) != expected.get(key)
        ]
        raise ValueError(
            f"{self.path}: the log was written under another header; {'; '.join(differences)}"
        )


def to_json(value: Any, path: pathlib.Path) -> str:
    """Return compact JSON.

    Raises:
        ValueError: JSON cannot hold the value; the message names `path`, for which it was meant.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot hold this, JSON values are accepted: {error}") from error


def _encode(record: Mapping[str, Any], path: pathlib.Path) -> bytes:
    text = to_json(dict(record), path).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Any:
    """Return the JSON value of a log line; a ValueError says what is wrong with the line."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is torn")
    text = line[9:-1]
    if line[:9] != b"%08x " % zlib.crc32(text):
        raise ValueError("the checksum differs")
    return json.loads(text)


def _write(
    file: int, data: bytes | bytearray, offset: int, path: pathlib.Path, failure: str, wait: bool
) -> None:
    """Write all of `data` at `offset`, and wait until the disk has it if `wait`.

    Args:
        file: the descriptor.
        data: the bytes to write.
        offset: in the file, in bytes.
        path: of the file, named in an error.
        failure: what is lost, said in an error.
        wait: whether to wait for the disk.

    Raises:
        OSError: the system's error with `path` and `failure`.
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
    """Wait until the disk has the bytes of a file, or the entries of a directory."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
