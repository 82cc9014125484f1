"""A grading worker, `python -m prefixrl_jax.tasks.grading.worker MODULE:FUNCTION MEMORY_BYTES`: one
JSON line in, one out.

It is a process of its own because what it calls may hang, exhaust memory or die; `pool.py` kills
and replaces it. In: [gold answer, stated answer or response]. Out: [verdict, what went wrong or
""]. No jax is imported here.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable

from prefixrl_jax.tasks.task import Verdict

READY = "ready"


def symbolic(gold: str, answer: str) -> bool:
    """Whether computer algebra finds two LaTeX answers equal (math-verify; gold first, since it is
    not symmetric).
    """
    from math_verify import parse, verify

    # Its own timeouts are signals, and its caller's: this process is killed from outside instead.
    expressions = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
    return verify(*expressions, timeout_seconds=None)


def load(name: str) -> Callable[[str, str], bool | Verdict]:
    """The function that "module:function" names; raises ValueError saying what is wrong with it."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"grader {name!r}: {error}; the module:function of (gold, response) -> bool is expected"
        ) from error


def main() -> None:
    """Answers lines until its input ends."""
    name, memory = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a grader prints must not be taken for an answer
    grader = load(name)
    if name == "prefixrl_jax.tasks.grading.worker:symbolic":
        symbolic("1", "1")  # imports what it needs before the first timeout runs
    print(READY, file=answers)
    for line in sys.stdin:
        try:
            verdict, problem = grader(*json.loads(line)), ""
            if not isinstance(verdict, Verdict):
                verdict = Verdict.CORRECT if verdict is True else Verdict.WRONG
        # a grader may raise anything, math-verify's timeout among them
        except BaseException as error:
            verdict, problem = Verdict.ERROR, f"{type(error).__name__}: {error}"
        print(json.dumps([verdict.value, problem[:300]]), file=answers)


if __name__ == "__main__":
    main()
