"""`python -m benchmarks.first_step runs/demo`: seconds from the command to the first RL step.

The corpus is finished. Cold: nothing is compiled yet. Warm: JAX's compilation cache in the work
directory holds everything, as for a run that goes on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What the train stage needs of a finished run.
KEPT = (
    "base",
    "corpus",
    "prefixes",
    "stages/base.json",
    "stages/corpus.json",
    "stages/prefixes.json",
)


def seconds_to_first_step(workdir: Path, config: str) -> float:
    """Run the main command in a process of its own until it has written its first training step.

    Raises:
        RuntimeError: It ended before.
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
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("train 1/"):
                process.kill()
                return time.monotonic() - started
    raise RuntimeError(
        f"{' '.join(command)} ended with status {process.returncode} before its first training step"
    )


def copy_corpus(finished: Path, workdir: Path) -> None:
    """Copy what `KEPT` names from a finished run into a new work directory."""
    for name in KEPT:
        copy = shutil.copytree if (finished / name).is_dir() else shutil.copy
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        copy(finished / name, workdir / name)


def main() -> None:
    """Print both figures; argv: a work directory with a complete corpus, and its configuration."""
    if len(sys.argv) not in (2, 3):
        sys.exit(
            "usage: python -m benchmarks.first_step WORKDIR [CONFIG]; the corpus in WORKDIR must be"
            " complete"
        )
    finished = Path(sys.argv[1])
    config = sys.argv[2] if len(sys.argv) == 3 else "configs/demo.py"
    with tempfile.TemporaryDirectory() as temporary:
        cold, warm = Path(temporary) / "cold", Path(temporary) / "warm"
        for workdir in (cold, warm):
            copy_corpus(finished, workdir)
            if workdir is warm:
                shutil.copytree(cold / "xla_cache", warm / "xla_cache")
            seconds = seconds_to_first_step(workdir, config)
            print(f"first RL step, {workdir.name}: {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
