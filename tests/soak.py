"""Ends one or both processes of a run, again and again, and compares what comes of it.

`python -m tests.soak OUT [--rounds=200] [--seed=0]`: OUT/whole is the smoke run on two
processes, left alone (reused if it is finished). OUT/soaked is the same, begun or continued in
every round. In a round, after a drawn time, one process or both get SIGKILL or SIGTERM; what is
left of the run then ends by itself, or is killed after a drawn time as a scheduler would. A run
that finishes is compared and put aside, and another is begun.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.artefacts import inventory, lost, unlike
from tests.runs import SMOKE, samples

VICTIMS = ((0,), (1,), (0, 1))
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
EARLY = "before anything was begun"  # says a process that is asked to stop while it starts
STARTING = 10.0  # seconds in which both processes have begun to work
PATIENCE = 90.0  # seconds in which a process must notice that the other is gone


def start_pair(workdir: Path) -> list[subprocess.Popen]:
    """Starts two processes of one run, with one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [SMOKE.start(workdir, "--multihost", JAX_PROCESS_ID=str(i), **common) for i in (0, 1)]


def wait(children: Sequence[subprocess.Popen], seconds: float) -> bool:
    """Waits until all processes have ended, for so long at most; returns whether they have."""
    deadline = time.monotonic() + seconds
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(deadline - time.monotonic(), 0))
    return all(child.poll() is not None for child in children)


@dataclasses.dataclass
class Soak:
    """A run that is ended again and again.

    Attributes:
        directory: holds `whole`, with which finished runs are compared, and `soaked`.
        longest: seconds that a run lives at most.
        seed: of what is drawn.
        endings: rounds by how they ended.
        finished: runs that were finished and compared.
        problems: what was not as it should be.
    """

    directory: Path
    longest: float
    seed: int = 0
    endings: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    finished: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._workdir = self.directory / "soaked"
        self._random = random.Random(self.seed)
        self._files: dict[str, str] = {}
        self._samples: dict[tuple, str] = {}

    def round(self) -> str:
        """Starts the run, ends it, and returns how."""
        children = start_pair(self._workdir)
        if wait(children, self._random.uniform(1, self.longest)):
            self._check_finished(children)
            return "finished"
        victims = self._random.choice(VICTIMS)
        signals = [self._random.choice(SIGNALS) for _ in victims]
        for victim, number in zip(victims, signals, strict=True):
            children[victim].send_signal(number)
        alone = self._random.random() < 0.2  # whether the rest ends by itself
        in_time = wait(children, PATIENCE if alone else self._random.uniform(0, 5))
        for child in children:
            child.kill()
        outputs = [child.communicate()[0] for child in children]
        # Before that, a process that ends leaves the other waiting for it for minutes.
        begun = outputs[0] and EARLY not in outputs[0]
        if begun and alone and not in_time:
            self.problems.append(f"a process still lived {PATIENCE:.0f} s after {signals}")
        if begun and in_time and signal.SIGKILL not in signals:
            statuses = [child.returncode for child in children]
            if any(statuses) or "Traceback" in "".join(outputs):
                self.problems.append(f"status {statuses}: {outputs[0][-500:]} {outputs[1][-500:]}")
        self._check_nothing_lost()
        names = ", ".join(f"{n.name} to {v}" for v, n in zip(victims, signals, strict=True))
        return f"{names}{'' if in_time else ', then the rest killed'}"

    def _check_finished(self, children: Sequence[subprocess.Popen]) -> None:
        """Compares a run that has ended by itself, and puts it aside."""
        for child in children:
            output = child.communicate()[0]
            if child.returncode:
                self.problems.append(f"status {child.returncode}: {output[-1000:]}")
                return
        self._check_nothing_lost()
        self.problems += unlike(self._workdir, self.directory / "whole")
        self.finished += 1
        self._workdir.rename(self.directory / f"soaked {self.finished}")
        self._files, self._samples = {}, {}

    def _check_nothing_lost(self) -> None:
        if not self._workdir.exists():
            return
        self.problems += [f"lost {name}" for name in lost(self._files, self._workdir)]
        logged = samples(self._workdir)
        missing = sum(logged.get(key) != record for key, record in self._samples.items())
        if missing:
            self.problems.append(f"lost {missing} samples of the log")
        self._files, self._samples = inventory(self._workdir), logged

    def finish(self) -> None:
        """Lets the run end by itself and compares it."""
        children = start_pair(self._workdir)
        wait(children, 3600)
        self._check_finished(children)


def main() -> None:
    """Prints one line a round and then the result; the status is 1 if there is any problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    arguments = parser.parse_args()
    directory = arguments.out.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory / "cache")  # shared by all rounds
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    started = time.monotonic()
    for child in start_pair(directory / "whole"):
        output = child.communicate()[0]
        if child.returncode:
            sys.exit(f"the run without signals ended with status {child.returncode}:\n{output}")
    print(f"whole run: {time.monotonic() - started:.0f} s", flush=True)
    stages = [json.loads(path.read_text()) for path in (directory / "whole/stages").glob("*.json")]
    longest = STARTING + sum(stage["seconds"] for stage in stages) / 4
    soak = Soak(directory, longest, arguments.seed)
    for number in range(1, arguments.rounds + 1):
        problems = len(soak.problems)
        ending = soak.round()
        soak.endings["finished" if ending == "finished" else "ended"] += 1
        new = "; ".join(soak.problems[problems:]) or "nothing lost"
        print(f"{number}/{arguments.rounds} {ending}: {new}", flush=True)
    soak.finish()
    print(
        f"{arguments.rounds} rounds in {time.monotonic() - started:.0f} s, {soak.finished} finished"
        f" runs compared; problems: {len(soak.problems)}"
    )
    print(*soak.problems, sep="\n")
    sys.exit(bool(soak.problems))


if __name__ == "__main__":
    main()
