"""The report of a comparison: every file is written, and says what was measured."""

import csv
import json

import pytest
from synthetic import ARM_STEPS, make_arms

from prefixrl_jax.report.comparison_report import write_comparison

FIGURES = {
    "accuracy",
    "pass_at_k",
    "back_generalization",
    "groups",
    "dynamics",
    "unlocked",
    "strategies",
}


def test_everything_is_written(tmp_path):
    arms = make_arms(tmp_path)
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
    text = write_comparison(tmp_path, arms, tmp_path / "shared", "sft_rl", level=0.3)
    assert "0.0 % -> 40.0 %" in text and "0.0 % -> 20.0 %" in text and text.endswith("report.html")
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == FIGURES
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "figures").glob("*.png"))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure") == len(FIGURES)
    assert "6 problems reached the cap." in page and "http" not in page
    assert "≥ 1.29" in page and "total FLOPs of sft_rl to 30.0\u00a0%" in page
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["corpus"] == corpus
    prefixrl, sft_rl = comparison["methods"]
    assert (prefixrl["method"], sft_rl["method"]) == ("prefixrl", "sft_rl")
    assert prefixrl["train"]["after"]["mean"] == pytest.approx(0.4)
    assert prefixrl["grad_norm_std"] == pytest.approx(0.5)
    assert prefixrl["train"]["against"]["accuracy_ratio"] == pytest.approx(2.0)
    assert sft_rl["train"]["against"] is None
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * (ARM_STEPS + 1) and {row["seed"] for row in rows} == {"0", "1", "2"}
    after = next(row for row in rows if row["step"] == "after")
    assert float(after["after/train/avg@1"]) == pytest.approx(0.36)
