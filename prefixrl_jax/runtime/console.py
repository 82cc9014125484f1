"""What a run says while it goes: one-line messages, the progress of a stage, and a heartbeat.

On a terminal progress is a live bar. Elsewhere it is plain lines, at least one every
`QUIET_SECONDS`, so that a log file shows that the run is alive even while something compiles.
Only process 0 speaks.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as LiveBar

from prefixrl_jax.runtime.processes import primary
from prefixrl_jax.runtime.streams import printable

QUIET_SECONDS = 25.0  # longest silence of a stage without a terminal
PAUSE_SECONDS = 10.0  # least time between two lines that nobody asked for

_lock = threading.Lock()
_last_line = 0.0  # when the last line was printed, on the monotonic clock
_current: Progress | None = None  # the innermost progress that is going on


def say(message: str) -> None:
    """Print a message, from process 0, with control characters escaped.

    Its newlines are kept. In a command printing never fails, see `streams`.
    """
    global _last_line
    if primary():
        with _lock:
            _last_line = time.monotonic()
            print(printable(message), flush=True)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


@contextlib.contextmanager
def heartbeat(stage: str) -> Iterator[None]:
    """Print how a stage stands whenever nothing was printed for `QUIET_SECONDS`.

    Without a terminal only: a live bar moves by itself.
    """
    if not primary() or _is_terminal():
        yield
        return
    started, over = time.monotonic(), threading.Event()

    def beat() -> None:
        while not over.wait(1.0):
            now = time.monotonic()
            if now - max(_last_line, started) >= QUIET_SECONDS:
                progress = _current
                say(progress.line() if progress else f"{stage}  {now - started:.0f}s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Progress:
    """Progress of one stage: what is done, what is left, the rate, and a note.

    Use it as a context manager. The unit of `total` is the caller's: steps, or samples.
    """

    def __init__(self, stage: str, total: int, done: int = 0):
        self._stage = printable(stage)
        self._total = total
        self._first, self._started = done, time.monotonic()  # a resumed stage begins at `done`
        self._done = done
        self._note = ""
        # (done, time) of the first update: what came before it is mostly compilation.
        self._rated_from: tuple[int, float] | None = None
        self._outer: Progress | None = None
        self._printed = float("-inf")
        self._live: LiveBar | None = None
        if primary() and _is_terminal():
            self._live = _live_bar()
            self._task = self._live.add_task(self._stage, total=total, completed=done, note="")

    def update(self, done: int, note: str = "", line: bool = False) -> None:
        """Take over how much is done.

        Args:
            done: of the total, in the total's unit.
            note: what else to show, for example a reward.
            line: print a line now; otherwise at most one every `PAUSE_SECONDS`.
        """
        if self._rated_from is None:
            self._rated_from = (done, time.monotonic())
        self._done = done
        self._note = printable(note)
        if self._live is not None:
            self._live.update(self._task, completed=done, note=self._note)
        elif line or (done > self._first and self._pause() >= PAUSE_SECONDS):
            self._printed = time.monotonic()
            say(self.line())

    def _pause(self) -> float:
        return time.monotonic() - self._printed

    def line(self) -> str:
        """Return the plain line: stage, done/total, rate, time left, note."""
        parts = [f"{self._stage} {self._done}/{self._total}"]
        now = time.monotonic()
        done_then, then = self._rated_from or (self._done, now)
        if self._done > done_then and now > then:
            rate = (self._done - done_then) / (now - then)
            left = max(self._total - self._done, 0) / rate
            parts += [f"{rate:.3g}/s", f"eta {left:.0f}s"]
        else:
            parts.append(f"{now - self._started:.0f}s")
        return "  ".join([*parts, self._note] if self._note else parts)

    def __enter__(self) -> Progress:
        global _current
        self._outer, _current = _current, self
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self._outer
        if self._live is not None:
            self._live.stop()  # the bar stays on the screen as it is


def _live_bar() -> LiveBar:
    return LiveBar(
        TextColumn("{task.description:>9}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
