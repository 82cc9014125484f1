"""From a stage's settings to its training loop: optimizer, update and state around
`training/loop.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefixrl_jax.experiment.build import Settings
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.weights import Params
from prefixrl_jax.rl.step import (
    UpdateSettings,
    abstract_state,
    init_state,
    make_optimizer,
    make_train_step,
)
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.training.loop import Loop, LoopState, Saving, Source
from prefixrl_jax.training.supervised import Pair, Supervised


@dataclasses.dataclass(frozen=True)
class Fit:
    """One stage of training.

    Attributes:
        section: of the configuration, "base", "sft" or "train"; names the optimizer's fields.
        directory: where checkpoints and metrics go.
        steps: of the loop.
        schedule_steps: that the learning rate's schedule is made for.
        update: how a batch becomes a gradient.
    """

    section: str
    directory: Path
    steps: int
    schedule_steps: int
    update: UpdateSettings

    def run(
        self, settings: Settings, source: Source, params: Params, ledger: Ledger, **options: Any
    ) -> LoopState:
        """Train from `params`, or from the newest checkpoint; options are fields of `Loop`."""
        model, mesh = settings.model, settings.mesh
        optimizer = make_optimizer(settings.optimizer(self.section, self.schedule_steps))
        update = make_train_step(model, optimizer, self.update, mesh)
        loop = Loop(self.section, update, source, self.steps, self.directory, **options)
        state = init_state(params, model, optimizer, mesh)
        return loop.run(state, abstract_state(model, optimizer, mesh), ledger)


def fit_text(
    settings: Settings,
    section: str,
    texts: Callable[[int], list[Pair]],
    steps: int,
    directory: Path,
    params: Params,
    ledger: Ledger,
    **options: Any,
) -> LoopState:
    """Train on text: the base model ("base") or fine-tuning on traces ("sft").

    Base training is booked outside the total of FLOPs, fine-tuning as training.
    """
    phase = "base" if section == "base" else "train"
    source = Supervised(
        texts,
        phase,
        settings.mesh,
        settings.cost,
        settings.sampling.max_new_tokens,
        settings.engine.buckets,
    )
    # Nothing is sampled, so these metrics would mean nothing.
    omit: tuple[str, ...] = ("sampler_trainer/", "clip_ratio/", "groups/")
    if phase == "base":
        omit += ("flops/",)
    loss = LossSettings(
        temperature=1.0,
        absent_ids=settings.loss.absent_ids,
        logprob_chunk=settings.loss.logprob_chunk,
    )
    # Without a baseline the advantage is the reward, which is 1.
    fit = Fit(section, directory, steps, steps, UpdateSettings(loss, advantage="none"))
    return fit.run(
        settings,
        source,
        params,
        ledger,
        saving=Saving(every=100),
        omit=omit,
        line_every=10,
        **options,
    )
