"""Positional noise: which random numbers a token gets depends on what it is, not on where or when it is computed.

The Gumbel noise of a token is a function of (seed, stage, step, context id, sample id, position) alone. So it is the same
under any batch order, refill order, mesh or number of hosts, and after any restart.
"""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np


def words(name: str) -> np.ndarray:
    """uint32 [2]: a stable 64-bit hash of a name, so that ids may be any string and file order does not matter."""
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u4").copy()


def stream_key(seed: int, stage: str, step: int = 0) -> jax.Array:
    """The key of everything one stage samples in one step."""
    key = jax.random.key(seed)
    for word in (*words(stage), np.uint32(step)):
        key = jax.random.fold_in(key, word)
    return key


def row_keys(stream: jax.Array, context_words: jax.Array, sample_ids: jax.Array) -> jax.Array:
    """Keys [P, G] of the samples `sample_ids` (int32 [P, G]) of contexts whose id hashes are uint32 [P, 2]."""

    def one(pair, sample):
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(stream, pair[0]), pair[1]), sample)

    return jax.vmap(lambda pair, ids: jax.vmap(lambda i: one(pair, i))(ids))(context_words, sample_ids)


def gumbel(keys: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """float32 [P, G, V] noise of the continuation tokens at `positions` (int32 [P, G], from 0)."""

    def one(key, position):
        return jax.random.gumbel(jax.random.fold_in(key, position), (vocab_size,), jnp.float32)

    return jax.vmap(jax.vmap(one))(keys, positions)
