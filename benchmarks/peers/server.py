"""How a peer answers: one JSON line in ([what, case name]), one out ({"seconds": ...}). Runs in every environment."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable


def serve(prepare: Callable[[str, str], Callable[[], object]]) -> None:
    """Answers until the input ends. prepare(what, case) returns the call to time; it is made once for each case.

    The first call of each case, in which compilers run, is timed too and marked by its being the first.
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
