"""Stop cleanly on SIGINT (Ctrl-C) and on SIGTERM, which schedulers send.

Until `listen` is called nothing is to be saved, and a signal ends the process with one line. After
it, the first signal sets a flag. The code that samples looks at it between two chunks and the
training loop between two steps; what is finished is saved before the run ends. A second signal
ends the process at once.

A thread answers the signals. Python calls a handler only between two instructions of the main
thread, which may be inside a compilation for minutes. This module imports no jax at the top.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HEARD = "stopping after what is being computed; a second signal ends it at once"

# A signal arrives for the process as a whole, so its state is global.
_received = False
_deferred = False
LastWords = tuple[str, int | None]  # a line and a status; None: that of a shell for the signal
_last_words: LastWords | None = None  # while nothing is to be saved
_wakeup: socket.socket | None = None  # Python writes the number of each signal here


class Interrupted(Exception):
    """The process was asked to stop.

    What is finished is saved; the same command continues from there.
    """


def end_at_once(last_words: LastWords) -> None:
    """From now on, until `listen`, a signal prints this line and ends the process."""
    global _last_words
    _last_words = last_words
    _install()


def listen() -> None:
    """From now on the first signal sets the flag, and the second ends the process.

    Call it again after anything that may have installed handlers of its own, such as
    `processes.join`.
    """
    global _last_words
    _last_words = None
    _install()


def _install() -> None:
    global _wakeup
    if _wakeup is None:
        reader, _wakeup = socket.socketpair()
        _wakeup.setblocking(False)
        signal.set_wakeup_fd(_wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    for number in SIGNALS:  # also where a script's `&` has made SIGINT one that is ignored
        signal.signal(number, _on_signal)


def _on_signal(*_: object) -> None:
    """Set the flag, which the thread does too: whichever of them comes first."""
    global _received
    _received = True


def _watch(reader: socket.socket) -> None:
    """Answer signals, whose numbers are read from `reader`, as long as the process lives."""
    global _received
    heard = False
    while numbers := reader.recv(1):
        number = numbers[0]
        if number not in SIGNALS:
            continue
        if _last_words is not None:
            line, status = _last_words
            _end(line, 128 + number if status is None else status)
        if heard:
            _end("ended at once, as asked twice", 128 + number)
        heard = _received = True
        if os.isatty(2):
            _write(2, f"\n{HEARD}")


def _end(line: str, status: int) -> None:
    _write(2 if status else 1, line)
    os._exit(status)  # not sys.exit, which would end this thread alone


def _write(descriptor: int, line: str) -> None:
    # Not through sys.stdout, whose lock the main thread may hold.
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{line}\n".encode())


def received() -> bool:
    """Return whether any process was asked to stop.

    All processes must call this at the same points.
    """
    import numpy as np

    from prefixrl_jax.runtime.processes import agree

    return bool(agree(_received, np.max))


def wanted() -> bool:
    """Return whether this process was asked to stop and is not inside `deferred`."""
    return _received and not _deferred


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let the body run to its end: inside, `wanted` is False whatever signal arrives."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
