"""Generated questions about a few numbers, asked of a pretrained model."""

from __future__ import annotations

import abc
import re
from typing import Any

import numpy as np

from prefixrl_jax.tasks.chat import ChatTask
from prefixrl_jax.tasks.grading.answers import check_gold
from prefixrl_jax.tasks.splits import split_of_family
from prefixrl_jax.tasks.task import Problem

# Draws in a row without a new problem after which there are taken to be no more.
IN_VAIN = 100_000


class NumberQuestions(ChatTask):
    """A chat task with a generator.

    Splits differ in the numbers asked about, in whatever order they are: what a model learns from
    3 + 4 about 4 + 3 is not held out.
    """

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the question and the gold answer of a row; ValueError if that is no answer."""
        data = super().parse(row)
        check_gold(data["answer"], "field 'answer'")
        return data

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> Problem | None:
        """Return a random problem, or None when the numbers drawn do not make one."""

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """Return `count` different problems of a split, in the order drawn.

        Raises ValueError if there are too few.
        """
        rng = np.random.default_rng(seed)
        problems: dict[str, Problem] = {}
        last_new = 0  # the draw that brought the last new problem
        for number in range(100 * count):
            problem = self.draw(rng)
            if problem and split_of_family(sorted(integers(problem.data["question"]))) == split:
                if problem.id not in problems:
                    last_new = number
                problems[problem.id] = problem
            if len(problems) == count:
                return list(problems.values())
            if number - last_new > IN_VAIN:
                break
        raise ValueError(
            f"only {len(problems)} of {count} {split} problems were found: ask for fewer by"
            f" data.{split}_candidates, or make task.{self.name}.terms or"
            f" task.{self.name}.largest larger"
        )


def integers(text: str) -> list[int]:
    """Return the whole numbers in a text, in order and without signs."""
    return [int(digits) for digits in re.findall(r"\d+", text)]
