"""Positional noise: which random numbers a token gets depends on what it is, not on where or when
it is computed.

The Gumbel noise of a token is a function of (seed, stage, step, context id, sample id, position)
alone. So it is the same under any batch order, refill order, mesh or number of hosts, and after any
restart.
"""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np


def words(name: str) -> np.ndarray:
    """uint32 [2]: a stable 64-bit hash of a name, so that ids may be any string and file order does
    not matter.
    """
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u4").copy()


def stream_key(seed: int, stage: str, step: int = 0) -> jax.Array:
    """The key of everything one stage samples in one step."""
    key = jax.random.key(seed)
    for word in (*words(stage), np.uint32(step)):
        key = jax.random.fold_in(key, word)
    return key


def row_keys(stream: jax.Array, context_words: jax.Array, sample_ids: jax.Array) -> jax.Array:
    """Keys [P, G] of the samples `sample_ids` (int32 [P, G]) of contexts whose id hashes are uint32
    [P, 2].
    """

    def one(pair, sample):
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.fold_in(stream, pair[0]), pair[1]), sample
        )

    return jax.vmap(lambda pair, ids: jax.vmap(lambda i: one(pair, i))(ids))(
        context_words, sample_ids
    )


def threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds: the counters (high, low) enciphered under key (uint32 [...,
    2]), two uint32 words.

    The generator of `jax.random`, written out: there the rounds are a loop on CPU, which no
    compiler fuses with what uses the bits. Source: Salmon et al. 2011, "Parallel random numbers: as
    easy as 1, 2, 3".
    """
    k0, k1 = key[..., 0], key[..., 1]
    schedule = (k0, k1, k0 ^ k1 ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = high + k0, low + k1
    for group in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x0 = x0 + x1
            x1 = x0 ^ ((x1 << bits) | (x1 >> (32 - bits)))
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


def gumbel(keys: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """float32 [P, G, V] noise of the continuation tokens at `positions` (int32 [P, G], from 0):
    counter (position, token).
    """
    words = jax.random.key_data(keys)[..., None, :]
    first, second = threefry(
        words, positions[..., None].astype(jnp.uint32), jnp.arange(vocab_size, dtype=jnp.uint32)
    )
    bits = (first ^ second) >> 9  # 23 random bits are the mantissa of a float in [1, 2)
    uniform = jax.lax.bitcast_convert_type(bits | jnp.uint32(0x3F800000), jnp.float32) - 1
    return -jnp.log(-jnp.log(jnp.maximum(uniform, jnp.finfo(jnp.float32).tiny)))
