"""What a run would do and cost, told before any compute is spent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax

from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.flops import OUTSIDE, PHASES, Ledger, format_flops
from prefixrl_jax.model.cache import KVCache
from prefixrl_jax.model.weights import count_params
from prefixrl_jax.rl.step import abstract_state, make_optimizer


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all leaves of a pytree of shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def estimate(workdir: Workdir) -> Ledger:
    """Return an upper estimate of the FLOPs.

    Every sample is as long as it may be, and every hard problem uses up the cap.
    """
    config = workdir.config
    cost = workdir.settings.cost
    ledger = Ledger()
    prompt = min(config.sampling.context_buckets)
    new_tokens = config.sampling.max_new_tokens
    candidates = sum(map(len, workdir.candidates.values()))
    hard = config.select.train_problems
    for phase, problems, samples in (
        ("select", candidates, config.select.samples),
        ("collect", hard, config.collect.cap),
    ):
        one_problem = Ledger()
        one_problem.add_group(cost, (phase, phase), prompt, [new_tokens] * samples)
        _add(ledger, one_problem, problems)
    texts = {
        "base": 0 if config.model.path else config.base.steps * config.base.batch,
        "train": config.sft.epochs * hard if config.sft.enabled else 0,
    }
    for phase, count in texts.items():
        one_text = Ledger()
        one_text.add_training(cost, phase, prompt, [new_tokens])
        _add(ledger, one_text, count)
    _add(ledger, _one_group(workdir), config.rounds * config.train.steps * config.train.batch)
    return ledger


def _add(ledger: Ledger, part: Ledger, count: int) -> None:
    for accounting, phases in part.state.items():
        for phase, flops in phases.items():
            ledger.add(accounting, phase, flops * count)


def _one_group(workdir: Workdir) -> Ledger:
    """The bill of one group of RL: sampling, scoring and all its updates."""
    config = workdir.config
    cost = workdir.settings.cost
    ledger = Ledger()
    train = config.train
    context = max(config.sampling.context_buckets)
    rows = [config.sampling.max_new_tokens] * train.group
    refills = train.refills if train.filter == "refill" else 0
    for _ in range(1 + refills):
        ledger.add_group(cost, ("prefill", "decode"), context, rows)
    for _ in range(train.updates_per_batch):
        ledger.add_training(cost, "train", context, rows)
    if train.kl_coef:
        ledger.add_scoring(cost, context, rows)
    return ledger


def describe(workdir: Workdir) -> str:
    """Return the resolved configuration, parameters, shapes, memory and FLOPs as text."""
    config, settings = workdir.config, workdir.settings
    model, engine = settings.model, settings.engine
    counts = count_params(model)
    optimizer = make_optimizer(settings.optimizer("train", config.train.steps))
    state = abstract_state(model, optimizer, settings.mesh)
    new_tokens = settings.sampling.max_new_tokens
    cache = jax.eval_shape(lambda: KVCache.empty(model, engine.rows * engine.slots, new_tokens))
    ledger = estimate(workdir)
    rows = {
        "model": (
            f"{model.family}: {counts['total']:,} parameters, N = {counts['matmul']:,} in matmuls,"
            f" vocabulary {model.vocab_size}"
        ),
        "mesh": (
            f"data x fsdp x tensor = {tuple(settings.mesh.shape.values())} on"
            f" {jax.device_count()} {jax.devices()[0].platform} device(s), {jax.process_count()}"
            " process(es)"
        ),
        "problems": ", ".join(f"{len(v)} {k}" for k, v in workdir.candidates.items())
        + " candidates",
        "sampler": (
            f"{engine.rows} contexts x {engine.slots} slots, contexts of {tuple(engine.buckets)}"
            f" tokens, {new_tokens} new tokens"
        ),
        "train step": (
            f"{config.train.batch} contexts x {config.train.group} rollouts in"
            f" {config.train.micro_batches} micro-batch(es)"
        ),
        "memory": (f"train state {_gib(state)}, rows' cache {_gib(cache)} (all devices together)"),
        "FLOPs": (
            f"at most, paper accounting: total {_phases(ledger, PHASES)}; outside it"
            f" {_phases(ledger, OUTSIDE)}"
        ),
    }
    lines = [f"{name:<12}{text}" for name, text in rows.items()]
    return "\n".join([json.dumps(config.to_dict(), indent=1), *lines])


def _phases(ledger: Ledger, phases: Sequence[str]) -> str:
    """The sum of some phases in paper accounting, and in brackets each that is not 0."""
    flops = {phase: ledger.state["paper"][phase] for phase in phases}
    parts = ", ".join(f"{phase} {format_flops(value)}" for phase, value in flops.items() if value)
    return format_flops(sum(flops.values())) + (f" ({parts})" if parts else "")


def _gib(tree: Any) -> str:
    return f"{tree_bytes(tree) / 2**30:.3f} GiB"
