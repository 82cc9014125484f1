"""A verdict on a whole response.

The answer that it states is compared with the gold answer by writing and value; what these cannot
decide is left to computer algebra.
"""

from __future__ import annotations

import functools
import importlib.util
from concurrent.futures import Future

from prefixrl_jax.tasks.grading.answers import final_answer, same
from prefixrl_jax.tasks.grading.pool import Pool
from prefixrl_jax.tasks.grading.worker import SYMBOLIC
from prefixrl_jax.tasks.task import Verdict

KINDS = ("gsm8k", "math")


class Grader:
    """A grader of responses of one kind.

    Args:
        kind: "gsm8k" (for numbers: writing and value alone), "math" (computer algebra decides what
            they cannot), or "module:function" of (gold answer, whole response) -> bool or Verdict.
        workers: processes that run computer algebra or the function; they are killed and replaced
            when they misbehave.
        timeout: seconds that one answer may take them.

    Raises:
        ValueError: the kind is unknown, the function cannot be imported, or "math" lacks its extra.
    """

    def __init__(self, kind: str, workers: int = 2, timeout: float = 5.0):
        self._calls_function = ":" in kind
        if kind not in KINDS and not self._calls_function:
            raise ValueError(f"grader kind {kind!r}: one of {', '.join(KINDS)}, or MODULE:FUNCTION")
        if kind == "math" and importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "grader kind 'math' needs the [math] extra: pip install 'prefixrl_jax[math]'"
            )
        self._pool: Pool | None = None
        if self._calls_function:
            self._pool = Pool(kind, workers, timeout)
            self._pool.check()
        elif kind == "math":
            self._pool = Pool(SYMBOLIC, workers, timeout)

    def submit(self, answer: str, response: str) -> Future[Verdict]:
        """Start grading a response and return a Future of the verdict.

        Args:
            answer: the gold answer. Raises ValueError if it is empty.
            response: the whole response.
        """
        if not answer.strip():
            raise ValueError("the gold answer is empty; no response could be graded against it")
        if self._pool is not None and self._calls_function:
            return self._pool.submit(answer, response)
        stated = final_answer(response)
        if stated is None:
            return _decided(Verdict.UNPARSED)
        equal = same(answer, stated)
        if equal is None and self._pool is not None:
            return self._pool.submit(answer, stated)
        return _decided(Verdict.CORRECT if equal else Verdict.WRONG)


def _decided(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


@functools.cache
def _grader(kind: str) -> Grader:
    return Grader(kind, workers=1)


def grade(kind: str, answer: str, text: str) -> Verdict:
    """Return the verdict on one response.

    Args:
        kind: "gsm8k", "math" or "module:function" (see `Grader`).
        answer: the gold answer.
        text: the response, which states an answer.

    Raises:
        ValueError: the kind is another, or the gold answer is empty.
    """
    return _grader(kind).submit(answer, text).result()
