"""Show the progress of reading and checking, once it has taken longer than anyone likes to wait."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from prefixrl_jax.runtime.console import Progress, say

PATIENCE_SECONDS = 1.5  # of silence before a progress appears
UPDATE_SECONDS = 0.2  # least time between two updates of it

Item = TypeVar("Item")


def watched(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield the items, with a progress if they take longer than PATIENCE_SECONDS.

    Args:
        items: what is worked on between two `next`.
        label: what is done, for the progress.
        total: number of items; 0 if nobody knows, and then one line says that it takes long.
    """
    due = time.monotonic() + PATIENCE_SECONDS
    progress: Progress | None = None
    with contextlib.ExitStack() as stack:
        for done, item in enumerate(items):
            if time.monotonic() >= due:
                due = time.monotonic() + UPDATE_SECONDS
                if total:
                    progress = progress or stack.enter_context(Progress(label, total))
                    progress.update(done)
                else:
                    say(f"{label} takes a while")
                    due = math.inf
            yield item
