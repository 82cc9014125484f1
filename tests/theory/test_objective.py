"""PrefixRL's objective against enumeration: where its maximisers maximise the plain one."""

import itertools

import numpy as np
import pytest

from prefixrl_jax.theory import objective


def value(policy, correct, problem, taken=""):
    """Expected reward from the state after `taken`: the tree, walked.

    policy: for each problem {actions so far: P(1)}.
    """
    if len(taken) == objective.DEPTH:
        return float(taken in correct[problem])
    p = policy[problem][taken]
    return (1 - p) * value(policy, correct, problem, taken + "0") + p * value(
        policy, correct, problem, taken + "1"
    )


def by_hand(policy, correct, traces):
    problems = range(len(traces))
    plain = np.mean([value(policy, correct, x) for x in problems])
    cuts = itertools.product(problems, range(1, objective.DEPTH))
    return plain, plain + np.mean([value(policy, correct, x, traces[x][:cut]) for x, cut in cuts])


def few(name, instances):
    return objective.CASES[name]._replace(instances=instances)


@pytest.mark.parametrize("name", [name for name, case in objective.CASES.items() if case.must_hold])
def test_every_maximiser_of_the_prefix_objective_maximises_the_plain_one(name):
    found = objective.check(few(name, 8 if objective.CASES[name].tabular else 200), seed=1)
    assert found["maximisers"] >= found["instances"]
    assert found["violations"] == 0 and found["counterexample"] is None


@pytest.mark.parametrize(
    "name", [name for name, case in objective.CASES.items() if not case.must_hold]
)
def test_it_may_fail_where_the_assumptions_do(name):
    found = objective.check(few(name, 100), seed=1)
    assert 0 < found["violations"] < found["instances"]
    example = found["counterexample"]
    best, better = example["maximiser"], example["better_without_prefix"]
    for policy in (best, better):
        hand = by_hand(policy["probability_of_1_after"], example["correct"], example["traces"])
        assert hand == (policy["plain"], policy["prefixrl"])
    assert best["prefixrl"] > better["prefixrl"] and best["plain"] < better["plain"]
    right = [trace in correct for trace, correct in zip(example["traces"], example["correct"])]
    assert all(right) if objective.CASES[name].correct else not any(right)


def test_a_realising_policy_produces_the_traces_and_little_else_is_changed():
    rng, traces = np.random.default_rng(7), np.array([5, 2])
    policies = objective.random_class(rng)
    policies[0] = 0.25  # so that no trace is produced by chance
    made = objective.realising(policies[0], traces)
    assert (made != policies[0]).sum() == objective.PROBLEMS * objective.DEPTH
    assert (
        objective.realises(made[None], traces).all()
        and not objective.realises(policies[:1], traces).any()
    )
    correct = np.arange(8) == traces[:, None]
    assert objective.objectives(made[None], correct, traces) == (1.0, 2.0)


def test_the_tabular_class_has_every_deterministic_policy_once():
    policies = objective.tabular_class()
    assert len(np.unique(policies.reshape(len(policies), -1), axis=0)) == 2 ** (
        objective.PROBLEMS * objective.STATES
    )
