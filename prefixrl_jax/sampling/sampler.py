"""The jitted sampler: contexts are prefilled once, then G slots of each are decoded in chunks.

The batch is P rows, one context each, by G slots. A slot holds one sample at a time; when that is
done the caller may hand it the next one (`assign`) while its neighbours go on, and a row whose
samples are all done may be given another context (`replace_contexts`). Shapes are static.

Samples of a batch therefore have different ages, yet every slot writes its keys and values to the
same cache column, a clock that runs round a ring of T columns. A key carries its rotary position
with it, so where it lies in the cache does not matter, and one in-place update of a column serves
the whole batch. (To the model, each of the P·G slots is a row of its context's group.)
"""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from prefixrl_jax.group import Context
from prefixrl_jax.model import transformer
from prefixrl_jax.model.cache import KVCache, MaskedKV
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.sampling import noise
from prefixrl_jax.sampling.distribution import Sampling, draw


class SamplerState(flax.struct.PyTreeNode):
    """The state of P x G slots, each of which may hold a sample in flight.

    `tokens` and `logprobs` are rings like the cache: token j of a slot's sample stands at column
    (begin + j) mod T.
    """

    context: Context
    context_kv: KVCache  # N = P, U = S
    row_kv: KVCache  # N = P·G, U = T, also a ring
    ticks: jax.Array  # int32 []: decode steps so far; the column written next is ticks mod T
    begin: jax.Array  # int32 [P, G]: column of the sample's first token
    age: jax.Array  # int32 [P, G]: tokens sampled so far
    last: jax.Array  # int32 [P, G]: the next input token
    active: jax.Array  # bool [P, G]: whether the slot's sample goes on
    keys: jax.Array  # PRNG keys [P, G] of the samples
    tokens: jax.Array  # int32 [P, G, T]
    logprobs: jax.Array  # float32 [P, G, T], under the distribution drawn from


def _spread(state: SamplerState) -> SamplerState:
    """Constrain every array to the sharding of its contexts, so that all functions keep it.

    Without this, the partitioner replicates the arrays that `start` fills with zeros, the rows'
    cache among them.
    """
    by_context = state.replace(context_kv=None, row_kv=None, ticks=None)
    return jax.tree.map(meshes.constrain_batch, by_context).replace(
        context_kv=state.context_kv.spread(), row_kv=state.row_kv.spread(), ticks=state.ticks
    )


@partial(jax.jit, static_argnames=("config", "slots", "columns"))
def start(
    params: Params, context: Context, *, config: ModelConfig, slots: int, columns: int
) -> SamplerState:
    """Prefill P contexts and return a state in which every slot is idle until `assign`.

    Args:
        params: parameters placed by the "decode" rules.
        context: P contexts.
        slots: G.
        columns: T, at least the `max_new_tokens` of any chunk.
    """
    p = context.tokens.shape[0]
    blank = jnp.zeros((p, slots), jnp.int32)
    return _spread(
        SamplerState(
            context=context,
            context_kv=transformer.encode_context(params, config, context),
            row_kv=KVCache.empty(config, p * slots, columns),
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
    """Prefill new contexts and put them in rows of the batch.

    Nothing crosses a block, so nothing crosses a device.

    Args:
        params: parameters placed by the "decode" rules.
        state: is donated.
        rows: int32 [B, R]: for each of the B blocks that the batch axis is spread over, the rows
            within it to replace; an index out of range replaces none.
        context: B·R new contexts in the same order.
    """
    new_kv = transformer.encode_context(params, config, context)
    put = partial(_put_rows, rows=rows)
    put_kv = partial(put, axis=new_kv.row_axis)
    return _spread(
        state.replace(
            context=jax.tree.map(put, state.context, context),
            context_kv=jax.tree.map(put_kv, state.context_kv, new_kv),
        )
    )


def _put_rows(old: jax.Array, new: jax.Array, rows: jax.Array, axis: int = 0) -> jax.Array:
    """Return `old` with some entries of each of the B blocks of `axis` replaced by `new`.

    `rows`, int32 [B, R], are the entries within each block. `new` is like `old`, but B·R long in
    that axis.
    """
    blocks, per_block = rows.shape
    old, new = jnp.moveaxis(old, axis, 0), jnp.moveaxis(new, axis, 0)
    old_blocks = old.reshape(blocks, old.shape[0] // blocks, *old.shape[1:])
    new_blocks = new.reshape(blocks, per_block, *new.shape[1:])
    put = jax.vmap(lambda o, i, n: o.at[i].set(n, mode="drop"))
    return jnp.moveaxis(put(old_blocks, rows, new_blocks).reshape(old.shape), 0, axis)


@partial(jax.jit, donate_argnames=("state",))
def assign(
    state: SamplerState,
    stream: jax.Array,
    context_words: jax.Array,
    sample_ids: jax.Array,
    fresh: jax.Array,
    active: jax.Array,
    ticks: jax.Array | None = None,
) -> SamplerState:
    """Give slots their next samples and set which slots run.

    Args:
        state: is donated.
        stream: key of the stage and step, from `noise.stream_key`.
        context_words: uint32 [P, 2], `noise.words` of the name of each row's context.
        sample_ids: int32 [P, G]; with the words they fix the noise of a sample.
        fresh: bool [P, G], the slots that begin their sample now.
        active: bool [P, G], the slots that run from here on.
        ticks: int32 [], the clock from here on, by default that of the state. It may be set only
            while every running slot is fresh: the keys of any other stand where the old clock put
            them.
    """
    ticks = state.ticks if ticks is None else ticks
    keys = noise.row_keys(stream, context_words, sample_ids)
    # The first input of a sample is the last token of its context, which is not encoded there.
    last = jnp.take_along_axis(state.context.tokens, state.context.lengths[:, None] - 1, axis=1)
    return _spread(
        state.replace(
            ticks=ticks,
            begin=jnp.where(fresh, ticks % state.tokens.shape[-1], state.begin),
            age=jnp.where(fresh, 0, state.age),
            last=jnp.where(fresh, last, state.last),
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
    """Decode up to `steps` tokens in every active slot; stop early when no slot is active.

    The state is donated. Raises ValueError, when traced, if a sample could be longer than the ring.
    """
    columns = state.tokens.shape[-1]
    if sampling.max_new_tokens > columns:
        raise ValueError(
            f"max_new_tokens={sampling.max_new_tokens} does not fit the {columns} columns the state"
            " was started with"
        )
    context_mask = transformer.encoded_mask(state.context)
    stop_ids = jnp.array(sampling.stop_ids, jnp.int32)
    params = transformer.layers_apart(params, config)

    def step(carry):
        i, s = carry
        column = s.ticks % columns
        # A column belongs to the slot's present sample if it was written at most `age` ticks ago.
        row_mask = (column - jnp.arange(columns)) % columns <= s.age[..., None]
        hidden, row_kv = transformer.decode_token(
            params,
            config,
            s.last,
            s.context.lengths[:, None] - 1 + s.age,
            MaskedKV(s.context_kv, context_mask),
            MaskedKV(s.row_kv, row_mask),
            column,
        )
        logits = transformer.logits(params, config, hidden)
        token, logprob = draw(logits, s.keys, s.age, sampling)
        age = s.age + s.active
        return i + 1, s.replace(
            row_kv=row_kv,
            ticks=s.ticks + 1,
            age=age,
            last=jnp.where(s.active, token, s.last),
            active=s.active & (age < sampling.max_new_tokens) & ~jnp.isin(token, stop_ids),
            tokens=_write(s.tokens, token, s.active, column),
            logprobs=_write(s.logprobs, logprob, s.active, column),
        )

    def unfinished(carry):
        i, s = carry
        return (i < steps) & s.active.any()

    return _spread(jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1])


def _write(ring: jax.Array, value: jax.Array, active: jax.Array, column: jax.Array) -> jax.Array:
    """Write `value` at one column of the ring, in active slots alone.

    The ring is [P, G, T], `value` [P, G]. The other slots keep their content: the clock goes on
    over a finished sample that waits to be read.
    """
    old = jax.lax.dynamic_index_in_dim(ring, column, axis=2, keepdims=False)
    return jax.lax.dynamic_update_slice_in_dim(
        ring, jnp.where(active, value, old)[..., None], column, axis=2
    )


def unroll_rings(begin: np.ndarray, *rings: np.ndarray) -> list[np.ndarray]:
    """Rotate rings so that column j holds token j of the sample.

    Rings are [..., T]; `begin` [...] is the column of a sample's first token. Columns from the
    sample's age on hold remains of earlier samples.
    """
    columns = rings[0].shape[-1]
    order = (begin[..., None] + np.arange(columns)) % columns
    return [np.take_along_axis(ring, order, axis=-1) for ring in rings]
