"""Comparisons from work directories made by hand: curves, ratios and intervals with known answers,
every figure drawn.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixrl_jax.report.comparison_report import (
    Curve,
    bounds,
    efficiency,
    mean_curve,
    reached,
    read_methods,
    resamples,
    smoothed,
    write_comparison,
)

CORPUS, STEPS = 2e11, 20
FIGURES = {
    "accuracy",
    "pass_at_k",
    "back_generalization",
    "groups",
    "dynamics",
    "unlocked",
    "strategies",
}


def make_arm(directory: Path, slope: float, corpus: float = CORPUS, tuned: bool = False) -> Path:
    """A run whose plain accuracy rises by `slope` a step, from 0 at the cost of the corpus, at 1e11
    FLOPs a step.
    """
    rows = []
    for step in range(1, STEPS + 1):
        row = {
            "step": step,
            "flops/total": corpus + step * 1e11,
            "flops/actual_total": corpus / 2 + step * 5e10,
            "reward/plain": slope * step,
            "reward/prefixed": 0.5,
            "groups/all_zero": 0.5,
            "groups/mixed": 0.25,
            "groups/all_one": 0.25,
            "grad_norm": 1.0 + step % 2,
            "entropy": 0.4,
            "completions/mean_length": 30.0,
            "problems/unlocked": 2.0 * step,
            "strategy/pour": 0.6,
        }
        if not step % 5:
            row |= {f"eval/{name}/avg@1": slope * step for name in ("train", "heldout")}
        rows.append(row)
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = {"before": 0.0, "after": slope * STEPS}
    half = corpus / 2
    summary = {
        "plain_pass_at_1": {"train": last, "heldout": last},
        "pass_at_k": {
            name: {"after": {"1": slope, "8": 3 * slope}} for name in ("train", "heldout")
        },
        "success_by_prefix_fraction": {
            "before": {"0.0": 0.0, "0.5": 0.2},
            "after": {"0.0": slope * STEPS, "0.5": 0.9},
        },
        "flops": {
            "paper": {"select": half, "collect": half, "total": corpus + STEPS * 1e11},
            "actual": {"select": half / 2, "collect": half / 2, "total": half + STEPS * 5e10},
        },
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "config.json").write_text("{}")
    if tuned:
        (directory / "sft").mkdir()
        row = {
            "step": 1,
            "flops/total": corpus + 5e10,
            "flops/actual_total": half + 2.5e10,
            "eval/train/avg@1": 0.01,
            "eval/heldout/avg@1": 0.01,
        }
        (directory / "sft" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return directory


@pytest.fixture
def arms(tmp_path) -> dict[tuple[str, int], Path]:
    """One method rises twice as fast as the other, each with three seeds that differ a little."""
    slopes = {"prefixrl": 0.02, "sft_rl": 0.01}
    return {
        (name, seed): make_arm(
            tmp_path / name / str(seed), slope * (1 + 0.1 * (seed - 1)), tuned=name == "sft_rl"
        )
        for name, slope in slopes.items()
        for seed in range(3)
    }


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
    found = smoothed(values, width)
    for i in range(len(values)):
        reach = min(width // 2, i, len(values) - 1 - i)
        assert found[i] == pytest.approx(np.mean(values[i - reach : i + reach + 1]), abs=1e-9)


def test_bootstrap_over_seeds():
    rows = resamples(3)
    assert rows.shape[1] == 3 and set(np.unique(rows)) == {0, 1, 2}
    assert bounds(np.arange(1001.0)) == pytest.approx((25, 975))
    assert bounds(np.array([1.0, np.inf])) is None and bounds(np.array([])) is None


def test_half_the_compute_and_twice_the_accuracy_are_told_so(arms):
    fast, slow = read_methods(arms)
    found = efficiency(fast, slow, "train")
    # The reference's best, 20 steps at 0.01, is had after 10: (2 + 20) / (2 + 10).
    assert found["paper_ratio"] == pytest.approx(22 / 12, rel=1e-3)
    # half of everything, see make_arm
    assert found["actual_ratio"] == pytest.approx((1 + 10) / (1 + 5), rel=1e-3)
    assert found["accuracy_ratio"] == pytest.approx(2.0)
    low, high = found["accuracy_interval"]
    assert 1.6 < low < 2.0 < high < 2.5
    for accounting in ("paper", "actual"):
        low, high = found[f"{accounting}_interval"]
        assert low < found[f"{accounting}_ratio"] < high
    backwards = efficiency(slow, fast, "train")
    assert backwards["paper_ratio"] == backwards["actual_ratio"] == 0 and backwards[
        "accuracy_ratio"
    ] == pytest.approx(0.5)  # never reached


def test_flops_to_a_level_named_beforehand(arms):
    fast, slow = read_methods(arms)
    found = efficiency(fast, slow, "train", 0.1)  # after 10 steps at 0.01 and 5 at 0.02
    assert found["paper_ratio"] == pytest.approx(12 / 7, rel=1e-3) and not found["at_least"]
    assert found["actual_ratio"] == pytest.approx(6 / 3.5, rel=1e-3)
    never = efficiency(fast, slow, "train", 0.3)  # after 15 steps at 0.02; 20 at 0.01 end at 0.2
    assert never["paper_ratio"] == pytest.approx(22 / 17, rel=1e-3) and never["at_least"]
    assert never["accuracy_ratio"] == found["accuracy_ratio"] == pytest.approx(2.0)
    assert efficiency(slow, fast, "train", 0.3)["paper_ratio"] == 0


def test_a_ratio_that_means_nothing_is_none(tmp_path):
    arms = {("a", 0): make_arm(tmp_path / "a", 0.01), ("b", 0): make_arm(tmp_path / "b", 0.0)}
    a, b = read_methods(arms)
    assert efficiency(a, b, "train") == {"at_least": False} | {
        f"{what}_{part}": None
        for what in ("paper", "actual", "accuracy")
        for part in ("ratio", "interval")
    }


def test_an_evaluation_after_fine_tuning_is_part_of_the_curve(arms):
    curve = read_methods(arms)[1].accuracy("train")
    assert isinstance(curve, Curve)
    # the grid lies beside it
    assert np.interp(CORPUS + 5e10, curve.x, curve.y) == pytest.approx(0.01, rel=0.2)


def test_everything_is_written(arms, tmp_path):
    shared = tmp_path / "shared" / "corpus"
    shared.mkdir(parents=True)
    corpus = {
        "solved": 3,
        "problems": 9,
        "samples": 70,
        "capped_treatment": "6 problems reached the cap.",
        "strategies": {"pour": 0.4},
    }
    (shared / "summary.json").write_text(json.dumps(corpus))
    said = write_comparison(tmp_path, arms, tmp_path / "shared", "sft_rl", level=0.3)
    assert "0.0 % -> 40.0 %" in said and "0.0 % -> 20.0 %" in said and said.endswith("report.html")
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == FIGURES
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "figures").glob("*.png"))
    page = (tmp_path / "report.html").read_text()
    assert (
        page.count("<figure") == len(FIGURES)
        and "6 problems reached the cap." in page
        and "http" not in page
    )
    assert "≥ 1.29" in page and "total FLOPs of sft_rl to 30.0\u00a0%" in page
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["method"] for row in found["methods"]] == ["prefixrl", "sft_rl"] and found[
        "corpus"
    ] == corpus
    first = found["methods"][0]
    assert first["train"]["after"]["mean"] == pytest.approx(0.4) and first[
        "grad_norm_std"
    ] == pytest.approx(0.5)
    assert (
        first["train"]["against"]["accuracy_ratio"] == pytest.approx(2.0)
        and found["methods"][1]["train"]["against"] is None
    )
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * (STEPS + 1) and {row["seed"] for row in rows} == {"0", "1", "2"}
    assert next(
        float(r["after/train/avg@1"]) for r in rows if r["step"] == "after"
    ) == pytest.approx(0.36)


def test_an_arm_without_reinforcement_learning_has_a_last_point(tmp_path):
    directory = make_arm(tmp_path / "sft", 0.01, tuned=True)
    (directory / "metrics.jsonl").unlink()
    method = read_methods({("sft", 0): directory})[0]
    assert method.accuracy("train").x[-1] == pytest.approx(CORPUS + 5e10)
