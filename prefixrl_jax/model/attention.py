"""Attention of continuation rows to the context their group shares and to themselves.

A row attends to two parts under one softmax: the keys of its context, of which there is one copy
for all G rows, and its own. The parts are never concatenated along the batch: scores against the
context are one matrix product of the queries of all G rows with one key matrix, which is where
sharing the context pays. The letters of the shapes are those of `cache`, and P contexts, G rows of
each, S context positions, T tokens of a row, H query heads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prefixrl_jax.group import Array
from prefixrl_jax.model.cache import LayerKV

NEG = -1e30  # finite, so that a fully masked row gives a uniform softmax and not NaN


def causal_attention(q: jax.Array, kv: LayerKV) -> jax.Array:
    """Compute causal self-attention over the context.

    Padding needs no mask: it stands on the right, so no real query comes after it.

    Args:
        q: [P, S, H, D], H a multiple of K.
        kv: keys [P, K, D, S] and values [P, K, S, D].

    Returns:
        [P, S, H, D] in the dtype of the values.
    """
    p, s, h, d = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    kv_heads = kv.values.shape[1]
    r = h // kv_heads  # query heads to a key head
    q = q.reshape(p, s, kv_heads, r, d).transpose(0, 2, 3, 1, 4).reshape(p, kv_heads, r * s, d)
    scores = jnp.einsum("pkqd,pkds->pkqs", q, kv.keys, preferred_element_type=wide) * d**-0.5
    causal = jnp.tile(jnp.tril(jnp.ones((s, s), bool)), (r, 1))
    weights = jax.nn.softmax(jnp.where(causal, scores, NEG), axis=-1).astype(kv.values.dtype)
    out = jnp.einsum("pkqs,pksd->pkqd", weights, kv.values)
    return out.reshape(p, kv_heads, r, s, d).transpose(0, 3, 1, 2, 4).reshape(p, s, h, d)


def shared_attention(
    q: jax.Array, context: LayerKV, context_mask: Array, rows: LayerKV, row_mask: Array
) -> jax.Array:
    """Attend from continuation rows to their shared context and to themselves, with one softmax.

    Args:
        q: [P, G, T, H, D] queries (T = 1 when decoding).
        context: keys [P, K, D, S] and values [P, K, S, D] of the contexts.
        context_mask: bool [P, S], false on padding and on the last context token, which every row
            carries as its first input.
        rows: keys [P·G, K, D, U] and values [P·G, K, U, D] of the rows. Contexts and rows are one
            axis, since XLA would drop an axis of groups of one and, on CPU, copy the whole cache at
            every token.
        row_mask: bool, broadcastable to [P, G, T, U].

    Returns:
        [P, G, T, H, D] in the dtype of the queries.
    """
    p, g, t, h, d = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    kv_heads, s, u = context.values.shape[1], context.values.shape[2], rows.values.shape[2]
    r = h // kv_heads
    scale = jnp.asarray(d**-0.5, q.dtype)
    # [P, K, G, r, T, D]: the queries of a whole group that meet one head of context keys
    q = (q * scale).reshape(p, g, t, kv_heads, r, d).transpose(0, 3, 1, 4, 2, 5)
    to_context = jnp.einsum(
        "pkqd,pkds->pkqs",
        q.reshape(p, kv_heads, g * r * t, d),
        context.keys,
        preferred_element_type=wide,
    )
    to_context = to_context.reshape(p, kv_heads, g, r, t, s)
    row_q = q.transpose(0, 2, 1, 3, 4, 5).reshape(p * g, kv_heads, r * t, d)
    to_row = jnp.einsum("nkqd,nkdu->nkqu", row_q, rows.keys, preferred_element_type=wide)
    to_row = to_row.reshape(p, g, kv_heads, r, t, u)

    row_mask = jnp.broadcast_to(row_mask, (p, g, t, u))
    to_context = jnp.where(context_mask[:, None, None, None, None, :], to_context, NEG)
    to_row = jnp.where(row_mask[:, :, None, None], to_row, NEG)
    # Each part exponentiates against the common maximum; one shared sum normalises both.
    top_context = to_context.max(-1).transpose(0, 2, 1, 3, 4)  # [P, G, K, r, T]
    top = jax.lax.stop_gradient(jnp.maximum(top_context, to_row.max(-1)))
    exp_context = jnp.exp(to_context - top.transpose(0, 2, 1, 3, 4)[..., None])
    exp_row = jnp.exp(to_row - top[..., None])
    total = exp_context.sum(-1).transpose(0, 2, 1, 3, 4) + exp_row.sum(-1)

    from_context = jnp.einsum(
        "pkqs,pksd->pkqd",
        exp_context.reshape(p, kv_heads, g * r * t, s).astype(q.dtype),
        context.values,
        preferred_element_type=wide,
    )
    from_row = jnp.einsum(
        "nkqu,nkud->nkqd",
        exp_row.reshape(p * g, kv_heads, r * t, u).astype(q.dtype),
        rows.values,
        preferred_element_type=wide,
    )
    from_context = from_context.reshape(p, kv_heads, g, r, t, d).transpose(0, 2, 1, 3, 4, 5)
    out = (from_context + from_row.reshape(p, g, kv_heads, r, t, d)) / total[..., None]
    return out.transpose(0, 1, 4, 2, 3, 5).reshape(p, g, t, h, d).astype(q.dtype)
