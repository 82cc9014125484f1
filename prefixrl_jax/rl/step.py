"""The jitted, sharded update: one optimizer step on a batch of groups.

The batch is cut into micro-batches of whole groups; gradients are summed in float32 and one AdamW
update is made. Groups whose rollouts were all right or all wrong have gradient zero, unless the
loss has a term besides the policy gradient: they come last, and micro-batches of nothing else are
not computed. If the loss or the gradient is not finite the state comes back unchanged, and the
metrics say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from prefixrl_jax.group import Group
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.finite import finite_leaves
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.weights import Params, abstract_params
from prefixrl_jax.rl.advantage import advantages
from prefixrl_jax.rl.loss import denominators, group_loss, informative
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime.mesh import batch_divisor, constrain_batch, replicated

SCHEDULES = ("constant", "linear", "cosine")


@flax.struct.dataclass
class TrainState:
    """The state that an update changes: its arrays, their shapes, or their shardings."""

    params: Params
    opt_state: Any
    step: Any  # int32 []: updates so far


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with a linear warm-up and an optional decay to a fraction of the peak."""

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


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
    """The settings that turn a batch of groups into one gradient."""

    loss: LossSettings
    advantage: str = "group_mean"  # one of advantage.KINDS
    micro_batches: int = 1  # equal parts that the contexts of a batch are cut into


def learning_rate(settings: OptimizerSettings) -> optax.Schedule:
    """Return the schedule of the learning rate, by number of the update.

    Raises ValueError if the settings name an unknown schedule.
    """
    if settings.schedule not in SCHEDULES:
        raise ValueError(f"schedule={settings.schedule!r}: one of {', '.join(SCHEDULES)}")
    peak = settings.learning_rate
    steps = max(settings.total_steps - settings.warmup_steps, 1)
    if settings.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    elif settings.schedule == "linear":
        schedule = optax.linear_schedule(peak, peak * settings.final_fraction, steps)
    else:
        schedule = optax.cosine_decay_schedule(peak, steps, settings.final_fraction)
    if not settings.warmup_steps:
        return schedule
    # The first update has a rate too: 1/n of the peak, so that update n has the peak.
    warmup = optax.linear_schedule(peak / settings.warmup_steps, peak, settings.warmup_steps - 1)
    return optax.join_schedules([warmup, schedule], [settings.warmup_steps])


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Return the optimizer: AdamW on gradients clipped by their global norm."""
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
    """Return a fresh optimizer state in float32, whatever dtype the weights are stored in.

    Gradients are float32 too.
    """
    return optimizer.init(
        jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)
    )


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return the shardings of the whole state; Adam's moments are sharded like their weights."""
    params = abstract_params(config)
    shards = param_shardings(config, mesh, "train")
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
    """Return the shapes, dtypes and shardings of the state, without creating any array."""
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
    """Return a fresh state that holds copies of `params`, placed on the mesh.

    Copies are needed because updates donate the state's arrays.
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
    settings: UpdateSettings,
    mesh: Mesh,
) -> Callable[[TrainState, Group], tuple[TrainState, dict[str, jax.Array]]]:
    """Return the jitted update (state, group) -> (state, metrics).

    The old state's buffers are donated. Metrics are scalars: those of `loss.group_loss`, and
    "loss", "grad_norm" before clipping, "finite" (bool) and "groups/computed" (int). Where loss,
    gradient or the new parameters are not finite, the old state is returned.
    """
    blocks = batch_divisor(mesh)

    def update(state: TrainState, group: Group):
        scores = advantages(group.rewards, settings.advantage)
        total, computed = _accumulate(state.params, config, group, scores, settings, blocks)
        norm = optax.tree.norm(total.grads)
        changes, opt_state = optimizer.update(total.grads, state.opt_state, state.params)
        new = TrainState(optax.apply_updates(state.params, changes), opt_state, state.step + 1)
        finite = jnp.isfinite(total.loss) & jnp.isfinite(norm)
        finite &= jnp.stack(jax.tree.leaves(finite_leaves(new.params))).all()
        state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return state, {
            "loss": total.loss,
            "grad_norm": norm,
            "finite": finite,
            "groups/computed": computed,
            **total.means,
            **total.maxima,
        }

    shards = state_shardings(config, optimizer, mesh)
    return jax.jit(update, donate_argnums=0, out_shardings=(shards, replicated(mesh)))


class _Total(NamedTuple):
    """Sums, and maxima, over micro-batches."""

    grads: Params  # float32
    loss: jax.Array
    means: dict[str, jax.Array]  # metrics that are sums over explicit denominators
    maxima: dict[str, jax.Array]  # metrics of which the largest counts

    def add(self, other: _Total) -> _Total:
        """Return the total of this one and another one."""
        grads, loss, means = jax.tree.map(jnp.add, self[:3], other[:3])
        return _Total(grads, loss, means, jax.tree.map(jnp.maximum, self.maxima, other.maxima))


def _accumulate(
    params: Params,
    config: ModelConfig,
    group: Group,
    scores: jax.Array,
    settings: UpdateSettings,
    blocks: int,
) -> tuple[_Total, int | jax.Array]:
    """Sum gradient, loss and metrics over the micro-batches of a batch.

    The second result is the number of groups that were computed for them.

    Args:
        scores: float32 [P, G], the advantages.
        blocks: equal parts that the batch axis is spread over.
    """
    loss = settings.loss
    counts = denominators(group, scores, loss)
    grad_of = jax.value_and_grad(group_loss, has_aux=True)

    def part_total(part: Group, part_scores: jax.Array) -> _Total:
        (value, (means, maxima)), grads = grad_of(params, config, part, part_scores, counts, loss)
        grads = jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads)
        return _Total(grads, value, means, maxima)

    if settings.micro_batches == 1:
        return part_total(group, scores), scores.shape[0]

    wanted = informative(scores) | loss.every_group
    parts, needed = _informative_first((group, scores), wanted, settings.micro_batches, blocks)

    def add(i, total: _Total) -> _Total:
        return total.add(part_total(*jax.tree.map(lambda x: x[i], parts)))

    shapes = jax.eval_shape(part_total, *jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    computed = needed * (scores.shape[0] // settings.micro_batches)
    return jax.lax.fori_loop(0, needed, add, zero), computed


def _informative_first(
    tree: Any, wanted: jax.Array, micro_batches: int, blocks: int
) -> tuple[Any, jax.Array]:
    """Split a batch into micro-batches so that the wanted groups come in the first ones.

    Arrays [P, ...] become [M, P/M, ...]. Every micro-batch takes as many groups from every block,
    and groups are ordered within their block, so nothing moves between devices.

    Args:
        tree: arrays [P, ...].
        wanted: bool [P].
        micro_batches: M.
        blocks: equal parts that the batch axis is spread over.

    Returns:
        The micro-batches, and the number of them that together hold all wanted groups, int32 [].
    """
    per_block = wanted.size // blocks
    per_part = per_block // micro_batches
    wanted = wanted.reshape(blocks, per_block)
    order = jnp.argsort(~wanted, axis=1, stable=True)

    def split(x):
        by_block = x.reshape(blocks, per_block, *x.shape[1:])
        by_block = jax.vmap(lambda rows, at: rows[at])(by_block, order)
        parts = by_block.reshape(blocks, micro_batches, per_part, *x.shape[1:]).swapaxes(0, 1)
        return constrain_batch(parts.reshape(micro_batches, -1, *x.shape[1:]), axis=1)

    return jax.tree.map(split, tree), -(-wanted.sum(1).max() // per_part)
