"""`python -m benchmarks.durability runs/demo`: what it costs that nothing is lost.

Two costs, as shares of the time that they are part of. A checkpoint: the CPU time of an
asynchronous save against that of the demo's ten updates between two. The corpus log: the time
inside `SharedLog` while the demo's corpus is sampled anew, at a quarter of its size, from the base
model in runs/demo.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.run import TrainStep, make_group, training_shape
from prefixrl_jax.configs import demo
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.experiment.run import Run
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.runtime.checkpoint import Checkpoints

UPDATES = 10  # between two checkpoints, the default


def checkpoint_cost(directory: Path, saves: int = 9) -> tuple[float, float]:
    """Time asynchronous saves; return medians over `saves`.

    It is the CPU time of the whole process, all threads: a save runs beside the updates, and on a
    machine whose speed moves by several per cent from one second to the next its part of the wall
    time cannot be told.

    Returns:
        CPU time of a save as a share of that of UPDATES updates, and seconds until the call
        returns.
    """
    settings = resolve(demo.get_config())
    shares, call_seconds = [], []
    with jax.set_mesh(settings.mesh), Checkpoints(directory) as checkpoints:
        group = make_group(settings, training_shape(settings))
        step = TrainStep(settings, group, settings.config.train.micro_batches)
        jax.block_until_ready(step())
        for i in range(saves):
            started = time.process_time()
            for _ in range(UPDATES):
                jax.block_until_ready(step())
            updated = time.process_time()
            called = time.perf_counter()
            checkpoints.save(i, step.state, {"ledger": {}})
            call_seconds.append(time.perf_counter() - called)
            checkpoints.wait()
            shares.append((time.process_time() - updated) / (updated - started))
    return statistics.median(shares), statistics.median(call_seconds)


def log_cost(finished: Path, directory: Path) -> tuple[float, float]:
    """Sample the corpus in `directory` from the base model in `finished`.

    Returns:
        Time inside the log as a share of that of select and collect, and seconds of both.
    """
    for name in ("base", "stages/base.json"):
        copy = shutil.copytree if (finished / name).is_dir() else shutil.copy
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        copy(finished / name, directory / name)
    config = demo.get_config()
    config.data.train_candidates = 175
    config.data.heldout_candidates = 100
    seconds_inside: list[float] = []
    methods = {name: getattr(SharedLog, name) for name in ("append", "share")}
    for name, method in methods.items():
        setattr(SharedLog, name, _timed(method, seconds_inside))
    started = time.perf_counter()
    Run(Workdir(config, directory)).run("corpus")
    seconds = time.perf_counter() - started
    for name, method in methods.items():
        setattr(SharedLog, name, method)
    return sum(seconds_inside) / seconds, seconds


def _timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def call(*args, **kwargs):
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    return call


def main() -> None:
    """Print both costs; argv: the work directory of a demo whose base stage is complete."""
    if len(sys.argv) != 2:
        sys.exit(
            "usage: python -m benchmarks.durability WORKDIR; the demo's base model must be in"
            " WORKDIR"
        )
    with tempfile.TemporaryDirectory() as temporary:
        share, call_seconds = checkpoint_cost(Path(temporary) / "checkpoints")
        print(
            f"checkpoint  {share:.2%} of the CPU time of {UPDATES} updates; the call returns after"
            f" {call_seconds * 1e3:.0f} ms",
            flush=True,
        )
        share, seconds = log_cost(Path(sys.argv[1]), Path(temporary) / "run")
        print(f"corpus log  {share:.2%} of the {seconds:.0f} s of select and collect")


if __name__ == "__main__":
    main()
