"""The moves of water jugs, and random legal play: simulated, and its chance of success exactly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

JUGS = "ABCD"
Move = tuple[str, int, int]  # (kind, jug, other jug); the other jug of a fill or emptying is itself


def all_moves(jugs: int) -> list[Move]:
    """Return every move with this many jugs in token order: fills, emptyings, then pours."""
    fills = [("fill", i, i) for i in range(jugs)]
    empties = [("empty", i, i) for i in range(jugs)]
    pours = [("pour", i, j) for i, j in itertools.permutations(range(jugs), 2)]
    return fills + empties + pours


def move_name(move: Move) -> str:
    """Return the word that stands for a move: fill-A, empty-B, A>B."""
    kind, i, j = move
    return f"{JUGS[i]}>{JUGS[j]}" if kind == "pour" else f"{kind}-{JUGS[i]}"


def apply(move: Move, amounts: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """Return the amounts after a move, int [..., jugs].

    `capacities` has the same shape. A move that changes nothing is not legal; the caller must check
    that.
    """
    kind, i, j = move
    after = np.array(amounts)
    if kind == "fill":
        after[..., i] = capacities[..., i]
    elif kind == "empty":
        after[..., i] = 0
    else:
        poured = np.minimum(after[..., i], capacities[..., j] - after[..., j])
        after[..., i] -= poured
        after[..., j] += poured
    return after


def apply_to_one(
    move: Move, amounts: tuple[int, ...], capacities: Sequence[int]
) -> tuple[int, ...]:
    """Apply a move to a single state, with the result that `apply` gives.

    Grading follows every response with it; numpy would be ten times slower on two numbers.
    """
    kind, i, j = move
    after = list(amounts)
    if kind == "fill":
        after[i] = capacities[i]
    elif kind == "empty":
        after[i] = 0
    else:
        poured = min(after[i], capacities[j] - after[j])
        after[i] -= poured
        after[j] += poured
    return tuple(after)


def move_weights(moves: list[Move], pour_weight: float) -> np.ndarray:
    """Return how likely random play is to make each legal move, relative to a fill.

    The weights are float64 [moves].
    """
    return np.array([pour_weight if kind == "pour" else 1.0 for kind, _, _ in moves])


def random_move(
    rng: np.random.Generator, amounts: np.ndarray, capacities: np.ndarray, pour_weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one random legal move for each of N states.

    Args:
        amounts: int [N, jugs], as are the capacities.

    Returns:
        The index of each move in `all_moves` [N], and the amounts after it [N, jugs].
    """
    moves = all_moves(amounts.shape[1])
    after = np.stack([apply(move, amounts, capacities) for move in moves], axis=1)
    legal = (after != amounts[:, None]).any(-1)  # [N, moves]
    # The exponential race: the least of Exp(1) / weight falls on a move with probability
    # weight / sum of weights.
    race = rng.exponential(size=legal.shape) / move_weights(moves, pour_weight)
    chosen = np.argmin(np.where(legal, race, np.inf), axis=1)
    return chosen, after[np.arange(len(amounts)), chosen]


def random_play_success(
    capacities: tuple[int, int], goal: int, max_moves: int, pour_weight: float
) -> np.ndarray:
    """Return P(random legal play reaches the goal within max_moves) from every start.

    The result is float64 [A+1, B+1], indexed by the amounts in both jugs, and 0 where the goal
    holds already. It is exact: a recursion over the number of moves left.
    """
    # [A+1, B+1, 2]
    grid = np.stack(np.meshgrid(*(np.arange(c + 1) for c in capacities), indexing="ij"), axis=-1)
    full = np.broadcast_to(np.array(capacities), grid.shape)
    moves = all_moves(2)
    after = np.stack([apply(move, grid, full) for move in moves])  # [moves, A+1, B+1, 2]
    legal = (after != grid).any(-1)
    weight = legal * move_weights(moves, pour_weight)[:, None, None]
    at_goal = (grid == goal).any(-1)
    chance = at_goal.astype(float)
    for _ in range(max_moves):
        ahead = chance[after[..., 0], after[..., 1]]
        chance = np.where(at_goal, 1.0, (ahead * weight).sum(0) / weight.sum(0))
    return np.where(at_goal, 0.0, chance)
