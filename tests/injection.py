"""Counts the calls by which Python code touches the files of a work directory, and makes one fail.

A site is a line of the package, or of Orbax where no line of the package is nearer, with what it
does there: "prefixrl_jax/runtime/files.py:18 os.replace". What C++ and Rust write by themselves is
not seen; safetensors and tokenizers, which Python calls for a whole file, are wrapped.
"""

from __future__ import annotations

import _io
import builtins
import collections
import errno
import functools
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.artefacts import inventory

ROOT = Path(__file__).parent.parent
PACKAGE = f"{ROOT / 'prefixrl_jax'}{os.sep}"
ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"

# Functions of os whose first argument is a path or a descriptor.
OF_OS = (
    "open mkdir unlink remove rmdir truncate stat lstat scandir listdir chmod utime statvfs"
    " rename replace link symlink write pwrite read pread fsync fdatasync ftruncate"
)


class Fault(NamedTuple):
    """Which call of a site fails, from 1, and with which error number."""

    site: str
    number: int
    error: int


class Injector:
    """Counts the calls of every site in this process; `install` begins to.

    Attributes:
        calls: so far, by site.
    """

    def __init__(self, workdir: Path, out: Path, fault: Fault | None = None):
        """Watch the files below `workdir`.

        Args:
            workdir: an absolute path without links.
            out: where the fault is noted when it happens, with the files that were whole then.
            fault: what is to fail, if anything.
        """
        self.calls: collections.Counter[str] = collections.Counter()
        self._workdir = str(workdir)
        self._out = out
        self._fault = fault
        self._written: collections.Counter[str] = collections.Counter()  # open files, by path
        self._lock = threading.RLock()
        self._at_work = threading.local()  # whether this thread is inside the injector
        self._open = io.open

    def install(self) -> None:
        """Replace the functions that touch files, for the rest of the process."""
        for name in OF_OS.split():
            self._replace_os(name)
        builtins.open = io.open = _io.open = self._open_file  # type: ignore[assignment]
        import safetensors.numpy
        import transformers
        from safetensors import SafetensorError

        self._replace_library(safetensors.numpy, "serialize_file", "filename", SafetensorError)
        self._replace_library(
            transformers.PreTrainedTokenizerFast,
            "_save_pretrained",
            "save_directory",
            Exception,  # as tokenizers raises it
        )

    def _replace_os(self, name: str) -> None:
        function = getattr(os, name)

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            # Without an argument the directory is the present one.
            path = self._path(args[0] if args else kwargs.get("path", "."), kwargs.get("dir_fd"))
            if path is not None:
                half = None
                if name in ("write", "pwrite"):
                    descriptor, data, *offset = args
                    half = functools.partial(
                        function, descriptor, bytes(data)[: len(data) // 2], *offset
                    )
                self._touch(f"os.{name}", path, half)
            return function(*args, **kwargs)

        setattr(os, name, counted)
        for functions in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if function in functions:
                functions.add(counted)

    def _replace_library(
        self,
        owner: Any,
        name: str,
        argument: str,
        error: type[Exception],
    ) -> None:
        """Wrap a function that writes a whole file in another language.

        Args:
            owner, name: of the function.
            argument: its second one, which is the path.
            error: what it raises.
        """
        function = getattr(owner, name)

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            path = self._path(kwargs[argument] if argument in kwargs else args[1])
            if path is not None:
                try:
                    self._touch(name, path)
                except OSError as failure:
                    raise error(f"{failure.strerror} (os error {failure.errno})") from None
            return function(*args, **kwargs)

        setattr(owner, name, counted)

    def _open_file(  # noqa: PLR0913  that is what open takes
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        """As `open`; the calls of the file that is returned are counted too."""
        path = self._path(file)
        if path is None:
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self._touch("open", path)
        raw = _File(self, path, file, mode.replace("t", "").replace("b", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffer: Any
        if "+" in mode:
            buffer = io.BufferedRandom(raw, size)
        elif "r" in mode:
            buffer = io.BufferedReader(raw, size)
        else:
            buffer = io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(
            buffer, io.text_encoding(encoding), errors, newline, line_buffering=buffering == 1
        )

    def _path(self, file: Any, directory: int | None = None) -> str | None:
        """The absolute path of a path or descriptor, or None if it is not in the work directory."""
        if getattr(self._at_work, "yes", False):
            return None
        if isinstance(file, int):
            path = _readlink(f"/proc/self/fd/{file}")
        else:
            path = os.fsdecode(file)
            if not os.path.isabs(path):
                before = (
                    os.getcwd() if directory is None else _readlink(f"/proc/self/fd/{directory}")
                )
                path = os.path.join(before, path)
        inside = path == self._workdir or path.startswith(self._workdir + os.sep)
        return path if inside else None

    def _touch(self, action: str, path: str, half: Callable[[], Any] | None = None) -> None:
        """Count a call, and fail if it is the one that is to fail; `half` is done before."""
        site = f"{_site()} {action}"
        with self._lock:
            self.calls[site] += 1
            fault = self._fault
            if fault is None or fault[:2] != (site, self.calls[site]):
                return
            self._at_work.yes = True
            try:
                self._note(path)
                if half is not None and fault.error == errno.ENOSPC:
                    half()
            finally:
                self._at_work.yes = False
        raise OSError(fault.error, os.strerror(fault.error), path)

    def _note(self, path: str) -> None:
        """Write down which file the fault is at and which files are whole."""
        files = inventory(Path(self._workdir))
        for name in self._written:
            if self._written[name] > 0:
                files.pop(os.path.relpath(name, self._workdir), None)
        with self._open(self._out, "w") as file:
            json.dump({"path": path, "files": files}, file)


class _File(io.FileIO):
    """A file whose reads and writes are counted."""

    def __init__(
        self, injector: Injector, path: str, file: Any, mode: str, closefd: bool, opener: Any
    ):
        super().__init__(file, mode, closefd, opener)
        self._injector = injector
        self._named = path
        if self.writable():
            injector._written[path] += 1

    def write(self, data: Any) -> int:
        data = bytes(data)
        half = functools.partial(super().write, data[: len(data) // 2])
        self._injector._touch("write", self._named, half)
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self._injector._touch("truncate", self._named)
        return super().truncate(size)

    def read(self, size: int = -1) -> bytes:
        self._injector._touch("read", self._named)
        return super().read(size)

    def readall(self) -> bytes:
        self._injector._touch("read", self._named)
        return super().readall()

    def readinto(self, buffer: Any) -> int:
        self._injector._touch("read", self._named)
        return super().readinto(buffer)

    def close(self) -> None:
        if not self.closed and self.writable():
            self._injector._written[self._named] -= 1
        super().close()


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _site() -> str:
    """The innermost line of the package or of Orbax that is being executed in this thread."""
    frame = sys._getframe(2)
    outside = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{name.removeprefix(f'{ROOT}{os.sep}')}:{frame.f_lineno}"
        if ORBAX in name:
            return f"orbax/checkpoint/{name.rpartition(ORBAX)[2]}:{frame.f_lineno}"
        if not outside and f"{os.sep}site-packages{os.sep}" in name:
            outside = f"{name.rpartition('site-packages' + os.sep)[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return outside or "elsewhere"
