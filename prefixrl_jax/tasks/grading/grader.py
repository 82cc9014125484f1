"""A verdict on a whole response: find the answer, decide by writing and value, and ask computer
algebra about the rest.
"""

from __future__ import annotations

import functools
import importlib.util
from concurrent.futures import Future

from prefixrl_jax.tasks.grading.answers import final_answer, same
from prefixrl_jax.tasks.grading.pool import SYMBOLIC, Pool
from prefixrl_jax.tasks.task import Verdict

KINDS = ("gsm8k", "math")


class Grader:
    """Grades responses of one kind: "gsm8k" (numbers: the exact layer alone), "math" (computer
    algebra decides the rest), or "module:function", a function of (gold, whole response) -> bool or
    Verdict, called in processes that may be killed.

    Raises ValueError for an unknown kind, a function that cannot be imported, or when "math" lacks
    its extra.
    """

    def __init__(self, kind: str, workers: int = 2, timeout: float = 5.0):
        self._own = ":" in kind
        if kind not in KINDS and not self._own:
            raise ValueError(f"grader kind {kind!r}: one of {', '.join(KINDS)}, or MODULE:FUNCTION")
        if kind == "math" and importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "grader kind 'math' needs the [math] extra: pip install 'prefixrl_jax[math]'"
            )
        self._pool = (
            None if kind == "gsm8k" else Pool(kind if self._own else SYMBOLIC, workers, timeout)
        )
        if self._pool is not None and self._own:
            self._pool.check()

    def submit(self, answer: str, response: str) -> Future[Verdict]:
        """The verdict, perhaps later. Raises ValueError for an empty gold answer."""
        if not answer.strip():
            raise ValueError("the gold answer is empty; no response could be graded against it")
        if self._pool is not None and self._own:
            return self._pool.submit(answer, response)
        stated = final_answer(response)
        decided = None if stated is None else same(answer, stated)
        if stated is not None and decided is None and self._pool is not None:
            return self._pool.submit(answer, stated)
        verdict: Future[Verdict] = Future()
        verdict.set_result(
            Verdict.UNPARSED if stated is None else Verdict.CORRECT if decided else Verdict.WRONG
        )
        return verdict


@functools.cache
def _grader(kind: str) -> Grader:
    return Grader(kind, workers=1)


def grade(kind: str, answer: str, text: str) -> Verdict:
    """The verdict on one response.

    kind: "gsm8k" or "math"; answer: the gold answer; text: a response that states one.

    Raises ValueError for another kind or an empty answer.
    """
    return _grader(kind).submit(answer, text).result()
