"""The jitted sampler: prefill contexts once, then decode G rows of each in chunks, under static
shapes.

The batch is P contexts x G slots. A slot holds one sample at a time; when it is done the caller may
hand it the next one (`assign`) while its neighbours go on. Samples in a batch therefore have
different ages, yet all rows write their keys and values to the same cache column, a clock running
round a ring of T columns: a key carries its rotary position with it, so where it lies in the cache
does not matter, and one in-place column update serves every row.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from prefixrl_jax.group import Context, length_mask
from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.sampling import noise


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Reinforcement learning needs the untruncated distribution: top_p = 1 and top_k = 0.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"top_p={self.top_p}, top_k={self.top_k}: top_p lies in (0, 1], top_k is 0 (off) or"
                " positive"
            )
        if not self.stop_ids:
            raise ValueError("stop_ids is empty: no sample could end before max_new_tokens")


class SamplerState(flax.struct.PyTreeNode):
    """P x G slots in flight.

    `tokens` and `logprobs` are rings: token j of a slot stands at column (begin + j) mod T.
    """

    context: Context
    context_kv: transformer.KV
    own_kv: transformer.KV
    ticks: jax.Array  # int32 []: decode steps so far; the cache column written next is ticks mod T
    begin: jax.Array  # int32 [P, G]: column of the sample's first token
    age: jax.Array  # int32 [P, G]: tokens sampled so far
    last: jax.Array  # int32 [P, G]: the next input token
    active: jax.Array  # bool [P, G]
    keys: jax.Array  # PRNG keys [P, G]
    tokens: jax.Array  # int32 [P, G, T]
    logprobs: jax.Array  # float32 [P, G, T]


def distribution(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Log-probabilities float32 [..., V] that tokens are drawn from: temperature, then top-k, then
    top-p, renormalised.
    """
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        descending = -jnp.sort(-jax.nn.log_softmax(logits), axis=-1)
        # mass above each token
        before = jnp.cumsum(jnp.exp(descending), axis=-1) - jnp.exp(descending)
        floor = jnp.min(
            jnp.where(before < sampling.top_p, descending, jnp.inf), axis=-1, keepdims=True
        )
        logits = jnp.where(jax.nn.log_softmax(logits) < floor, -jnp.inf, logits)
    return jax.nn.log_softmax(logits)


def empty_cache(config: ModelConfig, contexts: int, slots: int, columns: int) -> transformer.KV:
    """Zeroed keys [P·G, K, D, T] and values [P·G, K, T, D] of the rows, per layer."""
    rows = (contexts * slots, config.num_kv_heads)
    shapes = (*rows, config.head_dim, columns), (*rows, columns, config.head_dim)
    if config.unroll_layers:
        return tuple(
            tuple(jnp.zeros(s, config.compute_dtype) for s in shapes)
            for _ in range(config.num_layers)
        )
    return tuple(jnp.zeros((config.num_layers, *s), config.compute_dtype) for s in shapes)


def _spread(state: SamplerState) -> SamplerState:
    """Every array where its contexts are, so that all four functions give and take the same
    placement.

    Left alone, the partitioner replicates what `start` fills with zeros, the rows' cache among it.
    """
    rest = jax.tree.map(
        meshes.constrain_batch, state.replace(context_kv=None, own_kv=None, ticks=None)
    )
    caches = jax.tree.map(
        lambda x: meshes.constrain_batch(x, x.ndim - 4, heads=x.ndim - 3),
        (state.context_kv, state.own_kv),
    )
    return rest.replace(context_kv=caches[0], own_kv=caches[1], ticks=state.ticks)


@partial(jax.jit, static_argnames=("config", "slots", "columns"))
def start(
    params: Params, context: Context, *, config: ModelConfig, slots: int, columns: int
) -> SamplerState:
    """Prefills P contexts; every slot is idle until `assign` gives it a sample."""
    p = context.tokens.shape[0]
    blank = jnp.zeros((p, slots), jnp.int32)
    return _spread(
        SamplerState(
            context=context,
            context_kv=transformer.encode_context(params, config, context),
            own_kv=empty_cache(config, p, slots, columns),
            ticks=jnp.int32(0),
            begin=blank,
            age=blank,
            last=blank,
            active=blank > 0,
            keys=jnp.broadcast_to(jax.random.key(0), (p, slots)),
            tokens=jnp.zeros((p, slots, columns), jnp.int32),
            logprobs=jnp.zeros((p, slots, columns), jnp.float32),
        )
    )


@partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def replace_contexts(
    params: Params, state: SamplerState, rows: jax.Array, context: Context, *, config: ModelConfig
) -> SamplerState:
    """Prefills new contexts and puts them in the batch's rows.

    rows: int32 [B, R], for each of the B blocks the batch axis is spread over, the rows within it
    to replace (out of range: none); context: [B * R] new contexts in the same order. Nothing
    crosses a block, so nothing crosses a device.
    """
    blocks, r = rows.shape
    new_kv = transformer.encode_context(params, config, context)
    batch_axis = 0 if config.unroll_layers else 1

    def put(old, new, axis=0):
        old_, new_ = jnp.moveaxis(old, axis, 0), jnp.moveaxis(new, axis, 0)
        by_block = old_.reshape(blocks, old_.shape[0] // blocks, *old_.shape[1:])
        by_block = jax.vmap(lambda o, i, n: o.at[i].set(n, mode="drop"))(
            by_block, rows, new_.reshape(blocks, r, *new_.shape[1:])
        )
        return jnp.moveaxis(by_block.reshape(old_.shape), 0, axis)

    return _spread(
        state.replace(
            context=jax.tree.map(put, state.context, context),
            context_kv=jax.tree.map(partial(put, axis=batch_axis), state.context_kv, new_kv),
        )
    )


@partial(jax.jit, donate_argnames=("state",))
def assign(
    state: SamplerState,
    stream: jax.Array,
    context_words: jax.Array,
    sample_ids: jax.Array,
    fresh: jax.Array,
    active: jax.Array,
    ticks: jax.Array | None = None,
):
    """Gives the slots marked `fresh` the samples `sample_ids` (int32 [P, G]); `active` (bool [P,
    G]) says which slots run.

    ticks: int32 [], the clock from here on (state.ticks by default). It may be set only while every
    running slot is fresh: the others' keys stand where the old clock put them.
    """
    ticks = state.ticks if ticks is None else ticks
    keys = noise.row_keys(stream, context_words, sample_ids)
    first = jnp.take_along_axis(state.context.tokens, state.context.lengths[:, None] - 1, axis=1)
    return _spread(
        state.replace(
            ticks=ticks,
            begin=jnp.where(fresh, ticks % state.tokens.shape[-1], state.begin),
            age=jnp.where(fresh, 0, state.age),
            last=jnp.where(fresh, first, state.last),
            active=active,
            keys=jax.random.wrap_key_data(
                jnp.where(
                    fresh[..., None], jax.random.key_data(keys), jax.random.key_data(state.keys)
                )
            ),
        )
    )


@partial(jax.jit, static_argnames=("config", "sampling", "steps"), donate_argnames=("state",))
def decode_chunk(
    params: Params, state: SamplerState, *, config: ModelConfig, sampling: Sampling, steps: int
) -> SamplerState:
    """Up to `steps` tokens in every active slot; leaves early when no slot is active."""
    columns = state.tokens.shape[-1]
    if sampling.max_new_tokens > columns:
        raise ValueError(
            f"max_new_tokens={sampling.max_new_tokens} does not fit the {columns} columns the state"
            " was started with"
        )
    context_mask = length_mask(state.context.lengths - 1, state.context.tokens.shape[1])
    stop_ids = jnp.array(sampling.stop_ids, jnp.int32)
    params = transformer.layers_apart(params, config)

    def step(carry):
        i, s = carry
        column = s.ticks % columns
        # A column belongs to the slot's present sample if it was written at most `age` ticks ago.
        own_mask = (column - jnp.arange(columns)) % columns <= s.age[..., None]
        positions = s.context.lengths[:, None] - 1 + s.age
        hidden, own_kv = transformer.decode_token(
            params,
            config,
            s.last,
            positions,
            s.context_kv,
            context_mask,
            s.own_kv,
            own_mask,
            column,
        )
        logprobs = distribution(transformer.logits(params, config, hidden), sampling)
        scores = (
            logprobs
            if sampling.temperature == 0
            else logprobs + noise.gumbel(s.keys, s.age, config.vocab_size)
        )
        token = _argmax(scores)
        logprob = jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]
        age = s.age + s.active
        return i + 1, s.replace(
            own_kv=own_kv,
            ticks=s.ticks + 1,
            age=age,
            last=jnp.where(s.active, token, s.last),
            active=s.active & (age < sampling.max_new_tokens) & ~jnp.isin(token, stop_ids),
            tokens=_write(s.tokens, token, s.active, column),
            logprobs=_write(s.logprobs, logprob, s.active, column),
        )

    return _spread(
        jax.lax.while_loop(
            lambda c: (c[0] < steps) & c[1].active.any(), step, (jnp.int32(0), state)
        )[1]
    )


def _argmax(scores: jax.Array) -> jax.Array:
    """int32 index of the largest score, the lowest of equals.

    XLA's own argmax is a scalar loop on CPU, twice as slow.
    """
    ids = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    return jnp.min(
        jnp.where(scores == scores.max(-1, keepdims=True), ids, scores.shape[-1] - 1), axis=-1
    )


def _write(ring: jax.Array, value: jax.Array, active: jax.Array, column: jax.Array) -> jax.Array:
    """Writes value [P, G] at a column of ring [P, G, T] for active slots; a finished sample is not
    overwritten.
    """
    old = jax.lax.dynamic_index_in_dim(ring, column, axis=2, keepdims=False)
    return jax.lax.dynamic_update_slice_in_dim(
        ring, jnp.where(active, value, old)[..., None], column, axis=2
    )


def unroll_rings(begin: np.ndarray, *rings: np.ndarray) -> list[np.ndarray]:
    """Rings [..., T] as arrays whose column j is token j of the sample (columns from `age` on are
    meaningless).
    """
    columns = rings[0].shape[-1]
    order = (begin[..., None] + np.arange(columns)) % columns
    return [np.take_along_axis(ring, order, axis=-1) for ring in rings]
