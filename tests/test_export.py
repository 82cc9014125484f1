"""The command that exports a checkpoint of a run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runs import python
from safetensors.numpy import load_file

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]


def export(workdir: Path, out: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs the command that exports a checkpoint."""
    return python("-m", "prefixrl_jax.export", f"--workdir={workdir}", f"--out={out}", *flags)


def test_any_kept_checkpoint_is_exported_in_any_precision(smoke_run, tmp_path):
    done = export(smoke_run, tmp_path / "last")
    assert done.returncode == 0 and done.stdout.startswith("step 10 of "), done.stderr
    last = load_file(tmp_path / "last" / "model.safetensors")
    whole = load_file(smoke_run / "hf" / "model.safetensors")
    assert last.keys() == whole.keys()
    assert all(last[k].tobytes() == whole[k].tobytes() for k in whole)
    card = (tmp_path / "last" / "README.md").read_text()
    assert "plain pass@1 of the finished run, train hard set" in card
    done = export(smoke_run, tmp_path / "half", "--step=8", "--dtype=bfloat16")
    assert done.stdout.startswith("step 8 of "), done.stderr
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert {x.dtype.name for x in half.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    for name in whole:
        np.testing.assert_allclose(half[name].astype(np.float32), whole[name], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step=99"], r"error: --step=99: the checkpoints kept are those of steps .*8, 10"),
        (
            ["--workdir={tmp}"],
            r"error: .*config\.json: no such file; a work directory of a run is expected",
        ),
        (["--out={run}"], r"error: .*smoke: belongs to the run in .*; a folder outside of it"),
        (["--out={run}/hf"], r"error: .*hf: belongs to the run in"),
        (["--out={run}/base"], r"error: .*base: belongs to the run in"),
        (["--out={run}/report.html"], r"error: .*report\.html: a file; a folder"),
        (["--out={run}/.."], r"error: .* holds the run smoke; a folder without runs"),
    ],
)
def test_what_cannot_be_exported_is_named(smoke_run, tmp_path, flags, message):
    done = export(
        smoke_run, tmp_path / "out", *(flag.format(tmp=tmp_path, run=smoke_run) for flag in flags)
    )
    assert done.returncode == 2 and re.match(message, done.stderr.splitlines()[-1]), done.stderr
