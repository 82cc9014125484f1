"""Lets every call that touches a file of the smoke run fail, and compares what comes of it.

`python -m tests.faults OUT [--jobs=2] [--sample=N] [--only=PATTERN] [--list]`

First the run is made without faults, stage by stage, each from a copy of the work directory as the
stage before left it (OUT/before/STAGE), and the calls of every site are counted. Then, for every
site, its first, its last and one drawn call fail, once with ENOSPC and once with EIO: the run is
begun from the copy before the stage of that call, must end with one line and status 3 (or be
finished with status 0), and the same command without a fault must end as the run without faults
did. Nothing that was whole when the call failed may be gone.

All runs are forked from one process that has imported everything, which takes longer than most of
them. A case that fails leaves OUT/cases/NUMBER; `--only` repeats it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import errno
import faulthandler
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import runpy
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable
from pathlib import Path

import tests.environment  # noqa: F401  before anything imports jax
from tests.artefacts import STAGES, lost, unlike
from tests.injection import PACKAGE, Fault, Injector
from tests.runs import SMOKE

ERRORS = (errno.ENOSPC, errno.EIO)
SECONDS = 300  # after which a run is taken to hang
HUNG = f"Timeout (0:{SECONDS // 60:02}:{SECONDS % 60:02})!"  # its last words then
PRELOADED = (
    "prefixrl_jax.experiment.command",
    "prefixrl_jax.experiment.run",
    "prefixrl_jax.experiment.dry_run",
    "prefixrl_jax.methods",
    "prefixrl_jax.report.run_report",
    "prefixrl_jax.training.health",
    "transformers.models.auto.tokenization_auto",
)
# What no user should see.
TRACES = ("Traceback", "Exception ignored", "Event loop is closed", "never awaited", "destroyed")

# Yields process ids, and is sent the status with which each has ended.
Attempt = Generator[int, int | None, None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A call that fails: the stage of the process that makes it, and the fault."""

    stage: str
    fault: Fault

    def __str__(self) -> str:
        site, number, error = self.fault
        return f"{site}, call {number} in {self.stage}: {errno.errorcode[error]}"


# One run, in a forked process.


def start(workdir: Path, out: Path, fault: Fault | None, *flags: str) -> int:
    """Starts a run in a process of its own and returns its id.

    It leaves OUT.log, what it printed; OUT.calls, the calls of every site; and OUT.fault, which
    files were whole when the fault happened, if it did.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    # No frame above this one catches or cleans up, so that the process ends as a command does.
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["main", f"--config={SMOKE.config}", f"--workdir={workdir}", *SMOKE.flags, *flags]
    injector = Injector(workdir, Path(f"{out}.fault"), fault)
    injector.install()
    # Prints where every thread is.
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=os.dup(2))
    status = 1
    try:
        runpy.run_module("prefixrl_jax.main", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    Path(f"{out}.calls").write_text(json.dumps(injector.calls))
    raise SystemExit(status)


def run_side_by_side(attempts: Iterable[Attempt], jobs: int) -> None:
    """Runs generators that yield process ids and are sent the status of each."""
    running: dict[int, Attempt] = {}
    waiting = iter(attempts)

    def go_on(attempt: Attempt, status: int | None) -> None:
        try:
            running[attempt.send(status)] = attempt
        except StopIteration:
            begin()

    def begin() -> None:
        for attempt in itertools.islice(waiting, 1):
            go_on(attempt, None)

    for _ in range(jobs):
        begin()
    while running:
        pid, status = os.wait()
        go_on(running.pop(pid), os.waitstatus_to_exitcode(status))


# The run without faults, and what can fail in it.


def record(out: Path) -> dict[str, dict[str, int]]:
    """Makes the run without faults and returns the calls of every site, by stage.

    What an earlier call has made is used again, unless the package has changed.
    """
    path = out / "calls.json"
    sources = b"".join(file.read_bytes() for file in sorted(Path(PACKAGE).rglob("*.py")))
    package = hashlib.sha256(sources).hexdigest()
    if path.exists() and (recorded := json.loads(path.read_text()))["package"] == package:
        return recorded["calls"]
    shutil.rmtree(out / "before", ignore_errors=True)
    shutil.rmtree(out / "whole", ignore_errors=True)
    (out / "whole").mkdir()
    calls = {}

    def stages() -> Attempt:
        for stage in STAGES:
            shutil.copytree(out / "whole", out / "before" / stage)
            status = yield start(out / "whole", out / "record", None, f"--stage={stage}")
            if status:
                log = (out / "record.log").read_text()
                raise RuntimeError(f"the stage {stage} ended with status {status}:\n{log}")
            calls[stage] = json.loads((out / "record.calls").read_text())

    run_side_by_side([stages()], 1)
    path.write_text(json.dumps({"package": package, "calls": calls}, indent=1))
    return calls


def all_cases(calls: dict[str, dict[str, int]]) -> list[Case]:
    """Returns the first, the last and one drawn call of every site, with each error."""
    cases = []
    for site in sorted({site for sites in calls.values() for site in sites}):
        stages = [stage for stage in STAGES if site in calls[stage]]
        first, last = stages[0], stages[-1]
        drawn = random.Random(site)  # the same whatever other sites there are
        (stage,) = drawn.choices(stages, [calls[stage][site] for stage in stages])
        chosen = {
            (first, 1),
            (last, calls[last][site]),
            (stage, drawn.randint(1, calls[stage][site])),
        }
        cases += [
            Case(stage, Fault(site, number, error))
            for stage, number in sorted(chosen)
            for error in ERRORS
        ]
    return cases


# A case and its judgement.


def try_case(case: Case, out: Path, directory: Path, tally: Tally) -> Attempt:
    """Lets one call fail, goes on without a fault, and adds what is wrong to the tally."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    workdir = directory / "run"
    shutil.copytree(out / "before" / case.stage, workdir)
    started = time.monotonic()
    status = yield start(workdir, directory / "failed", case.fault)
    if not (directory / "failed.fault").exists():
        tally.add(case, "the call was not reached", [])
        return
    files = json.loads((directory / "failed.fault").read_text())["files"]
    problems = ending(status, (directory / "failed.log").read_text())
    if names := list(lost(files, workdir)):
        problems.append(f"lost {len(names)} of {len(files)} files, the first {names[0]}")
    if status:
        again = yield start(workdir, directory / "again", None)
        if again:
            line = (directory / "again.log").read_text().strip().splitlines()[-1:]
            problems.append(f"it does not go on: status {again}, {line}")
    if not problems or status == 0 or not again:
        problems += unlike(workdir, out / "whole")
    outcome = "survived" if status == 0 else "refused and went on"
    tally.add(case, outcome, problems, time.monotonic() - started)
    if not problems:
        shutil.rmtree(directory)


def ending(status: int, output: str) -> list[str]:
    """Returns what is wrong with the status and the output of a run that had a fault."""
    if HUNG in output:
        return [f"it hung for {SECONDS} s; its log shows where"]
    problems = [f"shows {sign!r}" for sign in TRACES if sign in output]
    lines = output.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if status not in (0, 3):
        problems.append(f"status {status}")
    if status and (len(errors) != 1 or lines[-1] != errors[0]):
        problems.append(f"{len(errors)} lines of error, the last line is {lines[-1:]}")
    if not status and errors:
        problems.append(f"status 0 and {errors}")
    return problems


@dataclasses.dataclass
class Tally:
    """What has come of the cases so far."""

    total: int
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failed: list[str] = dataclasses.field(default_factory=list)

    def add(self, case: Case, outcome: str, problems: list[str], seconds: float = 0.0) -> None:
        """Counts a case and prints a line."""
        self.outcomes["failed" if problems else outcome] += 1
        if problems:
            self.failed.append(str(case))
        done = self.outcomes.total()
        line = "; ".join(problems) or outcome
        print(f"{done}/{self.total} {case}: {line} ({seconds:.0f} s)", flush=True)


def preload() -> None:
    """Imports everything that a run imports, without starting a backend of JAX."""
    for name in PRELOADED:
        importlib.import_module(name)
    from jax._src import xla_bridge

    if xla_bridge.backends_are_initialized() or threading.active_count() > 1:
        raise RuntimeError("this process has threads, so that it cannot be forked")


def main() -> None:
    """Prints one line a case and then the result; the status is 1 unless every case is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, help="only so many drawn cases")
    parser.add_argument("--only", default="", help="only cases whose line this pattern is found in")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    arguments = parser.parse_args()
    out = Path(os.path.realpath(arguments.out))
    out.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(out / "cache")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # all runs compile the same
    preload()
    cases = all_cases(record(out))
    cases = [case for case in cases if re.search(arguments.only, str(case))]
    if arguments.sample:
        cases = random.Random(0).sample(cases, min(arguments.sample, len(cases)))
    if arguments.list:
        print(*cases, f"{len(cases)} cases", sep="\n")
        return
    tally = Tally(len(cases))
    started = time.monotonic()
    attempts = (
        try_case(case, out, out / "cases" / str(number), tally) for number, case in enumerate(cases)
    )
    run_side_by_side(attempts, arguments.jobs)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in tally.outcomes.items())
    print(f"{len(cases)} cases in {time.monotonic() - started:.0f} s: {counts}")
    sys.exit(bool(tally.failed))


if __name__ == "__main__":
    main()
