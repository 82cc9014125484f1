"""Attention with a context that a whole group shares.

A continuation row attends to two parts, the keys of its context (one copy for all G rows) and its
own keys, under one softmax. The two parts are never concatenated along the batch: scores against
the context are a matrix product of all G rows with one key matrix, which is where sharing pays.
Layouts are head-major, keys transposed ([..., K, D, positions]) and values not ([..., K, positions,
D]), so that every product is a plain batched matmul of rows by columns.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEG = -1e30  # finite, so that a fully masked row gives a uniform softmax and not NaN


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Self-attention over the context.

    q: [P, S, H, D]; k: [P, K, D, S], v: [P, K, S, D] with H a multiple of K. Returns [P, S, H, D].
    Right padding needs no mask: no real query stands after it.
    """
    p, s, h, d = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    kv = v.shape[1]
    q = q.reshape(p, s, kv, h // kv, d).transpose(0, 2, 3, 1, 4).reshape(p, kv, h // kv * s, d)
    scores = jnp.einsum("pkqd,pkds->pkqs", q, k, preferred_element_type=wide) * d**-0.5
    causal = jnp.tile(jnp.tril(jnp.ones((s, s), bool)), (h // kv, 1))
    weights = jax.nn.softmax(jnp.where(causal, scores, NEG), axis=-1).astype(v.dtype)
    out = jnp.einsum("pkqs,pksd->pkqd", weights, v)
    return out.reshape(p, kv, h // kv, s, d).transpose(0, 3, 1, 2, 4).reshape(p, s, h, d)


def shared_attention(q, context_k, context_v, context_mask, own_k, own_v, own_mask) -> jax.Array:
    """Attention of continuation rows to their shared context and to themselves, one softmax over
    both.

    Args:
        q: [P, G, T, H, D] queries (T = 1 when decoding).
        context_k: [P, K, D, S]; context_v: [P, K, S, D].
        context_mask: bool [P, S], false on padding and on the last context token (the rows carry
            that one).
        own_k: [P·G, K, D, U]; own_v: [P·G, K, U, D]: keys and values of the rows themselves.
            Contexts and rows are one axis, since in groups of one XLA would drop theirs and, on
            CPU, copy the whole cache at every token.
        own_mask: bool, broadcastable to [P, G, T, U].

    Returns [P, G, T, H, D].
    """
    p, g, t, h, d = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    kv, s, u = context_v.shape[1], context_v.shape[2], own_v.shape[2]
    r = h // kv
    scale = jnp.asarray(d**-0.5, q.dtype)
    q = (q * scale).reshape(p, g, t, kv, r, d).transpose(0, 3, 1, 4, 2, 5)  # [P, K, G, r, T, D]
    to_context = jnp.einsum(
        "pkqd,pkds->pkqs", q.reshape(p, kv, g * r * t, d), context_k, preferred_element_type=wide
    )
    to_context = to_context.reshape(p, kv, g, r, t, s)
    own_q = q.transpose(0, 2, 1, 3, 4, 5).reshape(p * g, kv, r * t, d)
    to_own = jnp.einsum("nkqd,nkdu->nkqu", own_q, own_k, preferred_element_type=wide)
    to_own = to_own.reshape(p, g, kv, r, t, u)

    to_context = jnp.where(context_mask[:, None, None, None, None, :], to_context, NEG)
    to_own = jnp.where(jnp.broadcast_to(own_mask, (p, g, t, u))[:, :, None, None], to_own, NEG)
    # Each part exponentiates against the common maximum; one shared sum normalises both.
    top_context = to_context.max(-1).transpose(0, 2, 1, 3, 4)  # [P, G, K, r, T]
    top = jax.lax.stop_gradient(jnp.maximum(top_context, to_own.max(-1)))
    e_context = jnp.exp(to_context - top.transpose(0, 2, 1, 3, 4)[..., None])
    e_own = jnp.exp(to_own - top[..., None])
    total = e_context.sum(-1).transpose(0, 2, 1, 3, 4) + e_own.sum(-1)

    from_context = jnp.einsum(
        "pkqs,pksd->pkqd",
        e_context.reshape(p, kv, g * r * t, s).astype(q.dtype),
        context_v,
        preferred_element_type=wide,
    )
    from_own = jnp.einsum(
        "nkqu,nkud->nkqd",
        e_own.reshape(p * g, kv, r * t, u).astype(q.dtype),
        own_v,
        preferred_element_type=wide,
    )
    from_context = from_context.reshape(p, kv, g, r, t, d).transpose(0, 2, 1, 3, 4, 5)
    out = (from_context + from_own.reshape(p, g, kv, r, t, d)) / total[..., None]
    return out.transpose(0, 1, 4, 2, 3, 5).reshape(p, g, t, h, d).astype(q.dtype)
