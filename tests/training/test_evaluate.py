"""pass@k by enumeration, the interval's meaning, accuracy by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixrl_jax.training.evaluate import accuracy, bootstrap_interval, pass_at_k


@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_success(data):
    samples = data.draw(st.integers(1, 9))
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    subsets = list(itertools.combinations([i < correct for i in range(samples)], k))
    share = sum(map(any, subsets)) / len(subsets)
    assert pass_at_k(samples, correct, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_is_exact_where_floats_of_the_binomials_would_overflow():
    assert pass_at_k(2048, 1, 1024) == pytest.approx(0.5)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(samples, correct, k):
    message = rf"pass@{k} .*samples={samples}, correct={correct}"
    with pytest.raises(ValueError, match=message):
        pass_at_k(samples, correct, k)


def test_the_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.binomial(4, 0.3, 80) / 4, seed, draws=400)
        covered += low <= 0.3 <= high
    assert 178 <= covered <= 199


def test_the_interval_is_that_of_the_normal_limit_and_repeats():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = bootstrap_interval(values)
    error = values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_accuracy_by_hand():
    rewards = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]], np.float32)
    result = accuracy(rewards, (1, 2, 4, 8))
    assert result["avg@1"] == pytest.approx(7 / 16)
    assert result["problems"] == 4
    assert result["samples"] == 4
    assert result["solved_at_least_once"] == 3
    # There is no pass@8 of four samples.
    by_k = {"1": 7 / 16, "2": (1 / 2 + 0 + 1 + 5 / 6) / 4, "4": 3 / 4}
    assert result["pass@k"] == pytest.approx(by_k)
    low, high = result["interval"]
    assert low <= 7 / 16 <= high


@pytest.mark.parametrize("n", [1, 10, 200])
def test_nothing_solved_and_all_solved_have_the_wilson_bound(n):
    """The bound is the rate p from which n equal outcomes are 1.96 standard errors away.

    With no success, p = z sqrt(p (1 - p) / n) with z = 1.96.
    """
    low, high = bootstrap_interval(np.zeros(n))
    assert low == 0
    assert high == pytest.approx(1.96 * np.sqrt(high * (1 - high) / n))
    assert bootstrap_interval(np.ones(n)) == pytest.approx((1 - high, 1.0))
