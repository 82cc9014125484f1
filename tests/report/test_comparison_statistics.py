"""Means over seeds, their intervals and FLOPs to an accuracy, with answers known by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import ARM_CORPUS, make_arm, make_arms

from prefixrl_jax.report.comparison_report import read_methods
from prefixrl_jax.report.comparison_statistics import (
    Curve,
    bounds,
    efficiency,
    mean_curve,
    reached,
    resamples,
    smoothed,
)


@pytest.fixture
def methods(tmp_path):
    """A method whose accuracy rises twice as fast as the other's, each with three seeds."""
    return read_methods(make_arms(tmp_path))


def test_the_mean_of_curves_lies_where_all_of_them_are_known():
    one, two = ([0.0, 2.0, 4.0], [0.0, 2.0, 4.0]), ([1.0, 3.0], [3.0, 5.0])
    curve = mean_curve([one, two])
    assert (curve.x[0], curve.x[-1]) == (1, 3)
    np.testing.assert_allclose(curve.y, curve.x + 1)  # x and x + 2
    # both seeds the one, or the other
    np.testing.assert_allclose([curve.low, curve.high], [curve.x, curve.x + 2])
    assert mean_curve([one]).low is None
    assert mean_curve([one, ([], [])]) is None and mean_curve([]) is None
    assert mean_curve([one, ([9.0, 10.0], [0.0, 0.0])]) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.floats(0, 1))
def test_where_a_level_is_reached_the_curve_has_it_and_not_before(ys, level):
    x, y = np.arange(len(ys), dtype=float), np.array(ys)
    at = reached(x, y, level)
    if not np.isfinite(at):
        assert y.max() < level
        return
    assert np.interp(at, x, y) >= level - 1e-9
    fine = np.linspace(0, at, 500)
    assert (np.interp(fine[fine < at - 1e-6], x, y) < level + 1e-9).all()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(0, 9))
def test_smoothing_is_the_mean_of_what_lies_around(values, width):
    means = smoothed(values, width)
    for i in range(len(values)):
        reach = min(width // 2, i, len(values) - 1 - i)
        assert means[i] == pytest.approx(np.mean(values[i - reach : i + reach + 1]), abs=1e-9)


def test_bootstrap_over_seeds():
    rows = resamples(3)
    assert rows.shape[1] == 3 and set(np.unique(rows)) == {0, 1, 2}
    assert bounds(np.arange(1001.0)) == pytest.approx((25, 975))
    assert bounds(np.array([1.0, np.inf])) is None and bounds(np.array([])) is None


def test_half_the_compute_and_twice_the_accuracy_are_told_so(methods):
    fast, slow = methods
    comparison = efficiency(fast, slow, "train")
    # The reference's best, 20 steps at 0.01, is had after 10: (2 + 20) / (2 + 10).
    assert comparison["paper_ratio"] == pytest.approx(22 / 12, rel=1e-3)
    # half of everything, see make_arm
    assert comparison["actual_ratio"] == pytest.approx((1 + 10) / (1 + 5), rel=1e-3)
    assert comparison["accuracy_ratio"] == pytest.approx(2.0)
    low, high = comparison["accuracy_interval"]
    assert 1.6 < low < 2.0 < high < 2.5
    for accounting in ("paper", "actual"):
        low, high = comparison[f"{accounting}_interval"]
        assert low < comparison[f"{accounting}_ratio"] < high
    backwards = efficiency(slow, fast, "train")
    assert backwards["paper_ratio"] == backwards["actual_ratio"] == 0  # never reached
    assert backwards["accuracy_ratio"] == pytest.approx(0.5)


def test_flops_to_a_level_named_beforehand(methods):
    fast, slow = methods
    comparison = efficiency(fast, slow, "train", 0.1)  # after 10 steps at 0.01 and 5 at 0.02
    assert (
        comparison["paper_ratio"] == pytest.approx(12 / 7, rel=1e-3) and not comparison["at_least"]
    )
    assert comparison["actual_ratio"] == pytest.approx(6 / 3.5, rel=1e-3)
    never = efficiency(fast, slow, "train", 0.3)  # after 15 steps at 0.02; 20 at 0.01 end at 0.2
    assert never["paper_ratio"] == pytest.approx(22 / 17, rel=1e-3) and never["at_least"]
    assert never["accuracy_ratio"] == comparison["accuracy_ratio"] == pytest.approx(2.0)
    assert efficiency(slow, fast, "train", 0.3)["paper_ratio"] == 0


def test_a_ratio_that_means_nothing_is_none(tmp_path):
    arms = {("a", 0): make_arm(tmp_path / "a", 0.01), ("b", 0): make_arm(tmp_path / "b", 0.0)}
    a, b = read_methods(arms)
    comparison = efficiency(a, b, "train")
    assert comparison.pop("at_least") is False
    assert len(comparison) == 6 and set(comparison.values()) == {None}


def test_an_evaluation_after_fine_tuning_is_part_of_the_curve(methods):
    curve = methods[1].accuracy("train")
    assert isinstance(curve, Curve)
    # The curve's grid has no point exactly there.
    assert np.interp(ARM_CORPUS + 5e10, curve.x, curve.y) == pytest.approx(0.01, rel=0.2)


def test_an_arm_without_reinforcement_learning_has_a_last_point(tmp_path):
    directory = make_arm(tmp_path / "sft", 0.01, tuned=True)
    (directory / "metrics.jsonl").unlink()
    method = read_methods({("sft", 0): directory})[0]
    assert method.accuracy("train").x[-1] == pytest.approx(ARM_CORPUS + 5e10)
