"""What a task is: problems, their rendering to tokens, and a verdict on a response.

The rest of the package knows only token ids; a task is where they meet meaning. Tasks import no
jax, so that processes which grade start quickly.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np


class Verdict(enum.Enum):
    """The judgement of a grader on one response."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def reward(self) -> float:
        """The reward, 0 or 1: only a correct response earns anything."""
        return float(self is Verdict.CORRECT)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem; `data` holds what rendering and grading need, as JSON values."""

    id: str
    data: dict[str, Any]


class Task(Protocol):
    """The interface through which the pipeline uses a task.

    A `response` is always prefix + continuation: token ids without the prompt. A task may also have
    `render_all`, which renders a list of problems at once; large problem sets are checked with it.

    Attributes:
        name: the task's name in `task.name` and in error messages.
        tokenizer: a fast tokenizer of transformers.
        stop_ids: any of these ids ends a response and belongs to it.
        grades_aside: whether `grade` returns a Future, whose verdict is awaited while the next
            tokens are sampled.
    """

    name: str
    tokenizer: Any
    stop_ids: tuple[int, ...]
    grades_aside: bool

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the data of the problem that one row of a user's file holds.

        Raises ValueError naming the field that is missing or wrong.
        """

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """Return `count` candidate problems of a split ("train" or "heldout").

        No problem is in both splits, whatever the seeds.
        """

    def render(self, problem: Problem) -> list[int]:
        """Return the prompt's token ids, which leave the assistant's turn open."""

    def hint(self, problem: Problem, prefix: Sequence[int]) -> list[int]:
        """Return a prompt that shows a prefix as a hint in the user's turn.

        The response to it starts from its beginning, not behind the prefix.
        """

    def grade(self, problem: Problem, response: Sequence[int]) -> Verdict | Future[Verdict]:
        """Return the verdict on a whole response, or a Future of it if grading may take long.

        The verdict must depend on the arguments alone.
        """

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Return whether a prefix gives the answer away."""

    def could_begin(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Return whether a prefix of another problem's trace is right for this problem too."""

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """Return (prompt ids, response ids) pairs that a base model is trained on from scratch.

        They teach the format and the elementary steps, not how to solve a problem.
        """

    def text(self, ids: Sequence[int]) -> str:
        """Return token ids as text for a person to read."""

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Return named features of the way a response solves the problem; there may be none."""


def begin_grading(task: Task, problem: Problem, response: Sequence[int]) -> Callable[[], Verdict]:
    """Start grading a response and return a function that waits for the verdict.

    That function raises ValueError when the task's `grade` returned anything but a Verdict. A
    number is refused too: rewards are 0 or 1, and a task cannot give parts of one.
    """
    grading = task.grade(problem, response)

    def wait() -> Verdict:
        verdict = grading.result() if isinstance(grading, Future) else grading
        if not isinstance(verdict, Verdict):
            raise ValueError(
                f"task {task.name}: grade returned {verdict!r} for problem {problem.id!r}; "
                f"accepted: {', '.join(str(v) for v in Verdict)}"
            )
        return verdict

    return wait
