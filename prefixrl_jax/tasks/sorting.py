"""Sorting for a pretrained model: generated lists of numbers, which a small language model does not
put in order.

Unlike a sum, an answer is right by one decision after the other, so that the rest of a right list
is easier the longer its
beginning: what prefixes are for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from prefixrl_jax.tasks.game import side
from prefixrl_jax.tasks.math import Math
from prefixrl_jax.tasks.task import Problem, Verdict


class Sorting(Math):
    """The task.

    Its fields are those of `task.sorting` in config.py, and the model whose tokenizer it uses.

    Problems come from the generator, or from rows {"question": "14, 9, 19, 8", "answer": "8, 9, 14,
    19"}. A response is right if the last numbers in it, as many as were given, are the sorted ones.
    """

    name = "sorting"
    grades_aside = False

    def __init__(
        self, model_path: str, system: str, prompt: str, opening: str, terms: int, largest: int
    ):
        if terms < 2 or largest < terms:
            raise ValueError(
                f"task.sorting: terms={terms} must be at least 2, and largest={largest} at least as"
                " large: the numbers of a list are different ones"
            )
        super().__init__(
            model_path,
            prompt,
            system,
            opening,
            "gsm8k",
            "question",
            "answer",
            workers=1,
            timeout=1.0,
        )
        self._terms, self._largest = terms, largest

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Checks one row: the answer must be the question's numbers in order."""
        found = super().parse(row)
        if (
            numbers(found["answer"]) != sorted(numbers(found["question"]))
            or len(numbers(found["answer"])) < 2
        ):
            raise ValueError(
                f"answer={found['answer']!r} is not question={found['question']!r}, two numbers or"
                " more, in order"
            )
        return found

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """Different problems of a split, in the order drawn; raises ValueError if there are too
        few.

        Splits differ in their sets of numbers, whatever the order.
        """
        rng, found = np.random.default_rng(seed), dict[str, Problem]()
        for _ in range(100 * count):
            drawn = [n + 1 for n in rng.permutation(self._largest)[: self._terms].tolist()]
            if drawn != sorted(drawn) and side(sorted(drawn)) == split:
                asked, answer = written(drawn), written(sorted(drawn))
                found[asked] = Problem(
                    f"sorting-{asked.replace(', ', '-')}", {"question": asked, "answer": answer}
                )
            if len(found) == count:
                return list(found.values())
        raise ValueError(
            f"only {len(found)} of {count} {split} problems were found: ask for fewer, or make "
            "task.sorting.terms or task.sorting.largest larger"
        )

    def grade(self, problem: Problem, response: Sequence[int]) -> Future[Verdict]:
        """By the last numbers of the response, wherever it ended."""
        said, wanted = numbers(self._said(response)), numbers(problem.data["answer"])
        verdict: Future[Verdict] = Future()
        right = said[-len(wanted) :] == wanted
        verdict.set_result(
            Verdict.CORRECT
            if right
            else Verdict.UNPARSED
            if len(said) < len(wanted)
            else Verdict.WRONG
        )
        return verdict

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Whether the turn has ended, or the sorted list is there but for its last number, which is
        then no choice.
        """
        said, wanted = numbers(self._said(prefix)), numbers(problem.data["answer"])[:-1]
        whole = any(said[i : i + len(wanted)] == wanted for i in range(len(said)))
        return whole or any(i in self.stop_ids for i in prefix)

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Whether the response repeats the question's list, and whether it has words."""
        text, given = self._said(response), numbers(problem.data["question"])
        said = numbers(text)
        repeats = any(said[i : i + len(given)] == given for i in range(len(said)))
        return {"repeats": float(repeats), "words": float(bool(re.search("[a-z]{2}", text)))}


def numbers(text: str) -> list[int]:
    """The whole numbers in a text, in order."""
    return [int(n) for n in re.findall(r"\d+", text)]


def written(values: Sequence[int]) -> str:
    """Numbers with commas between them."""
    return ", ".join(map(str, values))
