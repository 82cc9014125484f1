"""A grading worker: a process of its own, because what it calls may hang, exhaust memory or die.

`python -m prefixrl_jax.tasks.grading.worker MODULE:FUNCTION MEMORY_BYTES CPU_SECONDS [LIFELINE]`
reads JSON lines [gold answer, stated answer or whole response] and writes a line [verdict, what
went wrong or ""] for each. `pool.py` kills and replaces it. No jax is imported here.

LIFELINE is the file descriptor of a pipe that the parent holds open and never writes to. When the
parent is gone, however it went, the pipe ends, and a small process beside the worker kills the
worker and all that it has started. A worker that escapes this runs into its limit of CPU time.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable

from prefixrl_jax.tasks.task import Verdict

READY = "ready"  # the line written when questions can be asked
PRECISE = "prefixrl_jax.tasks.grading.precise:decide"


def load(name: str) -> Callable[[str, str], bool | Verdict]:
    """Import the function that is named "module:function".

    Raises ValueError saying what is wrong with the name.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"grader {name!r}: {error}; the module:function of (gold, response) -> bool is expected"
        ) from error


def main() -> None:
    """Read questions from standard input and write a verdict on each, until the input ends."""
    name, memory, seconds, *lifeline = sys.argv[1:]
    if lifeline:
        _die_with_parent(int(lifeline[0]))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the CPU limit would leave a core file
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a grader prints must not be taken for an answer
    grader = load(name)
    print(READY, file=answers)
    for line in sys.stdin:
        _limit_cpu(float(seconds))
        verdict, problem = _grade(grader, line)
        print(json.dumps([verdict.value, problem[:300]]), file=answers)


def _die_with_parent(lifeline: int) -> None:
    """Start a process that kills this process group when the lifeline ends.

    A process rather than a thread: no thread runs while a long computation holds the interpreter.
    """
    if os.fork():
        os.close(lifeline)
        return
    # The worker's pipes must not be held open by this process.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while os.read(lifeline, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _limit_cpu(seconds: float) -> None:
    """End this process after so many more seconds of CPU time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + seconds), hard))


def _grade(grader: Callable[[str, str], bool | Verdict], line: str) -> tuple[Verdict, str]:
    try:
        verdict = grader(*json.loads(line))
    # A grader may raise anything, SystemExit among them.
    except BaseException as error:
        return Verdict.ERROR, f"{type(error).__name__}: {error}"
    if isinstance(verdict, Verdict):
        return verdict, ""
    return (Verdict.CORRECT if verdict is True else Verdict.WRONG), ""


if __name__ == "__main__":
    main()
