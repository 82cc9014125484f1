"""A verdict on a whole response.

The answer that it states is compared with the gold answer exactly; what that leaves open is left to
high precision, in another process.
"""

from __future__ import annotations

import functools
import importlib.util
from concurrent.futures import Future

from prefixrl_jax import arguments
from prefixrl_jax.tasks.grading.answers import check_gold, final_answer, gold_answer
from prefixrl_jax.tasks.grading.compare import PLAIN_NUMBERS, RATIONALS, same
from prefixrl_jax.tasks.grading.pool import Pool
from prefixrl_jax.tasks.grading.worker import PRECISE
from prefixrl_jax.tasks.task import Verdict

KINDS = ("gsm8k", "math")
MEMORY = 1 << 30  # bytes of a process that compares by high precision


class Grader:
    """A grader of responses of one kind.

    Args:
        kind: "gsm8k" (for numbers: only a number that is written out counts), "math" (any
            expression of the same value), or "module:function" of (gold answer, whole response)
            -> bool or Verdict.
        workers: processes that compare by high precision or run the function; they are killed and
            replaced when they misbehave.
        timeout: seconds that one answer may take them.

    Raises:
        ValueError: the kind is unknown, the function cannot be imported, or "math" lacks its extra.
    """

    def __init__(self, kind: str, workers: int = 2, timeout: float = 5.0):
        self.calls_function = ":" in kind
        if kind not in KINDS and not self.calls_function:
            raise ValueError(f"grader kind {kind!r}: one of {', '.join(KINDS)}, or MODULE:FUNCTION")
        if kind == "math" and importlib.util.find_spec("mpmath") is None:
            raise ValueError(
                "grader kind 'math' needs the [math] extra: pip install 'prefixrl_jax[math]'"
            )
        self._scalars = PLAIN_NUMBERS if kind == "gsm8k" else RATIONALS
        self._pool: Pool | None = None
        if self.calls_function:
            self._pool = Pool(kind, workers, timeout)
            self._pool.check()
        elif kind == "math":
            self._pool = Pool(PRECISE, workers, timeout, MEMORY)

    def submit(self, answer: str, response: str) -> Future[Verdict]:
        """Start grading a response and return a Future of the verdict.

        Args:
            answer: the gold answer. Raises ValueError if it is empty, NaN or infinite.
            response: the whole response.
        """
        if self._pool is not None and self.calls_function:
            if not answer.strip():
                raise ValueError("the gold answer is empty; no response could be graded by it")
            return self._pool.submit(answer, response)
        check_gold(answer)
        stated = final_answer(response)
        if stated is None:
            return _decided(Verdict.UNPARSED)
        answer = gold_answer(answer)
        equal = same(answer, stated, self._scalars)
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
        ValueError: the kind is another, the gold answer is empty, NaN or infinite, or one of them
            is no text.
    """
    kind, answer, text = (
        arguments.text(name, value)
        for name, value in {"kind": kind, "answer": answer, "text": text}.items()
    )
    return _grader(kind).submit(answer, text).result()
