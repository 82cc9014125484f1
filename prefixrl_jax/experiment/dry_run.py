"""What a run would do and cost, told before any compute is spent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jax

from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.weights import count_params
from prefixrl_jax.rl.step import abstract_state, make_optimizer
from prefixrl_jax.runtime.metrics import human_flops
from prefixrl_jax.sampling.sampler import empty_cache

if TYPE_CHECKING:
    from prefixrl_jax.experiment.run import Experiment


def tree_bytes(tree) -> int:
    """Bytes of all leaves of a pytree of shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def estimate(e: Experiment) -> Ledger:
    """An upper estimate of the FLOPs, every sample as long as it may be and every hard problem
    capped.
    """
    c, cost, ledger = e.config, e.s.cost, Ledger()
    short, long = min(c.sampling.context_buckets), max(c.sampling.context_buckets)
    new = c.sampling.max_new_tokens
    screened = sum(map(len, e.candidates.values()))
    for phase, problems, samples in (
        ("select", screened, c.select.samples),
        ("collect", c.select.train_problems, c.collect.cap),
    ):
        for _ in range(problems):
            ledger.add_group(cost, (phase, phase), short, [new] * samples)
    for _ in range(0 if c.model.path else c.base.batch):
        ledger.add_training(cost, "base", short, [new] * c.base.steps)
    for _ in range(c.sft.epochs * c.select.train_problems if c.sft.enabled else 0):
        ledger.add_training(cost, "train", short, [new])
    group = Ledger()  # one, with all that is done with it
    for _ in range(1 + c.train.refills * (c.train.filter == "refill")):
        group.add_group(cost, ("prefill", "decode"), long, [new] * c.train.group)
    for _ in range(c.train.updates_per_batch):
        group.add_training(cost, "train", long, [new] * c.train.group)
    if c.train.kl_coef:
        group.add_scoring(cost, long, [new] * c.train.group)
    for accounting, phases in group.state.items():
        for phase, flops in phases.items():
            ledger.add(accounting, phase, flops * c.rounds * c.train.steps * c.train.batch)
    return ledger


def describe(e: Experiment) -> str:
    """The resolved configuration, parameters, shapes, memory and FLOPs as text."""
    c, s = e.config, e.s
    counts = count_params(s.model)
    state = abstract_state(s.model, make_optimizer(s.optimizer("train", c.train.steps)), s.mesh)
    caches = jax.eval_shape(
        lambda: empty_cache(s.model, s.engine.rows, s.engine.slots, s.sampling.max_new_tokens)
    )
    ledger = estimate(e)
    gib = 1 / 2**30
    lines = [
        json.dumps(c.to_dict(), indent=1),
        (
            f"model       {s.model.family}: {counts['total']:,} parameters, N ="
            f" {counts['matmul']:,} in matmuls, vocabulary {s.model.vocab_size}"
        ),
        (
            f"mesh        data x fsdp x tensor = {tuple(s.mesh.shape.values())} on"
            f" {jax.device_count()} {jax.devices()[0].platform} device(s), {jax.process_count()}"
            " process(es)"
        ),
        f"problems    {', '.join(f'{len(v)} {k}' for k, v in e.candidates.items())} candidates",
        (
            f"sampler     {s.engine.rows} contexts x {s.engine.slots} slots, contexts of"
            f" {tuple(s.engine.buckets)} tokens, {s.sampling.max_new_tokens} new tokens"
        ),
        (
            f"train step  {c.train.batch} contexts x {c.train.group} rollouts in"
            f" {c.train.micro_batches} micro-batch(es)"
        ),
        (
            f"memory      train state {tree_bytes(state) * gib:.3f} GiB, rows' cache "
            f"{tree_bytes(caches) * gib:.3f} GiB (all devices together)"
        ),
        "FLOPs       at most, paper accounting: "
        + ", ".join(f"{k} {human_flops(v)}" for k, v in ledger.summary()["paper"].items() if v),
    ]
    return "\n".join(lines)
