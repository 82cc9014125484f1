"""Ctrl-C and SIGTERM end a command with one line at any time, its first seconds included."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest
from runs import HANGS, ROOT

from prefixrl_jax.runtime import interrupt

# Runs a command that gets a signal when it is about to import a module, and is not let go on.
AT_IMPORT = """
import os, runpy, sys, time
number, module, command, *flags = sys.argv[1:]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))
            time.sleep(600)

sys.meta_path.insert(0, Finder())
sys.argv = [command, *flags]
runpy.run_module(command, run_name="__main__", alter_sys=True)
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs code in a process of its own, to its end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["absl", "ml_collections", "jax", "numpy", "orbax.checkpoint"])
def test_a_signal_at_an_import_ends_a_run_with_one_line(module, number, tmp_path):
    flags = ("--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}")
    done = python(AT_IMPORT, int(number), module, "prefixrl_jax.main", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped as asked, before anything was begun\n"
    assert done.stderr == "" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "flags", "number"),
    [
        ("prefixrl_jax.export", ("--workdir=x", "--out=y"), signal.SIGINT),
        ("prefixrl_jax.theory", ("--out=x",), signal.SIGTERM),
    ],
)
def test_what_cannot_go_on_later_has_failed(command, flags, number):
    done = python(AT_IMPORT, int(number), "absl", command, *flags)
    assert done.returncode == 128 + number
    assert done.stdout == ""
    assert done.stderr == "error: stopped as asked, before it was finished\n"


TWICE = """
import os, signal, sys, time
from prefixrl_jax.runtime import interrupt
first, second = map(int, sys.argv[1:])
interrupt.end_at_once(("too early", 1))
interrupt.listen()
os.kill(os.getpid(), first)
print(interrupt.wanted(), interrupt.received(), flush=True)
with interrupt.deferred():
    print(interrupt.wanted(), flush=True)
os.kill(os.getpid(), second)
time.sleep(600)  # as if something were compiled
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_a_flag_and_the_second_ends_it_at_once(first, second):
    done = python(TWICE, int(first), int(second))
    assert done.stdout == "True True\nFalse\n"
    assert (done.returncode, done.stderr) == (128 + second, "ended at once, as asked twice\n")


def test_on_a_terminal_the_first_signal_is_acknowledged():
    """What is being computed may take a while, and a user who sees nothing asks again."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", HEARD], cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = ""
    while interrupt.HEARD not in shown:
        shown += os.read(ours, 1000).decode()
    child.send_signal(signal.SIGINT)
    assert child.wait(HANGS) == 128 + signal.SIGINT
    os.close(ours)


HEARD = """
import os, signal, time
from prefixrl_jax.runtime import interrupt
interrupt.listen()
os.kill(os.getpid(), signal.SIGINT)
time.sleep(600)
"""

IGNORED = """
import os, signal
from prefixrl_jax.runtime import interrupt
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script does for a command with &
interrupt.listen()
os.kill(os.getpid(), signal.SIGINT)
print(interrupt.wanted())
"""


def test_a_run_in_the_background_of_a_script_can_be_stopped_too():
    done = python(IGNORED)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


# Process 1 of 2 waits for process 0, in a call that lets no Python handler run.
WAITING = """
import os, runpy, sys, threading
import jax
number, *sys.argv[1:] = sys.argv[1:]
initialize = jax.distributed.initialize

def signalled(*args, **kwargs):
    threading.Timer(0.5, os.kill, (os.getpid(), int(number))).start()
    initialize(*args, **kwargs)

jax.distributed.initialize = signalled
runpy.run_module("prefixrl_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_others_can_be_stopped(number, tmp_path, monkeypatch):
    for name, value in {
        "JAX_COORDINATOR_ADDRESS": "localhost:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    flags = ("--config=configs/smoke.py", f"--workdir={tmp_path}", "--multihost")
    done = python(WAITING, int(number), *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped as asked, before anything was begun\n"
