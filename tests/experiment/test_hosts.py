"""One run on one device, on eight, and on two processes of four devices each: the same problems,
tokens and first step.

All continue one base model, in real processes that talk over gloo, as hosts of a pod talk over
their network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runs import (
    HANGS,
    PYTHON,
    ROOT,
    Command,
    Growth,
    begun,
    completed,
    read_lines,
    samples,
    stage_result,
)
from safetensors import safe_open

from prefixrl_jax.experiment.record_file import read_record, write_record

pytestmark = pytest.mark.slow

RUN = Command(
    flags=(
        "--config.base.steps=240",
        "--config.data.train_candidates=32",
        "--config.select.train_problems=12",
        "--config.select.samples=4",
        "--config.select.band=(0.1, 0.9)",
        "--config.train.steps=2",
        "--config.train.micro_batches=1",
        "--config.eval.every=0",
    )
)
CUBE = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")


def start(workdir: Path, devices: int, *flags: str, **environment: str) -> subprocess.Popen:
    """Starts one process with so many virtual devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    xla_flags = f"{os.environ['XLA_FLAGS']} {flag}"
    return RUN.start(workdir, *flags, XLA_FLAGS=xla_flags, **environment)


def start_pair(workdir: Path, *flags: str) -> list[subprocess.Popen]:
    """Starts two processes of one run, with four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        start(workdir, 4, "--multihost", *CUBE, *flags, JAX_PROCESS_ID=str(i), **common)
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The work directory of a run on one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    completed(start(workdir, 1))
    return workdir


@pytest.fixture(scope="module")
def eight(one, tmp_path_factory) -> Path:
    """That of a run on eight devices of one process."""
    workdir = begun(one, tmp_path_factory.mktemp("eight") / "run")
    completed(start(workdir, 8, *CUBE))
    return workdir


@pytest.fixture(scope="module")
def two(one, tmp_path_factory) -> Path:
    """That of a run of two processes, stopped by SIGTERM to the second and then continued."""
    workdir = begun(one, tmp_path_factory.mktemp("two") / "run")
    metrics = Growth(workdir / "metrics.jsonl")
    children = start_pair(workdir)
    metrics.wait(children[0], 1)
    children[1].send_signal(signal.SIGTERM)
    stopped = [completed(child) for child in children]
    # One of them speaks.
    assert "stopped as asked" in stopped[0] and "stopped" not in stopped[1]
    assert [row["step"] for row in read_lines(workdir / "metrics.jsonl")] == [1]
    for child in start_pair(workdir):
        completed(child)
    assert [row["step"] for row in read_lines(workdir / "metrics.jsonl")] == [1, 2]
    return workdir


@pytest.fixture(params=["two", pytest.param("eight", marks=pytest.mark.thorough)])
def other(request) -> Path:
    """A run to compare with that on one device."""
    return request.getfixturevalue(request.param)


def read_samples(workdir: Path) -> dict[tuple, tuple]:
    """Reads every sample of the corpus log.

    Returns its verdict, its length and, of a correct one in collect, its tokens.
    """
    records = {key: json.loads(record) for key, record in samples(workdir).items()}
    return {
        key: (r["verdict"], r["tokens"], r.get("trace", {}).get("token_ids"))
        for key, r in records.items()
    }


def test_the_same_problems_are_hard_and_the_same_samples_are_drawn(one, other):
    assert stage_result(other, "corpus")["hard"] == stage_result(one, "corpus")["hard"]
    expected, drawn = read_samples(one), read_samples(other)
    select = [key for key in expected if key[0] == "select"]
    assert set(select) == {key for key in drawn if key[0] == "select"}
    assert len(select) == 4 * (32 + 8)
    both = expected.keys() & drawn.keys()
    assert len(both) > len(select)
    # A token may differ where two scores are equal to rounding.
    assert np.mean([expected[key] == drawn[key] for key in both]) > 0.99
    cuts = [(run / "prefixes" / "prefixes.jsonl").read_text() for run in (one, other)]
    assert cuts[0] == cuts[1]


def test_flops_are_those_of_all_processes(one, other):
    """select draws the same samples everywhere; what a phase is charged beyond that depends on how
    many run side by side.
    """
    expected, ledger = (stage_result(run, "corpus")["ledger"] for run in (one, other))
    for accounting in ("paper", "actual", "attention"):
        assert ledger[accounting]["select"] == pytest.approx(
            expected[accounting]["select"], rel=1e-3
        )
        assert 0.5 < ledger[accounting]["collect"] / expected[accounting]["collect"] < 2


def test_the_first_step_is_the_same(one, other):
    expected, row = (read_lines(run / "metrics.jsonl")[0] for run in (one, other))
    assert expected.keys() == row.keys()
    assert expected["groups/mixed"] > 0 and expected["grad_norm"] > 0
    for name in expected:
        if not name.startswith(("time/", "perf/", "flops/", "sampler_trainer/")):
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name


def test_every_stage_is_there_and_the_export_is_whole(one, other):
    for name in ("summary.json", "report.html", "hf/config.json"):
        assert (other / name).is_file()
    with (
        safe_open(one / "hf/model.safetensors", "numpy") as expected,
        safe_open(other / "hf/model.safetensors", "numpy") as exported,
    ):
        for name in expected.keys():  # noqa: SIM118
            # two steps of 1e-3
            np.testing.assert_allclose(
                exported.get_tensor(name), expected.get_tensor(name), atol=5e-3, err_msg=name
            )
    before = [stage_result(run, "evaluate")["plain"]["train"]["before"] for run in (one, other)]
    assert before[0] == before[1]


def test_a_checkpoint_goes_on_on_another_mesh_and_the_change_is_told(two, tmp_path):
    """Trained by two processes, continued by one device: more steps of a finished stage, then a
    stage that was interrupted.
    """
    shutil.copytree(two, tmp_path / "run")
    path = tmp_path / "run" / "stages" / "evaluate.json"
    record = read_record(path, "evaluate")
    machine = record["machine"] | {"jax": "0.1", "mesh": "2x2x2"}
    write_record(path, record | {"complete": False, "machine": machine})
    output = completed(start(tmp_path / "run", 1, "--config.train.steps=3"))
    assert "train 3/3" in output and "train 2/3" not in output
    assert "evaluate was begun elsewhere (jax 0.1 before, " in output
    assert "mesh 2x2x2 before, 1x1x1 now" in output


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_process_that_dies_stops_the_other_with_a_message(one, tmp_path, victim):
    """Two processes continue what one device has trained, and one of them is killed."""
    shutil.copytree(one, tmp_path / "run")
    metrics = Growth(tmp_path / "run" / "metrics.jsonl")
    children = start_pair(tmp_path / "run", "--config.train.steps=500")
    metrics.wait(children[0], 4)
    children[victim].kill()
    output = children[1 - victim].communicate(timeout=HANGS)[0]
    children[victim].communicate()
    assert children[1 - victim].returncode not in (0, None)
    assert re.search("another task died|has lost another one", output), output[-3000:]
    # It stopped because the other was gone, not because it had finished.
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) < 500


def test_without_anything_to_join_the_variables_are_named(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    flags = ("--config=configs/smoke.py", f"--workdir={tmp_path}", "--multihost")
    done = subprocess.run(
        [*PYTHON, "-m", "prefixrl_jax.main", *flags],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 2, done.stderr
    assert "JAX_COORDINATOR_ADDRESS=(not set)" in done.stderr, done.stderr
