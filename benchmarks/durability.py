"""`python -m benchmarks.durability runs/demo`: what it costs that nothing is lost, as shares of the
time they are part of.

A checkpoint: the CPU time of an asynchronous save against that of the demo's ten updates between
two. The corpus log: the time inside `SharedLog` while the demo's corpus is sampled anew (at a
quarter of its size) from the base model in runs/demo.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.run import TrainStep, make_group
from configs import demo
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.experiment.run import Run
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.runtime.checkpoint import Checkpoints

UPDATES = 10  # between two checkpoints, as in the demo


def checkpoint_cost(directory: Path, saves: int = 9) -> tuple[float, float]:
    """(CPU time of a save as a share of that of UPDATES updates, seconds until the call returns):
    medians over `saves`.

    CPU time of the whole process, all threads: a save runs beside the updates, and on a machine
    whose speed moves by several per cent from one second to the next its part of the wall time
    cannot be told.
    """
    s, shares, calls = resolve(demo.get_config()), [], []
    with jax.set_mesh(s.mesh), Checkpoints(directory) as checkpoints:
        group = make_group(
            s,
            s.config.train.batch,
            s.config.train.group,
            max(s.engine.buckets),
            s.sampling.max_new_tokens,
        )
        step = TrainStep(s, group, s.config.train.micro_batches)
        jax.block_until_ready(step())
        for i in range(saves):
            started = time.process_time()
            for _ in range(UPDATES):
                jax.block_until_ready(step())
            updated, began = time.process_time(), time.perf_counter()
            checkpoints.save(i, step.state, {"ledger": {}})
            calls.append(time.perf_counter() - began)
            checkpoints.wait()
            shares.append((time.process_time() - updated) / (updated - started))
    return statistics.median(shares), statistics.median(calls)


def log_cost(finished: Path, directory: Path) -> tuple[float, float]:
    """(time inside the log as a share of select and collect, seconds of both)."""
    config, inside = demo.get_config(), []
    for part in ("base", "stages/base.json"):
        (directory / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (finished / part).is_dir() else shutil.copy)(
            finished / part, directory / part
        )
    config.data.train_candidates, config.data.heldout_candidates = 175, 100
    timed = {name: getattr(SharedLog, name) for name in ("append", "share")}
    for name, function in timed.items():
        setattr(SharedLog, name, _timed(function, inside))
    started = time.perf_counter()
    Run(Workdir(config, directory)).run("corpus")
    seconds = time.perf_counter() - started
    for name, function in timed.items():
        setattr(SharedLog, name, function)
    return sum(inside) / seconds, seconds


def _timed(function, inside: list[float]):
    def call(*args, **kwargs):
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            inside.append(time.perf_counter() - started)

    return call


def main() -> None:
    """Prints both costs; argv: the work directory of a demo whose base stage is complete."""
    if len(sys.argv) != 2:
        sys.exit(
            "usage: python -m benchmarks.durability WORKDIR; the demo's base model must be in"
            " WORKDIR"
        )
    with tempfile.TemporaryDirectory() as temporary:
        share, call = checkpoint_cost(Path(temporary) / "checkpoints")
        print(
            f"checkpoint  {share:.2%} of the CPU time of {UPDATES} updates; the call returns after"
            f" {call * 1e3:.0f} ms",
            flush=True,
        )
        share, seconds = log_cost(Path(sys.argv[1]), Path(temporary) / "run")
        print(f"corpus log  {share:.2%} of the {seconds:.0f} s of select and collect")


if __name__ == "__main__":
    main()
