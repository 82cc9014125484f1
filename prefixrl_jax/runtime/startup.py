"""What a command does first, before imports that take seconds. No jax is imported here."""

from __future__ import annotations

from prefixrl_jax.runtime import interrupt, streams

# A run goes on from where it was, so that stopping it is not a failure. Other commands are undone.
RESUMABLE: interrupt.LastWords = ("stopped as asked, before anything was begun", 0)
UNFINISHED: interrupt.LastWords = ("error: stopped as asked, before it was finished", None)


def begin(last_words: interrupt.LastWords) -> None:
    """Make the standard streams safe, and answer signals.

    Args:
        last_words: the line and the status with which SIGINT or SIGTERM ends the process, until a
            run calls `interrupt.listen`.
    """
    streams.secure()
    interrupt.end_at_once(last_words)
