r"""Math word problems for a pretrained model: any rows of (question, answer), a chat template,
answers graded by value.

The prompt is the chat template's rendering of one user message with the assistant's turn left open;
a prefix of a trace is put behind it by token ids, inside that turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from prefixrl_jax.model.hub import find_model, stop_ids, tokenizer_of
from prefixrl_jax.tasks.grading.answers import final_answer
from prefixrl_jax.tasks.grading.grader import Grader
from prefixrl_jax.tasks.task import Problem, Verdict

STATED = re.compile(r"\\boxed|\\fbox|####")  # also where the braces are not closed yet


class Math:
    """The task.

    Its fields are those of `task.math` in config.py, and the model whose tokenizer it uses.

    Raises ValueError when the tokenizer has no chat template, or a field will not do.
    """

    name = "math"
    grades_aside = True

    def __init__(
        self,
        model_path: str,
        prompt: str,
        system: str,
        opening: str,
        kind: str,
        question_field: str,
        answer_field: str,
        workers: int,
        timeout: float,
    ):
        if not model_path:
            raise ValueError(
                f"task.name={self.name!r} needs model.path: a Hugging Face folder, hub id or GGUF"
                " file"
            )
        if "{question}" not in prompt:
            raise ValueError(
                f"task.{self.name}.prompt={prompt!r}: the place of the question, {{question}}, is"
                " missing"
            )
        path = find_model(model_path)
        self.tokenizer = tokenizer_of(path)
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{path}: the tokenizer has no chat template, by which task {self.name!r} asks its"
                " questions"
            )
        self.stop_ids = stop_ids(path, self.tokenizer)
        self._prompt, self._system = prompt, system
        self._fields = {"question": question_field.split(","), "answer": answer_field.split(",")}
        self._opening = self.tokenizer.encode(opening, add_special_tokens=False)
        self._grader = Grader(kind, workers, timeout)

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Checks one row. A worked solution (GSM8K's `#### 72`) is reduced to its answer."""
        found = {}
        for what, names in self._fields.items():
            field = next((name for name in names if name in row), names[0])
            value = row.get(field)
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    f"field {field!r} is missing, empty or no text; the row has"
                    f" {', '.join(map(repr, row))} (task.math.question_field and answer_field name"
                    " them)"
                )
            found[what] = value
        if "####" in found["answer"]:
            found["answer"] = final_answer(found["answer"]) or found["answer"]
        return found

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """There is no generator: the problems are the user's."""
        raise ValueError("task math has no generator: set data.path to a set of problems")

    def render(self, problem: Problem) -> list[int]:
        """System and user messages, the assistant's turn begun."""
        messages = [{"role": "system", "content": self._system}] if self._system else []
        messages.append(
            {
                "role": "user",
                "content": self._prompt.replace("{question}", problem.data["question"]),
            }
        )
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return [*ids, *self._opening]

    def hint(self, problem: Problem, prefix: Sequence[int]) -> list[int]:
        """The prefix as text under the question, told apart as the beginning of a solution; whether
        a right one is not said.
        """
        question = (
            f"{problem.data['question']}\n\nThe beginning of a solution:\n{self.text(prefix)}"
        )
        return self.render(Problem(problem.id, problem.data | {"question": question}))

    def text(self, ids: Sequence[int]) -> str:
        """As the tokenizer decodes it."""
        return str(self.tokenizer.decode(list(ids)))

    def grade(self, problem: Problem, response: Sequence[int]) -> Future[Verdict]:
        """By the answer the response states, wherever it ended."""
        return self._grader.submit(problem.data["answer"], self._said(response))

    def _said(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Whether the turn has ended, or an answer is stated or begun."""
        text = self.text(prefix)
        return (
            any(i in self.stop_ids for i in prefix)
            or bool(STATED.search(text))
            or final_answer(text) is not None
        )

    def could_begin(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Not for all that can be told from text."""
        return False

    def base_source(self) -> str:
        """Empty: the model is pretrained."""
        return ""

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """There is none: the model is pretrained."""
        raise ValueError("task math trains no base model: set model.path")

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """No features."""
        return {}
