"""How a peer answers: one JSON line in ([what, case name]), one out ({"seconds": ...}).

Runs in every environment.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable


def serve(prepare: Callable[[str, str], Callable[[], object]]) -> None:
    """Answers until the input ends.

    prepare(what, case) returns the call to time; it is made once for each case.

    The first call of each case, in which compilers run, is timed too and marked by its being the
    first.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        what, case = json.loads(line)
        try:
            if (what, case) not in calls:
                calls[what, case] = prepare(what, case)
            started = time.perf_counter()
            found = calls[what, case]()
            answer = {"seconds": time.perf_counter() - started, "found": found}
        except Exception as error:  # told to the process that asked, which decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)
    # threads of trainers still wait for their turn, and an ordinary exit would wait for them
    os._exit(0)


class Turns:
    """A trainer's own loop, stopped before every step: a call lets it make one.

    train: runs the loop, in a thread of its own, and calls the function that it is given whenever a
    step is about to begin. The constructor and a call raise what the loop raised.
    """

    def __init__(self, train: Callable[[Callable[[], None]], object]):
        self._go: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(train,), daemon=True).start()
        self._wait()

    def __call__(self) -> None:
        self._go.put(None)
        self._wait()

    def _run(self, train: Callable[[Callable[[], None]], object]) -> None:
        try:
            train(self._turn)
            self._waiting.put(RuntimeError("the loop has ended"))
        except BaseException as error:
            self._waiting.put(error)

    def _turn(self) -> None:
        self._waiting.put(None)
        self._go.get()

    def _wait(self) -> None:
        if (error := self._waiting.get()) is not None:
            raise error
