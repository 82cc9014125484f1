"""Methods as data: every preset is a valid difference, wins over the file, loses to the command
line, and trains as it says.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import begun, read_lines, samples

from prefixrl_jax import config as base
from prefixrl_jax.config import flatten
from prefixrl_jax.configs import smoke
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.experiment.run import Run
from prefixrl_jax.experiment.stages import SHARED_STAGES
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.flops import Ledger
from prefixrl_jax.methods import LOSSES, METHODS, OPTIONS, PRESETS, SCHEDULES, configure, preset
from prefixrl_jax.prefixes.contexts import ContextStream
from prefixrl_jax.prefixes.schedules import Band
from prefixrl_jax.tasks.prompt import Prompt

ARM = (*SHARED_STAGES[:2], "prefixes", "sft", "train")  # the stages of an arm, up to training


def trains(test):
    """Marks a test that trains a method on the corpus of a finished run."""
    return pytest.mark.slow(pytest.mark.pipeline(test))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_sets_fields_that_there_are_and_resolves(name):
    assert preset(name).keys() <= flatten(base.get_config()).keys()
    chosen = configure(smoke.get_config(), name, {})
    assert all(flatten(chosen)[field] == value for field, value in preset(name).items())
    resolve(chosen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", ["grpo", "adaptive", "refill"])
def test_methods_combine_with_losses_schedules_and_options(method, more):
    resolve(configure(smoke.get_config(), f"{method}+{more}", {}))


def test_what_is_given_wins_over_the_method_and_the_method_over_the_file():
    file = smoke.get_config()
    file.prefix.share, file.train.group = 0.5, 4
    assert configure(file, "prefixrl", {}).prefix.share == 0.5
    assert configure(file, "prefix_only", {}).prefix.share == 1.0
    chosen = configure(file, "rl_n64+grpo", {"train.group": 16, "train.loss": "reinforce"})
    assert (chosen.prefix.share, chosen.train.group, chosen.train.loss, chosen.train.advantage) == (
        0,
        16,
        "reinforce",
        "std_normalised",
    )
    assert chosen.method == "rl_n64+grpo" and file.train.group == 4


def test_a_name_that_is_none_is_told_with_those_that_are():
    with pytest.raises(
        ValueError,
        match=r"method='rl\+ppo': 'ppo' is none of the methods prefixrl, prefix_only, rl",
    ) as error:
        preset("rl+ppo")
    assert all(name in str(error.value) for name in (*METHODS, *SCHEDULES, *LOSSES, *OPTIONS))


def test_a_method_may_name_single_fields_as_well():
    chosen = configure(
        smoke.get_config(), "sft_rl+sft.epochs=8+train.learning_rate=1+prefix.schedule=cosine", {}
    )
    assert (
        chosen.sft.enabled,
        chosen.sft.epochs,
        chosen.train.learning_rate,
        chosen.prefix.schedule,
    ) == (True, 8, 1.0, "cosine")
    with pytest.raises(
        ValueError, match=r"no field 'train\.lerning_rate'; near it: train\.learning_rate"
    ):
        preset("rl+train.lerning_rate=1e-3")
    with pytest.raises(ValueError, match=r"train\.group='many': a whole number from 1 to"):
        preset("rl+train.group=many")


@pytest.fixture(scope="module")
def shared(smoke_run, tmp_path_factory) -> Run:
    """Base model, corpus and baseline of a finished run."""
    workdir = begun(smoke_run, tmp_path_factory.mktemp("methods") / "shared", SHARED_STAGES)
    run = Run(Workdir(smoke.get_config(), workdir))
    run.run_stages(SHARED_STAGES)
    return run


def train(shared: Run, workdir: Path, method: str, **fields) -> tuple[list[dict], Ledger, Workdir]:
    """Trains a method for two steps on the shared corpus.

    Returns its metrics, its ledger and its work directory.
    """
    extent = {"train.steps": 2, "eval.every": 0, "train.micro_batches": 1}
    config = configure(smoke.get_config(), method, extent | fields)
    arm = Run(Workdir(config, workdir, shared.workdir.path))
    arm.run_stages(ARM)
    return read_lines(workdir / "metrics.jsonl"), arm.ledger, arm.workdir


@trains
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
    prompt, cost = (
        len(arm.settings.task.render(next(iter(arm.hard("train").values())))),
        arm.settings.cost,
    )
    assert ledger.state["paper"]["prefill"] == cost.tokens(sampled * prompt)
    # What is trained is what was drawn and the traces; the reference scores the same once.
    trained_traces = sum(
        len(traced[name].token_ids) for batch in batches for name in batch if name in traced
    )
    tokens = ledger.state["paper"]["decode"] / cost.tokens(1) + trained_traces + 2 * 8 * 4 * prompt
    assert ledger.state["paper"]["train"] == pytest.approx(cost.tokens(tokens, train=True))
    assert ledger.state["paper"]["score"] == pytest.approx(cost.tokens(tokens))


def contexts_of(arm: Workdir):
    """The stream of plain contexts that an arm without prefixes draws."""
    c = arm.config
    return ContextStream(
        Band([], 0),
        [Prompt(p) for p in arm.hard("train").values()],
        0.0,
        c.train.batch,
        c.train.seed,
    )


@trains
def test_a_hint_stands_in_the_question_and_may_be_trained_at_the_plain_problem(shared, tmp_path):
    rows, ledger, arm = train(
        shared, tmp_path / "run", "oc_grpo+wrong_prefix", **{"log.samples_every": 1}
    )
    cuts = read_lines(tmp_path / "run" / "prefixes" / "prefixes.jsonl")
    wrong = json.loads((shared.workdir.corpus_path / "wrong.json").read_text())
    assert cuts and all(
        cut["hinted"] and wrong[cut["problem"]][: len(cut["token_ids"])] == cut["token_ids"]
        for cut in cuts
    )
    written = read_lines(tmp_path / "run" / "samples" / "train-00001.jsonl")
    assert any(s["hinted"] and s["prefix"] for s in written) and all(
        "reward/prefixed" in row for row in rows
    )
    # Sampled with the hint in the prompt, trained without: more is paid for the prompts of samples
    # than for those of updates.
    prompt, cost, rollouts = 8, arm.settings.cost, 2 * 8 * 4
    assert len(arm.settings.task.render(next(iter(arm.hard("train").values())))) == prompt - 1
    assert ledger.state["paper"]["prefill"] > cost.tokens(rollouts * (prompt - 1))
    tokens = ledger.state["paper"]["decode"] / cost.tokens(1) + rollouts * (prompt - 1)
    assert ledger.state["paper"]["train"] == pytest.approx(cost.tokens(tokens, train=True))


@trains
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


@trains
def test_fine_tuning_comes_first_is_counted_as_training_and_raises_the_likelihood_of_the_traces(
    shared, tmp_path
):
    fields = {"sft.epochs": 30, "sft.batch": 4, "sft.learning_rate": 1e-3}
    rows, ledger, arm = train(shared, tmp_path / "run", "sft_rl", **fields)
    tuned = read_lines(tmp_path / "run" / "sft" / "metrics.jsonl")
    traces = arm.traces()
    assert len(tuned) == -(-30 * len(traces) // 4) and tuned[-1]["loss"] < 0.5 * tuned[0]["loss"]
    assert {"eval/train/avg@1", "flops/total"} <= tuned[-1].keys()
    assert rows[0]["flops/total"] > tuned[-1]["flops/total"] > shared.ledger.total()
    assert ledger.state["paper"]["collect"] > 0
    config = configure(smoke.get_config(), "sft", fields)
    alone = Run(Workdir(config, tmp_path / "alone", shared.workdir.path))
    alone.run_stages(ARM)
    assert alone.ledger.state["paper"]["decode"] == 0 < alone.ledger.state["paper"]["train"]
    with jax.set_mesh(arm.settings.mesh):
        # The method without RL ends where RL begins.
        jax.tree.map(
            np.testing.assert_array_equal, alone.workdir.trained_params(), arm.sft_params()
        )


@trains
def test_a_method_without_traces_does_not_pay_for_those_that_lie_beside_it(shared, tmp_path):
    _, ledger, _ = train(shared, tmp_path / "run", "rl")
    assert ledger.state["paper"]["collect"] == 0 < shared.ledger.state["paper"]["collect"]
    assert ledger.state["paper"]["select"] == shared.ledger.state["paper"]["select"] > 0


@trains
def test_a_round_adds_to_the_corpus_with_the_policy_it_goes_on_from(shared, tmp_path):
    fields = {
        "train.steps": 2,
        "eval.every": 0,
        "train.micro_batches": 1,
        "select.band": (0.0, 1.0),
        "rounds": 2,
    }
    config = configure(smoke.get_config(), "prefixrl", fields)
    first = Workdir(config, tmp_path / "run", shared.workdir.path)
    first_run = Run(first)
    first_run.run_stages(ARM)
    second = Workdir(config, tmp_path / "run" / "round-2", previous=first)
    second_run = Run(second)
    second_run.run_stages(ARM)
    before, after = ({t.problem_id: t for t in w.traces()} for w in (first, second))
    assert (
        second.hard("train").keys() == first.hard("train").keys()
        and before.items() <= after.items()
    )
    assert first_run.ledger.total() < second_run.ledger.total()
    drawn = {problem for _, problem, _ in samples(tmp_path / "run" / "round-2")}
    # the traces of the first round, and samples of the problems without one
    assert drawn == first.hard("train").keys()
    written = [
        (tmp_path / "run" / name / "samples" / "train-00001.jsonl").read_text()
        for name in ("", "round-2")
    ]
    assert written[0] != written[1] and first.noise_name("collect") != second.noise_name("collect")
    shutil.rmtree(second.corpus_path / "dataset")
    # from the log, when the dataset is damaged
    assert {t.problem_id: t for t in second.traces()} == after


@trains
def test_a_later_round_goes_on_with_what_the_schedule_has_learnt(shared, tmp_path):
    fields = {"train.steps": 2, "eval.every": 0, "rounds": 2}
    config = configure(smoke.get_config(), "prefixrl+adaptive", fields)
    first = Workdir(config, tmp_path / "run", shared.workdir.path)
    Run(first).run_stages(ARM)
    sidecar = next((first.path / "checkpoints" / "2").rglob("sidecar/metadata"))
    memory = json.loads(sidecar.read_text())["memory"]
    assert memory["schedule"]
    second = Workdir(config, tmp_path / "run" / "round-2", previous=first)
    assert first.records.result("train")["memory"] == memory == second.source_memory()
