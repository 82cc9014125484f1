"""JSON files appear whole or not at all."""

import json

import pytest

from prefixrl_jax.runtime.files import write_json


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": "ü"})
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": "ü"}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
