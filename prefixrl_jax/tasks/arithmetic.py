"""Arithmetic for a pretrained model: generated sums, differences and products.

Questions are asked and graded as math word problems are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from prefixrl_jax.config import check_section
from prefixrl_jax.tasks.chat import Chat
from prefixrl_jax.tasks.grading.grader import Grader
from prefixrl_jax.tasks.number_questions import NumberQuestions
from prefixrl_jax.tasks.task import Problem, Verdict


class Arithmetic(NumberQuestions):
    """The arithmetic task, with the tokenizer of the model at `model_path`.

    Problems are generated, or come from rows {"question": "17 + 4 * 6", "answer": "41"}. The other
    arguments are the fields of `task.arithmetic` in config.py; a bad one raises ValueError.
    """

    name = "arithmetic"
    grades_aside = True

    def __init__(self, model_path: str, prompt: str, terms: int, largest: int, signs: str):
        sizes = {"terms": terms, "largest": largest}
        check_section("task.arithmetic", sizes | {"prompt": prompt, "signs": signs})
        super().__init__(model_path, Chat(prompt))
        self._terms = terms
        self._largest = largest
        self._signs = signs
        self._grader = Grader("gsm8k")

    def draw(self, rng: np.random.Generator) -> Problem:
        """Return a problem with random numbers and signs."""
        numbers = rng.integers(2, self._largest, self._terms, endpoint=True).tolist()
        signs = [self._signs[i] for i in rng.integers(len(self._signs), size=self._terms - 1)]
        question = str(numbers[0])
        for sign, number in zip(signs, numbers[1:], strict=True):
            question += f" {sign} {number}"
        data = {"question": question, "answer": str(value(numbers, signs))}
        return Problem(f"arithmetic-{question.replace(' ', '')}", data)

    def grade(self, problem: Problem, response: Sequence[int]) -> Future[Verdict]:
        """Grade a response by the answer it states, wherever it ends."""
        return self._grader.submit(problem.data["answer"], self._plain_text(response))


def value(numbers: list[int], signs: list[str]) -> int:
    """Return the value of numbers with signs between them; products are computed first."""
    terms = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            terms[-1] *= number
        elif sign == "+":
            terms.append(number)
        else:
            terms.append(-number)
    return sum(terms)
