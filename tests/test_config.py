"""A configuration as JSON and as flags, and what a run has saved, also by an earlier version."""

import json
import sys
from unittest import mock

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags
from runs import ROOT

from prefixrl_jax.config import flatten, get_config, saved_config
from prefixrl_jax.configs import demo, smoke
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.runtime.files import write_json


def test_flatten_gives_what_json_gives_back():
    flat = flatten(get_config())
    assert flat["train.steps"] == 400
    assert flat["prefix.band"] == [0.4, 0.8]
    assert flat["task.water_jugs.jugs"] == 2
    assert flat == json.loads(json.dumps(flat))
    assert not any(isinstance(v, dict) for v in flat.values())


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
    assert from_file.keys() == flatten(get_config()).keys()
    assert merged.keys() == from_file.keys()
    for field, value in merged.items():
        expected = overrides.get(field, from_file[field])
        if isinstance(expected, tuple):
            expected = list(expected)
        assert value == expected, field


# The sections of tasks that were removed, as their version saved them.
OLD_SECTIONS = {
    "errand": {"size": 4, "calls": 4, "walls": 3, "max_moves": 20, "band": [1e-3, 1e-2]},
    "gsm8k": {"base_path": ""},
}


def save(path, task_name="water_jugs", **sections):
    fields = get_config().to_dict()
    fields["task"] |= {"name": task_name, **sections}
    write_json(path, fields)
    return path


def test_what_is_saved_is_read_again(tmp_path):
    config = get_config()
    config.prefix.band = (0.1, 0.2)
    write_json(tmp_path / "config.json", config.to_dict())
    assert saved_config(tmp_path / "config.json").to_dict() == config.to_dict()


def test_sections_of_removed_tasks_are_ignored(tmp_path):
    config = saved_config(save(tmp_path / "config.json", **OLD_SECTIONS))
    assert config.to_dict() == get_config().to_dict()
    assert resolve(config).task.name == "water_jugs"


@pytest.mark.parametrize("name", OLD_SECTIONS)
def test_a_run_of_a_removed_task_is_refused_as_such(tmp_path, name):
    config = saved_config(save(tmp_path / "config.json", task_name=name, **OLD_SECTIONS))
    with pytest.raises(ValueError, match=rf"task\.name='{name}': removed after version 0\.1\.0"):
        resolve(config)


def test_another_file_is_refused_by_name(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        saved_config(path)
    save(path, chess={"size": 8})
    with pytest.raises(ValueError, match=r"config\.json: not a configuration of this version"):
        saved_config(path)
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"config\.json: not a configuration of this version"):
        saved_config(path)
