"""SIGTERM, as schedulers send it before they take a machine away: stop between two chunks, save
what is finished, end well.

A second SIGTERM ends the process at once.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import numpy as np

from prefixrl_jax.runtime.processes import agree

_received = _deferred = False


class Interrupted(Exception):
    """The process was asked to stop.

    What is finished is saved; the same command goes on from there.
    """


def listen() -> None:
    """From now on the first SIGTERM is noted, and the second ends the process."""
    signal.signal(signal.SIGTERM, _note)


def _note(*_: object) -> None:
    global _received
    _received = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def received() -> bool:
    """Whether any process was asked to stop. All processes must ask at the same points."""
    return bool(agree(_received, np.max))


def wanted() -> bool:
    """Whether this process was asked to stop, and it need not wait (`deferred`)."""
    return _received and not _deferred


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets what is inside finish, whatever arrives."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
