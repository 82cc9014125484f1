"""A work directory is of one configuration; a stage's fingerprint lists all that it reads."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smoke_config import changed

from prefixrl_jax.config import flatten, get_config
from prefixrl_jax.configs import smoke
from prefixrl_jax.corpus.traces import read_dataset
from prefixrl_jax.experiment.run import Run
from prefixrl_jax.experiment.stages import (
    AFTER,
    NOT_COMPARED,
    READS_OF_IMPORT,
    STAGES,
    StageRecords,
    WorkdirMismatch,
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


def finish_stages(workdir, config, last="train"):
    """Record all stages up to `last` as complete."""
    stages = StageRecords(workdir, config)
    for name in STAGES[: STAGES.index(last) + 1]:
        assert stages.begin(name) is None
        stages.finish(name, {"line": name}, 2.0)


def test_a_complete_stage_is_reused(tmp_path):
    finish_stages(tmp_path, changed())
    stages = StageRecords(tmp_path, changed())
    stages.check()
    for name in ("base", "corpus", "train"):
        assert stages.begin(name) == {"line": name}
    assert stages.begin("evaluate") is None
    assert not stages.record("evaluate")["complete"]


@pytest.mark.parametrize(
    ("fields", "stage", "message"),
    [
        ({"base__steps": 7}, "base", r"base\.steps: 120 there, 7 now"),
        (
            {"select__band": (0.0, 0.5)},
            "corpus",
            r"select\.band: \[0\.0, 1\.0\] there, \[0\.0, 0\.5\] now",
        ),
        ({"prefix__cuts": 5}, "prefixes", r"prefix\.cuts: 3 there, 5 now"),
        ({"train__group": 8}, "train", r"train\.group: 4 there, 8 now"),
    ],
)
def test_a_directory_of_another_configuration_is_refused(tmp_path, fields, stage, message):
    finish_stages(tmp_path, changed(base__steps=120))
    other = changed(**{"base__steps": 120, **fields})
    refusal = rf"{tmp_path} is of another configuration:\n  {message} \(stage {stage}\)"
    with pytest.raises(WorkdirMismatch, match=refusal):
        StageRecords(tmp_path, other).check()


def named_fields(mismatch):
    """Return the fields that a refusal names: one a line, between its first and last line."""
    return [line.split(":")[0].strip() for line in str(mismatch).splitlines()[1:-1]]


def test_all_differing_fields_are_named(tmp_path):
    finish_stages(tmp_path, changed(train__clip_low=0.2))
    other = changed(train__group=8, train__clip_low=0.1, eval__samples=99)
    with pytest.raises(WorkdirMismatch) as mismatch:
        StageRecords(tmp_path, other).check()
    assert named_fields(mismatch.value) == ["train.clip_low", "train.group"]


def test_more_steps_or_another_way_of_computing_is_no_difference(tmp_path):
    finish_stages(tmp_path, changed(), last="evaluate")
    more = changed(
        train__steps=99,
        train__micro_batches=4,
        checkpoint__every=5,
        sampling__rows=16,
        eval__every=1,
    )
    stages = StageRecords(tmp_path, more)
    stages.check()
    assert stages.begin("corpus") == {"line": "corpus"}
    # eval.every concerns the evaluations during training, and the baseline is none of them.
    assert stages.begin("baseline") == {"line": "baseline"}
    # With more steps, training has to go on and its result to be evaluated again.
    assert stages.begin("train") is None
    assert stages.begin("evaluate") is None
    assert stages.seconds("train") == 2.0


def test_an_interrupted_stage_keeps_its_time(tmp_path):
    stages = StageRecords(tmp_path, changed())
    stages.begin("base")
    stages.add_seconds("base", 3.0)
    assert StageRecords(tmp_path, changed()).begin("base") is None
    stages.finish("base", {}, 2.0)
    assert stages.seconds("base") == 5.0
    assert stages.seconds("corpus") == 0.0
    other = changed()
    other.seed = 1
    with pytest.raises(WorkdirMismatch, match="seed: 0 there, 1 now"):
        StageRecords(tmp_path, other).check()


FIELDS = [name for name in flatten(get_config()) if name != "task.name"]


@settings(max_examples=50)
@given(st.sets(st.sampled_from(FIELDS), max_size=4))
def test_a_directory_is_refused_for_exactly_the_fields_that_its_stages_read(
    tmp_path_factory, names
):
    directory = tmp_path_factory.mktemp("run")
    finish_stages(directory, get_config())
    other = get_config()
    for name in names:
        *sections, field = name.split(".")
        parent = other
        for section in sections:
            parent = parent[section]
        with other.ignore_type():
            parent[field] = "another value"
    stages = StageRecords(directory, other)
    differing = {n for n in names if n in fields_of(other, "train") and n not in NOT_COMPARED}
    if not differing:
        stages.check()
    else:
        with pytest.raises(WorkdirMismatch) as mismatch:
            stages.check()
        assert set(named_fields(mismatch.value)) == differing


def test_a_change_of_machine_within_a_stage_is_reported(tmp_path):
    first = {"jax": "1.0", "mesh": "2x2x2"}
    second = {"jax": "1.0", "mesh": "1x1x1"}
    StageRecords(tmp_path, changed(), machine=first).begin("base")
    stages = StageRecords(tmp_path, changed(), machine=second)
    assert stages.moved("base") == "mesh 2x2x2 before, 1x1x1 now"
    assert stages.moved("corpus") == ""
    stages.begin("base")
    assert stages.moved("base") == ""
    stages.finish("base", {}, 1.0)
    # A complete stage is used on any machine.
    assert StageRecords(tmp_path, changed(), machine=first).moved("base") == ""


def test_a_file_that_has_changed_is_refused_from_the_first_stage_that_reads_it(tmp_path):
    finish_stages(tmp_path, changed(), last="base")
    StageRecords(tmp_path, changed(), {"corpus": "b"}).check()
    StageRecords(tmp_path, changed(), {"corpus": "a"}).begin("corpus")
    message = "data (content of the problems): 'a' there, 'b' now (stage corpus)"
    with pytest.raises(WorkdirMismatch, match=re.escape(message)):
        StageRecords(tmp_path, changed(), {"corpus": "b"}).check()


def test_another_precision_is_refused_by_name(tmp_path):
    finish_stages(tmp_path, changed())
    with pytest.raises(WorkdirMismatch, match=r"model\.dtype: 'float32' there, 'bfloat16' now"):
        StageRecords(tmp_path, changed(model__dtype="bfloat16")).check()


def test_a_field_that_is_new_in_this_version_had_its_default(tmp_path):
    finish_stages(tmp_path, changed(), last="base")
    path = tmp_path / "stages" / "base.json"
    record = json.loads(path.read_text())
    del record["fields"]["model.remat"]
    del record["fields"]["model.tie_embeddings"]
    path.write_text(json.dumps(record))
    StageRecords(tmp_path, changed()).check()
    assert StageRecords(tmp_path, changed()).begin("base") == {"line": "base"}
    with pytest.raises(WorkdirMismatch, match=r"model\.tie_embeddings: True there, False now"):
        StageRecords(tmp_path, changed(model__tie_embeddings=False)).check()


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
