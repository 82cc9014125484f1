"""Bad configurations are refused before any compute; a work directory belongs to one of them."""

import importlib
import json
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from families import words
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags
from tiny_models import TINY, random_params

from prefixrl_jax import config as base
from prefixrl_jax.configs import countdown, demo, smoke
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.experiment.stages import (
    AFTER,
    NOT_COMPARED,
    STAGES,
    StageRecords,
    WorkdirMismatch,
    fields_of,
    flatten,
)
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.runtime.files import write_json
from prefixrl_jax.tasks.registry import PRETRAINED

ROOT = Path(__file__).parents[2]


def changed(**fields):
    """Return the smoke configuration with some fields set, each as section__name=value."""
    config = smoke.get_config()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        with config.ignore_type():
            config[section][field] = value
    return config


@pytest.mark.parametrize("module", [base, demo, smoke, countdown])
def test_the_configurations_that_come_along_resolve(module):
    config = module.get_config()
    resolved = resolve(config)
    assert resolved.engine.rows == config.sampling.rows
    assert resolved.engine.slots == config.sampling.slots
    assert resolved.engine.buckets == tuple(config.sampling.context_buckets)
    assert resolved.model.vocab_size == len(resolved.task.tokenizer)
    assert resolved.sampling.max_new_tokens == config.sampling.max_new_tokens
    assert resolved.loss.constant_length == config.sampling.max_new_tokens
    assert resolved.eval_sampling.temperature == config.eval.temperature
    for section in ("base", "sft", "train"):
        optimizer = resolved.optimizer(section, 7)
        assert optimizer.learning_rate == config[section].learning_rate
        assert optimizer.total_steps == 7


ALL_TASKS = "arithmetic, countdown, math, sorting, water_jugs"
NO_CORPUS = (
    r"collect\.cap=0 and no collect\.traces_path: there is no corpus, which prefix\.share=0\.75"
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task__name": "chess"}, rf"task\.name='chess': .* {ALL_TASKS}"),
        ({"train__loss": "dpo"}, r"train\.loss='dpo': one of reinforce, ppo_clip"),
        (
            {"train__advantage": "gae"},
            r"train\.advantage='gae': one of group_mean, leave_one_out, std_normalised",
        ),
        (
            {"prefix__schedule": "linear"},
            r"prefix\.schedule='linear': one of band, reverse, cosine, adaptive, shortest_solvable",
        ),
        ({"prefix__content": "none"}, r"prefix\.content='none': one of own, unrelated, wrong"),
        ({"prefix__place": "system"}, r"prefix\.place='system': one of assistant, user"),
        ({"train__filter": "all"}, r"train\.filter='all': one of none, drop, refill"),
        ({"train__behaviour": "known"}, r"train\.behaviour='known': one of sampled, acceptance"),
        (
            {"train__at_plain": True},
            r"train\.at_plain needs prefix\.place='user' \(here 'assistant'\)",
        ),
        (
            {"train__prefix_coef": 0.1, "prefix__place": "user"},
            r"train\.prefix_coef=0\.1 with prefix\.place='user'",
        ),
        ({"collect__cap": 0}, NO_CORPUS),
        ({"sft__epochs": 0}, r"sft\.epochs=0: must be at least 1"),
        ({"sft__schedule": "step"}, r"sft\.schedule='step': one of"),
        (
            {"train__aggregation": "sum"},
            r"train\.aggregation='sum': one of token_mean, sequence_mean, constant",
        ),
        ({"train__schedule": "step"}, r"train\.schedule='step': one of constant, linear, cosine"),
        ({"base__schedule": "step"}, r"base\.schedule='step': one of constant, linear, cosine"),
        ({"mesh__data": 3}, r"mesh.*=\(3, 1, 1\) does not fill \d+ device"),
        ({"mesh__data": -1, "mesh__fsdp": -1}, r"mesh.*at most one may be -1"),
        ({"train__batch": 0}, r"train\.batch=0"),
        ({"base__batch": 0}, r"base\.batch=0"),
        ({"sampling__rows": -8}, r"sampling\.rows=-8"),
        ({"train__micro_batches": 3}, r"train\.micro_batches=3: train\.batch=8 must be a multiple"),
        ({"train__micro_batches": 0}, r"train\.micro_batches=0"),
        ({"train__group": 1}, r"train\.group=1: a group of one has no baseline; at least 2"),
        ({"train__updates_per_batch": 2}, r"train\.updates_per_batch=2 .*use ppo_clip"),
        ({"train__learning_rate": 0.0}, r"train\.learning_rate=0\.0"),
        ({"train__learning_rate": float("nan")}, r"train\.learning_rate=nan"),
        ({"train__clip_low": 1.5}, r"train\.clip_low=1\.5"),
        ({"train__steps": -1}, r"train\.steps=-1"),
        ({"train__max_logp_diff": -1.0}, r"train\.max_logp_diff=-1\.0"),
        ({"train__min_entropy": -0.1}, r"train\.min_entropy=-0\.1"),
        ({"sampling__top_p": 0.9}, r"sampling\.top_p=0\.9.*top_p=1"),
        ({"sampling__top_k": 5}, r"sampling\.top_k=5"),
        ({"sampling__temperature": 0.0}, r"sampling\.temperature=0\.0"),
        ({"sampling__max_new_tokens": 0}, r"max_new_tokens=0"),
        ({"sampling__slots": 0}, r"sampling\.slots=0"),
        ({"sampling__chunk": 0}, r"sampling\.chunk=0"),
        ({"prefix__band": (0.0, 0.5)}, r"prefix\.band=\(0\.0, 0\.5\)"),
        ({"prefix__band": (0.5, 1.0)}, r"prefix\.band=\(0\.5, 1\.0\)"),
        ({"prefix__band": (0.8, 0.4)}, r"prefix\.band=\(0\.8, 0\.4\).*0 < low <= high < 1"),
        ({"prefix__share": 1.5}, r"prefix\.share=1\.5"),
        ({"prefix__cuts": 0}, r"prefix\.cuts=0"),
        ({"prefix__band": (0.3,)}, r"prefix\.band=\(0\.3,\): two numbers are expected"),
        ({"select__band": (0.1, 0.2, 0.3)}, r"select\.band=.*two numbers are expected"),
        ({"sampling__context_buckets": ()}, r"sampling\.context_buckets=\(\): whole numbers"),
        ({"eval__k": (0, -1)}, r"eval\.k=\(0, -1\): whole numbers from 1 on"),
        ({"eval__k": ("a",)}, r"eval\.k=\('a',\): whole numbers from 1 on"),
        ({"checkpoint__keep": 0}, r"checkpoint\.keep=0: must be at least 1"),
        ({"eval__every_samples": 0}, r"eval\.every_samples=0"),
        ({"base__learning_rate": -1.0}, r"base\.learning_rate=-1\.0: must be positive"),
        ({"select__band": (0.5, 0.2)}, r"select\.band=\(0\.5, 0\.2\)"),
        ({"select__samples": -1}, r"select\.samples=-1"),
        ({"collect__cap": -1}, r"collect\.cap=-1"),
        ({"eval__fractions": (0.5, 1.0)}, r"eval\.fractions=\(0\.5, 1\.0\)"),
        ({"eval__temperature": -0.5}, r"temperature=-0\.5"),
        ({"model__num_kv_heads": 3}, r"model\.num_heads=2.*num_kv_heads=3"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_accepted(fields, message):
    with pytest.raises(ValueError, match=message):
        resolve(changed(**fields))


def test_a_group_of_one_is_enough_without_a_baseline():
    assert resolve(changed(train__group=1, train__advantage="none")).config.train.group == 1


def test_flatten_gives_what_json_gives_back():
    flat = flatten(base.get_config())
    assert flat["train.steps"] == 400
    assert flat["prefix.band"] == [0.4, 0.8]
    assert flat["task.water_jugs.jugs"] == 2
    assert flat == json.loads(json.dumps(flat))
    assert not any(isinstance(v, dict) for v in flat.values())


def test_a_stage_depends_on_its_fields_and_those_of_the_stages_before():
    config = base.get_config()
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


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": "ü"})
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": "ü"}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


FIELDS = [name for name in flatten(base.get_config()) if name != "task.name"]


@settings(max_examples=50)
@given(st.sets(st.sampled_from(FIELDS), max_size=4))
def test_a_directory_is_refused_for_exactly_the_fields_that_its_stages_read(
    tmp_path_factory, names
):
    directory = tmp_path_factory.mktemp("run")
    finish_stages(directory, base.get_config())
    other = base.get_config()
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


OVERRIDES = {
    "seed": st.integers(0, 9),
    "train.steps": st.integers(1, 9),
    "collect.cap": st.integers(1, 9),
    "model.remat": st.booleans(),
    "train.learning_rate": st.floats(1e-6, 1e-1),
    "train.loss": st.sampled_from(["reinforce", "ppo_clip"]),
    "prefix.band": st.tuples(st.floats(0.1, 0.4), st.floats(0.5, 0.9)),
    "data.path": st.sampled_from(["", "a b.jsonl"]),
}


@settings(max_examples=40)
@given(st.sampled_from(["demo", "smoke"]), st.fixed_dictionaries({}, optional=OVERRIDES))
def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(name, overrides):
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flag_values)
    argv = ["prog", f"--config={ROOT / 'configs' / name}.py"]
    argv += [f"--config.{field}={value}" for field, value in overrides.items()]
    with mock.patch.object(sys, "argv", argv):  # config_flags reads sys.argv by itself
        flag_values(argv)
    merged = flatten(flag_values.config)
    from_file = flatten({"demo": demo, "smoke": smoke}[name].get_config())
    assert from_file.keys() == flatten(base.get_config()).keys()
    assert merged.keys() == from_file.keys()
    for field, value in merged.items():
        expected = overrides.get(field, from_file[field])
        if isinstance(expected, tuple):
            expected = list(expected)
        assert value == expected, field


def test_every_configuration_has_the_known_fields_and_resolves(tmp_path):
    """A tiny model stands in for the pretrained ones."""
    tokenizer = word_tokenizer(words(33))
    tokenizer.chat_template = "{{ messages[0].content }}"
    export_hf(random_params(TINY), TINY, tokenizer, tmp_path)
    files = sorted(set((ROOT / "configs").glob("*.py")) - {ROOT / "configs" / "__init__.py"})
    assert len(files) == 12
    for file in files:
        config = importlib.import_module(f"prefixrl_jax.configs.{file.stem}").get_config()
        assert flatten(config).keys() == flatten(base.get_config()).keys()
        pretrained = config.task.name in PRETRAINED
        config.model.path = str(tmp_path) if pretrained else ""
        hidden_size = TINY.hidden_size if pretrained else config.model.hidden_size
        assert resolve(config).model.hidden_size == hidden_size
        # The longest prefix must leave room for a prompt.
        buckets = config.sampling.context_buckets
        longest_prefix = config.prefix.band[1] * config.sampling.max_new_tokens
        room = max(buckets) - longest_prefix
        assert not config.collect.cap or room >= min(buckets) * 0.9, file


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
