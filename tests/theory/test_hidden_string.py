"""The hidden-string MDP against enumeration, and its figures against known laws."""

import itertools

import numpy as np
import pytest

from prefixrl_jax.theory import hidden_string
from prefixrl_jax.theory.hidden_string import PLAIN, PREFIX, SAMPLERS, Fit

STRING = np.array([1, 0, 0, 1, 1])
RIGHT = np.array([0.7, 0.4, 0.9, 0.5, 0.8])  # probabilities of the string's actions


def as_policy(right, string):
    policy = np.zeros((len(string), 2))
    policy[np.arange(len(string)), string], policy[np.arange(len(string)), 1 - string] = (
        np.log(right),
        np.log1p(-right),
    )
    return policy


POLICY = as_policy(RIGHT, STRING)


def probability(actions, start):
    """Of these actions from step `start` on, under POLICY on the string and a uniform policy off
    it, state by state.
    """
    p, taken = 1.0, list(STRING[:start])
    for action in actions:
        on = taken == list(STRING[: len(taken)])
        p *= np.exp(POLICY[len(taken), action]) if on else 0.5
        taken.append(action)
    return p, taken == list(STRING)


def exact_q(step, action):
    """Expected reward after `action` at the string's state of that step: all continuations, one by
    one.
    """
    start = step + 1
    if action != STRING[step]:
        return 0.0
    tails = [
        probability(tail, start) for tail in itertools.product((0, 1), repeat=len(STRING) - start)
    ]
    assert np.isclose(sum(p for p, _ in tails), 1)
    return sum(p for p, right in tails if right)


def test_success_is_the_share_of_all_strings_that_is_right():
    strings = [probability(actions, 0) for actions in itertools.product((0, 1), repeat=len(STRING))]
    assert np.isclose(sum(p for p, _ in strings), 1)
    assert np.isclose(
        hidden_string.success(POLICY, STRING), sum(p for p, right in strings if right), rtol=1e-12
    )


def test_success_is_how_often_whole_rollouts_are_right():
    count = 100_000
    found = hidden_string.plain_rollouts(np.random.default_rng(0), POLICY, STRING, count)
    assert (np.bincount(found.rollout[found.step == 0]) == 1).all()
    rate, expected = found.reward[found.step == 0].mean(), hidden_string.success(POLICY, STRING)
    assert abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("name", [PREFIX, PLAIN])
def test_the_critic_estimates_q_without_bias(name):
    found = SAMPLERS[name](np.random.default_rng(1), POLICY, STRING, 200_000)
    estimate = hidden_string.critic(found, len(STRING))
    for step, action in itertools.product(range(len(STRING)), (0, 1)):
        q, count = exact_q(step, action), ((found.step == step) & (found.action == action)).sum()
        assert count > 1000
        assert abs(estimate[step, action] - q) <= 4 * np.sqrt(q * (1 - q) / count)


def test_the_critic_is_the_mean_of_each_pair_and_0_without_samples():
    rewards = np.array([True, False, False, True])
    found = hidden_string.Rollouts(
        np.arange(4), np.array([0, 0, 0, 1]), np.array([1, 1, 1, 0]), rewards
    )
    np.testing.assert_allclose(hidden_string.critic(found, 3), [[0, 1 / 3], [1, 0], [0, 0]])


def test_prefixes_are_uniform_and_next_actions_half_and_half():
    count = 100_000
    found = hidden_string.prefix_rollouts(np.random.default_rng(2), POLICY, STRING, count)
    assert np.array_equal(found.rollout, np.arange(count))
    for step, right in enumerate(RIGHT):
        here = found.step == step
        assert abs(here.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / count)
        expected = 0.5 * right + 0.25
        assert abs((found.action[here] == STRING[step]).mean() - expected) < 4 * 0.5 / np.sqrt(
            here.sum()
        )


def test_mirror_descent_multiplies_and_normalises():
    q = np.random.default_rng(3).random((len(STRING), 2))
    expected = np.exp(POLICY) * np.exp(0.3 * q)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(hidden_string.mirror_descent(POLICY, q, 0.3)), expected, rtol=1e-12
    )
    far = hidden_string.mirror_descent(POLICY, 1e4 * q)
    assert np.isfinite(far).all()


def one_by_one(rng, sampler, string, cap):
    """NPG as Algorithm 1 has it, every iteration drawn."""
    count, policies = 2 * len(string), [np.full((len(string), 2), np.log(0.5))]
    last = None
    for iteration in range(1, cap // count + 1):
        q = hidden_string.critic(sampler(rng, policies[-1], string, count), len(string))
        mixture = np.mean([hidden_string.success(p, string) for p in policies])
        policies.append(hidden_string.mirror_descent(policies[-1], q))
        if last is None and hidden_string.success(policies[-1], string) > 0.5:
            last = iteration * count
        if mixture >= 0.5:
            return hidden_string.Solved(iteration * count, last)
    return hidden_string.Solved(None, last)


@pytest.mark.parametrize("name", [PREFIX, PLAIN])
def test_what_is_not_drawn_changes_no_result(name):
    """Blocks of iterations and the early end have the law of the plain loop: means of log-samples
    over 300 runs each.
    """
    string = STRING[:4]
    runs = [
        np.log(
            [
                run(np.random.default_rng([seed, k]), SAMPLERS[name], string, 10**6)
                for seed in range(300)
            ]
        )
        for k, run in enumerate((hidden_string.npg, one_by_one))
    ]
    error = np.sqrt(sum(r.var(axis=0) / len(r) for r in runs))
    assert (np.abs(runs[0].mean(axis=0) - runs[1].mean(axis=0)) < 4 * error).all()


@pytest.mark.parametrize("name", [PREFIX, PLAIN])
def test_success_never_falls(name, monkeypatch):
    found, success = [], hidden_string.success
    monkeypatch.setattr(hidden_string, "success", lambda *a: found.append(success(*a)) or found[-1])
    hidden_string.npg(np.random.default_rng(4), SAMPLERS[name], STRING, 10**6)
    assert len(found) > 5 and (np.diff(found) >= -1e-12).all()


def test_a_run_stopped_at_the_cap_is_never_solved():
    rng, string = np.random.default_rng(5), np.zeros(40, int)
    assert hidden_string.npg(rng, SAMPLERS[PLAIN], string, 1000) == (None, None)
    # not even one iteration
    assert hidden_string.npg(rng, SAMPLERS[PLAIN], string, 79) == (None, None)
    rows = list(hidden_string.measure((2, 16, 18), 3, cap=2000))
    assert rows[0][PLAIN]["censored"] == 0 and rows[1][PLAIN]["censored"] >= 2
    assert (
        rows[1][PLAIN]["median"] is None
        and rows[1][PLAIN]["highest"] is None
        and rows[2][PLAIN] is None
    )
    for row in rows[:2]:
        known = [s for s in row[PLAIN]["samples"] if s is not None]
        assert len(known) == 3 - row[PLAIN]["censored"] and all(s <= 2000 for s in known)


def test_with_the_trace_given_it_takes_few_samples_and_with_finding_it_2_to_the_h():
    (row,) = hidden_string.measure((32,), 3, cap=50_000)
    assert row[PREFIX]["censored"] == 0 and row[PREFIX]["median"] < 10_000
    assert row["prefixrl_with_rejection"] == {
        "median": row[PREFIX]["median"] + 2**32,
        "rejection_sampling_expected": 2**32,
    }
    assert row[PLAIN]["censored"] == 3


def test_fits_recover_known_exponents():
    horizons = [4, 8, 12, 16, 24, 32]
    # 4 is below the range
    powers = hidden_string.fits(horizons, [10**9, *(round(3e6 * h**2.5) for h in horizons[1:])])
    assert (
        np.isclose(powers["polynomial"].slope, 2.5, atol=1e-6)
        and powers["polynomial"].r2 > 1 - 1e-9
    )
    assert powers["exponential"].r2 < 0.97 and powers["exponential"].rms > 0.3
    doublings = hidden_string.fits(horizons, [5 * 2**h for h in horizons[:-1]] + [None])
    assert np.isclose(doublings["exponential"].slope, 1) and np.isclose(
        doublings["exponential"].intercept, np.log2(5)
    )
    assert doublings["polynomial"].r2 < doublings["exponential"].r2
    assert hidden_string.fits(horizons[:3], [1, 2, 3]) is None


def test_the_error_of_a_slope_is_that_of_least_squares():
    rng, x = np.random.default_rng(6), np.arange(30.0)
    y = 2 * x + rng.normal(size=30)
    _, covariance = np.polyfit(x, y, 1, cov=True)
    assert np.isclose(Fit.of(x, y).stderr, np.sqrt(covariance[0, 0]))
