"""Errands: walk over a square floor with walls and call at some cells in the order given, within a
number of moves.

Cells are named as on a chess board. A response is a walk, which tells after every step where it has
led:

    <bos> wall-b1 wall-b3 first-a3 second-c1 third-a1 : a2 up a3 down a2 right b2 right c2 down c1
    ... done

A step against a wall or the edge leads nowhere. A call counts when the ones before it have been
made; in between one may go anywhere, over cells still to be called at too. A walk ends with `done`,
whether or not all calls were made; random play makes all the moves allowed. So a base model has to
know how steps lead, and nothing of calls.

Every step may be tried, and where it leads is easy to tell. Which one is right depends on the calls
that the walk has made so far and on where it has led: a correct walk of random play wanders, and
most of its steps are not what made it correct.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_lowercase as COLUMNS
from typing import Any, NamedTuple

import numpy as np

from prefixrl_jax.tasks.game import Game
from prefixrl_jax.tasks.task import Problem

ORDER = ("first", "second", "third", "fourth", "fifth")
STEPS = {"up": (1, 0), "down": (-1, 0), "left": (0, -1), "right": (0, 1)}  # rows, columns
TRIES = 20_000  # floors looked at before a band is called too narrow


class State(NamedTuple):
    """Where a walk is, how many calls it has made, and what does not change.

    Cells are row · size + column.
    """

    cell: int
    made: int
    walls: tuple[int, ...]
    calls: tuple[int, ...]


class Errand(Game):
    """The task. Problems come from the generator or from rows
    {"walls": ["b1", "b3"], "calls": ["a3", "c1", "a1"], "start": "a2"}."""

    name = "errand"
    siblings = 4

    def __init__(
        self,
        size: int = 4,
        calls: int = 4,
        walls: int = 3,
        max_moves: int = 20,
        band: Sequence[float] = (1e-3, 1e-2),
    ):
        if not 2 <= size <= len(COLUMNS):
            raise ValueError(f"task.errand.size={size}: from 2 to {len(COLUMNS)}")
        if not 1 <= calls <= min(len(ORDER), size**2 - 1):
            raise ValueError(
                f"task.errand.calls={calls}: from 1 to {min(len(ORDER), size**2 - 1)} with"
                f" size={size}"
            )
        if not 0 <= walls < size**2 - calls:
            raise ValueError(
                f"task.errand.walls={walls}: from 0 to {size**2 - calls - 1} with size={size} and"
                f" calls={calls}"
            )
        if max_moves < 1:
            raise ValueError(f"task.errand.max_moves={max_moves}: at least 1")
        self.size, self.calls, self.walls, self.max_moves = size, calls, walls, max_moves
        self.cells = [
            f"{COLUMNS[column]}{row + 1}" for row in range(size) for column in range(size)
        ]
        marks = [f"{mark}-{cell}" for mark in ("wall", *ORDER[:calls]) for cell in self.cells]
        super().__init__([*STEPS, *self.cells, *marks], band)
        self.moves = {self._id[word]: step for word, step in STEPS.items()}
        self._first_cell = self._id[self.cells[0]]  # the others are the ids after it

    # Problems

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Checks one row of a user's file and returns the problem's data."""
        for field in ("walls", "calls", "start"):
            if field not in row:
                raise ValueError(
                    f"field {field!r} is missing; a row is "
                    "{'walls': ['b1', 'b3'], 'calls': ['a3', 'c1', 'a1'], 'start': 'a2'}"
                )
        walls, calls, start = row["walls"], row["calls"], row["start"]
        if not isinstance(walls, list) or not isinstance(calls, list) or len(calls) != self.calls:
            raise ValueError(
                f"walls={walls}, calls={calls}: a list of cells, and a list of {self.calls} cells"
                " are expected"
            )
        if unknown := [place for place in (*walls, *calls, start) if place not in self.cells]:
            raise ValueError(f"{unknown[0]!r} is not a cell: from a1 to {self.cells[-1]}")
        if len({*walls, *calls, start}) < len(walls) + len(calls) + 1:
            raise ValueError(
                f"walls={walls}, calls={calls}, start={start}: no two may share a cell"
            )
        return {"walls": walls, "calls": calls, "start": start}

    def candidates(self, rng: np.random.Generator) -> Iterator[Iterator[Problem]]:
        """A group has the same walls and calls."""
        for _ in range(TRIES):
            walls, calls, free = self._floor(rng)
            chance = random_play_success(self._table(walls), calls, self.max_moves)
            starts = [cell for cell in free if self.band[0] < chance[cell] < self.band[1]]
            yield (self._problem(walls, calls, start) for start in starts)

    def _floor(self, rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
        """Random walls (sorted) and calls, and the cells left, in random order."""
        order, split = rng.permutation(self.size**2).tolist(), self.walls + self.calls
        return sorted(order[: self.walls]), order[self.walls : split], order[split:]

    def _problem(self, walls: Sequence[int], calls: Sequence[int], start: int) -> Problem:
        named = [self.cells[cell] for cell in (*walls, *calls, start)]
        data = {"walls": named[: len(walls)], "calls": named[len(walls) : -1], "start": named[-1]}
        return Problem("-".join(["errand", *named]), data)

    def family(self, problem: Problem) -> Any:
        """The floor and the calls: a held-out problem does not differ from a training problem in
        its start alone.
        """
        return problem.data["walls"], problem.data["calls"]

    # Text

    def render(self, problem: Problem) -> list[int]:
        """<bos>, walls, calls, a colon, and the cell where the walk starts."""
        d = problem.data
        calls = [f"{mark}-{cell}" for mark, cell in zip(ORDER, d["calls"], strict=False)]
        return [
            self._id[word]
            for word in ("<bos>", *(f"wall-{cell}" for cell in d["walls"]), *calls, ":", d["start"])
        ]

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """Random walks on random floors: how steps lead, without a plan."""
        pairs: list[tuple[list[int], list[int]]] = []
        while len(pairs) < count:
            walls, calls, free = self._floor(rng)
            problem = self._problem(walls, calls, free[0])
            if self.split_of(problem) == "base":
                pairs.append((self.render(problem), self._random_walk(rng, walls, free[0])))
        return pairs

    def _random_walk(self, rng: np.random.Generator, walls: Sequence[int], cell: int) -> list[int]:
        response, tokens, steps = [], list(self.moves), list(self.moves.values())
        for choice in rng.integers(len(steps), size=self.max_moves).tolist():
            cell = self._step(walls, cell, steps[choice])
            response += [tokens[choice], self._first_cell + cell]
        return [*response, self._id["done"]]

    # Play

    def _step(self, walls: Sequence[int], cell: int, step: tuple[int, int]) -> int:
        """Where a step of so many (rows, columns) leads: the same cell when the way is barred."""
        row, column = cell // self.size + step[0], cell % self.size + step[1]
        target = row * self.size + column
        inside = 0 <= row < self.size and 0 <= column < self.size
        return target if inside and target not in walls else cell

    def _table(self, walls: Sequence[int]) -> np.ndarray:
        """Where each step leads from each cell, int [cells, 4]."""
        return np.array(
            [
                [self._step(walls, cell, step) for step in STEPS.values()]
                for cell in range(self.size**2)
            ]
        )

    def begin(self, problem: Problem) -> State:
        """At the start, no call made."""
        walls, calls = (
            tuple(map(self.cells.index, problem.data[field])) for field in ("walls", "calls")
        )
        return State(self.cells.index(problem.data["start"]), 0, walls, calls)

    def play(self, problem: Problem, state: State, move_id: int) -> State:
        """Where a step leads, and whether it makes the next call."""
        _, made, walls, calls = state
        cell = self._step(walls, state.cell, self.moves[move_id])
        return State(cell, made + (made < len(calls) and cell == calls[made]), walls, calls)

    def state_ids(self, state: State) -> list[int]:
        """Where the walk is."""
        return [self._first_cell + state.cell]

    def at_goal(self, problem: Problem, state: State) -> bool:
        """All calls are made."""
        return state.made == len(state.calls)

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Number of moves, shares of them that go nearer to the last call and that come back to a
        cell, and calls made.
        """
        states = self.follow(problem, response)[1]
        moves = len(states) - 1
        back = len(states) - len({state.cell for state in states})
        return {
            "moves": float(moves),
            "nearer": self.nearer(problem, states),
            "revisits": back / max(moves, 1),
            "calls made": float(states[-1].made),
        }


def random_play_success(after: np.ndarray, calls: Sequence[int], max_moves: int) -> np.ndarray:
    """P(a random walk makes all calls, in order, within max_moves) from every cell, float64
    [cells].

    after: int [cells, 4], where each step leads; the four are as likely.
    """
    value = np.zeros((len(calls) + 1, len(after)))  # by calls made
    value[-1] = 1
    for _ in range(max_moves):
        ahead = value[:, after]  # [calls + 1, cells, 4]
        for made, call in enumerate(calls):
            ahead[made] = np.where(after == call, value[made + 1][after], ahead[made])
        value = ahead.mean(-1)
    return value[0]
