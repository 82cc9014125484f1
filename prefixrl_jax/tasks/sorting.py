"""Sorting for a pretrained model: generated lists, which small language models get wrong.

Unlike a sum, a sorted list is right by one decision after the other: the longer the beginning of a
right list, the easier is the rest. That is what prefixes are for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefixrl_jax.config import check_section
from prefixrl_jax.tasks.chat import Chat
from prefixrl_jax.tasks.number_questions import NumberQuestions, integers
from prefixrl_jax.tasks.task import Problem, Verdict


class Sorting(NumberQuestions):
    """The sorting task, with the tokenizer of the model at `model_path`.

    Problems are generated, or come from rows {"question": "9, 19, 8", "answer": "8, 9, 19"}. A
    response is right if its last numbers, as many as were asked about, are the sorted ones. The
    other arguments are the fields of `task.sorting` in config.py; a bad one raises ValueError.
    """

    name = "sorting"
    grades_aside = False

    def __init__(
        self, model_path: str, system: str, prompt: str, opening: str, terms: int, largest: int
    ):
        texts = {"system": system, "prompt": prompt, "opening": opening}
        check_section("task.sorting", texts | {"terms": terms, "largest": largest})
        if terms > largest:
            raise ValueError(
                f"task.sorting.terms={terms}: must be at most task.sorting.largest={largest}, as"
                " the numbers of a list are different ones"
            )
        super().__init__(model_path, Chat(prompt, system, opening))
        self._terms = terms
        self._largest = largest

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Check one row, whose answer must be the numbers of its question in order."""
        data = super().parse(row)
        answer = integers(data["answer"])
        if answer != sorted(integers(data["question"])) or len(answer) < 2:
            raise ValueError(
                f"answer={data['answer']!r} is not question={data['question']!r}, two numbers or"
                " more, in order"
            )
        return data

    def draw(self, rng: np.random.Generator) -> Problem | None:
        """Return a problem of different numbers, or None if they are in order already."""
        numbers = [n + 1 for n in rng.permutation(self._largest)[: self._terms].tolist()]
        if numbers == sorted(numbers):
            return None
        question = ", ".join(map(str, numbers))
        answer = ", ".join(map(str, sorted(numbers)))
        name = question.replace(", ", "-")
        return Problem(f"sorting-{name}", {"question": question, "answer": answer})

    def grade(self, problem: Problem, response: Sequence[int]) -> Verdict:
        """Grade a response by its last numbers, wherever it ends."""
        stated = integers(self._plain_text(response))
        answer = integers(problem.data["answer"])
        if stated[-len(answer) :] == answer:
            return Verdict.CORRECT
        return Verdict.UNPARSED if len(stated) < len(answer) else Verdict.WRONG

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Return whether the turn has ended, or the answer is written out but for its last number.

        That last number could then be only one.
        """
        stated = integers(self._plain_text(prefix))
        answer = integers(problem.data["answer"])
        return _contains(stated, answer[:-1]) or self._has_ended(prefix)

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Return whether the response repeats the question's list, and whether it has words."""
        text = self._plain_text(response)
        repeats = _contains(integers(text), integers(problem.data["question"]))
        has_words = re.search("[a-z]{2}", text) is not None
        return {"repeats": float(repeats), "words": float(has_words)}


def _contains(numbers: list[int], part: list[int]) -> bool:
    """Return whether `part` occurs in a list of numbers as consecutive numbers."""
    return any(numbers[i : i + len(part)] == part for i in range(len(numbers)))
