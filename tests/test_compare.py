"""Comparisons of methods through the command line: arms, tuning, budgets, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from runs import PYTHON, ROOT, begun, python, read_lines, stage_result

from prefixrl_jax.configs import smoke
from prefixrl_jax.experiment.arms import Arm, parse_methods, parse_seeds
from prefixrl_jax.experiment.run import Run
from prefixrl_jax.experiment.stages import SHARED_STAGES
from prefixrl_jax.experiment.tuning import SEED
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.flops import Ledger
from prefixrl_jax.methods import configure, preset


def compares(test):
    """Marks a test that runs a comparison on the corpus of a finished run."""
    return pytest.mark.slow(pytest.mark.pipeline(test))


def test_a_comma_inside_brackets_parts_no_methods():
    assert parse_methods("prefix_only+prefix.band=(0.1,0.3), rl,rl") == [
        "prefix_only+prefix.band=(0.1,0.3)",
        "rl",
    ]
    assert preset("prefix_only+prefix.band=(0.1,0.3)")["prefix.band"] == (0.1, 0.3)


@pytest.mark.parametrize("text", ["0,x", "1,1"])
def test_seeds_are_different_whole_numbers(text):
    with pytest.raises(ValueError, match=f"--seeds={text}: different whole numbers are expected"):
        parse_seeds(text.split(","))


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            "rl+select.samples=99",
            {},
            r"rl\+select\.samples=99 sets select\.samples=99, and the corpus stage, which all arms",
        ),
        ("rl+rounds=2", {}, "rounds=2: the arms of a comparison have one round"),
        (
            "sft_rl",
            {"collect.cap": 0},
            r"collect\.cap=0 and no collect\.traces_path: there is no corpus",
        ),
    ],
)
def test_an_arm_that_needs_other_shared_stages_is_refused(method, given, message):
    base = smoke.get_config()
    base.update_from_flattened_dict(given)
    with pytest.raises(ValueError, match=message):
        Arm(method, 0).check(base)


@pytest.fixture(scope="module")
def shared(smoke_run, tmp_path_factory) -> Path:
    """The work directory of a run that has base model, corpus and baseline, which arms share."""
    return begun(smoke_run, tmp_path_factory.mktemp("comparison") / "shared", SHARED_STAGES)


def arguments(workdir: Path, *flags: str) -> list[str]:
    """The arguments of Python that compare methods on the smoke configuration."""
    config = "--config=configs/smoke.py"
    return ["-m", "prefixrl_jax.compare", config, f"--workdir={workdir}", *flags]


@pytest.fixture
def run(shared, tmp_path) -> Path:
    """The work directory of a comparison that finds its shared stages done."""
    (tmp_path / "run").mkdir()
    os.symlink(shared, tmp_path / "run" / "shared")
    return tmp_path / "run"


@compares
def test_a_comparison_goes_on_after_a_kill_and_ends_with_one_report(run):
    budget = 1.6 * Ledger(stage_result(run / "shared", "corpus")["ledger"]).total()
    command = arguments(
        run,
        "--methods=rl,sft_rl",
        "--seeds=0",
        f"--flops={budget}",
        "--config.train.micro_batches=1",
        "--config.eval.every=0",
    )
    with subprocess.Popen(
        [*PYTHON, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        lines = iter(child.stdout.readline, "")
        next(line for line in lines if "arm 2 of 2" in line)
        next(line for line in lines if line.startswith(("sft", "train")))
        child.send_signal(signal.SIGKILL)
    first_arm = run / "arms" / "rl" / "seed-0" / "metrics.jsonl"
    written = first_arm.stat().st_mtime_ns
    done = python(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert first_arm.stat().st_mtime_ns == written
    assert done.stdout.count("train done") == 1  # of the arm that was killed
    comparison = json.loads((run / "comparison.json").read_text())
    for row in comparison[
        "methods"
    ]:  # both were stopped by the budget, at the first step beyond it
        assert budget <= row["flops"]["mean"] < 1.1 * budget
        rows = read_lines(run / "arms" / row["method"] / "seed-0" / "metrics.jsonl")
        assert len(rows) == 1 or rows[-2]["flops/total"] < budget
        assert not any("eval/train/avg@1" in row for row in rows)  # as was asked for
    assert "<table" in (run / "report.html").read_text()


@compares
def test_a_comparison_tunes_on_one_half_of_the_held_out_problems_and_measures_on_the_other(
    smoke_run, tmp_path
):
    # The baseline of `shared` is of all held-out problems.
    run = begun(smoke_run, tmp_path / "run" / "shared", SHARED_STAGES[:2]).parent
    flags = ("--methods=rl", "--tune=train.learning_rate=1e-3,1e-2", "--config.train.steps=1")
    done = python(*arguments(run, *flags))
    assert done.returncode == 0, done.stderr[-3000:]
    (tuned,) = json.loads((run / "comparison.json").read_text())["tuned"]
    accuracies = {t["value"]: t["accuracy"] for t in tuned["tried"]}
    assert list(accuracies) == ["1e-3", "1e-2"]
    assert tuned["chosen"] == max(accuracies, key=accuracies.get)
    arm = run / "arms" / "rl" / "seed-0"
    tries = {
        run / "tuning" / f"rl+train.learning_rate={value}": accuracy
        for value, accuracy in accuracies.items()
    }
    # Those of the shared stages are no arm's.
    configs = {
        path.parent: json.loads(path.read_text()) for path in run.glob("*/rl*/**/config.json")
    }
    problems = {
        path: (c["eval"]["heldout_part"], c["train"]["seed"]) for path, c in configs.items()
    }
    assert problems == {arm: ("test", 0)} | {path: ("validation", SEED) for path in tries}
    assert configs[arm]["train"]["learning_rate"] == float(tuned["chosen"])
    for workdir in configs:
        plain = stage_result(workdir, "evaluate")["plain"]
        # of 4, and of 8
        assert plain["heldout"]["after"]["problems"] == 2
        assert plain["train"]["after"]["problems"] == 8
        if workdir in tries:
            assert tries[workdir] == plain["heldout"]["after"]["avg@1"]
    page = (run / "report.html").read_text()
    assert 'id="tuning"' in page and f"<b>{tuned['chosen']}</b>" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods=rl,ppo"], "'ppo' is none of the methods prefixrl"),
        (["--flops=-1"], "--flops"),
        (["--methods=rl", "--reference=sft"], "--reference=sft: one of the methods rl"),
    ],
)
def test_what_cannot_be_compared_is_told_before_any_compute(tmp_path, flags, message):
    done = python(*arguments(tmp_path / "run", *flags))
    assert done.returncode != 0 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / "shared" / "base").exists()


@compares
def test_a_budget_below_the_cost_of_the_corpus_is_refused(run):
    done = python(*arguments(run, "--methods=sft_rl", "--flops=1e6"))
    assert done.returncode == 2, done.stderr
    assert "--flops=1e+06: sft_rl has spent" in done.stderr and "more is needed" in done.stderr


@compares
def test_an_arm_of_another_configuration_is_refused(run):
    steps = "--config.train.steps=1"
    config = configure(smoke.get_config(), "rl", {"train.steps": 1, "eval.every": 0})
    arm = Workdir(config, run / "arms" / "rl" / "seed-0", run / "shared")
    Run(arm).run_stages((*SHARED_STAGES[:2], "prefixes", "sft", "train"))
    done = python(*arguments(run, "--methods=rl", steps, "--config.train.group=2"))
    assert done.returncode == 2, done.stderr
    assert "train.group: 4 there, 2 now (stage train)" in done.stderr
