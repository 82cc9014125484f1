"""A one-player game as a task: what water jugs and countdown have in common.

A response plays the game move by move. Every move is one token, followed by a fixed number of
tokens that state what it led to, so the grader can check each step. A response ends with `done` or
`stuck`, as the game's rules say, and only one that ends with `done` can be correct:

    prompt :  move state move state ... done

A base model learns the rules from random legal play. A generated problem is kept when random legal
play solves it with a probability inside a band, which is computed exactly: such problems are hard,
but rejection sampling can still find solutions.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.seeds import generator
from prefixrl_jax.tasks.splits import SPLITS, split_of_family
from prefixrl_jax.tasks.task import Problem, Verdict


class Game(abc.ABC):
    """The parts of a task that do not depend on the game's rules.

    A `state` is whatever a game makes it, but hashable: it is never changed in place.

    Attributes:
        max_moves: moves that a correct response may have.
        siblings: most problems taken from one group of `candidates`.
        moves: what each token that is a move stands for, whether it is legal or not.
        example_row: a row of a user's file, with all fields that a row must have.
        token_ids: the id of every word of the game.
        band: probability that random legal play solves a generated problem, (low, high).
    """

    name: str
    grades_aside = False
    max_moves: int
    siblings: int
    moves: Mapping[int, Any]
    example_row: ClassVar[dict[str, Any]]

    def __init__(self, words: Sequence[str], band: Sequence[float]):
        """Build the vocabulary from the game's words.

        Args:
            words: the game's own words, in the order of their ids; ":", "done" and "stuck" come
                before them.
            band: see the class.

        Raises:
            ValueError: band is not two probabilities in order.
        """
        if len(band) != 2 or not 0 <= band[0] < band[1] <= 1:
            raise ValueError(
                f"task.{self.name}.band={tuple(band)}: two probabilities, 0 <= low < high <= 1"
            )
        self.band = tuple(band)
        words = [":", "done", "stuck", *words]
        self.tokenizer = word_tokenizer(words)
        vocabulary = self.tokenizer.get_vocab()
        self.token_ids = {word: vocabulary[word] for word in ("<bos>", *words)}
        self.stop_ids: tuple[int, ...] = (self.token_ids["done"], self.token_ids["stuck"])

    # The rules, which each game defines

    @abc.abstractmethod
    def candidates(self, rng: np.random.Generator) -> Iterator[Iterable[Problem]]:
        """Yield finitely many groups of similar problems inside the band, in random order.

        The problems of a group have, for example, the same jugs or the same numbers.
        """

    @abc.abstractmethod
    def family(self, problem: Problem) -> Any:
        """Return the features that problems of two splits must not share (see `splits.py`)."""

    @abc.abstractmethod
    def begin(self, problem: Problem) -> Any:
        """Return the state before the first move."""

    @abc.abstractmethod
    def play(self, problem: Problem, state: Any, move_id: int) -> Any:
        """Return the state after a move (a token of `moves`), or None if the move is illegal."""

    @abc.abstractmethod
    def state_ids(self, state: Any) -> list[int]:
        """Return the tokens that state the result of a move.

        Their number is the same for every state of a problem.
        """

    @abc.abstractmethod
    def at_goal(self, problem: Problem, state: Any) -> bool:
        """Return whether the problem is solved."""

    @abc.abstractmethod
    def render(self, problem: Problem) -> list[int]:
        """Return the prompt's token ids; one of them is the colon."""

    def is_move(self, problem: Problem, token: int) -> bool:
        """Return whether a token can be a move in this problem at some time, legal now or not."""
        return token in self.moves

    # Problems and text

    def check_fields(self, row: dict[str, Any]) -> None:
        """Raise ValueError unless a row of a user's file has all fields of `example_row`.

        The message names the missing field.
        """
        for field in self.example_row:
            if field not in row:
                raise ValueError(f"field {field!r} is missing; a row is {self.example_row}")

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """Return `count` problems of a split whose chance under random play is inside `band`.

        Raises ValueError if there are too few.
        """
        rng = generator(seed, SPLITS.index(split))
        problems: dict[str, Problem] = {}
        for group in self.candidates(rng):
            in_split = [p for p in group if self.split_of(p) == split]
            problems |= {p.id: p for p in in_split[: self.siblings]}
            if len(problems) >= count:
                return list(problems.values())[:count]
        raise ValueError(
            f"only {len(problems)} of {count} {split} problems lie in"
            f" task.{self.name}.band={self.band}: ask for fewer by data.{split}_candidates, widen"
            f" the band, or change the sizes of task.{self.name}"
        )

    def split_of(self, problem: Problem) -> str:
        """Return the split that a problem belongs to."""
        return split_of_family(self.family(problem))

    def hint(self, problem: Problem, prefix: Sequence[int]) -> list[int]:
        """Return the prompt with the prefix inserted before its colon."""
        ids = self.render(problem)
        colon = ids.index(self.token_ids[":"])
        return [*ids[:colon], *prefix, *ids[colon:]]

    def text(self, ids: Sequence[int]) -> str:
        """Return the words of the token ids, joined by spaces."""
        return str(self.tokenizer.decode(list(ids)))

    # Grading

    def follow(self, problem: Problem, ids: Sequence[int]) -> tuple[str, list[Any]]:
        """Play the moves of a response or prefix, up to the first error.

        An incomplete move at the end (one without all tokens of its state) is not played.

        Returns:
            ("", states), or ("unparsed", states) when a token that should be a move is none, or
            ("illegal", states) when a move is illegal or its stated outcome is wrong. The states
            go from the first one to the last one that is right.
        """
        states = [self.begin(problem)]
        width = 1 + len(self.state_ids(states[0]))
        for start in range(0, len(ids) - width + 1, width):
            if not self.is_move(problem, ids[start]):
                return "unparsed", states
            state = self.play(problem, states[-1], ids[start])
            if state is None or list(ids[start + 1 : start + width]) != self.state_ids(state):
                return "illegal", states
            states.append(state)
        return "", states

    def grade(self, problem: Problem, response: Sequence[int]) -> Verdict:
        """Return CORRECT for legal, rightly stated moves that end with `done` at the goal.

        There may be at most max_moves of them. A response that does not end, or is no sequence of
        moves, is UNPARSED.
        """
        width = 1 + len(self.state_ids(self.begin(problem)))
        if not response or response[-1] not in self.stop_ids or (len(response) - 1) % width:
            return Verdict.UNPARSED
        error, states = self.follow(problem, response[:-1])
        if error == "unparsed":
            return Verdict.UNPARSED
        solved = (
            not error
            and self.at_goal(problem, states[-1])
            and response[-1] == self.token_ids["done"]
            and len(states) - 1 <= self.max_moves
        )
        return Verdict.CORRECT if solved else Verdict.WRONG

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Return whether a prefix gives the solution away.

        That is so if it has reached the goal, ends in the move that reaches it, or has a stop id.
        """
        states = self.follow(problem, prefix)[1]
        if any(token in self.stop_ids for token in prefix):
            return True
        if any(self.at_goal(problem, state) for state in states):
            return True
        last = self._state_after_last_move(problem, prefix, states)
        return last is not None and self.at_goal(problem, last)

    def could_begin(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Return whether the prefix's moves are legal in this problem and rightly stated."""
        error, states = self.follow(problem, prefix)
        length = self._played_length(states)
        if error or length == len(prefix):
            return not error
        last = self._state_after_last_move(problem, prefix, states)
        stated = list(prefix[length + 1 :])
        return last is not None and self.state_ids(last)[: len(stated)] == stated

    def _played_length(self, states: Sequence[Any]) -> int:
        """Return the number of tokens that the moves between these states take."""
        return (len(states) - 1) * (1 + len(self.state_ids(states[0])))

    def _state_after_last_move(
        self, problem: Problem, prefix: Sequence[int], states: Sequence[Any]
    ) -> Any:
        """Return the state after a last move that the prefix does not state in full.

        It is None when there is no such move, or the move is illegal. `states` are those of
        `follow`.
        """
        length = self._played_length(states)
        if length == len(prefix) or not self.is_move(problem, prefix[length]):
            return None
        return self.play(problem, states[-1], prefix[length])
