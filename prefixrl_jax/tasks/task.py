"""What a task is: problems, their rendering to tokens, and a verdict on a response.

The rest of the package knows only token ids; a task is where they meet meaning. Tasks import no jax.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
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


def graded(task: Task, problem: Problem, response: Sequence[int]) -> Verdict:
    """The task's verdict; raises ValueError for anything else, a number above all: a reward is 0 or 1."""
    verdict = task.grade(problem, response)
    if not isinstance(verdict, Verdict):
        raise ValueError(f"task {task.name}: grade returned {verdict!r} for problem {problem.id!r}; accepted: "
                         f"{', '.join(str(v) for v in Verdict)}")  # fmt: skip
    return verdict


class Task(Protocol):
    """What the pipeline asks of a task. `response` is always prefix + continuation, token ids without the prompt."""

    name: str
    tokenizer: Any  # a transformers fast tokenizer
    stop_ids: tuple[int, ...]  # any of these ends a response and belongs to it

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """A problem's data from a row of a user's file; raises ValueError naming the field that is missing or wrong."""

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """`count` candidate problems of a split ("train", "heldout"), never the same problem in both."""

    def render(self, problem: Problem) -> list[int]:
        """The prompt's token ids, the assistant's turn left open."""

    def grade(self, problem: Problem, response: Sequence[int]) -> Verdict:
        """The verdict on a whole response. A pure, fast function of its arguments."""

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Whether a prefix gives the answer away."""

    def base_source(self) -> str:
        """A fingerprint of the files that `base_text` reads (empty: none); raises ValueError if they will not do."""

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """(prompt ids, response ids) pairs that teach a model from scratch the format and the elementary steps."""

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as a person reads them."""

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Named features of how a response goes about it; may be empty."""
