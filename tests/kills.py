"""Kills a run again and again and compares it, to the bit, with a run that was left alone.

`python -m tests.kills OUT [--kills=60] [--config=FILE] [--config.field=value ...]`:
OUT/whole is the run left alone (reused if it is finished), OUT/killed the other, killed at drawn
moments. Without a configuration it is the smoke run.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.artefacts import inventory, lost, unlike
from tests.runs import SMOKE, Command, Tally, count_lines, kill_repeatedly

# Files, or folders of parts, that grow while a stage works, by one line a step or sample.
BASE, CORPUS, TRAIN = "base/metrics.jsonl", "corpus/log", "metrics.jsonl"
STARTING = 4.0  # seconds that a run takes to begin to work


def progress(workdir: Path, expected: Path) -> float:
    """Returns how far a run is: from 0 at the beginning to 4 when it is like the finished one.

    Base training, corpus, training, and stages begun count 1 each.
    """

    def share(name: str) -> float:
        return count_lines(workdir / name) / count_lines(expected / name)

    stages = [len(list((run / "stages").glob("*.json"))) for run in (workdir, expected)]
    return share(BASE) + share(CORPUS) + share(TRAIN) + stages[0] / stages[1]


def drawn_moment(
    workdir: Path, expected: Path, draws: random.Random
) -> Callable[[subprocess.Popen], None]:
    """Returns a function that waits until a moment of the run at which it may be killed.

    Of the moments that come while the run works it is drawn by what is done then, so that every
    stage is met on any machine; a part are in its first seconds.
    """

    def wait(child: subprocess.Popen) -> None:
        if draws.random() < 0.15:
            time.sleep(draws.uniform(0, STARTING))
            return
        aim = progress(workdir, expected) + draws.uniform(0, 0.8)
        while child.poll() is None and progress(workdir, expected) < aim:
            time.sleep(0.02)
        time.sleep(draws.uniform(0, 0.2))

    return wait


def last_stage(workdir: Path) -> str:
    """Returns the stage that was begun or finished last."""
    records = sorted((workdir / "stages").glob("*.json"), key=os.path.getmtime)
    return records[-1].stem if records else "start-up"


def main() -> None:
    """Prints one line a kill and then the result; the status is 1 unless everything is equal."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--config")
    arguments, flags = parser.parse_known_args()
    directory = arguments.out.absolute()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory / "cache")  # shared by all lives
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = Command(arguments.config, tuple(flags)) if arguments.config else SMOKE
    started = time.monotonic()
    command.finish(directory / "whole")
    print(f"whole run: {time.monotonic() - started:.0f} s", flush=True)
    killed = directory / "killed"
    whole: dict[str, str] = {}  # the finished files at the last kill
    gone: list[str] = []

    def show(tally: Tally) -> None:
        nonlocal whole
        if killed.exists():
            gone.extend(lost(whole, killed))
            whole = inventory(killed)
        else:  # it was finished and put aside
            whole = {}
        print(
            f"{tally.kills} kills, the last in {last_stage(killed)}; {tally.lost} samples and"
            f" {len(gone)} files lost",
            flush=True,
        )

    moment = drawn_moment(killed, directory / "whole", random.Random(0))
    tally = kill_repeatedly(command, killed, directory / "whole", arguments.kills, moment, show)
    for run in directory.glob("killed *"):
        tally.different += unlike(run, directory / "whole")
    print(
        f"{tally.kills} kills, {tally.lost} samples lost, 0 samples or steps done twice,"
        f" files lost: {', '.join(gone) or 'none'}; {tally.runs} finished runs compared; different"
        f" from the run left alone: {', '.join(tally.different) or 'nothing'}"
    )
    sys.exit(bool(tally.lost or gone or tally.different))


if __name__ == "__main__":
    main()
