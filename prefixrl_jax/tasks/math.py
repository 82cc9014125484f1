"""Math word problems for a pretrained model: any rows of questions and answers.

Responses are graded by the answer they state (docs/grading.md), or by a function of the user's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from prefixrl_jax.tasks.chat import Chat, ChatTask
from prefixrl_jax.tasks.grading.answers import check_gold
from prefixrl_jax.tasks.grading.grader import Grader
from prefixrl_jax.tasks.task import Problem, Verdict


@dataclasses.dataclass(frozen=True)
class MathSettings:
    """The fields of `task.math`; config.py explains each of them."""

    prompt: str
    system: str
    opening: str
    kind: str
    question_field: str
    answer_field: str
    workers: int
    timeout: float


class Math(ChatTask):
    """The math task, with the tokenizer of the model at `model_path`.

    Raises ValueError as `ChatTask` and `Grader` do.
    """

    name = "math"
    grades_aside = True

    def __init__(self, model_path: str, settings: MathSettings):
        super().__init__(model_path, Chat(settings.prompt, settings.system, settings.opening))
        self.question_fields = settings.question_field.split(",")
        self.answer_fields = settings.answer_field.split(",")
        self._grader = Grader(settings.kind, settings.workers, settings.timeout)

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the question and the gold answer of a row; ValueError if that is no answer."""
        data = super().parse(row)
        field = next(name for name in self.answer_fields if name in row)
        # What a function of the user's takes for an answer is known to it alone, but for numbers.
        if not self._grader.calls_function or not isinstance(row[field], str):
            check_gold(data["answer"], f"field {field!r}")
        return data

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """Raise ValueError: this task has no generator, its problems come from the user's files."""
        raise ValueError("task math has no generator: set data.path to a set of problems")

    def grade(self, problem: Problem, response: Sequence[int]) -> Future[Verdict]:
        """Grade a response by the answer it states, wherever it ends."""
        return self._grader.submit(problem.data["answer"], self._plain_text(response))
