"""A run killed again and again ends as one that was not: weights, metrics, ledger and samples, to the bit.

What is compared is the smoke configuration from base training to export, through the command line, in real processes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
KILLS = 10
FLAGS = ("--config.train.steps=12", "--config.base.steps=160", "--config.checkpoint.every=2")


def start(workdir: Path, cache: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "prefixrl_jax.main", "--config=configs/smoke.py", f"--workdir={workdir}", *FLAGS, *flags]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(workdir: Path, cache: Path) -> str:
    child = start(workdir, cache)
    output = child.communicate(timeout=600)[0]
    assert child.returncode == 0, output[-3000:]
    return output


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(workdir: Path) -> dict[str, bytes]:
    with safe_open(workdir / "hf" / "model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def samples(workdir: Path) -> list[tuple]:
    """Every record of the corpus log, whole, without its checksum and in a fixed order."""
    records = [json.loads(line[9:]) for line in (workdir / "corpus" / "log.jsonl").read_text().splitlines()[1:]]
    assert len({(r["stage"], r["problem"], r["sample"]) for r in records}) == len(records)  # nothing drawn twice
    return sorted(json.dumps(r, sort_keys=True) for r in records)


def timeless(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path, float]:
    """A work directory made in one go, the compilation cache it filled, and how long it took, in seconds."""
    directory = tmp_path_factory.mktemp("whole")
    finish(directory / "first", directory / "cache")
    started = time.monotonic()
    finish(directory / "run", directory / "cache")
    return directory / "run", directory / "cache", time.monotonic() - started


def assert_equal(workdir: Path, expected: Path) -> None:
    assert weights(workdir) == weights(expected)
    for name in ("metrics.jsonl", "base/metrics.jsonl"):
        rows = lines(workdir / name)
        assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))
        assert timeless(rows) == timeless(lines(expected / name))
    assert samples(workdir) == samples(expected)
    one, other = (json.loads((d / "summary.json").read_text()) for d in (workdir, expected))
    for volatile in ("seconds", "peak_rss_bytes"):
        one.pop(volatile), other.pop(volatile)
    assert one == other
    assert (workdir / "prefixes/prefixes.jsonl").read_text() == (expected / "prefixes/prefixes.jsonl").read_text()


def test_killed_at_drawn_moments(whole, tmp_path):
    expected, cache, seconds = whole
    moments, kills = random.Random(0), 0
    while kills < KILLS:
        child = start(tmp_path / "run", cache)
        try:
            output = child.communicate(timeout=moments.uniform(0.3, 0.7) * seconds)[0]
            assert child.returncode == 0, output[-3000:]
            (tmp_path / "run").rename(tmp_path / f"done {kills}")  # it got through: the next kill hits a new run
            assert_equal(tmp_path / f"done {kills}", expected)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.communicate()
            kills += 1
    finish(tmp_path / "run", cache)
    assert_equal(tmp_path / "run", expected)


@pytest.mark.parametrize("line", ["base 60/160", "collect", "train 5/12"])
def test_sigterm_stops_in_order_and_says_how_to_go_on(whole, tmp_path, line):
    expected, cache, _ = whole
    child = start(tmp_path / "run", cache)
    for printed in child.stdout:
        if printed.startswith({"collect": "base done"}.get(line, line)):
            child.send_signal(signal.SIGTERM)
            break
    output = child.communicate(timeout=120)[0]
    assert child.returncode == 0 and "stopped as asked" in output and "the same command goes on" in output, output
    finish(tmp_path / "run", cache)
    assert_equal(tmp_path / "run", expected)


TWICE = """
import os, signal
from prefixrl_jax import interrupt
interrupt.listen()
os.kill(os.getpid(), signal.SIGTERM)
print(interrupt.received(), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("still here", flush=True)
"""


def test_a_second_sigterm_ends_it_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n" and done.returncode == -signal.SIGTERM, done.stderr
