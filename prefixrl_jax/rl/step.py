"""The jitted, sharded update: one optimizer step on a batch of groups.

The batch is cut into micro-batches of whole groups; gradients are summed in float32 and one AdamW
update is made. Groups whose rollouts were all right or all wrong have gradient zero, unless the
loss has a term besides the policy gradient: they come last, and micro-batches of nothing else are
not computed. If the loss or the gradient is not finite the state comes back unchanged and the
metrics say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from prefixrl_jax.group import Group
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.weights import Params, abstract_params
from prefixrl_jax.rl.advantage import advantages
from prefixrl_jax.rl.loss import LossSettings, denominators, group_loss, informative
from prefixrl_jax.runtime.mesh import batch_divisor, constrain_batch, replicated

SCHEDULES = ("constant", "linear", "cosine")


@flax.struct.dataclass
class TrainState:
    """What an update changes. `step` counts updates."""

    params: Params
    opt_state: Any
    step: Any  # int32 []; like the rest also its shape, or its sharding


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with a warm-up and an optional decay to a fraction of the peak."""

    learning_rate: float = 1e-6
    warmup_steps: int = 0
    schedule: str = "constant"  # one of SCHEDULES, over total_steps
    total_steps: int = 1
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


def learning_rate(settings: OptimizerSettings) -> optax.Schedule:
    """The schedule; raises ValueError for an unknown one."""
    peak, rest = settings.learning_rate, max(settings.total_steps - settings.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * settings.final_fraction, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, settings.final_fraction),
    }
    if settings.schedule not in after:
        raise ValueError(f"schedule={settings.schedule!r}: one of {', '.join(after)}")
    if not settings.warmup_steps:
        return after[settings.schedule]()
    warmup = optax.linear_schedule(peak / settings.warmup_steps, peak, settings.warmup_steps - 1)
    return optax.join_schedules([warmup, after[settings.schedule]()], [settings.warmup_steps])


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(
            learning_rate(settings),
            settings.b1,
            settings.b2,
            settings.eps,
            weight_decay=settings.weight_decay,
        ),
    )


def _init_moments(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """The optimizer's state in float32, whatever the weights are stored in: gradients are summed in
    float32 too.
    """
    return optimizer.init(
        jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)
    )


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shardings of the whole state: Adam's moments lie where their weights lie."""
    params, shards = abstract_params(config), param_shardings(config, mesh, "train")
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, s: s,
        jax.eval_shape(partial(_init_moments, optimizer), params),
        shards,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(shards, opt_state, replicated(mesh))


def abstract_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without any array."""
    params = abstract_params(config)
    shapes = TrainState(
        params,
        jax.eval_shape(partial(_init_moments, optimizer), params),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        state_shardings(config, optimizer, mesh),
    )


def init_state(
    params: Params, config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A fresh state around `params`, placed on the mesh.

    The arrays are copies: updates donate them.
    """
    shards = state_shardings(config, optimizer, mesh)
    make = jax.jit(
        lambda p: TrainState(jax.tree.map(jnp.copy, p), _init_moments(optimizer, p), jnp.int32(0)),
        out_shardings=shards,
    )
    return make(jax.device_put(params, shards.params))


def make_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    settings: LossSettings,
    advantage: str,
    micro_batches: int,
    mesh: Mesh,
) -> Callable[[TrainState, Group], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update (state, group) -> (state, metrics). The old state's buffers are donated."""

    blocks = batch_divisor(mesh)

    def update(state: TrainState, group: Group):
        scores = advantages(group.rewards, advantage)
        total = denominators(group, scores, settings)
        summed, computed = _accumulate(
            state.params, config, group, scores, total, settings, micro_batches, blocks
        )
        grads, loss, means, maxima = summed
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = TrainState(optax.apply_updates(state.params, changes), opt_state, state.step + 1)
        state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return state, {
            "loss": loss,
            "grad_norm": norm,
            "finite": finite,
            "groups/computed": computed,
            **means,
            **maxima,
        }

    shards = state_shardings(config, optimizer, mesh)
    return jax.jit(update, donate_argnums=0, out_shardings=(shards, replicated(mesh)))


def _accumulate(params, config, group, scores, total, settings, micro_batches, blocks):
    """(gradient, loss, means and maxima) summed over micro-batches of whole groups, and the number
    of groups computed.
    """
    grad_of = jax.value_and_grad(group_loss, has_aux=True)

    def one(part, part_scores):
        (loss, (means, maxima)), grads = grad_of(params, config, part, part_scores, total, settings)
        return (
            jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads),
            loss,
            means,
            maxima,
        )

    if micro_batches == 1:
        return one(group, scores), scores.shape[0]

    wanted = informative(scores) | settings.every_group
    parts, needed = _informative_first((group, scores), wanted, micro_batches, blocks)

    def add(i, carry):
        grads, loss, means, maxima = one(*jax.tree.map(lambda x: x[i], parts))
        summed = jax.tree.map(jnp.add, carry[:3], (grads, loss, means))
        return (*summed, jax.tree.map(jnp.maximum, carry[3], maxima))

    empty = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(one, *jax.tree.map(lambda x: x[0], parts)),
    )
    return jax.lax.fori_loop(0, needed, add, empty), needed * (scores.shape[0] // micro_batches)


def _informative_first(
    tree: Any, wanted: jax.Array, micro_batches: int, blocks: int
) -> tuple[Any, jax.Array]:
    """Arrays [P, ...] as micro-batches [M, P/M, ...], groups that are `wanted` (bool [P]) in the
    first ones.

    blocks: the number of equal parts the batch axis is spread over. Every micro-batch takes as many
    groups from every part, and groups are ordered within their part, so nothing moves between
    devices. Returns also how many micro-batches hold all that is wanted, int32 [].
    """
    per_block = wanted.size // blocks
    wanted = wanted.reshape(blocks, per_block)
    order = jnp.argsort(~wanted, axis=1, stable=True)

    def split(x):
        by_block = jax.vmap(lambda rows, at: rows[at])(
            x.reshape(blocks, per_block, *x.shape[1:]), order
        )
        parts = by_block.reshape(
            blocks, micro_batches, per_block // micro_batches, *x.shape[1:]
        ).swapaxes(0, 1)
        return constrain_batch(parts.reshape(micro_batches, -1, *x.shape[1:]), axis=1)

    return jax.tree.map(split, tree), -(-wanted.sum(1).max() // (per_block // micro_batches))
