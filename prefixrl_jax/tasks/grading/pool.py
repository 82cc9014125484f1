"""Grading in processes that may be killed.

Each answer has a timeout and a memory limit, and no answer is lost when another one misbehaves. No
jax is imported here or in the workers, and these are started from nothing: a process that holds an
accelerator must not be forked.
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

from prefixrl_jax.tasks.grading.worker import PRECISE, READY
from prefixrl_jax.tasks.task import Verdict

STARTUP = 60.0  # seconds a worker may take to import its grader
# CPU seconds a worker may take for an answer, for each second of the timeout: a grader with threads
# may use several, and one that nobody kills ends after them.
CPU_PER_SECOND = 4


class Pool:
    """A pool of `workers` processes that call one grader.

    Args:
        grader: "module:function" of (gold answer, response) -> bool or Verdict.
        timeout: seconds an answer may take; longer is Verdict.TIMEOUT.
        memory: bytes of address space of a worker; more is Verdict.ERROR, as is an exception or a
            dead worker.
    """

    def __init__(
        self, grader: str = PRECISE, workers: int = 2, timeout: float = 5.0, memory: int = 4 << 30
    ):
        self._grader = grader
        self._timeout = timeout
        # Closed by the system when this process ends, however it ends: its workers end with it.
        self._lifeline, self._held_open = os.pipe()
        command = [
            sys.executable,
            "-m",
            "prefixrl_jax.tasks.grading.worker",
            grader,
            str(memory),
            str(CPU_PER_SECOND * timeout + 1),
            str(self._lifeline),
        ]
        # A thread for each worker: it waits for the worker's answer.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grading")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(_Worker(command, self._lifeline))

    def submit(self, gold: str, response: str) -> Future[Verdict]:
        """Start grading in the background; return a Future that never raises."""
        return self._threads.submit(self._grade, gold, response)

    def check(self) -> None:
        """Raise ValueError, with the reason, unless a worker can import the grader."""
        code = "import sys; from prefixrl_jax.tasks.grading.worker import load; load(sys.argv[1])"
        process = subprocess.run(
            [sys.executable, "-c", code, self._grader],
            capture_output=True,
            text=True,
            timeout=STARTUP,
            start_new_session=True,  # Ctrl-C is for this process, not for a grader
        )
        if process.returncode:
            last_line = process.stderr.strip().splitlines()[-1]
            raise ValueError(last_line.removeprefix("ValueError: "))

    def _grade(self, gold: str, response: str) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.ask([gold, response], self._timeout)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Wait for all submitted responses, then end the workers."""
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().kill()
        os.close(self._lifeline)
        os.close(self._held_open)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """One worker process and its pipes.

    The process is started when it is first asked, and again after it had to be killed.
    """

    def __init__(self, command: list[str], lifeline: int):
        self._command = command
        self._lifeline = lifeline
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def ask(self, question: list[str], timeout: float) -> Verdict:
        """Return the verdict on one question.

        The timeout, in seconds, does not count the time that the process takes to start.
        """
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            return Verdict(json.loads(self._read_line(process, timeout))[0])
        except TimeoutError:
            self.kill()
            return Verdict.TIMEOUT
        # A line that is no verdict was written by a grader that found the pipe.
        except (OSError, EOFError, ValueError, LookupError, TypeError):
            self.kill()
            return Verdict.ERROR

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._lifeline],
        )
        self._process = process
        self._buffer = b""
        if self._read_line(process, STARTUP) != READY.encode():
            raise EOFError("the worker did not start")
        return process

    def _read_line(self, process: subprocess.Popen[bytes], timeout: float) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = max(deadline - time.monotonic(), 0)
            readable, _, _ = select.select([process.stdout], [], [], left)
            if not readable:
                raise TimeoutError
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                raise EOFError("the worker is gone")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the process and all processes it has started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None
