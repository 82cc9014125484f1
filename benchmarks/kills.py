"""Kills a run again and again and compares what it becomes with a run that was left alone, to the
bit.

`python -m benchmarks.kills OUT [--kills=30] [--config=configs/demo.py] [--config.field=value ...]`:
OUT/whole is the run left alone (reused if it is finished), OUT/killed the other, killed at drawn
moments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).parent.parent
# seconds that a run lives before it is killed: compilation takes ten, and every stage is to be hit
LIFE = (20.0, 60.0)


@dataclasses.dataclass(frozen=True)
class Command:
    """How a run is started."""

    config: str
    flags: tuple[str, ...]
    cache: Path  # of compilations, shared by all lives

    def start(self, workdir: Path, *flags: str, **environment: str) -> subprocess.Popen:
        """A process of its own that goes on with the run in `workdir`."""
        arguments = [f"--config={self.config}", f"--workdir={workdir}", *self.flags, *flags]
        return subprocess.Popen(
            [sys.executable, "-m", "prefixrl_jax.main", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.cache)} | environment,
        )

    def finish(self, workdir: Path, *flags: str, timeout: float | None = None) -> str:
        """Runs to the end and returns what it printed; raises RuntimeError if it failed."""
        return completed(self.start(workdir, *flags), timeout)


def completed(child: subprocess.Popen, timeout: float | None = None) -> str:
    """The output of a process that ends well; raises RuntimeError if it does not, TimeoutExpired if
    it takes longer.
    """
    output = child.communicate(timeout=timeout)[0]
    if child.returncode != 0:
        raise RuntimeError(f"the run ended with status {child.returncode}:\n{output[-3000:]}")
    return output


def wait_for(child: subprocess.Popen, beginning: str) -> None:
    """Reads what the process prints up to a line that begins so; raises RuntimeError if it ends
    without one.
    """
    for line in child.stdout or ():
        if line.startswith(beginning):
            return
    raise RuntimeError(f"the run ended without a line {beginning!r}")


def samples(workdir: Path) -> dict[tuple, str]:
    """Every sound record of the corpus log, by (stage, problem, sample); raises ValueError if one
    stands there twice.
    """
    log, found = workdir / "corpus" / "log.jsonl", {}
    for line in log.read_text().split("\n")[1:-1] if log.exists() else []:
        record = json.loads(line[9:])
        key = (record["stage"], record["problem"], record["sample"])
        if key in found:
            raise ValueError(f"{log}: sample {key} was drawn twice")
        found[key] = json.dumps(record, sort_keys=True)
    return found


def differences(workdir: Path, expected: Path) -> list[str]:
    """What two finished runs do not share to the bit, times and speeds aside: names of files; empty
    if they are equal.
    """
    parts: dict[str, Callable[[Path], object]] = {
        "hf/model.safetensors": _weights,
        "metrics.jsonl": _metrics("metrics.jsonl"),
        "corpus/log.jsonl": samples,
        "base/metrics.jsonl": _metrics("base/metrics.jsonl"),
        "summary.json": _summary,
        "prefixes/prefixes.jsonl": lambda d: (d / "prefixes" / "prefixes.jsonl").read_bytes(),
    }
    return [name for name, read in parts.items() if read(workdir) != read(expected)]


def _weights(workdir: Path) -> dict[str, bytes]:
    with safe_open(workdir / "hf" / "model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def _metrics(name: str) -> Callable[[Path], object]:
    def read(workdir: Path) -> list[dict]:
        rows = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
        if [row["step"] for row in rows] != list(range(1, len(rows) + 1)):
            raise ValueError(f"{workdir / name}: the steps are not 1, 2, ..., {len(rows)}")
        return [
            {k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in rows
        ]

    return read


def _summary(workdir: Path) -> dict:
    """The figures of a run, its FLOPs among them."""
    return {
        k: v
        for k, v in json.loads((workdir / "summary.json").read_text()).items()
        if k not in ("seconds", "peak_rss_bytes")
    }


@dataclasses.dataclass
class Tally:
    """What became of the kills."""

    kills: int = 0
    lost: int = 0  # finished samples that were in the log at a kill and not at the next
    runs: int = 0  # runs that were finished and compared
    different: list[str] = dataclasses.field(default_factory=list)


def kill_repeatedly(
    command: Command,
    workdir: Path,
    expected: Path,
    kills: int,
    life: Callable[[], float],
    show: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Kills the run in `workdir` `kills` times, each time `life()` seconds after its start, and
    lets it finish after the last.

    A run that finishes earlier is compared and put aside, and another is begun. Raises ValueError
    if any sample or step was done twice, RuntimeError if a resumed run fails.
    """
    tally, known = Tally(), {}

    def compare() -> None:
        tally.runs += 1
        tally.different += differences(workdir, expected)
        workdir.rename(workdir.with_name(f"{workdir.name} {tally.runs}"))

    while tally.kills < kills:
        child = command.start(workdir)
        try:
            completed(child, timeout=life())
            compare()
            known = {}
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.communicate()
            tally.kills += 1
            found = samples(workdir)
            tally.lost += sum(found.get(key) != record for key, record in known.items())
            known = found
        show(tally)
    command.finish(workdir)
    compare()
    return tally


def main() -> None:
    """Prints one line a kill, and what became of them all; status 1 unless everything is equal."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--config", default="configs/demo.py")
    arguments, flags = parser.parse_known_args()
    directory, moments = arguments.out.absolute(), random.Random(0)
    command = Command(arguments.config, tuple(flags), directory / "cache")
    started = time.monotonic()
    command.finish(directory / "whole")
    print(f"whole run: {time.monotonic() - started:.0f} s", flush=True)

    def show(tally: Tally) -> None:
        stages = [
            path.stem
            for path in sorted(
                (directory / "killed" / "stages").glob("*.json"), key=os.path.getmtime
            )
        ]
        print(
            f"{tally.kills} kills, the last in {stages[-1] if stages else 'start-up'}; {tally.lost}"
            " samples lost",
            flush=True,
        )

    life = lambda: moments.uniform(*LIFE)  # noqa: E731
    tally = kill_repeatedly(
        command, directory / "killed", directory / "whole", arguments.kills, life, show
    )
    print(
        f"{tally.kills} kills, {tally.lost} samples lost, 0 samples or steps done twice,"
        f" {tally.runs} finished runs compared; different from the run left alone:"
        f" {', '.join(tally.different) or 'nothing'}"
    )
    sys.exit(bool(tally.lost or tally.different))


if __name__ == "__main__":
    main()
