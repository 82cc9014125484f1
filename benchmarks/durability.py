"""`python -m benchmarks.durability runs/demo`: what it costs that nothing is lost, as shares of the time they are part of.

A checkpoint: ten updates of the demo with one asynchronous save among them, against ten without, in turn. The corpus log: the
time inside `SharedLog` while the demo's corpus is sampled anew (at a quarter of its size) from the base model in runs/demo.
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
from benchmarks.timing import paired
from configs import demo
from prefixrl_jax.checkpoint import Checkpoints
from prefixrl_jax.experiment import Experiment
from prefixrl_jax.settings import resolve
from prefixrl_jax.shared_log import SharedLog

UPDATES = 10  # between two checkpoints, as in the demo


def checkpoint_cost(directory: Path) -> tuple[float, float]:
    """(extra time of UPDATES updates with a save, as a share of theirs; seconds that the call itself takes)."""
    s, calls = resolve(demo.get_config()), []
    with jax.set_mesh(s.mesh), Checkpoints(directory) as checkpoints:
        group = make_group(s, s.config.train.batch, s.config.train.group, max(s.engine.buckets), s.sampling.max_new_tokens)
        step = TrainStep(s, group, s.config.train.micro_batches)

        def updates(save: bool) -> object:
            for i in range(UPDATES):
                out = jax.block_until_ready(step())
                if save and i == 0:
                    started = time.perf_counter()
                    checkpoints.save(len(calls), step.state, {"ledger": {}})
                    calls.append(time.perf_counter() - started)
            return out

        _, _, ratio = paired(lambda: updates(False), lambda: updates(True), repeats=9)
    return ratio - 1, statistics.median(calls)


def log_cost(finished: Path, directory: Path) -> tuple[float, float]:
    """(time inside the log as a share of select and collect, seconds of both)."""
    config, inside = demo.get_config(), []
    for part in ("base", "stages/base.json"):
        (directory / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (finished / part).is_dir() else shutil.copy)(finished / part, directory / part)
    config.data.train_candidates, config.data.heldout_candidates = 175, 100
    timed = {name: getattr(SharedLog, name) for name in ("append", "share")}
    for name, function in timed.items():
        setattr(SharedLog, name, _timed(function, inside))
    started = time.perf_counter()
    Experiment(config, directory).run("corpus")
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
        sys.exit("usage: python -m benchmarks.durability WORKDIR; the demo's base model must be in WORKDIR")
    with tempfile.TemporaryDirectory() as temporary:
        share, call = checkpoint_cost(Path(temporary) / "checkpoints")
        print(f"checkpoint  {share:+.1%} of the time of {UPDATES} updates; the call returns after {call * 1e3:.0f} ms")
        share, seconds = log_cost(Path(sys.argv[1]), Path(temporary) / "run")
        print(f"corpus log  {share:.2%} of the {seconds:.0f} s of select and collect")


if __name__ == "__main__":
    main()
