"""The loop: take a batch of groups, update, write down what happened, save.

Base training, SFT and reinforcement learning are this loop with another source of batches and
another loss. A step is a pure function of (state, configuration, step), so a run that was stopped
goes on as if it had not been.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Group
from prefixrl_jax.rl.step import TrainState
from prefixrl_jax.runtime import interrupt
from prefixrl_jax.runtime.checkpoint import Checkpoints
from prefixrl_jax.runtime.metrics import Bar, Metrics, host_metrics, human_flops
from prefixrl_jax.runtime.processes import share_charges
from prefixrl_jax.training.health import Unsound


class Diverged(RuntimeError):
    """Loss or gradient became non-finite. The state before the step is kept and saved."""


@dataclasses.dataclass
class Batch:
    """A global batch of groups for the update, a line that names what is in it, and metrics known
    before the update.
    """

    group: Group
    description: str
    tokens: int  # of all processes, for throughput
    metrics: dict[str, float]
    # books one update's FLOPs, given the update's metrics
    charge: Callable[[Ledger, dict[str, float]], None]
    # the source's, once the step is done; JSON values
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)


# (parameters, step from 0, ledger, memory) -> batch
Source = Callable[[Any, int, Ledger, dict[str, Any]], Batch]


@dataclasses.dataclass
class Loop:
    """Everything a run of the loop needs.

    `source` may sample from the current parameters, and keep what it learns between steps as its
    memory, which is saved with every checkpoint.
    """

    name: str
    update: Callable[[TrainState, Group], tuple[TrainState, dict[str, jax.Array]]]
    source: Source
    steps: int
    directory: Path  # metrics.jsonl, events/ and checkpoints/ go here
    updates_per_batch: int = 1
    save_every: int = 0  # steps between checkpoints; 0: only at the end
    keep: int = 2
    evaluate_every: int = 0
    evaluate: Callable[[Any, int, Ledger], dict[str, float]] | None = None
    score: str = "reward/plain"  # metric of the best checkpoint
    note: Callable[[dict[str, float]], str] = lambda m: f"loss {m['loss']:.4f}"
    stop: Callable[[Ledger], bool] = lambda ledger: False  # a FLOPs budget, say
    # (step from 1, metrics); may raise Unsound
    gates: Callable[[int, dict[str, float]], None] = lambda step, values: None
    omit: tuple[str, ...] = ()  # beginnings of metrics that mean nothing for this source
    on_step: Callable[[dict[str, float]], None] = lambda values: None
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(
        self, state: TrainState, abstract: TrainState, ledger: Ledger
    ) -> tuple[TrainState, Ledger]:
        """Runs from the newest checkpoint (or from `state`) to the last step.

        Raises Diverged on a non-finite step, Unsound when a gate closes, Interrupted when the
        process was asked to stop; the last good state is saved first.
        """
        with Checkpoints(self.directory / "checkpoints", self.keep) as checkpoints:
            begin = 0
            if (saved := checkpoints.restore(abstract)) is not None:
                begin, state, sidecar = saved
                ledger, self.memory = Ledger(sidecar["ledger"]), sidecar.get("memory", {})
            metrics = Metrics(self.directory / "metrics.jsonl", self.directory / "events", begin)
            try:
                with Bar(self.name, self.steps, begin) as bar:
                    for step in range(begin, self.steps):
                        if self.stop(ledger):
                            checkpoints.save(step, state, self._sidecar(ledger))
                            break
                        state, values = self._step(state, step, ledger, checkpoints)
                        metrics.write(step + 1, values)
                        self.on_step(values)
                        bar.update(step + 1, self.note(values), line=True)
                        stopping = interrupt.received()
                        if stopping or self._save_now(step + 1):
                            checkpoints.save(
                                step + 1, state, self._sidecar(ledger), values.get(self.score)
                            )
                        if stopping:
                            raise interrupt.Interrupted
                        self._watch(step + 1, state, values, ledger, checkpoints)
            finally:
                metrics.close()
        return state, ledger

    def _sidecar(self, ledger: Ledger) -> dict[str, Any]:
        """What is saved beside the arrays: copies, for it is written while the next step changes
        them.
        """
        return {"ledger": ledger.copy().state, "memory": copy.deepcopy(self.memory)}

    def _save_now(self, step: int) -> bool:
        return step == self.steps or (self.save_every > 0 and step % self.save_every == 0)

    def _watch(
        self, step: int, state: TrainState, values, ledger: Ledger, checkpoints: Checkpoints
    ) -> None:
        try:
            self.gates(step, values)
        except Unsound:
            checkpoints.save(step, state, self._sidecar(ledger))
            raise

    def _step(
        self, state: TrainState, step: int, ledger: Ledger, checkpoints: Checkpoints
    ) -> tuple[TrainState, dict[str, float]]:
        """Batch, update, evaluation; returns the new state and the step's metrics."""
        started, before = time.monotonic(), ledger.copy()
        try:
            batch = self.source(state.params, step, ledger, self.memory)
        except interrupt.Interrupted:  # the step is abandoned, and so is what it has cost
            checkpoints.save(step, state, self._sidecar(before))
            raise
        sampled = time.monotonic()
        state, values = self._update(state, batch, ledger)
        share_charges(ledger, before.state)
        if not values.pop("finite"):
            checkpoints.save(step, state, self._sidecar(ledger))
            raise Diverged(
                f"{self.name} step {step + 1}: loss {values['loss']}, gradient norm"
                f" {values['grad_norm']} on the batch {batch.description}; the state before it is"
                f" saved as step {step}"
            )
        self.memory, trained = batch.memory, time.monotonic()
        values |= batch.metrics | {
            "time/sample": batch.metrics.get("time/sample", sampled - started),
            "time/train": trained - sampled,
            "perf/tokens_per_second": batch.tokens / max(trained - started, 1e-9),
        }
        if (
            self.evaluate is not None
            and self.evaluate_every
            and (step + 1) % self.evaluate_every == 0
        ):
            with interrupt.deferred():
                values |= self.evaluate(state.params, step + 1, ledger)
            values["time/eval"] = time.monotonic() - trained
        values |= {
            "flops/total": ledger.total(),
            "flops/actual_total": ledger.total("actual"),
            "time/step": time.monotonic() - started,
        }
        return state, {
            k: v for k, v in values.items() if not (self.omit and k.startswith(self.omit))
        }

    def _update(
        self, state: TrainState, batch: Batch, ledger: Ledger
    ) -> tuple[TrainState, dict[str, float]]:
        """All optimizer steps on one batch, up to the first that is not finite, which leaves the
        state as it was.
        """
        values: dict[str, float] = {}
        for i in range(self.updates_per_batch):
            state, out = self.update(state, batch.group)
            found = host_metrics(out)
            batch.charge(ledger, found)
            # The sampler/trainer gap means something only before the first update on a batch.
            values |= {
                k: v for k, v in found.items() if i == 0 or not k.startswith("sampler_trainer/")
            }
            if not found["finite"]:
                break
        return state, values


def progress_note(values: dict[str, float]) -> str:
    """The progress line of reinforcement learning."""
    parts = [
        f"reward {values['reward/mean']:.3f}",
        f"plain {values['reward/plain']:.3f}",
        f"entropy {values['entropy']:.2f}",
    ]
    parts = [part for part in parts if "nan" not in part]  # a batch without plain problems
    return "  ".join([*parts, human_flops(values["flops/total"])])
