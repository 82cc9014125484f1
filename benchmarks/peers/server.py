"""How a peer answers: a JSON line in, [what, case name], and a JSON line out.

The answer is {"seconds", "result"} of one call, or {"error"}. Every environment imports this
module, so it needs the standard library alone.
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
    """Answer until the input ends.

    `prepare(what, case)` returns the call to time, and is asked once for each case. The first call
    of a case, in which compilers run, is timed like the others; the process that asks knows that
    it is the first.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to standard output, which carries the answers
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        what, case = json.loads(line)
        try:
            if (what, case) not in calls:
                calls[what, case] = prepare(what, case)
            started = time.perf_counter()
            result = calls[what, case]()
            answer = {"seconds": time.perf_counter() - started, "result": result}
        except Exception as error:  # the process that asked decides what to do about it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)
    # Threads of trainers still wait for their turn, and an ordinary exit would wait for them.
    os._exit(0)


class Turns:
    """A trainer's own loop, stopped before every step: a call lets it make one.

    `train` runs the loop, in a thread of its own, and calls the function that it is given whenever
    a step is about to begin. The constructor and a call raise what the loop has raised.
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
