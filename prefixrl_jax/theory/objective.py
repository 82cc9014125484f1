"""Theorem 3.2: a maximiser of PrefixRL's objective maximises the plain one, if the traces are
correct and realisable.

Problems are binary trees of DEPTH steps with a random set of correct leaves; a trace is a leaf, and
every proper prefix of it is a prefixed problem. PrefixRL's objective is the expected reward over
prefixed problems plus that over plain ones.
*Realisable*: one policy of the class produces every trace with probability 1.

Classes are finite, and all their policies are evaluated. That covers the class of all tabular
policies too: a rollout comes to a state at most once, so a stochastic policy is a mixture of
deterministic ones (draw the action of each state beforehand) and both objectives are that mixture's
means. It maximises one exactly if all deterministic policies in it do.

In the class of all tabular policies the statement holds for any traces, since one policy is best
from all states at once. What the theorem assumes matters where policies must trade states off, as
those of a smaller class do.

All probabilities are multiples of 1/4 and all means are over powers of two, so float64 is exact and
equality is tested as such.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

PROBLEMS, DEPTH = 2, 3
STATES = 2**DEPTH - 1  # of a problem, in order of depth: state i leads to 2i + 1 and 2i + 2


class Case(NamedTuple):
    """Correct or wrong traces, of which class, realised in it or not; must_hold: no instance may
    violate the statement.
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


def tabular_class() -> np.ndarray:
    """Every deterministic policy: probability of action 1, float64 [2^(PROBLEMS·STATES), PROBLEMS,
    STATES].
    """
    size = PROBLEMS * STATES
    return (
        ((np.arange(2**size)[:, None] >> np.arange(size)) & 1)
        .reshape(-1, PROBLEMS, STATES)
        .astype(float)
    )


def random_class(rng: np.random.Generator, size: int = 16) -> np.ndarray:
    """Random policies [size, PROBLEMS, STATES], half of them deterministic."""
    stochastic = rng.integers(5, size=(size, PROBLEMS, STATES)) / 4
    return np.where(
        np.arange(size)[:, None, None] % 2, stochastic, rng.integers(2, size=stochastic.shape)
    )


def _along(traces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The states that each trace passes and its actions there, int [PROBLEMS, DEPTH] both."""
    depth = np.arange(DEPTH)
    return (
        2**depth - 1 + (traces[:, None] >> (DEPTH - depth)),
        (traces[:, None] >> (DEPTH - 1 - depth)) & 1,
    )


def realising(policy: np.ndarray, traces: np.ndarray) -> np.ndarray:
    """`policy` [PROBLEMS, STATES] changed to produce the traces (leaves, int [PROBLEMS]) with
    probability 1.
    """
    states, actions = _along(traces)
    changed = policy.copy()
    np.put_along_axis(changed, states, actions.astype(float), axis=1)
    return changed


def realises(policies: np.ndarray, traces: np.ndarray) -> np.ndarray:
    """Which of the policies [K, PROBLEMS, STATES] produce every trace with probability 1: bool
    [K].
    """
    states, actions = _along(traces)
    return (np.take_along_axis(policies, states[None], axis=2) == actions).all(axis=(1, 2))


def objectives(
    policies: np.ndarray, correct: np.ndarray, traces: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(plain, PrefixRL's) objective of each policy, float64 [K] both.

    policies: [K, PROBLEMS, STATES]; correct: bool [PROBLEMS, 2^DEPTH]; traces: leaves, int
    [PROBLEMS].
    """
    value = np.broadcast_to(correct.astype(float), (len(policies), *correct.shape))
    problem, prefixed = np.arange(PROBLEMS), []
    for depth in reversed(range(DEPTH)):
        right = policies[:, :, 2**depth - 1 : 2 ** (depth + 1) - 1]
        value = (1 - right) * value[:, :, 0::2] + right * value[:, :, 1::2]
        prefixed.append(value[:, problem, traces >> (DEPTH - depth)].mean(axis=1))
    *prefixed, plain = prefixed
    return plain, np.mean(prefixed, axis=0) + plain


def _instance(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(policies, correct, traces) as `objectives` takes them; each problem has correct and wrong
    leaves.
    """
    correct = rng.random((PROBLEMS, 2**DEPTH)) < 0.3
    correct[:, :2] = [True, False]
    correct = rng.permuted(correct, axis=1)
    traces = np.array([rng.choice(np.flatnonzero(leaves == case.correct)) for leaves in correct])
    if case.tabular:
        return tabular_class(), correct, traces
    policies = random_class(rng)
    if case.realised:
        return np.concatenate([policies, realising(policies[0], traces)[None]]), correct, traces
    return policies[~realises(policies, traces)], correct, traces


def _readable(policy: np.ndarray) -> list[dict[str, float]]:
    """For each problem, the probability of action 1 by the actions so far."""
    names = [
        format(i, f"0{depth}b") if depth else "" for depth in range(DEPTH) for i in range(2**depth)
    ]
    return [dict(zip(names, row, strict=True)) for row in policy.tolist()]


def _counterexample(
    correct: np.ndarray, traces: np.ndarray, policies: np.ndarray, names: dict[str, int]
) -> dict[str, Any]:
    plain, both = objectives(policies, correct, traces)
    return {
        "correct": [
            [format(leaf, f"0{DEPTH}b") for leaf in np.flatnonzero(leaves)] for leaves in correct
        ],
        "traces": [format(leaf, f"0{DEPTH}b") for leaf in traces],
        **{
            name: {
                "plain": plain[k],
                "prefixrl": both[k],
                "probability_of_1_after": _readable(policies[k]),
            }
            for name, k in names.items()
        },
    }


def check(case: Case, seed: int = 0) -> dict[str, Any]:
    """Counts instances, maximisers of PrefixRL's objective in all of them, and violations of the
    theorem's statement.

    A violation is an instance in which one of them does not maximise the plain objective. The first
    in which none does, if there is one, is the counterexample, given with such a maximiser and with
    a policy that is better without prefixes.
    """
    rng, maximisers, violations, example = np.random.default_rng(seed), 0, 0, None
    for _ in range(case.instances):
        policies, correct, traces = _instance(rng, case)
        plain, both = objectives(policies, correct, traces)
        best = np.flatnonzero(both == both.max())
        maximisers += len(best)
        violations += bool((plain[best] < plain.max()).any())
        if example is None and (plain[best] < plain.max()).all():
            names = {"maximiser": int(best[0]), "better_without_prefix": int(plain.argmax())}
            example = _counterexample(correct, traces, policies, names)
    return {
        "must_hold": case.must_hold,
        "instances": case.instances,
        "maximisers": maximisers,
        "violations": violations,
        "counterexample": example,
    }
