"""Theorem 3.2: a maximiser of PrefixRL's objective also maximises the plain objective.

The theorem assumes that the traces are correct and realisable: one policy of the class produces
every trace with probability 1.

Problems are binary trees of DEPTH steps with a random set of correct leaves; a trace is a leaf, and
each of its proper prefixes makes a prefixed problem. PrefixRL's objective is the expected reward
over prefixed problems plus that over plain ones.

Classes are finite, and all their policies are evaluated. That covers the class of all tabular
policies too: a rollout comes to a state at most once, so a stochastic policy is a mixture of
deterministic ones (draw the action of each state beforehand), and both of its objectives are that
mixture's means. It maximises one exactly if all deterministic policies in it do.

In the class of all tabular policies the statement holds for any traces, since one policy is best
from all states at once. The assumptions matter where a policy must trade states off, as those of a
smaller class do.

All probabilities are multiples of 1/4 and all means are over powers of two, so float64 is exact and
objectives are compared for equality.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

PROBLEMS = 2
DEPTH = 3
STATES = 2**DEPTH - 1  # of a problem, by depth: state i leads to states 2i + 1 and 2i + 2


class Case(NamedTuple):
    """A kind of random instance.

    Attributes:
        correct: Whether the traces are correct leaves; if not, all of them are wrong.
        tabular: Whether the class is that of all tabular policies; if not, it is a random one.
        realised: Whether a policy of the class produces the traces.
        instances: How many are drawn.
        must_hold: Whether the theorem says that none of them violates its statement.
    """

    correct: bool
    tabular: bool
    realised: bool
    instances: int
    must_hold: bool


CASES = {
    "tabular": Case(correct=True, tabular=True, realised=True, instances=50, must_hold=True),
    "finite_class": Case(correct=True, tabular=False, realised=True, instances=500, must_hold=True),
    "tabular_wrong_traces": Case(
        correct=False, tabular=True, realised=True, instances=50, must_hold=True
    ),
    "finite_class_wrong_traces": Case(
        correct=False, tabular=False, realised=True, instances=500, must_hold=False
    ),
    "finite_class_unrealised_traces": Case(
        correct=True, tabular=False, realised=False, instances=500, must_hold=False
    ),
}


class Instance(NamedTuple):
    """A class of policies, and the problems with their traces.

    Attributes:
        policies: Probability of action 1, float64 [K, PROBLEMS, STATES].
        correct: Which leaves are correct, bool [PROBLEMS, 2^DEPTH].
        traces: A leaf of each problem, int [PROBLEMS].
    """

    policies: np.ndarray
    correct: np.ndarray
    traces: np.ndarray


def tabular_class() -> np.ndarray:
    """Return every deterministic policy: float64 [2^(PROBLEMS·STATES), PROBLEMS, STATES]."""
    size = PROBLEMS * STATES
    bits = (np.arange(2**size)[:, None] >> np.arange(size)) & 1
    return bits.reshape(-1, PROBLEMS, STATES).astype(float)


def random_class(rng: np.random.Generator, size: int = 16) -> np.ndarray:
    """Return random policies, float64 [size, PROBLEMS, STATES]; every second is deterministic."""
    stochastic = rng.integers(5, size=(size, PROBLEMS, STATES)) / 4
    deterministic = rng.integers(2, size=stochastic.shape)
    is_stochastic = np.arange(size)[:, None, None] % 2
    return np.where(is_stochastic, stochastic, deterministic)


def _path(traces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The states that each trace passes and its actions there, int [PROBLEMS, DEPTH] both."""
    depth = np.arange(DEPTH)
    states = 2**depth - 1 + (traces[:, None] >> (DEPTH - depth))
    actions = (traces[:, None] >> (DEPTH - 1 - depth)) & 1
    return states, actions


def realising(policy: np.ndarray, traces: np.ndarray) -> np.ndarray:
    """Return a policy [PROBLEMS, STATES] changed to produce the traces, int [PROBLEMS], always."""
    states, actions = _path(traces)
    changed = policy.copy()
    np.put_along_axis(changed, states, actions.astype(float), axis=1)
    return changed


def realises(policies: np.ndarray, traces: np.ndarray) -> np.ndarray:
    """Return which policies [K, PROBLEMS, STATES] always produce every trace: bool [K]."""
    states, actions = _path(traces)
    return (np.take_along_axis(policies, states[None], axis=2) == actions).all(axis=(1, 2))


def objectives(
    policies: np.ndarray, correct: np.ndarray, traces: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the plain objective of each policy, and PrefixRL's: float64 [K] both.

    The arguments are those of an `Instance`.
    """
    problem = np.arange(PROBLEMS)
    # Expected reward from every state of a depth, [K, PROBLEMS, 2^depth], from the leaves upwards;
    # at each depth, that from the states on the traces is the mean reward after such a prefix.
    value = np.broadcast_to(correct.astype(float), (len(policies), *correct.shape))
    from_prefix = []
    for depth in reversed(range(DEPTH)):
        right = policies[:, :, 2**depth - 1 : 2 ** (depth + 1) - 1]
        value = (1 - right) * value[:, :, 0::2] + right * value[:, :, 1::2]
        from_prefix.append(value[:, problem, traces >> (DEPTH - depth)].mean(axis=1))
    *prefixed, plain = from_prefix  # the empty prefix is the plain problem
    return plain, np.mean(prefixed, axis=0) + plain


def draw_instance(rng: np.random.Generator, case: Case) -> Instance:
    """Draw an instance of a case; each problem has correct and wrong leaves."""
    correct = rng.random((PROBLEMS, 2**DEPTH)) < 0.3
    correct[:, :2] = [True, False]
    correct = rng.permuted(correct, axis=1)
    traces = np.array([rng.choice(np.flatnonzero(leaves == case.correct)) for leaves in correct])
    if case.tabular:
        return Instance(tabular_class(), correct, traces)
    policies = random_class(rng)
    if case.realised:
        policies = np.concatenate([policies, realising(policies[0], traces)[None]])
    else:
        policies = policies[~realises(policies, traces)]
    return Instance(policies, correct, traces)


def check(case: Case, seed: int = 0) -> dict[str, Any]:
    """Draw a case's instances and count the violations of the theorem's statement.

    Returns:
        "must_hold" and "instances" of the case; "maximisers", how many policies maximise
        PrefixRL's objective, in all instances together; "violations", the instances in which one
        of these does not maximise the plain objective; and "counterexample", the first instance in
        which none of them does, or None. It comes with such a maximiser and with a policy that is
        better without prefixes.
    """
    rng = np.random.default_rng(seed)
    maximisers = 0
    violations = 0
    example = None
    for _ in range(case.instances):
        instance = draw_instance(rng, case)
        plain, prefixrl = objectives(*instance)
        best = np.flatnonzero(prefixrl == prefixrl.max())
        is_worse = plain[best] < plain.max()
        maximisers += len(best)
        violations += bool(is_worse.any())
        if example is None and is_worse.all():
            policies = {"maximiser": int(best[0]), "better_without_prefix": int(plain.argmax())}
            example = _counterexample(instance, policies)
    return {
        "must_hold": case.must_hold,
        "instances": case.instances,
        "maximisers": maximisers,
        "violations": violations,
        "counterexample": example,
    }


def _counterexample(instance: Instance, policies: dict[str, int]) -> dict[str, Any]:
    """An instance in JSON values, with the policies of these indices by name."""
    plain, prefixrl = objectives(*instance)
    example: dict[str, Any] = {
        "correct": [[_actions(leaf) for leaf in np.flatnonzero(row)] for row in instance.correct],
        "traces": [_actions(leaf) for leaf in instance.traces],
    }
    for name, index in policies.items():
        example[name] = {
            "plain": plain[index],
            "prefixrl": prefixrl[index],
            "probability_of_1_after": _readable(instance.policies[index]),
        }
    return example


def _actions(node: int | np.integer, depth: int = DEPTH) -> str:
    """The actions that lead to a node of a depth: 0 and 1 for left and right."""
    return format(node, f"0{depth}b") if depth else ""


def _readable(policy: np.ndarray) -> list[dict[str, float]]:
    """For each problem, the probability of action 1 by the actions so far."""
    states = [_actions(node, depth) for depth in range(DEPTH) for node in range(2**depth)]
    return [dict(zip(states, row, strict=True)) for row in policy.tolist()]
