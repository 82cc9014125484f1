"""What the tasks for pretrained models share: they ask through the model's chat template.

The prompt is the chat template's rendering of a user message, and a system message if there is
one, with the assistant's turn left open. A prefix of a trace is put behind the prompt by token ids,
inside that turn. A question that spells a control token stays text (`model/chat_template.py`).
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from prefixrl_jax.model.chat_template import ChatTemplate
from prefixrl_jax.model.hub import find_model, stop_ids, tokenizer_of
from prefixrl_jax.tasks.grading.answers import final_answer
from prefixrl_jax.tasks.task import Problem, Verdict

# What begins a stated answer, also where its braces are not closed yet.
BEGUN_ANSWER = re.compile(r"\\boxed|\\fbox|####")

# The question by which a chat template is tried out.
PROBE = "What is 1 + 1?"


@dataclasses.dataclass(frozen=True)
class Chat:
    """The wording in which a question is asked.

    Attributes:
        prompt: the user's message, with {question} in the place of the question.
        system: the system message; empty: what the chat template says without one.
        opening: the text that every answer begins with. It belongs to the prompt.
    """

    prompt: str
    system: str = ""
    opening: str = ""


class ChatTask(abc.ABC):
    """A task that asks a pretrained model questions; subclasses generate and grade.

    A problem's data are its question and its gold answer.
    """

    name: str
    grades_aside: bool
    # Names that a row may have for its question and its answer; the first that is there counts.
    question_fields: Sequence[str] = ("question",)
    answer_fields: Sequence[str] = ("answer",)

    def __init__(self, model_path: str, chat: Chat):
        """Load the tokenizer of the model that will be asked.

        Args:
            model_path: the model: a Hugging Face folder, a hub id or a GGUF file.

        Raises:
            ValueError: the model is not there, its tokenizer has no chat template or one that
                cannot render the messages, or the prompt has no place for the question.
        """
        if not model_path:
            raise ValueError(
                f"task.name={self.name!r} needs model.path: a Hugging Face folder, hub id or GGUF"
                " file"
            )
        if "{question}" not in chat.prompt:
            raise ValueError(
                f"task.{self.name}.prompt={chat.prompt!r}: the place of the question, {{question}},"
                " is missing"
            )
        path = find_model(model_path)
        self.tokenizer = tokenizer_of(path)
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{path}: the tokenizer has no chat template, by which task {self.name!r} asks its"
                " questions"
            )
        self.stop_ids = stop_ids(path, self.tokenizer)
        self._chat = chat
        self._opening = self.tokenizer.encode(chat.opening, add_special_tokens=False)
        try:
            self._template = ChatTemplate(self.tokenizer)
            rendered = self._template.text(self._messages(PROBE))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if PROBE not in rendered:
            raise ValueError(
                f"{path}: the chat template leaves out the user's message; one that writes the"
                " content of each message is accepted"
            )

    # Problems

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Check one row of a user's file and return its question and answer.

        A worked solution (GSM8K's rows end in `#### 72`) is reduced to its answer.
        """
        question = _text_field(row, self.question_fields)
        answer = _text_field(row, self.answer_fields)
        if "####" in answer:
            answer = final_answer(answer) or answer
        return {"question": question, "answer": answer}

    @abc.abstractmethod
    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """Return generated problems of a split (see `Task.generate`)."""

    # Text

    def render(self, problem: Problem) -> list[int]:
        """Return the token ids of the messages, up to the beginning of the assistant's turn."""
        messages = self._messages(self._template.literal(problem.data["question"]))
        return [*self._template.ids(messages), *self._opening]

    def render_all(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Return what `render` does for each problem; many at once take less time."""
        conversations = [
            self._messages(self._template.literal(problem.data["question"])) for problem in problems
        ]
        return [[*ids, *self._opening] for ids in self._template.ids_of_all(conversations)]

    def _messages(self, question: str) -> list[dict[str, str]]:
        messages = []
        if self._chat.system:
            messages.append({"role": "system", "content": self._chat.system})
        content = self._chat.prompt.replace("{question}", question)
        messages.append({"role": "user", "content": content})
        return messages

    def hint(self, problem: Problem, prefix: Sequence[int]) -> list[int]:
        """Return the prompt with the prefix as text under the question.

        The text is introduced as the beginning of a solution, without saying whether that is right.
        """
        question = (
            f"{problem.data['question']}\n\nThe beginning of a solution:\n{self.text(prefix)}"
        )
        return self.render(Problem(problem.id, problem.data | {"question": question}))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text as the tokenizer decodes it, special tokens included."""
        return str(self.tokenizer.decode(list(ids)))

    def _plain_text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    # Grading

    @abc.abstractmethod
    def grade(self, problem: Problem, response: Sequence[int]) -> Verdict | Future[Verdict]:
        """Return the verdict on a response, or a Future of it."""

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Return whether the prefix ends the turn, or states or begins to state an answer."""
        text = self.text(prefix)
        states_answer = bool(BEGUN_ANSWER.search(text)) or final_answer(text) is not None
        return states_answer or self._has_ended(prefix)

    def _has_ended(self, ids: Sequence[int]) -> bool:
        return any(token in self.stop_ids for token in ids)

    def could_begin(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Return False: text does not show whether it is right for another question."""
        return False

    # The model is pretrained

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """Raise ValueError: chat tasks have a pretrained model and train no base model."""
        raise ValueError(f"task {self.name} trains no base model: set model.path")

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Return no features: chat tasks in general have none."""
        return {}


def _text_field(row: dict[str, Any], names: Sequence[str]) -> str:
    """Return the value of the first of these fields that a row has; numbers become text."""
    name = next((name for name in names if name in row), names[0])
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"field {name!r} is missing, empty or no text; the row has"
            f" {', '.join(map(repr, row))} (task.math.question_field and"
            " task.math.answer_field name them)"
        )
    return value
