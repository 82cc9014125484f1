"""A run interrupted again and again ends as one that was not: weights, metrics, ledger and samples
are equal to the bit.

What is compared is the smoke configuration from base training to the report, through the command
line, in real processes.
"""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from kills import BASE, CORPUS, TRAIN, drawn_moment
from runs import SMOKE, Growth, completed, differences, kill_repeatedly

pytestmark = pytest.mark.slow

MOMENTS = random.Random(0)


def kill(child: subprocess.Popen) -> None:
    """Ends the run at once, in the midst of a step or of a write."""
    time.sleep(MOMENTS.uniform(0, 0.1))
    child.kill()
    child.communicate()


def ask_to_stop(number: signal.Signals) -> Callable[[subprocess.Popen], None]:
    """Sends a signal to the run, which says that it has stopped."""

    def ask(child: subprocess.Popen) -> None:
        child.send_signal(number)
        output = completed(child)
        last = output.splitlines()[-1]
        assert last.startswith("stopped as asked") and "the same command goes on" in last, output
        assert "Traceback" not in output

    return ask


def fill_disk(message: str, size: int) -> Callable[[subprocess.Popen], None]:
    """Makes the system refuse the run's next writes; the run ends in one line with this message.

    A limit on the size of files stands for a full disk.
    """

    def refuse(child: subprocess.Popen) -> None:
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        output = child.communicate()[0]
        assert child.returncode == 3, output[-3000:]
        last = output.splitlines()[-1]
        assert last.startswith("error: ") and message in last and "intact" in last, output[-3000:]

    return refuse


INTERRUPTIONS = (
    (BASE, 20, kill),
    (BASE, 40, ask_to_stop(signal.SIGTERM)),
    (CORPUS, 1, fill_disk("were not saved in the log", 5_000)),
    (CORPUS, 100, kill),
    (CORPUS, 300, ask_to_stop(signal.SIGINT)),
    (TRAIN, 3, fill_disk("the checkpoint of step", 20_000)),
    (TRAIN, 5, ask_to_stop(signal.SIGINT)),
    (TRAIN, 7, kill),
)


def test_interrupted_in_every_way_a_run_ends_as_if_it_had_not_been(smoke_run, tmp_path):
    """Killed, asked to stop, and on a full disk, in each of the three stages that take long."""
    for name, lines, interrupt in INTERRUPTIONS:
        file = Growth(tmp_path / "run" / name)
        child = SMOKE.start(tmp_path / "run")
        file.wait(child, lines)
        interrupt(child)
    SMOKE.finish(tmp_path / "run")
    assert differences(tmp_path / "run", smoke_run) == []


@pytest.mark.thorough
def test_killed_at_drawn_moments(smoke_run, tmp_path):
    """Ten kills, wherever they fall, and a run that is left alone."""
    workdir = tmp_path / "run"

    moment = drawn_moment(workdir, smoke_run, MOMENTS)
    tally = kill_repeatedly(SMOKE, workdir, smoke_run, 10, moment)
    assert (tally.kills, tally.lost, tally.different) == (10, 0, []) and tally.runs >= 1
    SMOKE.finish(tmp_path / "alone")
    assert differences(tmp_path / "alone", smoke_run) == []


def test_a_directory_that_cannot_be_written_is_named_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    done = SMOKE.start(tmp_path / "file" / "run")
    output = done.communicate()[0]
    assert done.returncode == 3 and "base" not in output, output[-2000:]
    assert f"{tmp_path}/file" in output.splitlines()[-1]
