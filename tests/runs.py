"""Runs of the package's commands in processes of their own: started, interrupted, compared."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
# How tests start Python in a process of its own. `make test-newer` sets COVERED, so that what runs
# there counts for the coverage.
PYTHON = [sys.executable, *os.environ.get("COVERED", "").split()]
# Seconds after which a process is taken to hang. No test depends on how long anything takes.
HANGS = 900


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python with these arguments in the checkout, to its end; output and errors are text."""
    return subprocess.run(
        [*PYTHON, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


@dataclasses.dataclass(frozen=True)
class Command:
    """How a run of `prefixrl_jax.main` is started."""

    config: str = "configs/smoke.py"
    flags: tuple[str, ...] = ()

    def start(self, workdir: Path, *flags: str, **environment: str) -> subprocess.Popen:
        """Starts a process that begins the run in `workdir`, or continues it."""
        arguments = [f"--config={self.config}", f"--workdir={workdir}", *self.flags, *flags]
        return subprocess.Popen(
            [*PYTHON, "-m", "prefixrl_jax.main", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )

    def finish(self, workdir: Path, *flags: str, **environment: str) -> str:
        """Runs to the end and returns what was printed; raises RuntimeError if the run failed."""
        return completed(self.start(workdir, *flags, **environment))


# The run that most tests of whole runs start from or compare with (the fixture `smoke_run`): ten
# steps, so that it can be interrupted in the middle of training, and some checkpoints.
SMOKE = Command(flags=("--config.train.steps=10", "--config.checkpoint.every=2"))


def completed(child: subprocess.Popen) -> str:
    """Returns the output of a process that ends well; raises RuntimeError if it does not."""
    output = child.communicate()[0]
    if child.returncode != 0:
        raise RuntimeError(f"the run ended with status {child.returncode}:\n{output[-3000:]}")
    return output


def files_of(path: Path) -> list[Path]:
    """Returns the file, or the parts that a folder holds; none if there is nothing yet."""
    if path.is_dir():
        return sorted(path.glob("part-*.jsonl"))
    return [path] if path.exists() else []


def count_lines(path: Path) -> int:
    """Returns the number of whole lines in a file, or in the parts that a folder holds."""
    return sum(file.read_bytes().count(b"\n") for file in files_of(path))


class Growth:
    """A file as it is before a process starts that writes lines to it, such as one row a step.

    If the path is a folder: the files part-* in it together.
    """

    def __init__(self, path: Path):
        self._path = path
        self._before = self._written()

    def _written(self) -> list[tuple[str, int]]:
        return [(file.name, file.stat().st_mtime_ns) for file in files_of(self._path)]

    def wait(self, child: subprocess.Popen, count: int) -> None:
        """Waits until the process has written to the file, which then has at least `count` lines.

        Raises RuntimeError if the process ends earlier.
        """
        while self._written() == self._before or count_lines(self._path) < count:
            if child.poll() is not None:
                output = child.communicate()[0]
                raise RuntimeError(
                    f"{self._path} has fewer than {count} lines, and the process has ended with"
                    f" status {child.returncode}:\n{output[-3000:]}"
                )
            time.sleep(0.02)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock on this file, which is made if need be: one process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def begun(expected: Path, workdir: Path, stages: Sequence[str] = ("base",)) -> Path:
    """Makes `workdir` a run that has only these stages of a finished run, and returns it."""
    names = ["config.json", *stages, *(f"stages/{stage}.json" for stage in stages)]
    for name in names:
        if not (expected / name).exists():  # not every stage has a folder
            continue
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (expected / name).is_dir() else shutil.copy
        copy(expected / name, workdir / name)
    return workdir


def read_lines(path: Path) -> list[dict]:
    """Reads a file of one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def stage_result(workdir: Path, stage: str) -> dict:
    """Returns what a finished stage left on record."""
    return json.loads((workdir / "stages" / f"{stage}.json").read_text())["result"]


def samples(workdir: Path) -> dict[tuple, str]:
    """Returns the complete records of the corpus log by (stage, problem, sample).

    Raises ValueError if a sample stands there twice.
    """
    log = workdir / "corpus" / "log"
    # Line 1 of a part is the header; after its last newline there may be half a record.
    parts = [part.read_text().split("\n")[1:-1] for part in files_of(log)]
    lines = [line for part in parts for line in part]
    records: dict[tuple, str] = {}
    for line in lines:
        record = json.loads(line.split(" ", 1)[1])  # a checksum stands before it
        key = (record["stage"], record["problem"], record["sample"])
        if key in records:
            raise ValueError(f"{log}: sample {key} was drawn twice")
        records[key] = json.dumps(record, sort_keys=True)
    return records


def differences(workdir: Path, expected: Path) -> list[str]:
    """Compares two finished runs to the bit, times and speeds aside.

    Returns the names of the files that differ.
    """
    readers: dict[str, Callable[[Path], object]] = {
        "hf/model.safetensors": _read_weights,
        "metrics.jsonl": _read_metrics,
        "corpus/log": lambda path: samples(path.parents[1]),
        "base/metrics.jsonl": _read_metrics,
        "summary.json": _read_summary,
        "prefixes/prefixes.jsonl": Path.read_bytes,
    }
    return [name for name, read in readers.items() if read(workdir / name) != read(expected / name)]


def _read_weights(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def _read_metrics(path: Path) -> list[dict]:
    rows = read_lines(path)
    if [row["step"] for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError(f"{path}: the steps are not 1, 2, ..., {len(rows)}")
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in rows]


def _read_summary(path: Path) -> dict:
    figures = json.loads(path.read_text())
    return {k: v for k, v in figures.items() if k not in ("seconds", "peak_rss_bytes")}


@dataclasses.dataclass
class Tally:
    """Counts of repeated kills."""

    kills: int = 0
    lost: int = 0  # complete samples that were in the log at a kill and not at the next
    runs: int = 0  # runs that were finished and compared
    different: list[str] = dataclasses.field(default_factory=list)


def kill_repeatedly(
    command: Command,
    workdir: Path,
    expected: Path,
    kills: int,
    moment: Callable[[subprocess.Popen], None],
    show: Callable[[Tally], None] | None = None,
) -> Tally:
    """Kills the run in `workdir` `kills` times, each time when `moment(child)` returns.

    After the last kill the run may finish. A run that finishes earlier is compared and put aside,
    and another is begun. `show` is called after every process. Raises ValueError if any sample or
    step was done twice, RuntimeError if a resumed run fails.
    """
    tally = Tally()
    logged: dict[tuple, str] = {}

    def compare() -> None:
        tally.runs += 1
        tally.different += differences(workdir, expected)
        workdir.rename(workdir.with_name(f"{workdir.name} {tally.runs}"))

    while tally.kills < kills:
        child = command.start(workdir)
        moment(child)
        if child.poll() is None:
            child.kill()
            child.communicate()
            tally.kills += 1
            now = samples(workdir)
            tally.lost += sum(now.get(key) != record for key, record in logged.items())
            logged = now
        else:
            completed(child)
            compare()
            logged = {}
        if show:
            show(tally)
    command.finish(workdir)
    compare()
    return tally
