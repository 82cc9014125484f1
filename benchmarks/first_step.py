"""`python -m benchmarks.first_step runs/demo`: seconds from starting the command to the first RL
step, over a finished corpus.

Cold: nothing is compiled yet. Warm: as a run that goes on, JAX's compilation cache in the work
directory holds everything.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEPT = (
    "base",
    "corpus",
    "prefixes",
    "stages/base.json",
    "stages/corpus.json",
    "stages/prefixes.json",
)


def seconds_to_first_step(workdir: Path, config: str) -> float:
    """Runs the main command in its own process and stops it when it has written the first training
    step.
    """
    command = [
        sys.executable,
        "-u",
        "-m",
        "prefixrl_jax.main",
        f"--config={config}",
        f"--workdir={workdir}",
        "--stage=train",
    ]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("train 1/"):
                process.kill()
                return time.monotonic() - started
    raise RuntimeError(
        f"{' '.join(command)} ended with status {process.returncode} before its first training step"
    )


def main() -> None:
    """Prints both figures; argv: a work directory whose corpus is complete, and its configuration
    (configs/demo.py).
    """
    if len(sys.argv) not in (2, 3):
        sys.exit(
            "usage: python -m benchmarks.first_step WORKDIR [CONFIG]; the corpus in WORKDIR must be"
            " complete"
        )
    finished, config = Path(sys.argv[1]), [*sys.argv, "configs/demo.py"][2]
    with tempfile.TemporaryDirectory() as temporary:
        for what in ("cold", "warm"):
            workdir = Path(temporary) / what
            for name in KEPT:
                copy = shutil.copytree if (finished / name).is_dir() else shutil.copy
                (workdir / name).parent.mkdir(parents=True, exist_ok=True)
                copy(finished / name, workdir / name)
            if what == "warm":
                shutil.copytree(Path(temporary) / "cold" / "xla_cache", workdir / "xla_cache")
            print(
                f"first RL step, {what}: {seconds_to_first_step(workdir, config):.1f} s", flush=True
            )


if __name__ == "__main__":
    main()
