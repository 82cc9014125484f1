"""What a task is: problems, their rendering to tokens, and a verdict on a response.

The rest of the package knows only token ids; a task is where they meet meaning. Tasks import no
jax.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np


class Verdict(enum.Enum):
    """What a grader says of one response."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def reward(self) -> float:
        """0/1 reward: only a correct response earns anything."""
        return float(self is Verdict.CORRECT)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem. `data` holds what rendering and grading need, as JSON values."""

    id: str
    data: dict[str, Any]


def begin_grading(task: Task, problem: Problem, response: Sequence[int]) -> Callable[[], Verdict]:
    """Has the task grade a response.

    What is returned waits for the verdict and gives it; it raises ValueError when the task gives
    anything else, a number above all: a reward is 0 or 1.
    """
    found = task.grade(problem, response)

    def verdict() -> Verdict:
        given = found.result() if isinstance(found, Future) else found
        if not isinstance(given, Verdict):
            raise ValueError(
                f"task {task.name}: grade returned {given!r} for problem {problem.id!r}; accepted: "
                f"{', '.join(str(v) for v in Verdict)}"
            )
        return given

    return verdict


class Task(Protocol):
    """What the pipeline asks of a task.

    `response` is always prefix + continuation, token ids without the prompt.
    """

    name: str
    tokenizer: Any  # a transformers fast tokenizer
    stop_ids: tuple[int, ...]  # any of these ends a response and belongs to it
    # whether `grade` gives a Future, whose verdict is waited for while the next tokens are sampled
    grades_aside: bool

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """A problem's data from a row of a user's file; raises ValueError naming the field that is
        missing or wrong.
        """

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """`count` candidate problems of a split ("train", "heldout"), never the same problem in
        both.
        """

    def render(self, problem: Problem) -> list[int]:
        """The prompt's token ids, the assistant's turn left open."""

    def hint(self, problem: Problem, prefix: Sequence[int]) -> list[int]:
        """The prompt with the beginning of a solution put into the user's turn; a response then
        starts from its beginning.
        """

    def grade(self, problem: Problem, response: Sequence[int]) -> Verdict | Future[Verdict]:
        """The verdict on a whole response, a pure function of its arguments: at once, or as a
        Future if it may take long.
        """

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Whether a prefix gives the answer away."""

    def could_begin(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Whether a prefix of another problem's trace is by the task's rules a right beginning of
        this one's too.
        """

    def base_source(self) -> str:
        """A fingerprint of the files that `base_text` reads (empty: none); raises ValueError if
        they will not do.
        """

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """(prompt ids, response ids) pairs that teach a model from scratch the format and the
        elementary steps.
        """

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as a person reads them."""

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Named features of how a response goes about it; may be empty."""
