"""Countdown: combine given numbers, two at a time, until one is left, which is to be the goal.

The numbers game of the television programme "Des chiffres et des lettres", with every number used
once. Each number has a letter. A move takes the sum, the difference (of the larger and the smaller)
or the product of two of them. The response then repeats the two numbers and gives the outcome the
next letter:

    <bos> A=3 B=8 C=2 D=6 goal=12 :  B-C 8 2 E=6 A*E 3 6 F=18 D-F 6 18 G=12 done

It ends with `done` when one number is left, whether or not it is the goal, or with `stuck` after an
outcome over the largest number allowed (`E=over`), which loses the game. So every move of two
numbers that are still there is legal: the rules and the tables of arithmetic are all that a base
model has to know. Which numbers to combine takes looking ahead, and no rule of thumb serves all
problems.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from string import ascii_uppercase as LETTERS
from typing import Any

import numpy as np

from prefixrl_jax.tasks.game import Game
from prefixrl_jax.tasks.task import Problem

MOST_NUMBERS = 8
TRIES = 20_000  # sets of numbers looked at before a band is called too narrow
USED = -1
Numbers = tuple[int, ...]  # by letter: the number, max_outcome + 1 for "over", or USED
# and what the last move wrote: its two numbers and the outcome
State = tuple[Numbers, tuple[int, ...]]
Move = tuple[str, int, int]  # (sign, letter, later letter)


def all_moves(letters: int) -> list[Move]:
    """Every move of two out of so many letters, in token order."""
    return [(sign, i, j) for sign in "+-*" for i, j in itertools.combinations(range(letters), 2)]


def combine(sign: str, a: Any, b: Any) -> Any:
    """a + b, |a - b| or a * b, of two integers or two integer arrays."""
    return a + b if sign == "+" else abs(a - b) if sign == "-" else a * b


class Countdown(Game):
    """The task.

    Problems come from the generator or from rows {"numbers": [3, 8, 2, 6], "goal": 12}.
    """

    name = "countdown"
    siblings = 4

    def __init__(
        self,
        numbers: int = 5,
        max_number: int = 10,
        max_outcome: int = 30,
        band: Sequence[float] = (1e-3, 5e-3),
    ):
        if not 2 <= numbers <= MOST_NUMBERS:
            raise ValueError(f"task.countdown.numbers={numbers}: from 2 to {MOST_NUMBERS}")
        if not 1 <= max_number <= max_outcome:
            raise ValueError(
                f"task.countdown: max_number={max_number} must be at least 1 and at most"
                f" max_outcome={max_outcome}"
            )
        self.numbers, self.max_number, self.max_outcome, self.max_moves = (
            numbers,
            max_number,
            max_outcome,
            numbers - 1,
        )
        letters = LETTERS[: 2 * numbers - 1]  # those given, and one for each outcome
        moves, values = all_moves(len(letters) - 1), [*range(max_outcome + 1), "over"]
        names = [f"{LETTERS[i]}{sign}{LETTERS[j]}" for sign, i, j in moves]
        words = [f"{letter}={value}" for letter in letters for value in values]
        super().__init__(
            [*names, *map(str, values[:-1]), *(f"goal={n}" for n in values[:-1]), *words], band
        )
        self.moves = {self._id[name]: move for name, move in zip(names, moves, strict=True)}
        # the values of a letter are consecutive ids
        self._zero = [self._id[f"{letter}=0"] for letter in letters]

    # Problems

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Checks one row of a user's file and returns the problem's data."""
        for field in ("numbers", "goal"):
            if field not in row:
                raise ValueError(
                    f"field {field!r} is missing; a row is {{'numbers': [3, 8, 2, 6], 'goal': 12}}"
                )
        numbers, goal = row["numbers"], row["goal"]
        if not isinstance(numbers, list) or len(numbers) != self.numbers:
            raise ValueError(f"numbers={numbers}: a list of {self.numbers} numbers is expected")
        if not all(type(n) is int and 1 <= n <= self.max_number for n in numbers):
            raise ValueError(
                f"numbers={numbers}: integers from 1 to {self.max_number} are expected"
            )
        if type(goal) is not int or not 0 <= goal <= self.max_outcome:
            raise ValueError(f"goal={goal}: an integer from 0 to {self.max_outcome} is expected")
        return {"numbers": numbers, "goal": goal}

    def candidates(self, rng: np.random.Generator) -> Iterator[Iterator[Problem]]:
        """A group has the same numbers."""
        for _ in range(TRIES):
            numbers = rng.integers(1, self.max_number + 1, self.numbers).tolist()
            chance = random_play_outcomes(numbers, self.max_outcome)
            goals = rng.permutation(
                np.flatnonzero((chance > self.band[0]) & (chance < self.band[1]))
            )
            yield (self._problem(numbers, goal) for goal in goals.tolist())

    def _problem(self, numbers: list[int], goal: int) -> Problem:
        return Problem(
            f"countdown-{'-'.join(map(str, (*numbers, goal)))}", {"numbers": numbers, "goal": goal}
        )

    def family(self, problem: Problem) -> Any:
        """The numbers, in whatever order: those of a held-out problem are in no training
        problem.
        """
        return sorted(problem.data["numbers"])

    # Text

    def render(self, problem: Problem) -> list[int]:
        """<bos>, the numbers with their letters, goal and a colon."""
        numbers = [zero + n for zero, n in zip(self._zero, problem.data["numbers"], strict=False)]
        return [
            self._id["<bos>"],
            *numbers,
            self._id[f"goal={problem.data['goal']}"],
            self._id[":"],
        ]

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """Games of random legal play on random problems: the rules and the arithmetic, without a
        plan.
        """
        pairs: list[tuple[list[int], list[int]]] = []
        while len(pairs) < count:
            goal = int(rng.integers(self.max_outcome + 1))
            problem = self._problem(
                rng.integers(1, self.max_number + 1, self.numbers).tolist(), goal
            )
            if self.split_of(problem) == "base":
                pairs.append((self.render(problem), self._random_play(rng, problem)))
        return pairs

    def _random_play(self, rng: np.random.Generator, problem: Problem) -> list[int]:
        state, response = self.begin(problem), []
        for draw in rng.random(self.max_moves):
            left = [letter for letter, number in enumerate(state[0]) if number != USED]
            legal = [(sign, i, j) for sign in "+-*" for i, j in itertools.combinations(left, 2)]
            sign, i, j = legal[int(draw * len(legal))]
            state = self._after(state, (sign, i, j))
            response += [self._id[f"{LETTERS[i]}{sign}{LETTERS[j]}"], *self.state_ids(state)]
            if self._is_over(state):
                return [*response, self._id["stuck"]]
        return [*response, self._id["done"]]

    # Play

    def begin(self, problem: Problem) -> State:
        """The numbers given."""
        return tuple(problem.data["numbers"]), (0, 0, 0)

    def play(self, problem: Problem, state: State, move_id: int) -> State | None:
        """The state after a move of two numbers that are still there; there is none once an outcome
        was over.
        """
        (sign, i, j), numbers = self.moves[move_id], state[0]
        if j >= len(numbers) or USED in (numbers[i], numbers[j]) or self._is_over(state):
            return None
        return self._after(state, (sign, i, j))

    def _after(self, state: State, move: Move) -> State:
        (sign, i, j), numbers = move, state[0]
        outcome = min(combine(sign, numbers[i], numbers[j]), self.max_outcome + 1)
        left = (*numbers[:i], USED, *numbers[i + 1 : j], USED, *numbers[j + 1 :], outcome)
        return left, (numbers[i], numbers[j], outcome)

    def _is_over(self, state: State) -> bool:
        return state[0][-1] > self.max_outcome

    def state_ids(self, state: State) -> list[int]:
        """The two numbers of the last move, and the outcome with its letter."""
        numbers, (a, b, outcome) = state
        return [self._id[str(a)], self._id[str(b)], self._zero[len(numbers) - 1] + outcome]

    def at_goal(self, problem: Problem, state: State) -> bool:
        """One number is left, and it is the goal."""
        return len(state[0]) == 2 * self.numbers - 1 and state[0][-1] == problem.data["goal"]

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Shares of sums, differences and products among the moves, and the number of moves."""
        made = len(self.follow(problem, response)[1]) - 1
        signs = [self.moves[token][0] for token in response[: 4 * made : 4]]
        names = {"sums": "+", "differences": "-", "products": "*"}
        return {name: signs.count(sign) / max(made, 1) for name, sign in names.items()} | {
            "moves": float(made)
        }


def random_play_outcomes(numbers: Sequence[int], max_outcome: int) -> np.ndarray:
    """P(random legal play from these numbers ends with each outcome), float64 [max_outcome + 1],
    exactly.

    The rest of 1 goes over. A state is the sorted numbers still there, and equal states are merged.
    """
    states: np.ndarray = np.sort(np.array(numbers))[None]
    chances: np.ndarray = np.ones(1)
    while (size := states.shape[1]) > 1:
        moves, following = all_moves(size), []
        for sign, i, j in moves:
            outcome = combine(sign, states[:, i], states[:, j])
            following.append(
                np.sort(np.column_stack([np.delete(states, (i, j), axis=1), outcome]), axis=1)
            )
        after, each = np.concatenate(following), np.tile(chances / len(moves), len(moves))
        inside = after[:, -1] <= max_outcome  # the largest number, since they are sorted
        keys = after[inside] @ (max_outcome + 1) ** np.arange(size - 1)  # a number for each state
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        states, chances = after[inside][first], np.bincount(group, weights=each[inside])
    return np.bincount(states[:, 0], weights=chances, minlength=max_outcome + 1)
