"""Countdown: combine numbers, two at a time, until one is left, which should be the goal.

The numbers game of the television programme "Des chiffres et des lettres", with every number used
once. Each number has a letter. A move takes the sum, the difference (of the larger and the smaller)
or the product of two of them. The response then repeats the two numbers and gives the outcome the
next letter:

    <bos> A=3 B=8 C=2 D=6 goal=12 :  B-C 8 2 E=6 A*E 3 6 F=18 D-F 6 18 G=12 done

It ends with `done` when one number is left, whether or not it is the goal, or with `stuck` after an
outcome over the largest number allowed (`E=over`), which loses the game. So every move of two
numbers that are not used yet is legal: the rules and the tables of arithmetic are all that a base
model has to know. Which numbers to combine takes looking ahead, and no rule of thumb serves all
problems.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from string import ascii_uppercase as LETTERS
from typing import Any, ClassVar

import numpy as np

from prefixrl_jax.config import check_section
from prefixrl_jax.tasks.game import Game
from prefixrl_jax.tasks.task import Problem

# Sets of numbers looked at before a band is called too narrow: one to five minutes.
TRIES = 20_000
TRIES_OF_MANY_NUMBERS = {7: 10_000, 8: 4_000}  # which take longer to look at
USED = -1
Numbers = tuple[int, ...]  # by letter: the number, max_outcome + 1 for "over", or USED
# The numbers, and what the last move wrote: its two numbers and the outcome.
State = tuple[Numbers, tuple[int, ...]]
Move = tuple[str, int, int]  # (sign, letter, later letter)


def all_moves(letters: Sequence[int]) -> list[Move]:
    """Return every move that combines two of these letters, in the order of their token ids."""
    return [(sign, i, j) for sign in "+-*" for i, j in itertools.combinations(letters, 2)]


def move_name(move: Move) -> str:
    """Return the word that stands for a move: A+B, B-C, A*E."""
    sign, i, j = move
    return f"{LETTERS[i]}{sign}{LETTERS[j]}"


def combine(sign: str, a: Any, b: Any) -> Any:
    """Return a + b, |a - b| or a * b, of two integers or two integer arrays."""
    if sign == "+":
        return a + b
    if sign == "-":
        return abs(a - b)
    return a * b


class Countdown(Game):
    """The countdown task.

    Problems are generated, or come from rows like `example_row`. The arguments are the fields of
    `task.countdown` in config.py; a bad one raises ValueError.
    """

    name = "countdown"
    siblings = 4
    example_row: ClassVar = {"numbers": [3, 8, 2, 6], "goal": 12}

    def __init__(
        self,
        numbers: int = 5,
        max_number: int = 10,
        max_outcome: int = 30,
        band: Sequence[float] = (1e-3, 5e-3),
    ):
        sizes = {"numbers": numbers, "max_number": max_number, "max_outcome": max_outcome}
        check_section("task.countdown", sizes | {"band": band})
        if max_number > max_outcome:
            raise ValueError(
                f"task.countdown.max_number={max_number}: must be at most"
                f" task.countdown.max_outcome={max_outcome}"
            )
        if (max_outcome + 1) ** (numbers - 1) > np.iinfo(np.int64).max:
            raise ValueError(
                f"task.countdown.max_outcome={max_outcome} with task.countdown.numbers={numbers}:"
                " too many games to count; use less of one of them"
            )
        self.numbers = numbers
        self.max_number = max_number
        self.max_outcome = max_outcome
        self.max_moves = numbers - 1
        letters = LETTERS[: 2 * numbers - 1]  # of the problem's numbers, and one for each outcome
        moves = all_moves(range(len(letters) - 1))  # the last outcome is combined with nothing
        values = range(max_outcome + 1)
        words = [
            *map(move_name, moves),
            *map(str, values),
            *(f"goal={n}" for n in values),
            *(f"{letter}={value}" for letter in letters for value in (*values, "over")),
        ]
        super().__init__(words, band)
        self.moves = {self.token_ids[move_name(move)]: move for move in moves}
        # The words for the values of a letter have consecutive ids, from this one on.
        self._zero_ids = [self.token_ids[f"{letter}=0"] for letter in letters]

    # Problems

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Check one row of a user's file and return the problem's data."""
        self.check_fields(row)
        numbers, goal = row["numbers"], row["goal"]
        if not isinstance(numbers, list) or len(numbers) != self.numbers:
            raise ValueError(f"numbers={numbers}: a list of {self.numbers} numbers is expected")
        # By type, since True is an int too.
        if not all(type(n) is int and 1 <= n <= self.max_number for n in numbers):
            raise ValueError(
                f"numbers={numbers}: integers from 1 to {self.max_number} are expected"
            )
        if type(goal) is not int or not 0 <= goal <= self.max_outcome:
            raise ValueError(f"goal={goal}: an integer from 0 to {self.max_outcome} is expected")
        return {"numbers": numbers, "goal": goal}

    def candidates(self, rng: np.random.Generator) -> Iterator[Iterator[Problem]]:
        """Yield groups of problems with the same numbers."""
        for _ in range(TRIES_OF_MANY_NUMBERS.get(self.numbers, TRIES)):
            numbers = self._random_numbers(rng)
            chance = random_play_outcomes(numbers, self.max_outcome)
            inside = np.flatnonzero((chance > self.band[0]) & (chance < self.band[1]))
            goals = rng.permutation(inside).tolist()
            yield (self._problem(numbers, goal) for goal in goals)

    def _random_numbers(self, rng: np.random.Generator) -> list[int]:
        return rng.integers(1, self.max_number + 1, self.numbers).tolist()

    def _problem(self, numbers: list[int], goal: int) -> Problem:
        name = "-".join(map(str, (*numbers, goal)))
        return Problem(f"countdown-{name}", {"numbers": numbers, "goal": goal})

    def family(self, problem: Problem) -> Any:
        """Return the sorted numbers: no two splits have problems with the same numbers."""
        return sorted(problem.data["numbers"])

    # Text

    def render(self, problem: Problem) -> list[int]:
        """Return the ids of <bos>, the numbers with their letters, the goal and a colon."""
        numbers = [zero + n for zero, n in zip(self._zero_ids, problem.data["numbers"])]
        goal = self.token_ids[f"goal={problem.data['goal']}"]
        return [self.token_ids["<bos>"], *numbers, goal, self.token_ids[":"]]

    def base_text(self, rng: np.random.Generator, count: int) -> list[tuple[list[int], list[int]]]:
        """Return games of random legal play on random problems.

        They teach the rules and the arithmetic, without a plan.
        """
        pairs: list[tuple[list[int], list[int]]] = []
        while len(pairs) < count:
            goal = int(rng.integers(self.max_outcome + 1))
            problem = self._problem(self._random_numbers(rng), goal)
            if self.split_of(problem) == "base":
                pairs.append((self.render(problem), self._play_randomly(rng, problem)))
        return pairs

    def _play_randomly(self, rng: np.random.Generator, problem: Problem) -> list[int]:
        """Return the response of random legal play, in which all legal moves are equally likely."""
        state = self.begin(problem)
        response: list[int] = []
        for draw in rng.random(self.max_moves):
            unused = [letter for letter, number in enumerate(state[0]) if number != USED]
            legal = all_moves(unused)
            move = legal[int(draw * len(legal))]
            state = self._after(state, move)
            response += [self.token_ids[move_name(move)], *self.state_ids(state)]
            if self._is_over(state):
                return [*response, self.token_ids["stuck"]]
        return [*response, self.token_ids["done"]]

    # Play

    def begin(self, problem: Problem) -> State:
        """Return the problem's numbers, the state before the first move."""
        return tuple(problem.data["numbers"]), (0, 0, 0)

    def play(self, problem: Problem, state: State, move_id: int) -> State | None:
        """Return the state after a move of two unused numbers; no move is legal after "over"."""
        move = self.moves[move_id]
        _, i, j = move
        numbers = state[0]
        if j >= len(numbers) or USED in (numbers[i], numbers[j]) or self._is_over(state):
            return None
        return self._after(state, move)

    def _after(self, state: State, move: Move) -> State:
        sign, i, j = move
        numbers = state[0]
        outcome = min(combine(sign, numbers[i], numbers[j]), self.max_outcome + 1)
        after = (*numbers[:i], USED, *numbers[i + 1 : j], USED, *numbers[j + 1 :], outcome)
        return after, (numbers[i], numbers[j], outcome)

    def _is_over(self, state: State) -> bool:
        return state[0][-1] > self.max_outcome

    def state_ids(self, state: State) -> list[int]:
        """Return the tokens of the last move's two numbers, then of its outcome and its letter."""
        numbers, (a, b, outcome) = state
        outcome_id = self._zero_ids[len(numbers) - 1] + outcome
        return [self.token_ids[str(a)], self.token_ids[str(b)], outcome_id]

    def at_goal(self, problem: Problem, state: State) -> bool:
        """Return whether the goal is the only number left."""
        return len(state[0]) == 2 * self.numbers - 1 and state[0][-1] == problem.data["goal"]

    def strategies(self, problem: Problem, response: Sequence[int]) -> dict[str, float]:
        """Return the number of moves and the shares of sums, differences and products."""
        count = len(self.follow(problem, response)[1]) - 1
        signs = [self.moves[token][0] for token in response[: 4 * count : 4]]
        names = {"sums": "+", "differences": "-", "products": "*"}
        shares = {name: signs.count(sign) / max(count, 1) for name, sign in names.items()}
        return shares | {"moves": float(count)}


def random_play_outcomes(numbers: Sequence[int], max_outcome: int) -> np.ndarray:
    """Return the probability that random legal play ends with each outcome.

    The result is exact, float64 [max_outcome + 1]; the probability of "over" is 1 minus its sum.
    """
    # A state is the sorted numbers that are left after some moves. Equal states are merged.
    states: np.ndarray = np.sort(np.array(numbers))[None]  # [states, numbers left]
    chances: np.ndarray = np.ones(1)  # [states]
    while (size := states.shape[1]) > 1:
        moves = all_moves(range(size))
        following = []
        for sign, i, j in moves:
            outcome = combine(sign, states[:, i], states[:, j])
            rest = np.delete(states, (i, j), axis=1)
            following.append(np.sort(np.column_stack([rest, outcome]), axis=1))
        after = np.concatenate(following)
        chance = np.tile(chances / len(moves), len(moves))
        inside = after[:, -1] <= max_outcome  # the largest number, since they are sorted
        keys = after[inside] @ (max_outcome + 1) ** np.arange(size - 1)  # a number for each state
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        states = after[inside][first]
        chances = np.bincount(group, weights=chance[inside])
    return np.bincount(states[:, 0], weights=chances, minlength=max_outcome + 1)
