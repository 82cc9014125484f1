"""Where files are kept by name: the operations that a log needs, and the local disk.

An object store has `list`, `open`, `put` and `put_if_absent`; it can neither append to a file nor
rename one, and what is written with one call is there as a whole or not at all. Whatever is built
on these four works on both. This module imports no jax.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

# What a file system answers that has no hard links.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Appender(Protocol):
    """A file that grows."""

    def write(self, data: bytes | bytearray, offset: int) -> None:
        """Write all of `data` at `offset`; it then survives a kill of this process."""

    def sync(self) -> None:
        """Wait until the disk has what was written; it then survives a power cut."""

    def close(self) -> None:
        """Close the file."""


class Store(Protocol):
    """Files by name; a name may have a folder in it, as in "log/part-000001.jsonl"."""

    def place(self, name: str) -> str:
        """Return what a person calls the file: its path or address."""

    def list(self, prefix: str) -> list[str]:
        """Return the sorted names that begin with `prefix`, in its folder."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading from its beginning.

        Raises:
            FileNotFoundError: there is none of this name.
        """

    def put(self, name: str, data: bytes) -> None:
        """Write a file, or replace it as a whole; when this returns it survives a power cut."""

    def put_if_absent(self, name: str, data: bytes) -> None:
        """Write a new file as `put` does; of several writers one succeeds.

        Raises:
            FileExistsError: there is one of this name.
        """


@runtime_checkable
class AppendingStore(Store, Protocol):
    """A store whose files can grow."""

    def extend(self, name: str) -> Appender:
        """Open a file for appending."""


class LocalStore:
    """A folder on a local disk, or on a file system that behaves like one."""

    def __init__(self, root: Path):
        """Keep the files below `root`; folders are made when something is written."""
        self._root = root

    def place(self, name: str) -> str:
        """Return the file's path."""
        return str(self._root / name)

    def list(self, prefix: str) -> list[str]:
        """Return the sorted names of the files that begin with `prefix`, in its folder."""
        folder, slash, beginning = prefix.rpartition("/")
        try:
            with os.scandir(self._root / folder) as entries:
                names = [e.name for e in entries if e.name.startswith(beginning) and e.is_file()]
        except FileNotFoundError:
            return []
        return sorted(f"{folder}{slash}{name}" for name in names)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        return open(self._root / name, "rb")

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a file by way of another name."""
        with self._partial(name, data) as partial:
            os.replace(partial, self._root / name)
        sync((self._root / name).parent)

    def put_if_absent(self, name: str, data: bytes) -> None:
        """Write a new file; a link fails where a rename would replace what another has written."""
        target = self._root / name
        with self._partial(name, data) as partial:
            try:
                os.link(partial, target)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                _write_whole(target, data, os.O_EXCL)  # a kill may leave a beginning of it
        sync(target.parent)

    def extend(self, name: str) -> Appender:
        """Open a file for appending."""
        return _LocalAppender(self._root / name)

    @contextlib.contextmanager
    def _partial(self, name: str, data: bytes) -> Iterator[Path]:
        """A file of this content under a name of this process alone, removed in the end."""
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            _write_whole(partial, data, os.O_TRUNC)
            yield partial
        except OSError as error:  # named after the file that was wanted
            raise OSError(error.errno, error.strerror, str(target)) from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(partial)


class _LocalAppender:
    """A file of which the writer says at what offset to go on."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR)

    def write(self, data: bytes | bytearray, offset: int) -> None:
        written = 0
        while written < len(data):  # one call may write only a part
            written += os.pwrite(self._file, data[written:], offset + written)

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _write_whole(path: Path, data: bytes, flag: int) -> None:
    """Write a file and wait until the disk has it; `flag` says what if there is one."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o644)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written:], written)
        os.fsync(file)
    finally:
        os.close(file)


def sync(path: Path) -> None:
    """Wait until the disk has the bytes of a file, or the entries of a directory."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
