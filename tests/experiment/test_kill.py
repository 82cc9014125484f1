"""A run killed again and again ends as one that was not: weights, metrics, ledger and samples, to
the bit.

What is compared is the smoke configuration from base training to the report, through the command
line, in real processes.
"""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import begun

from benchmarks.kills import ROOT, Command, completed, differences, kill_repeatedly, wait_for

KILLS = 10
FLAGS = ("--config.train.steps=10", "--config.checkpoint.every=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Command, Path, float]:
    """How runs are started, the work directory of one made in one go, and how long it took in s,
    compilations included.
    """
    directory = tmp_path_factory.mktemp("whole")
    command = Command("configs/smoke.py", FLAGS, directory / "cache")
    started = time.monotonic()
    command.finish(directory / "run")
    return command, directory / "run", time.monotonic() - started


def test_killed_at_drawn_moments(whole, tmp_path):
    command, expected, seconds = whole
    moments = random.Random(0)
    tally = kill_repeatedly(
        command, tmp_path / "run", expected, KILLS, lambda: moments.uniform(0.1, 0.24) * seconds
    )
    assert (tally.kills, tally.lost, tally.different) == (KILLS, 0, []) and tally.runs >= 1


def wait_for_samples(workdir: Path, count: int) -> None:
    """Until so many samples are in the corpus log."""
    log, end = workdir / "corpus" / "log.jsonl", time.monotonic() + 120
    while not log.exists() or len(log.read_bytes().splitlines()) <= count:
        assert time.monotonic() < end, f"no {count} samples in {log}"
        time.sleep(0.02)


def test_sigterm_stops_in_order_and_says_how_to_go_on(whole, tmp_path):
    command, expected, _ = whole
    for line in ("base 40/120", "samples", "train 5/10"):
        child = command.start(tmp_path / "run")
        wait_for_samples(tmp_path / "run", 50) if line == "samples" else wait_for(child, line)
        child.send_signal(signal.SIGTERM)
        output = completed(child)
        assert "stopped as asked" in output and "the same command goes on" in output
    command.finish(tmp_path / "run")
    assert differences(tmp_path / "run", expected) == []


TWICE = """
import os, signal
from prefixrl_jax.runtime import interrupt
interrupt.listen()
os.kill(os.getpid(), signal.SIGTERM)
print(interrupt.received(), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("still here", flush=True)
"""


def test_a_second_sigterm_ends_it_at_once():
    done = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "True\n" and done.returncode == -signal.SIGTERM, done.stderr


FULL = (
    ("samples", 5_000, "were not saved in the log"),
    ("train 3/10", 20_000, "the checkpoint of step"),
)


def test_a_disk_that_takes_no_more_ends_in_one_line_and_loses_nothing(whole, tmp_path):
    """The limit on the size of a file stands for a full disk: the system refuses a write in the
    middle of the run.
    """
    command, expected, _ = whole
    run = begun(expected, tmp_path / "run", 1)
    for line, size, message in FULL:
        child = command.start(run)
        wait_for_samples(run, 0) if line == "samples" else wait_for(child, line)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        output = child.communicate(timeout=120)[0]
        assert child.returncode == 3, output[-3000:]
        last = output.splitlines()[-1]
        assert last.startswith("error: ") and message in last and "intact" in last, output[-3000:]
    command.finish(run)
    assert differences(run, expected) == []


def test_a_directory_that_cannot_be_written_is_named_before_anything_is_computed(whole, tmp_path):
    (tmp_path / "file").write_text("")
    done = whole[0].start(tmp_path / "file" / "run")
    output = done.communicate(timeout=120)[0]
    assert (
        done.returncode == 3
        and f"{tmp_path}/file" in output.splitlines()[-1]
        and "base" not in output
    ), output[-2000:]
