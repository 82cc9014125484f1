"""Grade-school word problems (GSM8K's format): a question, a worked solution, `#### N`.

Rendered through a byte tokenizer, so that any text works with a model trained from scratch; such a
small model is not expected to solve any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from prefixrl_jax.model.tokenizer import byte_tokenizer
from prefixrl_jax.tasks.sources import fingerprint, read_problems
from prefixrl_jax.tasks.task import Problem, Verdict

NUMBER = re.compile(r"([-\u2212]\s?)?\$?(\d[\d,]*(?:\.\d+)?|\.\d+)(?:/(\d+))?")
LONGEST = 60  # digits: no answer needs more, and arbitrarily long ones would cost unbounded time


def final_number(text: str) -> Fraction | None:
    """The number after the last `####`, exactly; None when there is none."""
    if "####" not in text:
        return None
    match = NUMBER.search(text.rsplit("####", 1)[1])
    if match is None or len(match.group()) > LONGEST:
        return None
    sign, number, denominator = match.groups()
    if denominator and not int(denominator):
        return None
    return (-1 if sign else 1) * Fraction(number.replace(",", "")) / int(denominator or 1)


class GSM8K:
    """The task. Rows are {"question": text, "answer": worked solution ending in "#### N"}."""

    name = "gsm8k"
    grades_aside = False

    def __init__(self, base_path: str = ""):
        self.tokenizer = byte_tokenizer()
        self.stop_ids: tuple[int, ...] = (self.tokenizer.eos_token_id,)
        self._base_path = base_path
        self._base_problems: list[Problem] = []

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Checks one row; the answer must end in `#### N`."""
        for field in ("question", "answer"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise ValueError(
                    f"field {field!r} is missing or no text; a row is {{'question': '...',"
                    " 'answer': '... #### 72'}"
                )
        if final_number(row["answer"]) is None:
            raise ValueError(
                f"field 'answer' ends in {row['answer'][-30:]!r}; '#### N' with a number is"
                " expected"
            )
        return {"question": row["question"], "answer": row["answer"]}

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """There is no generator: the questions are the user's."""
        raise ValueError("task.name='gsm8k' has no generator: set data.path to a set of questions")

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def render(self, problem: Problem) -> list[int]:
        """Question: ... Answer:"""
        return [
            self.tokenizer.bos_token_id,
            *self._encode(f"Question: {problem.data['question']}\nAnswer:"),
        ]

    def hint(self, problem: Problem, prefix: Sequence[int]) -> list[int]:
        """Question: ... Hint: ... Answer:"""
        question = self._encode(f"Question: {problem.data['question']}\nHint:")
        return [self.tokenizer.bos_token_id, *question, *prefix, *self._encode("\nAnswer:")]

    def text(self, ids: Sequence[int]) -> str:
        """The text of the bytes."""
        return str(self.tokenizer.decode(list(ids)))

    def grade(self, problem: Problem, response: Sequence[int]) -> Verdict:
        """Compares the numbers after the last `####` as exact fractions."""
        found = final_number(self.text(response))
        if found is None:
            return Verdict.UNPARSED
        return Verdict.CORRECT if found == final_number(problem.data["answer"]) else Verdict.WRONG

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """A prefix with `####` or a stop id in it states the answer."""
        return any(i in self.stop_ids for i in prefix) or "####" in self.text(prefix)

    def could_begin(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Not for all that can be told from text."""
        return False

    def base_source(self) -> str:
        """A fingerprint of task.gsm8k.base_path, which is read and checked on the first call."""
        if not self._base_path:
            raise ValueError(
                "task.gsm8k.base_path is empty: a model trained from scratch needs a JSONL file of"
                " worked solutions"
            )
        if not self._base_problems:
            found = read_problems(self, self._base_path, "task.gsm8k.base_path")
            self._base_problems = [problem for problem, _ in found]
        return fingerprint({"base": self._base_problems})

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """Worked solutions drawn from task.gsm8k.base_path."""
        self.base_source()
        chosen = [self._base_problems[i] for i in rng.integers(0, len(self._base_problems), count)]
        return [
            (self.render(p), [*self._encode(" " + p.data["answer"]), *self.stop_ids])
            for p in chosen
        ]

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """No features."""
        return {}
