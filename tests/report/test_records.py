"""What is read from a work directory: samples, accuracies, contradictions and broken files."""

import itertools
import json
import re

import pytest
from synthetic import CORPUS, make_run, summary

from prefixrl_jax.report.plotting import Estimate
from prefixrl_jax.report.records import estimates, read_run


def test_the_first_and_last_sample_of_each_sort_are_picked(tmp_path):
    run = read_run(make_run(tmp_path))
    assert [(r["kind"], r["verdict"], r["when"]) for r in run.samples] == [
        ("plain", "wrong", "before training"),
        ("plain", "correct", "step 3"),
        ("plain", "wrong", "step 170"),
        ("plain", "correct", "after training"),
        ("prefixed", "wrong", "step 3"),
        ("prefixed", "correct", "step 3"),
        ("prefixed", "correct", "step 170"),
        ("prefixed", "unparsed", "after training"),
    ]


def test_contradictions_are_told(tmp_path):
    make_run(tmp_path)
    assert read_run(tmp_path).notes == []
    wrong = summary()
    wrong["flops"]["paper"]["total"] = 1.3e12
    wrong["steps"] = 299
    (tmp_path / "summary.json").write_text(json.dumps(wrong))
    notes = " ".join(read_run(tmp_path).notes).replace("\u00a0", " ")
    assert "the paper total is 1.30 TFLOP but its parts add up to 1.20 TFLOP" in notes
    assert re.search(r"metrics.jsonl ends at step \d+, and the run has had 299 steps", notes)
    assert "metrics.jsonl has 1.20 TFLOP spent, summary.json has a total of 1.30 TFLOP" in notes


def test_accuracy_goes_from_before_training_to_after_it(tmp_path):
    # The long evaluation after training replaces the short one at the last step.
    run = read_run(make_run(tmp_path))
    points = estimates(run, "train", CORPUS)
    assert points[0] == Estimate(CORPUS, 0.00125, 0.0005, 0.003)
    assert points[-1] == Estimate(CORPUS + 8e11, 0.6, 0.55, 0.64)
    assert len(points) == 9 and all(a.x < b.x for a, b in itertools.pairwise(points))
    run.rows.clear()
    assert estimates(run, "train", CORPUS) == points[:1]


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not valid JSON"), ("[1]", "expected a JSON object, found list")]
)
def test_a_broken_summary_is_an_error_that_names_the_file(tmp_path, text, words):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=rf"summary\.json: {words}"):
        read_run(tmp_path)
