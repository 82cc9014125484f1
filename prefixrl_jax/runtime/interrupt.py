"""Stop cleanly on SIGTERM, which schedulers send before they take a machine away.

The signal only sets a flag. The code that samples looks at it between two chunks and the training
loop between two steps; what is finished is saved before the run ends. A second SIGTERM ends the
process at once.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import numpy as np

from prefixrl_jax.runtime.processes import agree

# A signal arrives for the process as a whole, so its flags are global.
_received = False
_deferred = False


class Interrupted(Exception):
    """The process was asked to stop.

    What is finished is saved; the same command continues from there.
    """


def listen() -> None:
    """Install the handler: the first SIGTERM sets the flag, the second ends the process."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(*_: object) -> None:
    global _received
    _received = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def received() -> bool:
    """Return whether any process was asked to stop.

    All processes must call this at the same points.
    """
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
