"""Grading in processes that may be killed: a timeout and a memory limit an answer, and no answer
lost when another misbehaves.

No jax is imported here or in the workers, which are started from nothing (never forked from a
process that holds an accelerator).
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

from prefixrl_jax.tasks.grading.worker import READY
from prefixrl_jax.tasks.task import Verdict

SYMBOLIC = "prefixrl_jax.tasks.grading.worker:symbolic"
STARTUP = 60.0  # seconds a worker may take to import its grader


class Pool:
    """`workers` processes that call one grader.

    Args:
        grader: "module:function" of (gold, response) -> bool or Verdict.
        timeout: seconds an answer may take; longer is Verdict.TIMEOUT.
        memory: bytes of address space of a worker; more is Verdict.ERROR, as is an exception or a
            dead worker.
    """

    def __init__(
        self, grader: str = SYMBOLIC, workers: int = 2, timeout: float = 5.0, memory: int = 4 << 30
    ):
        self._grader = grader
        self._command = [
            sys.executable,
            "-m",
            "prefixrl_jax.tasks.grading.worker",
            grader,
            str(memory),
        ]
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grading")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(_Worker(self._command))

    def submit(self, gold: str, response: str) -> Future[Verdict]:
        """Grades in the background; the future never raises."""
        return self._threads.submit(self._grade, gold, response)

    def check(self) -> None:
        """Raises ValueError, with the reason, when a worker cannot import the grader."""
        code = "import sys; from prefixrl_jax.tasks.grading.worker import load; load(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", code, self._grader],
            capture_output=True,
            text=True,
            timeout=STARTUP,
        )
        if done.returncode:
            raise ValueError(done.stderr.strip().splitlines()[-1].removeprefix("ValueError: "))

    def _grade(self, gold: str, response: str) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.ask([gold, response], self._timeout)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Waits for what was submitted and ends the workers."""
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().kill()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """One process and its pipe; started when it is first asked, and anew after it had to be
    killed.
    """

    def __init__(self, command: list[str]):
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def ask(self, question: list[str], timeout: float) -> Verdict:
        """The verdict on one question, within `timeout` seconds of a worker that is up."""
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process, timeout)
        except TimeoutError:
            self.kill()
            return Verdict.TIMEOUT
        except (OSError, EOFError):
            self.kill()
            return Verdict.ERROR
        return Verdict(json.loads(line)[0])

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._buffer = b""
        if self._line(process, STARTUP) != READY.encode():
            raise EOFError("the worker did not start")
        return process

    def _line(self, process: subprocess.Popen[bytes], timeout: float) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            if not select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                raise EOFError("the worker is gone")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def kill(self) -> None:
        """Ends the process and all it has started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None
