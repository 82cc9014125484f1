"""`python -m benchmarks.sample_log DIR`: a day's worth of log, written and read again.

A million samples of 500 tokens: 600,000 of screening (18,750 problems), and 400,000 of collecting
(2,000 problems, one sample in ten correct and logged with its trace). Each half runs in a process
of its own and prints its CPU time and memory. If DIR/log is there from an earlier call, it is only
read.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.attempts import (
    attempts_in_log,
    first_traces,
    hard_set,
    statistics,
    summarise,
    wrong_responses,
)
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.flops import costs
from prefixrl_jax.tasks.task import Problem

HEADER = {"model": "0123456789abcdef", "tokenizer": "0123456789abcdef"}
TOKENS = 500
SCREENED, SAMPLES_EACH = 18_750, 32
HARD, CAP = 2_000, 200
CORRECT_EVERY = 10
FLUSH_EVERY = 50  # samples; about what finishes in a chunk


class Rendering:
    """As much of a task as the log needs."""

    def render(self, problem: Problem) -> list[int]:
        """Return 100 tokens."""
        return list(range(100))


def problems(count: int) -> list[Problem]:
    """Return problems without content."""
    return [Problem(f"openmath-{i:06d}", {}) for i in range(count)]


def records() -> Iterator[dict[str, Any]]:
    """Yield a day's records, in the order in which problems are worked on."""
    draw = random.Random(0)
    for problem in problems(SCREENED):
        for i in range(SAMPLES_EACH):
            yield _record("select", problem, i, "wrong")
    for problem in problems(HARD):
        for i in range(CAP):
            is_correct = i % CORRECT_EVERY == CORRECT_EVERY - 1
            record = _record("collect", problem, i, "correct" if is_correct else "wrong")
            if is_correct:
                record["trace"] = _trace(problem, i, draw)
            elif i == 0:
                record["wrong"] = _token_ids(draw)
            yield record


def _record(stage: str, problem: Problem, i: int, verdict: str) -> dict[str, Any]:
    record = {"stage": stage, "problem": problem.id, "sample": i, "verdict": verdict}
    return record | {"tokens": TOKENS}


def _token_ids(draw: random.Random) -> list[int]:
    return [draw.randrange(50_000) for _ in range(TOKENS)]


def _trace(problem: Problem, i: int, draw: random.Random) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "sample_id": i,
        "context_ids": list(range(100)),
        "token_ids": _token_ids(draw),
        "logprobs": [-draw.random() for _ in range(TOKENS)],
        "finish_reason": "stop",
        "samples": 0,
        "flops": 0.0,
        "source": "sampled",
    }


def write(path: Path) -> None:
    """Write the log; print how long the log itself took."""
    seconds = 0.0
    with Log(path, HEADER) as log:
        for number, record in enumerate(records(), start=1):
            started = time.process_time()
            log.append(record)
            if number % FLUSH_EVERY == 0:
                log.flush(wait=False)
            seconds += time.process_time() - started
    size = sum(file.stat().st_size for file in path.iterdir())
    parts = len(list(path.glob("part-*")))
    print(
        f"written: {number:,} samples, {size / 1e6:,.0f} MB in {parts} parts; {seconds:.1f} s of"
        f" CPU time, peak {_peak():.0f} MiB"
    )


def read(path: Path) -> None:
    """Open the log as a run does that goes on, and compute what the corpus stage reports."""
    before = _peak()
    started = time.process_time()
    with SharedLog(path, HEADER) as log:
        opened = time.process_time() - started
        task: Any = Rendering()
        screened = attempts_in_log(log.records, "select", problems(SCREENED), task)
        hard = hard_set(screened, (0.0, 0.0), HARD)
        attempts = attempts_in_log(log.records, "collect", hard, task)
    totals = summarise(attempts, CAP)
    traces = first_traces(attempts, costs(10**9, 1, 4, 8))
    statistics(attempts)
    wrong_responses(attempts)
    seconds = time.process_time() - started
    print(
        f"read: {totals['samples']:,} samples of collecting, {len(traces):,} traces; {opened:.1f} s"
        f" of CPU time, with all that is reported {seconds:.1f} s; peak {_peak():.0f} MiB, of"
        f" which {before:.0f} before the log was opened"
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run both halves; argv: the directory, and in a child the half."""
    if len(sys.argv) == 3:
        {"write": write, "read": read}[sys.argv[2]](Path(sys.argv[1]) / "log")
        return
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.sample_log DIR")
    halves = ["read"] if (Path(sys.argv[1]) / "log").exists() else ["write", "read"]
    for half in halves:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.sample_log", sys.argv[1], half], check=True
        )


if __name__ == "__main__":
    main()
