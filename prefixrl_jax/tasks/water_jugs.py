"""Water jugs: measure a goal with jugs that can only be filled, emptied and poured into one
another.

The puzzle of Abbot Albert (13th century) and of Polya's "How to Solve It". A response plays it move
by move and states what each jug holds after every move, so a reader can follow it and the grader
can check every step:

    <bos> A/9 B/4 A=0 B=0 goal=6 :  fill-A A=9 B=0 A>B A=5 B=4 empty-B A=5 B=0 A>B A=1 B=4 empty-B
    A=1 B=0 A>B A=0 B=1 fill-A A=9 B=1 A>B A=6 B=4 done

A/9 says that jug A holds at most 9 litres, A=5 that 5 are in it. Every number is one token that
names its jug: a small model then needs no layers just to tell what a number refers to.

It ends with `done` once some jug holds the goal, or with `stuck` when the moves are used up.
Elementary steps are easy; which move to make is not: random legal play (a pour five times as likely
as a fill or an emptying) solves the hard ones one to ten times in a thousand games.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prefixrl_jax.tasks.game import Game
from prefixrl_jax.tasks.task import Problem

JUGS = "ABCD"
Move = tuple[str, int, int]  # (kind, jug, other jug)


def all_moves(jugs: int) -> list[Move]:
    """Every move with this many jugs: fill, empty, then pour, in token order."""
    pours = [("pour", i, j) for i, j in itertools.permutations(range(jugs), 2)]
    return [("fill", i, i) for i in range(jugs)] + [("empty", i, i) for i in range(jugs)] + pours


def move_name(move: Move) -> str:
    """The token of a move: fill-A, empty-B, A>B."""
    kind, i, j = move
    return f"{JUGS[i]}>{JUGS[j]}" if kind == "pour" else f"{kind}-{JUGS[i]}"


def apply(move: Move, amounts: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """Amounts int [..., jugs] after a move; capacities have the same shape.

    A move that changes nothing is not legal.
    """
    kind, i, j = move
    out = np.array(amounts)
    if kind == "fill":
        out[..., i] = capacities[..., i]
    elif kind == "empty":
        out[..., i] = 0
    else:
        poured = np.minimum(out[..., i], capacities[..., j] - out[..., j])
        out[..., i] -= poured
        out[..., j] += poured
    return out


class WaterJugs(Game):
    """The task.

    Problems come from the generator or from rows {"capacities": [9, 4], "start": [0, 0], "goal":
    6}.
    """

    name = "water_jugs"
    siblings = 8

    def __init__(
        self,
        max_capacity: int = 11,
        jugs: int = 2,
        max_moves: int = 16,
        pour_weight: float = 5.0,
        band: Sequence[float] = (1e-3, 1e-2),
    ):
        if not 2 <= jugs <= len(JUGS):
            raise ValueError(f"task.water_jugs.jugs={jugs}: from 2 to {len(JUGS)}")
        if max_capacity < 4 or max_moves < 1:
            raise ValueError(
                f"task.water_jugs: max_capacity={max_capacity} must be at least 4,"
                f" max_moves={max_moves} at least 1"
            )
        if pour_weight <= 0:
            raise ValueError(f"task.water_jugs.pour_weight={pour_weight}: must be positive")
        self.max_capacity, self.jugs, self.max_moves, self.pour_weight = (
            max_capacity,
            jugs,
            max_moves,
            pour_weight,
        )
        moves, numbers, names = all_moves(jugs), range(max_capacity + 1), JUGS[:jugs]
        words = [*map(move_name, moves), *(f"goal={n}" for n in numbers)]
        super().__init__(
            [*words, *(f"{jug}{mark}{n}" for mark in "/=" for jug in names for n in numbers)], band
        )
        self.moves = {self._id[move_name(m)]: m for m in moves}
        # the amounts of a jug are consecutive ids
        self._zero = [self._id[f"{jug}=0"] for jug in names]

    # Problems

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Checks one row of a user's file and returns the problem's data."""
        for field in ("capacities", "start", "goal"):
            if field not in row:
                raise ValueError(
                    f"field {field!r} is missing; a row is {{'capacities': [9, 4], 'start': [0, 0],"
                    " 'goal': 6}"
                )
        capacities, start, goal = row["capacities"], row["start"], row["goal"]
        numbers = (
            [*capacities, *start, goal]
            if isinstance(capacities, list) and isinstance(start, list)
            else [None]
        )
        if not all(type(n) is int and 0 <= n <= self.max_capacity for n in numbers):
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
        if (
            any(s > c for s, c in zip(start, capacities, strict=True))
            or goal in start
            or goal > max(capacities)
            or goal < 1
        ):
            raise ValueError(
                f"start={start}, goal={goal}: no jug may hold more than {capacities} or the goal"
                " already"
            )
        return {"capacities": capacities, "start": start, "goal": goal}

    def candidates(self, rng: np.random.Generator) -> Iterator[Iterator[Problem]]:
        """Problems with two jugs; a group has the same jugs and goal."""
        for a, b, goal in self._combinations(rng):
            chance = random_play_success((a, b), goal, self.max_moves, self.pour_weight)
            starts = np.argwhere((chance > self.band[0]) & (chance < self.band[1]))
            if len(starts):
                yield (
                    self._problem((a, b), (int(x), int(y)), goal)
                    for x, y in rng.permutation(starts)
                )

    def _combinations(self, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
        sizes = range(3, self.max_capacity + 1)
        every = [
            (a, b, goal) for a in sizes for b in sizes if a != b for goal in range(1, max(a, b))
        ]
        return (every[i] for i in rng.permutation(len(every)))

    def _problem(self, capacities: Sequence[int], start: Sequence[int], goal: int) -> Problem:
        name = "-".join(map(str, (*capacities, *start, goal)))
        return Problem(
            f"jugs-{name}", {"capacities": list(capacities), "start": list(start), "goal": goal}
        )

    def family(self, problem: Problem) -> Any:
        """The same for a problem and its mirror image, jugs A and B exchanged."""
        return (
            sorted(zip(problem.data["capacities"], problem.data["start"], strict=True)),
            problem.data["goal"],
        )

    # Text

    def render(self, problem: Problem) -> list[int]:
        """<bos>, capacities, amounts, goal and a colon."""
        d = problem.data
        words = [
            "<bos>",
            *_name("/", d["capacities"]),
            *_name("=", d["start"]),
            f"goal={d['goal']}",
            ":",
        ]
        return [self._id[word] for word in words]

    def state_ids(self, state: Sequence[int]) -> list[int]:
        """What each jug holds."""
        return [self._zero[jug] + int(n) for jug, n in enumerate(state)]

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """Games of random legal play on random problems: the rules, without a plan."""
        problems: list[Problem] = []
        while len(problems) < count:
            jugs = int(rng.integers(2, self.jugs + 1))
            capacities = rng.integers(3, self.max_capacity + 1, jugs)
            start = rng.integers(0, capacities + 1)
            goal = int(rng.integers(1, capacities.max() + 1))
            problem = self._problem(capacities.tolist(), start.tolist(), goal)
            if goal not in start and self.split_of(problem) == "base":
                problems.append(problem)
        by_jugs = [
            [p for p in problems if len(p.data["start"]) == n] for n in range(2, self.jugs + 1)
        ]
        return [pair for group in by_jugs if group for pair in self._play(rng, group)]

    def _play(
        self, rng: np.random.Generator, problems: list[Problem]
    ) -> list[tuple[list[int], list[int]]]:
        capacities = np.array([p.data["capacities"] for p in problems])
        amounts = np.array([p.data["start"] for p in problems])
        goals = np.array([p.data["goal"] for p in problems])[:, None]
        moves = all_moves(amounts.shape[1])
        tokens = np.array([self._id[move_name(m)] for m in moves])
        responses: list[list[int]] = [[] for _ in problems]
        playing = np.ones(len(problems), bool)
        for _ in range(self.max_moves):
            # [N, moves, jugs]
            after = np.stack([apply(m, amounts, capacities) for m in moves], axis=1)
            legal = (after != amounts[:, None]).any(-1)
            # The exponential race: the least of Exp(1) / weight falls on a move with probability
            # weight / sum of weights.
            race = rng.exponential(size=legal.shape) / move_weights(moves, self.pour_weight)
            chosen = np.argmin(np.where(legal, race, np.inf), axis=1)
            amounts = np.where(playing[:, None], after[np.arange(len(problems)), chosen], amounts)
            for i in np.flatnonzero(playing):
                responses[i] += [int(tokens[chosen[i]]), *self.state_ids(amounts[i])]
            solved = playing & (amounts == goals).any(1)
            for i in np.flatnonzero(solved):
                responses[i].append(self._id["done"])
            playing &= ~solved
        for i in np.flatnonzero(playing):
            responses[i].append(self._id["stuck"])
        return [(self.render(p), r) for p, r in zip(problems, responses, strict=True)]

    # Play

    def begin(self, problem: Problem) -> list[int]:
        """The amounts at the start, litres."""
        return problem.data["start"]

    def is_move(self, problem: Problem, token: int) -> bool:
        """A move of jugs that the problem has."""
        move = self.moves.get(token)
        return move is not None and max(move[1:]) < len(problem.data["start"])

    def play(self, problem: Problem, state: list[int], move_id: int) -> list[int] | None:
        """The amounts after a move; one that changes nothing is not legal."""
        after = _apply_list(self.moves[move_id], state, problem.data["capacities"])
        return None if after == state else after

    def at_goal(self, problem: Problem, state: list[int]) -> bool:
        """Some jug holds the goal."""
        return problem.data["goal"] in state

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Number of moves, and among them the shares of fills, empties and pours and of those that
        go nearer to the goal.
        """
        width, states = len(problem.data["start"]) + 1, self.follow(problem, response)[1]
        made = [self.moves[i] for i in response[: (len(states) - 1) * width : width]]
        shares = {
            kind: sum(m[0] == kind for m in made) / max(len(made), 1)
            for kind in ("fill", "empty", "pour")
        }
        return shares | {"nearer": self.nearer(problem, states), "moves": float(len(made))}


def _name(mark: str, numbers: Sequence[int]) -> list[str]:
    """A/9, B/4 or A=5, B=0."""
    return [f"{jug}{mark}{n}" for jug, n in zip(JUGS, numbers, strict=False)]


def _apply_list(move: Move, amounts: list[int], capacities: list[int]) -> list[int]:
    """`apply` for one state held in a plain list: ten times faster than numpy on two numbers."""
    kind, i, j = move
    out = list(amounts)
    if kind == "pour":
        poured = min(out[i], capacities[j] - out[j])
        out[i] -= poured
        out[j] += poured
    else:
        out[i] = capacities[i] if kind == "fill" else 0
    return out


def move_weights(moves: list[Move], pour_weight: float) -> np.ndarray:
    """float64 [moves]: how often a random player makes each legal move, relative to a fill."""
    return np.array([pour_weight if kind == "pour" else 1.0 for kind, _, _ in moves])


def random_play_success(
    capacities: tuple[int, int], goal: int, max_moves: int, pour_weight: float
) -> np.ndarray:
    """P(random legal play reaches the goal within max_moves) from every start, float64 [A+1, B+1];
    0 where it holds already.
    """
    # [A+1, B+1, 2]
    grid = np.stack(np.meshgrid(*(np.arange(c + 1) for c in capacities), indexing="ij"), axis=-1)
    full, moves = np.broadcast_to(np.array(capacities), grid.shape), all_moves(2)
    after = np.stack([apply(m, grid, full) for m in moves])  # [moves, A+1, B+1, 2]
    # 0 for a move that is not legal
    weight = (after != grid).any(-1) * move_weights(moves, pour_weight)[:, None, None]
    at_goal = (grid == goal).any(-1)
    value = at_goal.astype(float)
    for _ in range(max_moves):
        value = np.where(
            at_goal, 1.0, (value[after[..., 0], after[..., 1]] * weight).sum(0) / weight.sum(0)
        )
    return np.where(at_goal, 0.0, value)
