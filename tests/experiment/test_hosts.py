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
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import PYTHON, begun
from safetensors import safe_open

from benchmarks.kills import ROOT, Command, completed, samples, wait_for

FLAGS = (
    "--config.base.steps=240",
    "--config.data.train_candidates=32",
    "--config.select.train_problems=12",
    "--config.select.samples=4",
    "--config.select.band=(0.1, 0.9)",
    "--config.train.steps=2",
    "--config.train.micro_batches=1",
    "--config.eval.every=0",
)
CUBE = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")


def start(
    command: Command, workdir: Path, devices: int, *flags: str, **environment: str
) -> subprocess.Popen:
    """One process with so many virtual devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return command.start(
        workdir,
        *flags,
        XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {flag}",
        JAX_PLATFORMS="cpu",
        **environment,
    )


def pair(command: Command, workdir: Path, *flags: str) -> list[subprocess.Popen]:
    """Two processes of one run, with four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        start(command, workdir, 4, "--multihost", *CUBE, *flags, JAX_PROCESS_ID=str(i), **common)
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def command() -> Command:
    return Command("configs/smoke.py", FLAGS, Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))


@pytest.fixture(scope="module")
def runs(command, tmp_path_factory) -> dict[str, Path]:
    """Work directories of finished runs, by name; that of two processes was stopped by SIGTERM to
    the second, and went on.
    """
    root = tmp_path_factory.mktemp("runs")
    completed(start(command, root / "one", 1))
    completed(start(command, begun(root / "one", root / "eight", 1), 8, *CUBE))
    children = pair(command, begun(root / "one", root / "two", 1))
    wait_for(children[0], "train 1/2")
    children[1].send_signal(signal.SIGTERM)
    stopped = [completed(child) for child in children]
    assert "stopped as asked" in stopped[0] and "stopped" not in stopped[1]  # one of them speaks
    steps = [row["step"] for row in rows(root / "two" / "metrics.jsonl")]
    for child in pair(command, root / "two"):
        completed(child)
    assert steps == [1] and [row["step"] for row in rows(root / "two" / "metrics.jsonl")] == [1, 2]
    return {name: root / name for name in ("one", "eight", "two")}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stage(workdir: Path, name: str) -> dict:
    return json.loads((workdir / "stages" / f"{name}.json").read_text())["result"]


def drawn(workdir: Path) -> dict[tuple, tuple]:
    """Every sample of the corpus log: its verdict, its length and, of a correct one in collect, its
    tokens.
    """
    records = {key: json.loads(record) for key, record in samples(workdir).items()}
    return {
        key: (r["verdict"], r["tokens"], r.get("trace", {}).get("token_ids"))
        for key, r in records.items()
    }


@pytest.mark.parametrize("other", ["eight", "two"])
def test_the_same_problems_are_hard_and_the_same_samples_are_drawn(runs, other):
    assert stage(runs[other], "corpus")["hard"] == stage(runs["one"], "corpus")["hard"]
    one, here = drawn(runs["one"]), drawn(runs[other])
    select = [key for key in one if key[0] == "select"]
    assert set(select) == {key for key in here if key[0] == "select"} and len(select) == 4 * (
        32 + 8
    )
    both = one.keys() & here.keys()
    assert len(both) > len(select)
    # A token may differ where two scores are equal to rounding.
    assert np.mean([one[key] == here[key] for key in both]) > 0.99
    assert (runs[other] / "prefixes/prefixes.jsonl").read_text() == (
        runs["one"] / "prefixes/prefixes.jsonl"
    ).read_text()


@pytest.mark.parametrize("other", ["eight", "two"])
def test_flops_are_those_of_all_processes(runs, other):
    """select draws the same samples everywhere; what a phase is charged beyond that depends on how
    many run side by side.
    """
    one, here = (stage(runs[name], "corpus")["ledger"] for name in ("one", other))
    for accounting in ("paper", "actual", "attention"):
        assert here[accounting]["select"] == pytest.approx(one[accounting]["select"], rel=1e-3)
        assert 0.5 < here[accounting]["collect"] / one[accounting]["collect"] < 2


@pytest.mark.parametrize("other", ["eight", "two"])
def test_the_first_step_is_the_same(runs, other):
    one, here = (rows(runs[name] / "metrics.jsonl")[0] for name in ("one", other))
    assert one.keys() == here.keys() and one["groups/mixed"] > 0 and one["grad_norm"] > 0
    for name in one:
        if not name.startswith(("time/", "perf/", "flops/", "sampler_trainer/")):
            assert here[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("other", ["eight", "two"])
def test_every_stage_is_there_and_the_export_is_whole(runs, other):
    for name in ("summary.json", "report.html", "hf/config.json"):
        assert (runs[other] / name).is_file()
    with (
        safe_open(runs[other] / "hf/model.safetensors", "numpy") as here,
        safe_open(runs["one"] / "hf/model.safetensors", "numpy") as one,
    ):
        for name in one.keys():  # noqa: SIM118
            # two steps of 1e-3
            np.testing.assert_allclose(
                here.get_tensor(name), one.get_tensor(name), atol=5e-3, err_msg=name
            )
    after = [stage(runs[name], "evaluate")["plain"]["train"]["before"] for name in ("one", other)]
    assert after[0] == after[1]


def test_a_checkpoint_goes_on_on_another_mesh_and_the_change_is_told(command, runs, tmp_path):
    """Trained by two processes, continued by one device: more steps of a finished stage, then a
    stage that was interrupted.
    """
    shutil.copytree(runs["two"], tmp_path / "run")
    output = completed(start(command, tmp_path / "run", 1, "--config.train.steps=3"))
    assert "train 3/3" in output and "train 2/3" not in output
    path = tmp_path / "run" / "stages" / "evaluate.json"
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            record
            | {
                "complete": False,
                "machine": {**record["machine"], "jax": "0.1", "mesh": "2x2x2"},
            }
        )
    )
    output = completed(start(command, tmp_path / "run", 1, "--config.train.steps=3"))
    assert (
        "evaluate was begun elsewhere (jax 0.1 before, " in output
        and "mesh 2x2x2 before, 1x1x1 now" in output
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_stops_the_other_with_a_message(command, runs, tmp_path, victim):
    shutil.copytree(runs["two"], tmp_path / "run")
    children = pair(command, tmp_path / "run", "--config.train.steps=500")
    wait_for(children[0], "train 4/500")
    children[victim].send_signal(signal.SIGKILL)
    started = time.monotonic()
    output = children[1 - victim].communicate(timeout=90)[0]
    children[victim].communicate()
    assert children[1 - victim].returncode not in (0, None)
    assert re.search("another task died|has lost another one", output), output[-3000:]
    assert time.monotonic() - started < 90


def test_without_anything_to_join_the_variables_are_named(tmp_path):
    child = subprocess.run(
        [
            *PYTHON,
            "-m",
            "prefixrl_jax.main",
            "--config=configs/smoke.py",
            f"--workdir={tmp_path}",
            "--multihost",
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 2 and "JAX_COORDINATOR_ADDRESS=(not set)" in child.stderr, (
        child.stderr
    )
