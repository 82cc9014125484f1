"""Standard streams on which a write never fails, and text that is safe to print.

A run goes on when the reader of its output is gone (`| head -1`), when a stream was closed before
it began (`>&-`), when the disk under a redirected stream is full, and on a terminal that cannot
show a character. This module imports no jax.
"""

from __future__ import annotations

import io
import os
import re
import select
import sys
from typing import Any, TextIO

# What a terminal obeys instead of showing it, or what reorders the text around it: C0 but for tab
# and newline, DEL, C1, bidirectional marks and overrides, line separators, halves of surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return `text` with control characters escaped as Python would: ESC becomes \\x1b."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def secure() -> None:
    """Replace the standard output and error of this process by streams that never fail.

    Call it before anything is opened: a file would get the number of a closed standard stream, and
    what a library prints there would end up in the file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # as standard streams are
    os.close(descriptor)
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, 2)


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a stream over `descriptor` that takes the place of the present one."""
    if isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _Lasting):
        assert stream is not None
        return stream
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(descriptor)),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
    )


class _Lasting(io.RawIOBase):
    """Writes to a descriptor; what it refuses is dropped."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self.name = {1: "<stdout>", 2: "<stderr>"}[descriptor]

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                return len(data)
