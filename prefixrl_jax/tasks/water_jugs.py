"""Water jugs: measure a goal by filling, emptying and pouring jugs.

The puzzle of Abbot Albert (13th century) and of Polya's "How to Solve It". A response plays it move
by move and states what each jug holds after every move, so a reader can follow it and the grader
can check every step:

    <bos> A/9 B/4 A=0 B=0 goal=6 :  fill-A A=9 B=0 A>B A=5 B=4 empty-B A=5 B=0 A>B A=1 B=4 empty-B
    A=1 B=0 A>B A=0 B=1 fill-A A=9 B=1 A>B A=6 B=4 done

A/9 says that jug A holds at most 9 litres, A=5 that 5 are in it. Every number is one token that
names its jug: a small model then needs no layers just to tell what a number refers to.

A response ends with `done` once some jug holds the goal, or with `stuck` when the moves are used
up. Elementary steps are easy; which move to make is not: random legal play (a pour five times as
likely as a fill or an emptying) solves the hard problems one to ten times in a thousand games.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from prefixrl_jax.config import check_section
from prefixrl_jax.tasks.game import Game
from prefixrl_jax.tasks.jug_play import (
    JUGS,
    all_moves,
    apply_to_one,
    move_name,
    random_move,
    random_play_success,
)
from prefixrl_jax.tasks.search import distances_to_goal, share_nearer
from prefixrl_jax.tasks.task import Problem

Amounts = tuple[int, ...]  # litres in each jug: the game's state
# Above it the chance of success is a table of too many states to look through thousands of them.
MOST_GENERATED = 250
# Entries of all tables together after which a band is called too narrow: about a minute.
MOST_ENTRIES = 4 * 10**8


class WaterJugs(Game):
    """The water jugs task.

    Problems are generated, or come from rows like `example_row`. The arguments are the fields of
    `task.water_jugs` in config.py; a bad one raises ValueError.
    """

    name = "water_jugs"
    siblings = 8
    example_row: ClassVar = {"capacities": [9, 4], "start": [0, 0], "goal": 6}

    def __init__(
        self,
        max_capacity: int = 11,
        jugs: int = 2,
        max_moves: int = 16,
        pour_weight: float = 5.0,
        band: Sequence[float] = (1e-3, 1e-2),
    ):
        sizes = {"max_capacity": max_capacity, "jugs": jugs, "max_moves": max_moves}
        check_section("task.water_jugs", sizes | {"pour_weight": pour_weight, "band": band})
        self.max_capacity = max_capacity
        self.jugs = jugs
        self.max_moves = max_moves
        self.pour_weight = pour_weight
        moves = all_moves(jugs)
        amounts = range(max_capacity + 1)
        words = [
            *map(move_name, moves),
            *(f"goal={n}" for n in amounts),
            *(f"{jug}{mark}{n}" for mark in "/=" for jug in JUGS[:jugs] for n in amounts),
        ]
        super().__init__(words, band)
        self.moves = {self.token_ids[move_name(move)]: move for move in moves}
        # The words for the amounts in a jug have consecutive ids, from this one on.
        self._zero_ids = [self.token_ids[f"{jug}=0"] for jug in JUGS[:jugs]]
        # A problem's distances are searched once for all its samples.
        self._distances: dict[str, dict[Amounts, int]] = {}

    # Problems

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Check one row of a user's file and return the problem's data."""
        self.check_fields(row)
        capacities, start, goal = row["capacities"], row["start"], row["goal"]
        lists = isinstance(capacities, list) and isinstance(start, list)
        if not lists or not all(map(self._is_amount, [*capacities, *start, goal])):
            raise ValueError(
                f"capacities={capacities}, start={start}, goal={goal}: integers from 0 to"
                f" {self.max_capacity} are expected"
            )
        if not 2 <= len(capacities) <= self.jugs or len(start) != len(capacities):
            raise ValueError(
                f"capacities={capacities}, start={start}: two lists of 2 to {self.jugs} numbers are"
                " expected"
            )
        if min(capacities) < 1:
            raise ValueError(f"capacities={capacities}: every jug holds at least 1")
        overfull = any(s > c for s, c in zip(start, capacities, strict=True))
        if overfull or goal in start or not 1 <= goal <= max(capacities):
            raise ValueError(
                f"start={start}, goal={goal}: no jug may hold more than {capacities} or the goal"
                " already"
            )
        return {"capacities": capacities, "start": start, "goal": goal}

    def _is_amount(self, value: Any) -> bool:
        # By type, since True is an int too.
        return type(value) is int and 0 <= value <= self.max_capacity

    def candidates(self, rng: np.random.Generator) -> Iterator[Iterator[Problem]]:
        """Yield groups of problems with two jugs; a group has the same jugs and goal."""
        if self.max_capacity > MOST_GENERATED:
            raise ValueError(
                f"task.water_jugs.max_capacity={self.max_capacity}: problems are generated with"
                f" jugs of at most {MOST_GENERATED} litres; bring larger ones by data.path"
            )
        entries = 0
        for a, b, goal in self._shuffled_goals(rng):
            entries += (a + 1) * (b + 1) * self.max_moves
            if entries > MOST_ENTRIES:
                return
            chance = random_play_success((a, b), goal, self.max_moves, self.pour_weight)
            starts = np.argwhere((chance > self.band[0]) & (chance < self.band[1]))
            if len(starts):
                shuffled = rng.permutation(starts).tolist()
                yield (self._problem((a, b), start, goal) for start in shuffled)

    def _shuffled_goals(self, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
        """Yield every two different jugs with every goal below the larger one, in random order."""
        sizes = range(3, self.max_capacity + 1)
        pairs = [(a, b) for a in sizes for b in sizes if a != b]
        ends = np.cumsum([max(pair) - 1 for pair in pairs])  # of each pair's goals in one long list
        for index in rng.permutation(ends[-1]):
            pair = int(np.searchsorted(ends, index, side="right"))
            a, b = pairs[pair]
            yield a, b, max(a, b) - int(ends[pair] - index)

    def _problem(self, capacities: Sequence[int], start: Sequence[int], goal: int) -> Problem:
        name = "-".join(map(str, (*capacities, *start, goal)))
        data = {"capacities": list(capacities), "start": list(start), "goal": goal}
        return Problem(f"jugs-{name}", data)

    def family(self, problem: Problem) -> Any:
        """Return a key that a problem shares with its mirror image, jugs A and B exchanged."""
        jugs = zip(problem.data["capacities"], problem.data["start"], strict=True)
        return sorted(jugs), problem.data["goal"]

    # Text

    def render(self, problem: Problem) -> list[int]:
        """Return the ids of <bos>, capacities, amounts, goal and a colon."""
        capacities = [f"{jug}/{n}" for jug, n in zip(JUGS, problem.data["capacities"])]
        amounts = [f"{jug}={n}" for jug, n in zip(JUGS, problem.data["start"])]
        words = ["<bos>", *capacities, *amounts, f"goal={problem.data['goal']}", ":"]
        return [self.token_ids[word] for word in words]

    def state_ids(self, state: Sequence[int]) -> list[int]:
        """Return the tokens that say what each jug holds."""
        return [self._zero_ids[jug] + int(n) for jug, n in enumerate(state)]

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """Return games of random legal play on random problems.

        They teach the rules, without a plan.
        """
        problems: list[Problem] = []
        while len(problems) < count:
            jugs = int(rng.integers(2, self.jugs + 1))
            capacities = rng.integers(3, self.max_capacity + 1, jugs)
            start = rng.integers(0, capacities + 1)
            goal = int(rng.integers(1, capacities.max() + 1))
            problem = self._problem(capacities.tolist(), start.tolist(), goal)
            if goal not in start and self.split_of(problem) == "base":
                problems.append(problem)
        pairs: list[tuple[list[int], list[int]]] = []
        for jugs in range(2, self.jugs + 1):
            group = [p for p in problems if len(p.data["start"]) == jugs]
            if group:
                responses = self._play_randomly(rng, group)
                pairs += [(self.render(p), r) for p, r in zip(group, responses, strict=True)]
        return pairs

    def _play_randomly(self, rng: np.random.Generator, problems: list[Problem]) -> list[list[int]]:
        """Return the response of random legal play to each problem.

        All problems must have the same number of jugs.
        """
        capacities = np.array([p.data["capacities"] for p in problems])
        amounts = np.array([p.data["start"] for p in problems])
        goals = np.array([p.data["goal"] for p in problems])[:, None]
        move_ids = [self.token_ids[move_name(move)] for move in all_moves(amounts.shape[1])]
        responses: list[list[int]] = [[] for _ in problems]
        playing = np.ones(len(problems), bool)
        for _ in range(self.max_moves):
            # Finished games draw too, so that the noise of the others does not depend on them.
            chosen, after = random_move(rng, amounts, capacities, self.pour_weight)
            amounts = np.where(playing[:, None], after, amounts)
            for i in np.flatnonzero(playing):
                responses[i] += [move_ids[chosen[i]], *self.state_ids(amounts[i])]
            solved = playing & (amounts == goals).any(1)
            for i in np.flatnonzero(solved):
                responses[i].append(self.token_ids["done"])
            playing &= ~solved
        for i in np.flatnonzero(playing):
            responses[i].append(self.token_ids["stuck"])
        return responses

    # Play

    def begin(self, problem: Problem) -> Amounts:
        """Return the amounts in the jugs before the first move."""
        return tuple(problem.data["start"])

    def is_move(self, problem: Problem, token: int) -> bool:
        """Return whether a token is a move of jugs that the problem has."""
        move = self.moves.get(token)
        return move is not None and max(move[1:]) < len(problem.data["start"])

    def play(self, problem: Problem, state: Amounts, move_id: int) -> Amounts | None:
        """Return the amounts after a move; one that changes nothing is illegal."""
        after = apply_to_one(self.moves[move_id], state, problem.data["capacities"])
        return None if after == state else after

    def at_goal(self, problem: Problem, state: Amounts) -> bool:
        """Return whether one of the jugs holds the goal."""
        return problem.data["goal"] in state

    # Analysis

    def distances(self, problem: Problem) -> dict[Amounts, int]:
        """Return the fewest moves to the goal from each state that can reach it."""
        key = repr(problem.data)
        if key not in self._distances:
            moves = [move_id for move_id in self.moves if self.is_move(problem, move_id)]

            def successors(state: Amounts) -> Iterator[Amounts]:
                for move_id in moves:
                    after = self.play(problem, state, move_id)
                    if after is not None:
                        yield after

            self._distances[key] = distances_to_goal(
                self.begin(problem), successors, lambda state: self.at_goal(problem, state)
            )
        return self._distances[key]

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Return the number of moves and the shares of different kinds of moves.

        The shares are those of fills, emptyings, pours, and of moves that go nearer to the goal.
        """
        states = self.follow(problem, response)[1]
        width = len(problem.data["start"]) + 1
        count = len(states) - 1
        kinds = [self.moves[token][0] for token in response[: count * width : width]]
        shares = {kind: kinds.count(kind) / max(count, 1) for kind in ("fill", "empty", "pour")}
        nearer = share_nearer(states, self.distances(problem))
        return shares | {"nearer": nearer, "moves": float(count)}
