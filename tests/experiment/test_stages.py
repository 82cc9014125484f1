"""A work directory is of one configuration; a stage's fingerprint lists all that it reads."""

from __future__ import annotations

import json

import pytest

from prefixrl_jax.config import flatten, get_config
from prefixrl_jax.configs import smoke
from prefixrl_jax.corpus.traces import read_dataset
from prefixrl_jax.experiment.run import Run
from prefixrl_jax.experiment.stages import (
    AFTER,
    READS_OF_IMPORT,
    STAGES,
    fields_of,
)
from prefixrl_jax.experiment.workdir import Workdir


def test_a_stage_depends_on_its_fields_and_those_of_the_stages_before():
    config = get_config()
    fields = {stage: fields_of(config, stage) for stage in STAGES}
    for stage, earlier in AFTER.items():
        assert all(fields[name].items() <= fields[stage].items() for name in earlier)
        assert all(STAGES.index(name) < STAGES.index(stage) for name in earlier)
    assert "base.steps" in fields["base"]
    assert "seed" in fields["base"]
    assert "select.samples" not in fields["base"]
    assert {"collect.cap", "sampling.temperature", "data.path"} <= fields["corpus"].keys()
    assert "prefix.band" not in fields["corpus"]
    assert "prefix.band" not in fields["sft"]
    assert "prefix.band" in fields["prefixes"]
    assert "prefix.share" not in fields["prefixes"]
    assert "train.group" in fields["train"]
    assert "sft.enabled" in fields["train"]
    assert "eval.samples" not in fields["train"]
    assert "eval.samples" in fields["baseline"]
    assert "eval.samples" in fields["evaluate"]
    # Fields that change how a run computes, but not its results.
    for name in ("sampling.rows", "log.samples_every", "checkpoint.every", "mesh.data"):
        assert name not in fields["report"]
    assert not any(name.startswith("task.countdown") for name in fields["report"])


# A fingerprint lists all that its stages read: every field that it does not list is given
# another value, all at once, and what the stages make must be the same to the token.
FIRST_STAGES = ("base", "corpus", "prefixes")
# Another legal value for every field that these stages do not read.
OTHER = {
    "method": "prefixrl+sft.epochs=4",
    "sampling.rows": 16,
    "sampling.slots": 2,
    "sampling.chunk": 3,
    "rounds": 2,
    "prefix.share": 0.5,
    "prefix.schedule": "adaptive",
    "prefix.anneal_steps": 7,
    "sft.enabled": True,
    "sft.epochs": 2,
    "sft.batch": 4,
    "sft.learning_rate": 1e-4,
    "sft.warmup_steps": 1,
    "sft.schedule": "linear",
    "sft.final_fraction": 0.5,
    "sft.weight_decay": 0.1,
    "train.seed": 5,
    "train.steps": 9,
    "train.batch": 16,
    "train.group": 6,
    "train.loss": "ppo_clip",
    "train.advantage": "leave_one_out",
    "train.aggregation": "constant",
    "train.clip_low": 0.1,
    "train.clip_high": 0.3,
    "train.kl_coef": 0.1,
    "train.kl_estimator": "k2",
    "train.prefix_coef": 0.1,
    "train.filter": "drop",
    "train.refills": 3,
    "train.off_policy": "shaped",
    "train.behaviour": "acceptance",
    "train.updates_per_batch": 2,
    "train.learning_rate": 1e-4,
    "train.warmup_steps": 2,
    "train.schedule": "linear",
    "train.schedule_steps": 20,
    "train.final_fraction": 0.1,
    "train.weight_decay": 0.1,
    "train.b2": 0.99,
    "train.max_grad_norm": 2.0,
    "train.micro_batches": 1,
    "train.mask_truncated": True,
    "train.max_logp_diff": 0.4,
    "train.min_entropy": 0.1,
    "train.flops_budget": 1e15,
    "eval.samples": 5,
    "eval.temperature": 0.5,
    "eval.heldout_part": "test",
    "eval.k": (1, 3),
    "eval.fractions": (0.0, 0.1),
    "eval.fraction_samples": 3,
    "eval.every": 3,
    "eval.every_samples": 1,
    "checkpoint.every": 2,
    "checkpoint.keep": 3,
    "log.samples_every": 2,
    "model.remat": True,
    "model.unroll_layers": True,
    "prefix.band": (0.3, 0.7),
    "prefix.cuts": 2,
    "prefix.content": "unrelated",
    "prefix.place": "user",
}
# There is no other legal value, or it belongs to another task; the last two change how sums are
# padded and cut, and so their rounding, which 120 steps of training make visible.
FIXED = (
    "mesh.",
    "task.",
    "train.truncate_ratio",
    "train.at_plain",
    "model.path",
    "sampling.context_buckets",
    "train.logprob_chunk",
)


def product(workdir: Workdir) -> dict:
    """What the stages have made, without figures that depend on how many samples run abreast."""
    dataset = workdir.corpus_path / "dataset"
    traces = read_dataset(dataset) if dataset.exists() else []
    return {
        "hard": workdir.records.result("corpus")["hard"],
        "traces": [(t.problem_id, t.sample_id, t.token_ids) for t in traces],
        "rejected": _text(workdir.corpus_path / "rejected.jsonl"),
        "base": _losses(workdir.path / "base" / "metrics.jsonl"),
        "prefixes": _text(workdir.prefixes_path),
    }


def _text(path) -> str:
    return path.read_text() if path.exists() else ""


def _losses(path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def run(path, **fields) -> Workdir:
    config = smoke.get_config()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(fields)
    workdir = Workdir(config, path)
    Run(workdir).run_stages(FIRST_STAGES)
    return workdir


def unlisted(config, stages) -> set[str]:
    """Fields that none of the stages' fingerprints has."""
    listed = {name for stage in stages for name in fields_of(config, stage)}
    return {name for name in flatten(config) if name not in listed}


@pytest.mark.slow
def test_every_field_that_is_not_listed_has_another_value_here():
    config = smoke.get_config()
    names = {n for n in unlisted(config, FIRST_STAGES) if not n.startswith(FIXED)}
    assert names <= OTHER.keys()
    values = flatten(config)
    same = [n for n in OTHER if values[n] == flatten({"x": OTHER[n]})["x"]]
    assert same == []


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Workdir:
    return run(tmp_path_factory.mktemp("sampled") / "run")


@pytest.mark.slow
def test_what_a_sampled_corpus_does_not_list_changes_nothing(sampled, tmp_path):
    names = unlisted(sampled.config, FIRST_STAGES)
    other = run(tmp_path / "other", **{n: v for n, v in OTHER.items() if n in names})
    assert product(other) == product(sampled)
    assert len(product(sampled)["traces"]) > 2


@pytest.mark.slow
def test_another_prefix_band_shares_the_sampled_corpus(sampled):
    fields = fields_of(sampled.config, "corpus")
    assert not set(READS_OF_IMPORT) & fields.keys()


@pytest.mark.slow
def test_what_an_imported_corpus_does_not_list_changes_nothing_and_what_it_lists_may(
    sampled, tmp_path
):
    brought = {"collect.traces_path": str(sampled.corpus_path / "dataset")}
    first = run(tmp_path / "first", **brought)
    names = unlisted(first.config, FIRST_STAGES)
    assert not set(READS_OF_IMPORT) & names
    other = run(tmp_path / "other", **brought, **{n: v for n, v in OTHER.items() if n in names})
    assert product(other) == product(first)
    # Longer prefixes leave less room for a trace, so that some lines are not used.
    longest = max(len(tokens) for *_, tokens in product(first)["traces"])
    narrow = run(tmp_path / "narrow", **brought, **{"sampling.context_buckets": (8, longest)})
    assert product(narrow)["rejected"] != product(first)["rejected"]
