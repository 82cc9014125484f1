"""A grading worker: `python -m prefixrl_jax.tasks.grading.worker MODULE:FUNCTION MEMORY_BYTES`.

It reads JSON lines [gold answer, stated answer or whole response] and writes a line [verdict, what
went wrong or ""] for each. It is a process of its own because what it calls may hang, exhaust
memory or die; `pool.py` kills and replaces it. No jax is imported here.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable

from prefixrl_jax.tasks.task import Verdict

READY = "ready"  # the line written when questions can be asked
SYMBOLIC = "prefixrl_jax.tasks.grading.worker:symbolic"


def symbolic(gold: str, answer: str) -> bool:
    """Return whether computer algebra (math-verify) finds two LaTeX answers equal.

    The comparison is not symmetric: the gold answer comes first.
    """
    from math_verify import parse, verify

    # math-verify's own timeouts are signals, which are left to the caller: this process is killed
    # from outside instead.
    expressions = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
    return verify(*expressions, timeout_seconds=None)


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
    name, memory = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a grader prints must not be taken for an answer
    grader = load(name)
    if name == SYMBOLIC:
        symbolic("1", "1")  # imports what it needs before the first timeout runs
    print(READY, file=answers)
    for line in sys.stdin:
        verdict, problem = _grade(grader, line)
        print(json.dumps([verdict.value, problem[:300]]), file=answers)


def _grade(grader: Callable[[str, str], bool | Verdict], line: str) -> tuple[Verdict, str]:
    try:
        verdict = grader(*json.loads(line))
    # A grader may raise anything, math-verify's timeout among them.
    except BaseException as error:
        return Verdict.ERROR, f"{type(error).__name__}: {error}"
    if isinstance(verdict, Verdict):
        return verdict, ""
    return (Verdict.CORRECT if verdict is True else Verdict.WRONG), ""


if __name__ == "__main__":
    main()
