"""The configuration that a run has saved, also by an earlier version."""

import json

import pytest

from prefixrl_jax.config import get_config, saved_config
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.runtime.files import write_json

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
