"""Grading workers whose parent is killed: they end, and so does all that they have started."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from runs import HANGS

PARENT = textwrap.dedent(
    """
    import sys, time
    from prefixrl_jax.tasks.grading.pool import Pool

    pool = Pool("{grader}", workers=2, timeout=600.0)
    for _ in range(2):
        pool.submit("a", "{response}")
    print("started", flush=True)
    time.sleep(6000)
    """
)
# A grader that hangs in one long call, which lets no thread run, beside a process that it started.
GRADER = textwrap.dedent(
    """
    import os, subprocess, sys

    def stuck(gold, response):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(6000)"])
        with open(os.environ["PIDS"], "a") as file:
            file.write(f"{os.getpid()} {child.pid}\\n")
        return 7 ** (10 ** 9) == 0

    def idle(gold, response):
        with open(os.environ["PIDS"], "a") as file:
            file.write(f"{os.getpid()} {os.getpid()}\\n")
        return True
    """
)


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition) -> bool:
    """Whether a condition comes true before the process is taken to hang."""
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("function", ["stuck", "idle"])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, death, function):
    (tmp_path / "stuck_graders.py").write_text(GRADER)
    pids = tmp_path / "pids"
    pids.touch()
    environment = os.environ | {
        "PIDS": str(pids),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    code = PARENT.format(grader=f"stuck_graders:{function}", response="b")
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        workers = 2 if function == "stuck" else 1
        assert wait_until(lambda: len(pids.read_text().splitlines()) >= workers)
        processes = {int(pid) for pid in pids.read_text().split()}
        assert all(map(is_running, processes))
    finally:
        parent.send_signal(death)
        parent.wait()
    assert wait_until(lambda: not any(map(is_running, processes)))


def test_an_answer_has_a_limit_of_cpu_time_even_without_a_parent_that_watches():
    """The second line of defence: the worker ends itself."""
    command = [sys.executable, "-m", "prefixrl_jax.tasks.grading.worker", "graders:hostile"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    worker = subprocess.run(
        [*command, str(4 << 30), "0.1"],
        input='["a", "a"]\n["a", "spin"]\n["a", "a"]\n',
        capture_output=True,
        text=True,
        env=environment,
        timeout=HANGS,
    )
    assert worker.returncode == -signal.SIGXCPU
    assert worker.stdout.splitlines() == ["ready", '["correct", ""]']


def test_a_worker_that_closes_its_pool_leaves_no_process_behind():
    code = textwrap.dedent(
        """
        import os, subprocess
        from prefixrl_jax.tasks.grading.pool import Pool

        before = set(os.listdir("/proc/self/fd"))
        with Pool(workers=2) as pool:
            for k in range(4):
                assert pool.submit("1", str(k)).result().value in ("correct", "wrong")
        assert set(os.listdir("/proc/self/fd")) == before
        try:
            print(os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            print("no child")
        """
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "no child\n", process.stderr
