"""Methods as data: every preset is a valid difference, wins over the file, loses to the command
line, and trains as it says.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import PYTHON

from configs import smoke
from prefixrl_jax import config as base
from prefixrl_jax.compare import Arm, methods_of, seeds_of
from prefixrl_jax.config import flatten
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.experiment.rl_source import off_policy_rows
from prefixrl_jax.experiment.run import Experiment
from prefixrl_jax.experiment.stages import SHARED
from prefixrl_jax.experiment.tuning import SEED
from prefixrl_jax.flops import Ledger
from prefixrl_jax.methods import LOSSES, METHODS, OPTIONS, PRESETS, SCHEDULES, configure, preset

ROOT = Path(__file__).parent.parent
ARM = (*SHARED[:2], "prefixes", "sft", "train")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_sets_fields_that_there_are_and_resolves(name):
    assert preset(name).keys() <= flatten(base.get_config()).keys()
    found = configure(smoke.get_config(), name, {})
    assert all(flatten(found)[field] == value for field, value in preset(name).items())
    resolve(found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", ["grpo", "adaptive", "refill"])
def test_methods_combine_with_losses_schedules_and_options(method, more):
    resolve(configure(smoke.get_config(), f"{method}+{more}", {}))


def test_what_is_given_wins_over_the_method_and_the_method_over_the_file():
    file = smoke.get_config()
    file.prefix.share, file.train.group = 0.5, 4
    assert configure(file, "prefixrl", {}).prefix.share == 0.5
    assert configure(file, "prefix_only", {}).prefix.share == 1.0
    found = configure(file, "rl_n64+grpo", {"train.group": 16, "train.loss": "reinforce"})
    assert (found.prefix.share, found.train.group, found.train.loss, found.train.advantage) == (
        0,
        16,
        "reinforce",
        "std_normalised",
    )
    assert found.method == "rl_n64+grpo" and file.train.group == 4


def test_a_name_that_is_none_is_told_with_those_that_are():
    with pytest.raises(
        ValueError,
        match=r"method='rl\+ppo': 'ppo' is none of the methods prefixrl, prefix_only, rl",
    ) as error:
        preset("rl+ppo")
    assert all(name in str(error.value) for name in (*METHODS, *SCHEDULES, *LOSSES, *OPTIONS))


def test_a_method_may_name_single_fields_as_well():
    found = configure(
        smoke.get_config(), "sft_rl+sft.epochs=8+train.learning_rate=1+prefix.schedule=cosine", {}
    )
    assert (
        found.sft.enabled,
        found.sft.epochs,
        found.train.learning_rate,
        found.prefix.schedule,
    ) == (True, 8, 1.0, "cosine")
    with pytest.raises(
        ValueError, match=r"no field 'train\.lerning_rate'; near it: train\.learning_rate"
    ):
        preset("rl+train.lerning_rate=1e-3")
    with pytest.raises(ValueError, match=r"train\.group=many: a value like 8 is expected"):
        preset("rl+train.group=many")


def test_a_comma_inside_brackets_parts_no_methods():
    assert methods_of("prefix_only+prefix.band=(0.1,0.3), rl,rl") == [
        "prefix_only+prefix.band=(0.1,0.3)",
        "rl",
    ]
    assert preset("prefix_only+prefix.band=(0.1,0.3)")["prefix.band"] == (0.1, 0.3)


def a_trace(**fields) -> Trace:
    return Trace(
        "a",
        3,
        [1, 2],
        [5, 6, 7],
        fields.pop("logprobs", [-1.0, -2.0, -0.5]),
        "stop",
        20,
        0.0,
        **fields,
    )


def test_a_trace_as_a_row_has_the_log_probs_of_the_policy_that_made_it():
    rows = {
        how: off_policy_rows([a_trace()], "importance", how, 3)["a"].logprobs
        for how in ("sampled", "acceptance")
    }
    np.testing.assert_array_equal(rows["sampled"], np.float32([-1, -2, -0.5]))
    # Kept among 20 samples: its probability given that it was kept is 20 times as large, spread
    # over three tokens.
    assert rows["acceptance"].sum() == pytest.approx(-3.5 + np.log(20), rel=1e-6)
    assert not off_policy_rows([a_trace(logprobs=[], source="foreign")], "shaped", "sampled", 3)[
        "a"
    ].logprobs.any()
    with pytest.raises(
        ValueError,
        match=(
            r"train\.off_policy='importance': the trace of problem 'a' was brought without"
            r" log-probs"
        ),
    ):
        off_policy_rows([a_trace(logprobs=[], source="foreign")], "importance", "sampled", 3)
    with pytest.raises(ValueError, match=r"train\.off_policy='shaped': the corpus has no trace"):
        off_policy_rows([], "shaped", "sampled", 3)


def test_a_trace_longer_than_a_row_is_named_before_training():
    with pytest.raises(
        ValueError, match=r"sampling\.max_new_tokens=2: the trace of problem 'a' has 3 tokens"
    ):
        off_policy_rows([a_trace()], "shaped", "sampled", 2)
    assert off_policy_rows([a_trace()], "none", "sampled", 2) is None


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Experiment:
    """Base, corpus and baseline of a tiny run."""
    found = Experiment(smoke.get_config(), tmp_path_factory.mktemp("methods") / "shared")
    found.run_stages(SHARED)
    return found


def train(
    shared: Experiment, workdir: Path, method: str, **given
) -> tuple[list[dict], Ledger, Experiment]:
    """Two steps of a method on the shared corpus: metrics, ledger and the experiment."""
    config = configure(
        smoke.get_config(),
        method,
        {"train.steps": 2, "eval.every": 0, "train.micro_batches": 1} | given,
    )
    arm = Experiment(config, workdir, shared.workdir)
    arm.run_stages(ARM)
    return (
        [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()],
        arm.ledger,
        arm,
    )


def test_a_trace_is_one_of_its_problems_group_and_the_divergence_is_paid_for(shared, tmp_path):
    rows, ledger, arm = train(shared, tmp_path / "run", "luffy+kl")
    # it is the base model still
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows[1]["kl"] > 0 and all(
        row["prefix/fraction_mean"] == 0 for row in rows if "prefix/fraction_mean" in row
    )
    # Rows of 4, one of them a trace where there is one: samples are drawn for the others alone.
    traced = {t.problem_id: t for t in arm.traces()}
    batches = [[p.problem.id for p in contexts_of(arm).at(step, {})] for step in range(2)]
    sampled = sum(4 - (name in traced) for batch in batches for name in batch)
    prompt, cost = len(arm.s.task.render(next(iter(arm.hard("train").values())))), arm.s.cost
    assert ledger.state["paper"]["prefill"] == cost.tokens(sampled * prompt)
    # What is trained is what was drawn and the traces; the reference scores the same once.
    given = sum(
        len(traced[name].token_ids) for batch in batches for name in batch if name in traced
    )
    tokens = ledger.state["paper"]["decode"] / cost.tokens(1) + given + 2 * 8 * 4 * prompt
    assert ledger.state["paper"]["train"] == pytest.approx(cost.tokens(tokens, train=True))
    assert ledger.state["paper"]["score"] == pytest.approx(cost.tokens(tokens))


def contexts_of(arm: Experiment):
    """The stream of plain contexts that an arm without prefixes draws."""
    from prefixrl_jax.prefixes.schedules import Band, ContextStream
    from prefixrl_jax.training.rollout import Prompt

    c = arm.config
    return ContextStream(
        Band([], 0),
        [Prompt(p) for p in arm.hard("train").values()],
        0.0,
        c.train.batch,
        c.train.seed,
    )


def test_a_hint_stands_in_the_question_and_may_be_trained_at_the_plain_problem(shared, tmp_path):
    rows, ledger, arm = train(
        shared, tmp_path / "run", "oc_grpo+wrong_prefix", **{"log.samples_every": 1}
    )
    cuts = [
        json.loads(line)
        for line in (tmp_path / "run" / "prefixes" / "prefixes.jsonl").read_text().splitlines()
    ]
    wrong = json.loads((shared.workdir / "corpus" / "wrong.json").read_text())
    assert cuts and all(
        cut["hinted"] and wrong[cut["problem"]][: len(cut["token_ids"])] == cut["token_ids"]
        for cut in cuts
    )
    samples = [
        json.loads(line)
        for line in (tmp_path / "run" / "samples" / "train-00001.jsonl").read_text().splitlines()
    ]
    assert any(s["hinted"] and s["prefix"] for s in samples) and all(
        "reward/prefixed" in row for row in rows
    )
    # Sampled with the hint in the prompt, trained without: more is paid for the prompts of samples
    # than for those of updates.
    prompt, cost, rollouts = 8, arm.s.cost, 2 * 8 * 4
    assert len(arm.s.task.render(next(iter(arm.hard("train").values())))) == prompt - 1
    assert ledger.state["paper"]["prefill"] > cost.tokens(rollouts * (prompt - 1))
    tokens = ledger.state["paper"]["decode"] / cost.tokens(1) + rollouts * (prompt - 1)
    assert ledger.state["paper"]["train"] == pytest.approx(cost.tokens(tokens, train=True))


def test_an_adaptive_schedule_remembers_and_uninformative_groups_are_drawn_again(shared, tmp_path):
    plain, cheap, _ = train(shared, tmp_path / "cheap", "prefixrl")
    rows, ledger, arm = train(
        shared, tmp_path / "run", "prefixrl+adaptive+refill+uft", **{"prefix.schedule": "adaptive"}
    )
    assert rows[0]["groups/mixed"] >= plain[0]["groups/mixed"] and rows[0]["prefix/nll"] > 0
    # what was drawn in vain is paid for as well
    assert ledger.state["paper"]["decode"] > cheap.state["paper"]["decode"]
    assert ledger.state["paper"]["train"] < 2 * cheap.state["paper"]["train"]
    assert rows[1]["problems/unlocked"] >= rows[0]["problems/unlocked"]
    saved = json.loads(
        next((tmp_path / "run" / "checkpoints" / "2").rglob("sidecar/metadata")).read_text()
    )["memory"]
    moved = {k: v for k, v in saved["schedule"].items() if v is not None}
    assert (
        moved
        and all(0 <= f <= 0.8 for f in moved.values())
        and moved.keys() <= {t.problem_id for t in arm.traces()}
    )


def test_fine_tuning_comes_first_is_counted_as_training_and_raises_the_likelihood_of_the_traces(
    shared, tmp_path
):
    given = {"sft.epochs": 30, "sft.batch": 4, "sft.learning_rate": 1e-3}
    rows, ledger, arm = train(shared, tmp_path / "run", "sft_rl", **given)
    tuned = [
        json.loads(line)
        for line in (tmp_path / "run" / "sft" / "metrics.jsonl").read_text().splitlines()
    ]
    traces = arm.traces()
    assert len(tuned) == -(-30 * len(traces) // 4) and tuned[-1]["loss"] < 0.5 * tuned[0]["loss"]
    assert {"eval/train/avg@1", "flops/total"} <= tuned[-1].keys()
    assert rows[0]["flops/total"] > tuned[-1]["flops/total"] > shared.ledger.total()
    assert ledger.state["paper"]["collect"] > 0
    alone = Experiment(
        configure(smoke.get_config(), "sft", given), tmp_path / "alone", shared.workdir
    )
    alone.run_stages(ARM)
    assert alone.ledger.state["paper"]["decode"] == 0 < alone.ledger.state["paper"]["train"]
    with jax.set_mesh(alone.s.mesh):
        # and there RL began
        jax.tree.map(np.testing.assert_array_equal, alone._params("train"), arm._params("sft"))


def test_a_method_without_traces_does_not_pay_for_those_that_lie_beside_it(shared, tmp_path):
    _, ledger, _ = train(shared, tmp_path / "run", "rl")
    assert ledger.state["paper"]["collect"] == 0 < shared.ledger.state["paper"]["collect"]
    assert ledger.state["paper"]["select"] == shared.ledger.state["paper"]["select"] > 0


def test_a_round_adds_to_the_corpus_with_the_policy_it_goes_on_from(shared, tmp_path):
    given = {
        "train.steps": 2,
        "eval.every": 0,
        "train.micro_batches": 1,
        "select.band": (0.0, 1.0),
        "rounds": 2,
    }
    config = configure(smoke.get_config(), "prefixrl", given)
    first = Experiment(config, tmp_path / "run", shared.workdir)
    first.run_stages(ARM)
    second = Experiment(config, tmp_path / "run" / "round-2", previous=first)
    second.run_stages(ARM)
    before, after = ({t.problem_id: t for t in e.traces()} for e in (first, second))
    assert (
        second.hard("train").keys() == first.hard("train").keys()
        and before.items() <= after.items()
    )
    assert first.ledger.total() < second.ledger.total()
    log = (tmp_path / "run" / "round-2" / "corpus" / "log.jsonl").read_text().splitlines()[1:]
    drawn = {json.loads(line.split(" ", 1)[1])["problem"] for line in log}
    # the traces of the first round, and samples of the problems without one
    assert drawn == first.hard("train").keys()
    samples = [
        (tmp_path / "run" / name / "samples" / "train-00001.jsonl").read_text()
        for name in ("", "round-2")
    ]
    assert (
        samples[0] != samples[1] and {first.stream("collect")} & {second.stream("collect")} == set()
    )
    shutil.rmtree(second.workdir / "corpus" / "dataset")
    # from the log, when the dataset is damaged
    assert {t.problem_id: t for t in second.traces()} == after


def command(workdir: Path, *flags: str) -> list[str]:
    return [
        *PYTHON,
        "-m",
        "prefixrl_jax.compare",
        "--config=configs/smoke.py",
        f"--workdir={workdir}",
        *flags,
    ]


def test_a_comparison_goes_on_after_a_kill_and_ends_with_one_report(shared, tmp_path):
    (tmp_path / "run").mkdir()
    os.symlink(shared.workdir, tmp_path / "run" / "shared")
    budget = 1.6 * shared.ledger.total()
    flags = (
        "--methods=rl,sft_rl",
        "--seeds=0",
        f"--flops={budget}",
        "--config.train.micro_batches=1",
        "--config.eval.every=0",
    )
    with subprocess.Popen(
        command(tmp_path / "run", *flags), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        lines = iter(child.stdout.readline, "")
        next(line for line in lines if "arm 2 of 2" in line)
        next(line for line in lines if line.startswith(("sft", "train")))
        child.send_signal(signal.SIGKILL)
    first = (tmp_path / "run" / "arms" / "rl" / "seed-0" / "metrics.jsonl").stat().st_mtime_ns
    done = subprocess.run(
        command(tmp_path / "run", *flags), cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        tmp_path / "run" / "arms" / "rl" / "seed-0" / "metrics.jsonl"
    ).stat().st_mtime_ns == first
    assert done.stdout.count("train done") == 1  # of the arm that was killed
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    for row in found["methods"]:  # both were stopped by the budget, at the first step beyond it
        assert budget <= row["flops"]["mean"] < 1.1 * budget
        rows = (
            (tmp_path / "run" / "arms" / row["method"] / "seed-0" / "metrics.jsonl")
            .read_text()
            .splitlines()
        )
        last = json.loads(rows[-2])["flops/total"] if len(rows) > 1 else 0
        assert last < budget
        assert not any("eval/train/avg@1" in json.loads(row) for row in rows)  # as was asked for
    assert "<table" in (tmp_path / "run" / "report.html").read_text()


def test_a_comparison_tunes_on_one_half_of_the_held_out_problems_and_measures_on_the_other(
    shared, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(shared.workdir, run / "shared")
    (run / "shared" / "stages" / "baseline.json").unlink()  # it is of all held-out problems
    # it is 1.0 anyway: not run again
    grids = ("--tune=train.learning_rate=1e-3,1e-2", "--tune=train.max_grad_norm=1.0,0.5")
    flags = ("--methods=rl", *grids, "--config.train.steps=1")
    done = subprocess.run(
        command(run, *flags), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((run / "comparison.json").read_text())
    tuned, then = found["tuned"]
    assert then["tried"][0] == {**max(tuned["tried"], key=lambda t: t["accuracy"]), "value": "1.0"}
    assert [t["value"] for t in tuned["tried"]] == ["1e-3", "1e-2"]
    assert tuned["chosen"] == max(tuned["tried"], key=lambda t: t["accuracy"])["value"]
    configs = {
        path.parent: json.loads(path.read_text()) for path in run.glob("*/rl*/**/config.json")
    }
    where = {
        str(path.relative_to(run)): (c["eval"]["heldout_part"], c["train"]["seed"])
        for path, c in configs.items()
    }
    assert where == {
        "tuning/rl+train.learning_rate=1e-3": ("validation", SEED),
        "tuning/rl+train.learning_rate=1e-2": ("validation", SEED),
        f"tuning/rl+train.learning_rate={tuned['chosen']}+train.max_grad_norm=0.5": (
            "validation",
            SEED,
        ),
        "arms/rl/seed-0": ("test", 0),
    }
    assert configs[run / "arms" / "rl" / "seed-0"]["train"]["learning_rate"] == float(
        tuned["chosen"]
    )
    for directory in configs:
        plain = json.loads((directory / "stages" / "evaluate.json").read_text())["result"]["plain"]
        # of 4, and of 8
        assert (
            plain["heldout"]["after"]["problems"] == 2 and plain["train"]["after"]["problems"] == 8
        )
        if directory.parent.name == "tuning":
            (tried,) = (
                t
                for record in found["tuned"]
                for t in record["tried"]
                if directory.name.endswith(f"={t['value']}")
            )
            assert tried["accuracy"] == plain["heldout"]["after"]["avg@1"]
    page = (run / "report.html").read_text()
    assert 'id="tuning"' in page and f"<b>{tuned['chosen']}</b>" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods=rl,ppo"], "'ppo' is none of the methods prefixrl"),
        (["--flops=-1"], "--flops"),
        (["--methods=rl", "--reference=sft"], "--reference=sft: one of the methods rl"),
    ],
)
def test_what_cannot_be_compared_is_told_before_any_compute(tmp_path, flags, message):
    done = subprocess.run(
        command(tmp_path / "run", *flags), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / "shared" / "base").exists()


@pytest.mark.parametrize("text", ["0,x", "1,1"])
def test_seeds_are_different_whole_numbers(text):
    with pytest.raises(ValueError, match=f"--seeds={text}: different whole numbers are expected"):
        seeds_of(text.split(","))


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


def test_a_budget_below_the_cost_of_the_corpus_and_an_arm_of_another_configuration_are_refused(
    shared, tmp_path
):
    (tmp_path / "run").mkdir()
    os.symlink(shared.workdir, tmp_path / "run" / "shared")
    done = subprocess.run(
        command(tmp_path / "run", "--methods=sft_rl", "--flops=1e6"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        done.returncode == 2
        and "--flops=1e+06: sft_rl has spent" in done.stderr
        and "more is needed" in done.stderr
    )
    train(shared, tmp_path / "run" / "arms" / "rl" / "seed-0", "rl")
    done = subprocess.run(
        command(tmp_path / "run", "--methods=rl", "--config.train.group=2"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "train.group: 4 there, 2 now (stage train)" in done.stderr
