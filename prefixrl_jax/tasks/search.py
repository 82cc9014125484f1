"""How far every state of a small game is from the goal, by breadth-first search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

State = TypeVar("State", bound=Hashable)


def distances_to_goal(
    start: State,
    successors: Callable[[State], Iterable[State]],
    at_goal: Callable[[State], bool],
) -> dict[State, int]:
    """Return the fewest moves to a goal from every state reachable from `start`.

    States from which no goal can be reached are left out.

    Args:
        successors: the states that the legal moves of a state lead to.
        at_goal: whether a state is a goal.
    """
    predecessors: dict[State, set[State]] = {start: set()}
    queue = [start]
    for state in queue:  # which grows meanwhile
        for following in successors(state):
            if following not in predecessors:
                predecessors[following] = set()
                queue.append(following)
            predecessors[following].add(state)

    distances: dict[State, int] = {}
    ring = {state for state in predecessors if at_goal(state)}
    distance = 0
    while ring:
        distances |= dict.fromkeys(ring, distance)
        before: set[State] = set().union(*(predecessors[state] for state in ring))
        ring = before - distances.keys()
        distance += 1
    return distances


def share_nearer(states: Sequence[State], distances: Mapping[State, int]) -> float:
    """Return the share of the moves between these states that shorten the way to the goal.

    It is 0 if there are no moves.
    """
    left = [distances.get(state, math.inf) for state in states]
    nearer = sum(after < before for before, after in itertools.pairwise(left))
    return nearer / max(len(states) - 1, 1)
