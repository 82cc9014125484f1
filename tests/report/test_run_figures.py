"""The figures of a run: what they show, and what they say of data that they cannot show."""

import math

import pytest

from prefixrl_jax.report import run_figures as figures
from prefixrl_jax.report.plotting import LIGHT, Estimate, png


def test_accuracy_axis_starts_at_zero_and_shades_the_corpus():
    evals = {"train": [Estimate(4e11, 0.0), Estimate(1.2e12, 0.6, 0.5, 0.7)]}
    figure = figures.accuracy(([5e11, 1.2e12], [0.0, 0.55]), evals, 4e11, LIGHT)
    (ax,) = figure.axes
    assert ax.get_xlim()[0] == 0 and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] >= 0.7
    assert "TFLOP" in ax.get_xlabel() and [t.get_text() for t in ax.texts] == ["corpus\n0.4 TFLOP"]
    assert max(
        x for x, _ in ax.patches[0].get_extents().transformed(ax.transData.inverted()).get_points()
    ) == pytest.approx(0.4)
    (bar,) = [c for c in ax.containers if c.get_label() == "training problems"]
    assert bar[2][0].get_segments()[1][:, 1] == pytest.approx([0.5, 0.7])


def test_the_same_data_give_the_same_picture():
    rows = [{"step": step, "entropy": 1.0 / step} for step in range(1, 5)]
    first, again = (png(lambda theme: figures.dynamics(rows, theme)) for _ in range(2))
    other = png(lambda theme: figures.dynamics(rows[:3], theme))
    assert first == again and first != other
    assert png(lambda theme: figures.dynamics([{"step": 1, "entropy": math.nan}], theme)) is None


def test_log_axis_says_what_it_cannot_show():
    rows = [
        {"step": i, "sampler_trainer/logp_diff_max": v}
        for i, v in enumerate((0.0, 1e-6, 2e-6, math.nan), start=1)
    ]
    (ax,) = figures.logprob_gap(rows, LIGHT).axes
    assert ax.get_yscale() == "log" and "(no gap at all at 1 of 3 steps)" in ax.get_title()
    assert list(ax.lines[0].get_ydata()) == [1e-6, 2e-6]
    (ax,) = figures.logprob_gap(rows[:1], LIGHT).axes
    assert ax.get_yscale() == "linear"
