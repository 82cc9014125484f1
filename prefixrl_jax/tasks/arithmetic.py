"""Arithmetic for a pretrained model: generated sums, differences and products, asked and graded as
math word problems are.
"""

from __future__ import annotations

import numpy as np

from prefixrl_jax.tasks.game import side
from prefixrl_jax.tasks.math import Math
from prefixrl_jax.tasks.task import Problem

SIGNS = "+-*"


class Arithmetic(Math):
    """The task.

    Its fields are those of `task.arithmetic` in config.py, and the model whose tokenizer it uses.

    Problems come from the generator, or from rows {"question": "17 + 4 * 6", "answer": "41"}.
    """

    name = "arithmetic"

    def __init__(self, model_path: str, prompt: str, terms: int, largest: int, signs: str):
        if terms < 2 or largest < 2:
            raise ValueError(
                f"task.arithmetic: terms={terms} and largest={largest} must be at least 2"
            )
        if not signs or set(signs) - set(SIGNS):
            raise ValueError(f"task.arithmetic.signs={signs!r}: some of {SIGNS}")
        super().__init__(
            model_path, prompt, "", "", "gsm8k", "question", "answer", workers=1, timeout=1.0
        )
        self._terms, self._largest, self._signs = terms, largest, signs

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """Different problems of a split, in the order drawn; raises ValueError if there are too
        few.

        Splits differ in their numbers: what 3 + 4 teaches about 4 + 3 is not held out.
        """
        rng, found = np.random.default_rng(seed), dict[str, Problem]()
        for _ in range(100 * count):
            numbers = rng.integers(2, self._largest, self._terms, endpoint=True).tolist()
            signs = [self._signs[i] for i in rng.integers(len(self._signs), size=self._terms - 1)]
            if side(sorted(numbers)) == split:
                asked = " ".join(
                    [
                        str(numbers[0]),
                        *(f"{sign} {n}" for sign, n in zip(signs, numbers[1:], strict=True)),
                    ]
                )
                data = {"question": asked, "answer": str(value(numbers, signs))}
                found[asked] = Problem(f"arithmetic-{asked.replace(' ', '')}", data)
            if len(found) == count:
                return list(found.values())
        raise ValueError(
            f"only {len(found)} of {count} {split} problems were found: ask for fewer, or make "
            "task.arithmetic.terms or task.arithmetic.largest larger"
        )


def value(numbers: list[int], signs: list[str]) -> int:
    """Of numbers with signs between them, products first."""
    terms = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            terms[-1] *= number
        else:
            terms.append(number if sign == "+" else -number)
    return sum(terms)
