"""The training loop: take a batch of groups, update, write down what happened, save.

Base training, supervised fine-tuning and reinforcement learning are this loop with another source
of batches and another loss. One step is, in order:

    contexts    which problems and prefixes this step trains on      source (`on_policy.py`)
    rollouts    continuations of each by the current policy          source
    verdicts    right or wrong, graded while sampling goes on        source
    advantages  reward minus the mean of its group                   update (`rl/step.py`)
    update      one policy-gradient step on the continuations        update
    learnt      what the schedule of prefixes remembers              source; kept here afterwards
    evaluation  plain accuracy, every so many steps                  here
    written     readable samples                                     source
                metrics, progress line, checkpoint                   here

A step is a pure function of (state, configuration, step), so a run that was stopped goes on as if
it had not been.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from prefixrl_jax.flops import Ledger, format_flops
from prefixrl_jax.group import Group
from prefixrl_jax.rl.step import TrainState
from prefixrl_jax.runtime import interrupt
from prefixrl_jax.runtime.checkpoint import Checkpoints
from prefixrl_jax.runtime.console import Progress
from prefixrl_jax.runtime.metrics import Metrics, host_metrics
from prefixrl_jax.runtime.processes import share_charges
from prefixrl_jax.training.health import Unhealthy

Values = dict[str, float]  # metrics of one step, by name


BEST_BY = "reward/plain"  # the metric by which the best checkpoint is kept besides the newest


class Diverged(RuntimeError):
    """Loss, gradient or parameters were not finite. The state before the step is kept and saved."""


@dataclasses.dataclass
class Batch:
    """What one step trains on.

    Attributes:
        group: groups of all processes, placed on the mesh.
        description: names the batch in an error message.
        tokens: sampled or read by all processes, for the throughput.
        metrics: known before the update.
        charge: books one update's FLOPs in a ledger, given the metrics of the update.
        memory: what the source remembers once the step is done; JSON values.
    """

    group: Group
    description: str
    tokens: int
    metrics: Values
    charge: Callable[[Ledger, Values], None]
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)


# (parameters, step from 0, ledger, memory) -> the batch of the step.
Source = Callable[[Any, int, Ledger, dict[str, Any]], Batch]


@dataclasses.dataclass
class LoopState:
    """Where a loop stands.

    Attributes:
        step: number of steps done.
        state: the train state.
        ledger: the bill.
        memory: of the source.
        metrics: of the last step; empty before the first.
    """

    step: int
    state: TrainState
    ledger: Ledger
    memory: dict[str, Any]
    metrics: Values


@dataclasses.dataclass(frozen=True)
class Saving:
    """When checkpoints are saved.

    Attributes:
        every: steps between checkpoints; 0: only at the end.
        keep: newest checkpoints to keep; the best by BEST_BY is kept besides.
    """

    every: int = 0
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on the way.

    Attributes:
        every: steps between evaluations; 0: none.
        run: (parameters, step from 1, ledger) -> metrics.
    """

    every: int
    run: Callable[[Any, int, Ledger], Values]


@dataclasses.dataclass
class Loop:
    """What a run of the loop needs.

    Attributes:
        name: of the stage, on progress lines.
        update: the jitted update (state, group) -> (state, metrics).
        source: makes the batch of a step; may sample from the current parameters.
        steps: in all, those before a resume included.
        directory: where metrics.jsonl, events/ and checkpoints/ go.
        updates_per_batch: optimizer steps on each batch.
        saving: when checkpoints are saved.
        evaluation: what is measured on the way, if anything.
        stop: whether to end early, given the ledger, for example at a FLOPs budget.
        check_health: (step from 1, metrics); may raise Unhealthy.
        omit: beginnings of metrics that mean nothing for this source.
        note: what the progress line says of a step.
        line_every: steps between lines where there is no terminal.
        memory: what the source remembers when the loop begins.
        identity: of the settings that the checkpoints are of; "" accepts any.
    """

    name: str
    update: Callable[[TrainState, Group], tuple[TrainState, dict[str, jax.Array]]]
    source: Source
    steps: int
    directory: Path
    updates_per_batch: int = 1
    saving: Saving = Saving()
    evaluation: Evaluation | None = None
    stop: Callable[[Ledger], bool] = lambda ledger: False
    check_health: Callable[[int, Values], None] = lambda step, values: None
    omit: tuple[str, ...] = ()
    note: Callable[[Values], str] = lambda values: f"loss {values['loss']:.4f}"
    line_every: int = 1
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)
    identity: str = ""

    def run(self, state: TrainState, abstract: TrainState, ledger: Ledger) -> LoopState:
        """Run from the newest checkpoint (or from `state`) to the last step.

        Args:
            state: where to begin if there is no checkpoint.
            abstract: the state's shapes and shardings, to restore a checkpoint into.
            ledger: what has been spent before, if there is no checkpoint.

        Raises:
            Diverged: a step was not finite.
            Unhealthy: `check_health` refused to go on.
            Interrupted: the process was asked to stop.
            OSError: a file could not be written, or the last checkpoint not be read back.
            In each case the last good state is saved first.
        """
        with Checkpoints(self.directory / "checkpoints", self.saving.keep) as checkpoints:
            now = LoopState(0, state, ledger, self.memory, {})
            if (saved := checkpoints.restore(abstract)) is not None:
                step, state, sidecar = saved
                self._check_identity(step, sidecar)
                ledger = Ledger(sidecar["ledger"])
                # The memory and the metrics are not in all checkpoints of version 0.1.0.
                memory, last = sidecar.get("memory", {}), sidecar.get("metrics", {})
                now = LoopState(step, state, ledger, memory, last)
            begin = now.step
            if begin > self.steps:
                raise ValueError(
                    f"{self.name}.steps={self.steps}: {begin} steps are done already, and cannot be"
                    f" taken back; {begin} or more are accepted"
                )
            metrics = Metrics(self.directory / "metrics.jsonl", self.directory / "events", begin)
            try:
                with Progress(self.name, self.steps, begin) as progress:
                    for step in range(begin, self.steps):
                        if self.stop(now.ledger):
                            self._save(checkpoints, now)
                            break
                        self._step(now, step, checkpoints)
                        metrics.write(step + 1, now.metrics)
                        due = _is_due(step + 1, self.line_every)
                        progress.update(step + 1, self.note(now.metrics), line=due)
                        self._finish(now, step + 1, checkpoints)
            finally:
                metrics.close()
            if now.step > begin:
                # What the next stages are made from is read back, while it can be made again. The
                # arrays are let go first, as there may be no room for them twice.
                now.state = abstract
                now.state = checkpoints.read_back(now.step, abstract)
        return now

    def _check_identity(self, step: int, sidecar: dict[str, Any]) -> None:
        """Raise ValueError for a checkpoint that was made with other settings."""
        # Checkpoints of version 0.1.0 have none.
        if self.identity and sidecar.get("identity", self.identity) != self.identity:
            raise ValueError(
                f"{self.directory / 'checkpoints' / str(step)}: made with other settings, or from"
                f" other parameters, than the {self.name} stage has now; set them back, move the"
                " checkpoints away, or use another --workdir"
            )

    def _step(self, now: LoopState, step: int, checkpoints: Checkpoints) -> None:
        """Batch, update and evaluation of one step; `now` is changed in place."""
        started = time.monotonic()
        before = now.ledger.copy()
        try:
            batch = self.source(now.state.params, step, now.ledger, now.memory)
        except interrupt.Interrupted:  # the step is abandoned, and so is what it has cost
            self._save(checkpoints, dataclasses.replace(now, ledger=before))
            raise
        sampled = time.monotonic()
        now.state, values = self._update(now.state, batch, now.ledger)
        share_charges(now.ledger, before.state)
        if not values.pop("finite"):
            self._save(checkpoints, now)
            raise Diverged(
                f"{self.name} step {step + 1}: loss {values['loss']}, gradient norm"
                f" {values['grad_norm']} or the new parameters are not finite, on the batch"
                f" {batch.description}; the state before it is saved as step {step}"
            )
        now.memory = batch.memory
        trained = time.monotonic()
        values |= batch.metrics
        values["time/sample"] = sampled - started
        values["time/train"] = trained - sampled
        values["perf/tokens_per_second"] = batch.tokens / max(trained - started, 1e-9)
        if self.evaluation is not None and _is_due(step + 1, self.evaluation.every):
            with interrupt.deferred():
                values |= self.evaluation.run(now.state.params, step + 1, now.ledger)
            values["time/eval"] = time.monotonic() - trained
        values["flops/total"] = now.ledger.total()
        values["flops/actual_total"] = now.ledger.total("actual")
        values["time/step"] = time.monotonic() - started
        now.metrics = {k: v for k, v in values.items() if not k.startswith(self.omit)}
        now.step = step + 1

    def _update(
        self, state: TrainState, batch: Batch, ledger: Ledger
    ) -> tuple[TrainState, dict[str, Any]]:
        """Make all optimizer steps on one batch.

        It ends at the first that is not finite, which leaves the state as it was.
        """
        values: dict[str, float] = {}
        for i in range(self.updates_per_batch):
            state, device_metrics = self.update(state, batch.group)
            update_metrics = host_metrics(device_metrics)
            batch.charge(ledger, update_metrics)
            # The sampler/trainer gap means something only before the first update on a batch.
            values |= {
                name: value
                for name, value in update_metrics.items()
                if i == 0 or not name.startswith("sampler_trainer/")
            }
            if not update_metrics["finite"]:
                break
        return state, values

    def _finish(self, now: LoopState, step: int, checkpoints: Checkpoints) -> None:
        """Save if it is time to, or if the run has to end after this step (from 1)."""
        stopping = interrupt.received()
        if stopping or step == self.steps or _is_due(step, self.saving.every):
            self._save(checkpoints, now, now.metrics.get(BEST_BY))
        if stopping:
            raise interrupt.Interrupted
        try:
            self.check_health(step, now.metrics)
        except Unhealthy:
            self._save(checkpoints, now)
            raise

    def _save(self, checkpoints: Checkpoints, now: LoopState, score: float | None = None) -> None:
        """Save the state and, beside the arrays, ledger, memory and metrics.

        They are copied: they are written while the next step changes them.
        """
        sidecar = {
            "ledger": now.ledger.copy().state,
            "memory": copy.deepcopy(now.memory),
            "metrics": dict(now.metrics),
            "identity": self.identity,
        }
        checkpoints.save(now.step, now.state, sidecar, score)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def progress_note(values: Values) -> str:
    """Return what the progress line of reinforcement learning says of a step."""
    parts = [f"reward {values['reward/mean']:.3f}"]
    if not math.isnan(values["reward/plain"]):  # NaN: the batch has no plain problem
        parts.append(f"plain {values['reward/plain']:.3f}")
    parts += [f"entropy {values['entropy']:.2f}", format_flops(values["flops/total"])]
    return "  ".join(parts)
