"""metrics.jsonl survives a kill and a resume."""

import io
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from prefixrl_jax.runtime.metrics import Metrics, host_metrics


def write(path, steps, resumed_at=0):
    metrics = Metrics(path, None, resumed_at)
    for step in steps:
        metrics.write(step, {"loss": step / 4})
    metrics.close()


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_cut_on_resume(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    write(path, range(1, 6))
    write(path, [4, 5, 6], resumed_at=3)
    assert steps_in(path) == [1, 2, 3, 4, 5, 6]
    write(path, [1], resumed_at=0)
    assert steps_in(path) == [1]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', "\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    path.write_text(path.read_text() + torn)
    write(path, [3], resumed_at=2)
    assert steps_in(path) == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 0.75


def test_what_is_not_finite_becomes_null(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", None, 0)
    metrics.write(1, {"a": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": 3})
    text = (tmp_path / "metrics.jsonl").read_text()  # on disk before the file is closed
    metrics.close()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "a": None,
        "b": None,
        "c": 0.5,
        "d": 3.0,
    }


def test_events_are_written_beside_the_lines(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", tmp_path / "events", 0)
    metrics.write(1, {"reward/mean": 0.25, "reward/plain": math.nan})
    metrics.close()
    written = b"".join(p.read_bytes() for p in (tmp_path / "events").iterdir())
    assert b"reward/mean" in written and b"reward/plain" not in written


class Full(io.BytesIO):
    """Takes half of what it is given, as a file does when the disk becomes full."""

    def write(self, data):
        return super().write(data[: len(data) // 2])


@pytest.mark.parametrize("broken", ["line", "events"])
def test_a_full_disk_is_an_error_that_names_the_file_and_the_step(tmp_path, broken, monkeypatch):
    metrics = Metrics(tmp_path / "metrics.jsonl", tmp_path / "events", 0)
    metrics.write(1, {"loss": 0.5})
    if broken == "line":
        monkeypatch.setattr(metrics, "_file", Full())
    else:
        monkeypatch.setattr(
            metrics._writer, "flush", lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x")
        )
    with pytest.raises(
        OSError, match=r"No space left on device: step 2 was not written.* intact: .*metrics"
    ):
        metrics.write(2, {"loss": 0.25})
    metrics.close()
    assert steps_in(tmp_path / "metrics.jsonl")[0] == 1


def test_device_scalars_become_floats():
    assert host_metrics({"a": jnp.float32(0.5), "b": jnp.bool_(True)}) == {"a": 0.5, "b": 1.0}
