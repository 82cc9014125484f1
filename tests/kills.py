"""Kills a run again and again and compares it, to the bit, with a run that was left alone.

`python -m tests.kills OUT [--kills=30] [--config=configs/demo.py] [--config.field=value ...]`:
OUT/whole is the run left alone (reused if it is finished), OUT/killed the other, killed at drawn
moments.
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

from tests.runs import Command, Tally, kill_repeatedly

# Seconds that a run lives before it is killed: compilation takes ten, and every stage is to be hit.
LIFE = (20.0, 60.0)


def last_stage(workdir: Path) -> str:
    """Returns the stage that was begun or finished last."""
    records = sorted((workdir / "stages").glob("*.json"), key=os.path.getmtime)
    return records[-1].stem if records else "start-up"


def main() -> None:
    """Prints one line a kill and then the result; the status is 1 unless everything is equal."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--config", default="configs/demo.py")
    arguments, flags = parser.parse_known_args()
    directory = arguments.out.absolute()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory / "cache")  # shared by all lives
    command = Command(arguments.config, tuple(flags))
    started = time.monotonic()
    command.finish(directory / "whole")
    print(f"whole run: {time.monotonic() - started:.0f} s", flush=True)

    def show(tally: Tally) -> None:
        print(
            f"{tally.kills} kills, the last in {last_stage(directory / 'killed')};"
            f" {tally.lost} samples lost",
            flush=True,
        )

    moments = random.Random(0)

    def moment(child: subprocess.Popen) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=moments.uniform(*LIFE))

    tally = kill_repeatedly(
        command,
        directory / "killed",
        directory / "whole",
        arguments.kills,
        moment,
        show,
    )
    print(
        f"{tally.kills} kills, {tally.lost} samples lost, 0 samples or steps done twice,"
        f" {tally.runs} finished runs compared; different from the run left alone:"
        f" {', '.join(tally.different) or 'nothing'}"
    )
    sys.exit(bool(tally.lost or tally.different))


if __name__ == "__main__":
    main()
