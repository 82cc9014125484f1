"""One run on one device, on eight, and on two processes of four devices each: the same problems, tokens and first step.

All continue one base model, in real processes that talk over gloo, as hosts of a pod talk over their network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
FLAGS = ("--config.train.steps=2", "--config.eval.every=0", "--config.data.train_candidates=32", "--config.select.band=(0.1, 0.9)",
         "--config.select.train_problems=12", "--config.train.micro_batches=1", "--config.base.steps=400")  # fmt: skip
CUBE = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")


def start(workdir: Path, cache: Path, devices: int, *flags: str, index: int = 0, processes: int = 1, port: int = 0):
    """One process of a run; `index` of `processes` when there are several."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
                                "JAX_COMPILATION_CACHE_DIR": str(cache)}  # fmt: skip
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes),
                        "JAX_PROCESS_ID": str(index)}  # fmt: skip
        flags = ("--multihost", *flags)
    command = [sys.executable, "-m", "prefixrl_jax.main", "--config=configs/smoke.py", f"--workdir={workdir}", *FLAGS, *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pair(workdir: Path, cache: Path, *flags: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(workdir, cache, 4, *CUBE, *flags, index=i, processes=2, port=port) for i in range(2)]


def finish(*children: subprocess.Popen, status: int = 0) -> list[str]:
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [status] * len(children), "\n".join(out[-3000:] for out in outputs)
    return outputs


def wait_for(child: subprocess.Popen, beginning: str) -> None:
    for line in child.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"ended without a line {beginning!r}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Work directories of finished runs, by name; that of two processes was stopped by SIGTERM to the second, and went on."""
    root = tmp_path_factory.mktemp("runs")
    finish(start(root / "base", root / "cache", 1, "--stage=base"))
    for name in ("one", "eight", "two"):
        shutil.copytree(root / "base", root / name)
    single = [start(root / "one", root / "cache", 1), start(root / "eight", root / "cache", 8, *CUBE)]
    finish(*single)
    children = pair(root / "two", root / "cache")
    wait_for(children[0], "train 1/2")
    children[1].send_signal(signal.SIGTERM)
    stopped = finish(*children)
    assert "stopped as asked" in stopped[0] and "stopped" not in stopped[1]  # one of them speaks
    steps = [row["step"] for row in rows(root / "two" / "metrics.jsonl")]
    finish(*pair(root / "two", root / "cache"))
    assert steps == [1] and [row["step"] for row in rows(root / "two" / "metrics.jsonl")] == [1, 2]
    return {name: root / name for name in ("one", "eight", "two")}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stage(workdir: Path, name: str) -> dict:
    return json.loads((workdir / "stages" / f"{name}.json").read_text())["result"]


def drawn(workdir: Path) -> dict[tuple, tuple]:
    """Every sample of the corpus log: its verdict, its length and, of a correct one in collect, its tokens."""
    records = [json.loads(line[9:]) for line in (workdir / "corpus" / "log.jsonl").read_text().splitlines()[1:]]
    keyed = {(r["stage"], r["problem"], r["sample"]): (r["verdict"], r["tokens"], r.get("trace", {}).get("token_ids")) for r in records}
    assert len(keyed) == len(records)  # nothing is drawn or written twice
    return keyed


@pytest.mark.parametrize("other", ["eight", "two"])
def test_the_same_problems_are_hard_and_the_same_samples_are_drawn(runs, other):
    assert stage(runs[other], "corpus")["hard"] == stage(runs["one"], "corpus")["hard"]
    one, here = drawn(runs["one"]), drawn(runs[other])
    select = [key for key in one if key[0] == "select"]
    assert set(select) == {key for key in here if key[0] == "select"} and len(select) == 8 * (32 + 8)
    both = one.keys() & here.keys()
    assert len(both) > len(select)
    # A token may differ where two scores are equal to rounding.
    assert np.mean([one[key] == here[key] for key in both]) > 0.99
    assert (runs[other] / "prefixes/prefixes.jsonl").read_text() == (runs["one"] / "prefixes/prefixes.jsonl").read_text()


@pytest.mark.parametrize("other", ["eight", "two"])
def test_flops_are_those_of_all_processes(runs, other):
    """select draws the same samples everywhere; what a phase is charged beyond that depends on how many run side by side."""
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
    with (safe_open(runs[other] / "hf/model.safetensors", "numpy") as here,
          safe_open(runs["one"] / "hf/model.safetensors", "numpy") as one):  # fmt: skip
        for name in one.keys():  # noqa: SIM118
            np.testing.assert_allclose(here.get_tensor(name), one.get_tensor(name), atol=5e-3, err_msg=name)  # two steps of 1e-3
    after = [stage(runs[name], "evaluate")["plain"]["train"]["before"] for name in ("one", other)]
    assert after[0] == after[1]


def test_a_checkpoint_goes_on_on_another_mesh(runs, tmp_path):
    """Trained by two processes, continued by one device."""
    shutil.copytree(runs["two"], tmp_path / "run")
    output = finish(start(tmp_path / "run", tmp_path / "cache", 1, "--config.train.steps=3"))[0]
    assert "train 3/3" in output and "train 2/3" not in output


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_stops_the_other_with_a_message(runs, tmp_path, victim):
    shutil.copytree(runs["two"], tmp_path / "run")
    children = pair(tmp_path / "run", runs["two"].parent / "cache", "--config.train.steps=500")
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
        [sys.executable, "-m", "prefixrl_jax.main", "--config=configs/smoke.py", f"--workdir={tmp_path}", "--multihost"],
        cwd=ROOT, env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert child.returncode == 2 and "JAX_COORDINATOR_ADDRESS=(not set)" in child.stderr, child.stderr
