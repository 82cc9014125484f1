"""Kills a run again and again and compares it, to the bit, with a run that was left alone.

`python -m tests.kills OUT [--kills=60] [--life 1 15] [--config=FILE] [--config.field=value ...]`:
OUT/whole is the run left alone (reused if it is finished), OUT/killed the other, killed at drawn
moments. Without a configuration it is the smoke run. For another one, give the bounds of the
seconds that it lives: the lower one should be the time it takes to start.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.artefacts import inventory, lost, unlike
from tests.runs import SMOKE, Command, Tally, kill_repeatedly


def last_stage(workdir: Path) -> str:
    """Returns the stage that was begun or finished last."""
    records = sorted((workdir / "stages").glob("*.json"), key=os.path.getmtime)
    return records[-1].stem if records else "start-up"


def main() -> None:
    """Prints one line a kill and then the result; the status is 1 unless everything is equal."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--life", type=float, nargs=2, default=(1.0, 15.0))
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

    moments = random.Random(0)

    def moment(child: subprocess.Popen) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=moments.uniform(*arguments.life))

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
