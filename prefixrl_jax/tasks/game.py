"""A one-player game as a task: what water jugs, countdown and errands have in common.

A response plays the game move by move. Every move is one token, followed by a fixed number of
tokens that state what it led to, so the grader can check each step; it ends with `done` or `stuck`,
as the game has it, and only `done` can be correct:

    prompt :  move state move state ... done

A base model learns the rules from random legal play. A generated problem is kept when random legal
play solves it with a probability inside a band, computed exactly: hard, but not out of reach of
rejection sampling.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.tasks.task import Problem, Verdict

# residues of a hash of the problem: disjoint by construction
SPLITS = {"train": 0, "heldout": 1, "base": 2}


def side(family: Any) -> str:
    """The split that all problems of a family belong to, by a hash of its `repr`."""
    digest = hashlib.blake2b(repr(family).encode(), digest_size=1).digest()
    return list(SPLITS)[digest[0] % len(SPLITS)]


class Game(abc.ABC):
    """The parts of a task that do not depend on the rules.

    `State` below is whatever a game makes it, not changed in place.
    """

    name: str
    grades_aside = False
    max_moves: int
    siblings: int  # most problems that are taken from one group of `candidates`
    moves: Mapping[int, Any]  # the tokens that are moves, legal or not, and what each stands for

    def __init__(self, words: Sequence[str], band: Sequence[float]):
        """words: the game's own words; ":", "done" and "stuck" come before them.

        band: chance of random play, (low, high).
        """
        if len(band) != 2 or not 0 <= band[0] < band[1] <= 1:
            raise ValueError(
                f"task.{self.name}.band={tuple(band)}: two probabilities, 0 <= low < high <= 1"
            )
        self.band = tuple(band)
        words = [":", "done", "stuck", *words]
        self.tokenizer = word_tokenizer(words)
        vocabulary = self.tokenizer.get_vocab()
        self._distances: dict[str, dict[tuple, int]] = {}
        self._id = {word: vocabulary[word] for word in words} | {
            "<bos>": self.tokenizer.bos_token_id
        }
        self.stop_ids = (self._id["done"], self._id["stuck"])

    # What a game says of itself

    @abc.abstractmethod
    def candidates(self, rng: np.random.Generator) -> Iterator[Iterable[Problem]]:
        """Problems inside the band, in groups of kin (the same jugs, the same numbers), in random
        order. Ends.
        """

    @abc.abstractmethod
    def family(self, problem: Problem) -> Any:
        """What two problems share that must not be in two splits, with a `repr` that is the same in
        every process.
        """

    @abc.abstractmethod
    def begin(self, problem: Problem) -> Any:
        """The state before the first move."""

    @abc.abstractmethod
    def play(self, problem: Problem, state: Any, move_id: int) -> Any:
        """The state after a move (a token of `moves`), or None when the move is not legal."""

    @abc.abstractmethod
    def state_ids(self, state: Any) -> list[int]:
        """The tokens that state what a move led to: as many for every state of a problem."""

    @abc.abstractmethod
    def at_goal(self, problem: Problem, state: Any) -> bool:
        """Whether the problem is solved."""

    @abc.abstractmethod
    def render(self, problem: Problem) -> list[int]:
        """The prompt's token ids, a colon among them, behind which the answer begins."""

    def is_move(self, problem: Problem, token: int) -> bool:
        """Whether a token can be a move in this problem at all, legal now or not."""
        return token in self.moves

    # How far it is to the goal

    def distances(self, problem: Problem) -> dict[tuple, int]:
        """Fewest moves to the goal, by state (as a tuple), from every state that play can lead to
        and from which there is a way.

        For games of few states; kept, so that a problem is searched once.
        """
        if (key := repr(problem.data)) in self._distances:
            return self._distances[key]
        start = self.begin(problem)
        states, found = [start], dict[tuple, int]()
        came_from: dict[tuple, set[tuple]] = {tuple(start): set()}
        for state in states:  # grows: every state, and the states that lead to it
            for move in self.moves:
                if (
                    self.is_move(problem, move)
                    and (after := self.play(problem, state, move)) is not None
                ):
                    if tuple(after) not in came_from:
                        came_from[tuple(after)] = set()
                        states.append(after)
                    came_from[tuple(after)].add(tuple(state))
        ring = {tuple(state) for state in states if self.at_goal(problem, state)}
        for distance in itertools.count():
            if not ring:
                break
            found |= dict.fromkeys(ring, distance)
            ring = set().union(*(came_from[state] for state in ring)) - found.keys()
        return self._distances.setdefault(key, found)

    def nearer(self, problem: Problem, states: Sequence[Any]) -> float:
        """Share of the moves between these states that leave fewer moves to the goal than there
        were.
        """
        distances = self.distances(problem)
        left = [distances.get(tuple(state), math.inf) for state in states]
        return sum(after < before for before, after in itertools.pairwise(left)) / max(
            len(left) - 1, 1
        )

    # Problems and text

    def generate(self, split: str, count: int, seed: int) -> list[Problem]:
        """Problems that random legal play solves with a probability inside `band`; raises
        ValueError if there are too few.
        """
        rng = np.random.default_rng([seed, SPLITS[split]])
        found: dict[str, Problem] = {}
        for group in self.candidates(rng):
            mine = [p for p in group if self.split_of(p) == split]
            found |= {p.id: p for p in mine[: self.siblings]}
            if len(found) >= count:
                return list(found.values())[:count]
        raise ValueError(
            f"only {len(found)} of {count} {split} problems lie in"
            f" task.{self.name}.band={self.band}: ask for fewer, widen the band, or make the task's"
            " sizes larger"
        )

    def split_of(self, problem: Problem) -> str:
        """The split a problem belongs to, by a hash of its family."""
        return side(self.family(problem))

    def hint(self, problem: Problem, prefix: Sequence[int]) -> list[int]:
        """The prompt with the prefix before its colon."""
        ids = self.render(problem)
        colon = ids.index(self._id[":"])
        return [*ids[:colon], *prefix, *ids[colon:]]

    def text(self, ids: Sequence[int]) -> str:
        """Words joined by spaces."""
        return str(self.tokenizer.decode(list(ids)))

    def base_source(self) -> str:
        """Empty: the text is generated, and the task's fields say how."""
        return ""

    # Grading

    def follow(self, problem: Problem, ids: Sequence[int]) -> tuple[str, list[Any]]:
        """Plays tokens: ("", "unparsed" or "illegal", the states from the first on to the last one
        that is right).
        """
        states = [self.begin(problem)]
        width = 1 + len(self.state_ids(states[0]))
        for at in range(0, len(ids) - width + 1, width):
            if not self.is_move(problem, ids[at]):
                return "unparsed", states
            after = self.play(problem, states[-1], ids[at])
            if after is None or list(ids[at + 1 : at + width]) != self.state_ids(after):
                return "illegal", states
            states.append(after)
        return "", states

    def grade(self, problem: Problem, response: Sequence[int]) -> Verdict:
        """Correct: legal moves with the right outcomes, at most max_moves of them, ending in `done`
        at the goal.
        """
        width = 1 + len(self.state_ids(self.begin(problem)))
        if not response or response[-1] not in self.stop_ids or (len(response) - 1) % width:
            return Verdict.UNPARSED
        wrong, states = self.follow(problem, response[:-1])
        if wrong == "unparsed":
            return Verdict.UNPARSED
        solved = (
            self.at_goal(problem, states[-1])
            and response[-1] == self._id["done"]
            and len(states) - 1 <= self.max_moves
        )
        return Verdict.CORRECT if solved and not wrong else Verdict.WRONG

    def leaks(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """A prefix that has reached the goal, makes the move that reaches it, or has ended leaves
        nothing to find.
        """
        states = self.follow(problem, prefix)[1]
        if any(i in self.stop_ids for i in prefix) or any(self.at_goal(problem, s) for s in states):
            return True
        untold = self._untold(problem, prefix, states)
        return untold is not None and self.at_goal(problem, untold)

    def could_begin(self, problem: Problem, prefix: Sequence[int]) -> bool:
        """Whether its moves are legal here and lead where it says, as far as it says it."""
        wrong, states = self.follow(problem, prefix)
        told = (len(states) - 1) * (1 + len(self.state_ids(states[0])))
        if wrong or told == len(prefix):
            return not wrong
        untold = self._untold(problem, prefix, states)
        return untold is not None and self.state_ids(untold)[: len(prefix) - told - 1] == list(
            prefix[told + 1 :]
        )

    def _untold(self, problem: Problem, prefix: Sequence[int], states: Sequence[Any]) -> Any:
        """The state after a prefix's last move when its outcome is not told, or not wholly; None
        when there is no such move, or it is not legal. states: those that are told.
        """
        told = (len(states) - 1) * (1 + len(self.state_ids(states[0])))
        if told == len(prefix) or not self.is_move(problem, prefix[told]):
            return None
        return self.play(problem, states[-1], prefix[told])
