"""Positional noise: a token's random numbers depend on what it is, not on where it is computed.

The Gumbel noise of a token is a function of (seed, stage, step, context id, sample id, position)
alone. So it is the same under any batch order, refill order, mesh or number of hosts, and after any
restart.
"""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from prefixrl_jax.seeds import generator, seed_key


def words(name: str) -> np.ndarray:
    """Return a stable 64-bit hash of a name as two words, uint32 [2].

    Thanks to the hash, ids may be any string. Unlike a position in a file, it does not change when
    the order of the file does.
    """
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u4").copy()


def walk(seed: int, name: str, size: int, start: int, count: int) -> list[int]:
    """Return places `start` to `start + count` of an endless walk through range(size).

    Every epoch is a new shuffle, a function of (seed, name, epoch) alone.
    """
    if not count:
        return []

    def order(epoch: int) -> np.ndarray:
        return generator(seed, epoch, *words(name).tolist()).permutation(size)

    last = (start + count - 1) // size
    epochs = {epoch: order(epoch) for epoch in range(start // size, last + 1)}
    return [int(epochs[place // size][place % size]) for place in range(start, start + count)]


def stream_key(seed: int, stage: str, step: int = 0) -> jax.Array:
    """Return the PRNG key of everything that one stage samples in one step.

    Raises ValueError for a seed beyond 64 bits, OverflowError for a negative step.
    """
    key = seed_key(seed)
    for word in (*words(stage), np.uint32(step)):
        key = jax.random.fold_in(key, word)
    return key


def row_keys(stream: jax.Array, context_words: jax.Array, sample_ids: jax.Array) -> jax.Array:
    """Return the PRNG keys [P, G] of the samples.

    Args:
        stream: from `stream_key`.
        context_words: uint32 [P, 2], `words` of the contexts' names.
        sample_ids: int32 [P, G].
    """

    def one(pair, sample_id):
        key = jax.random.fold_in(jax.random.fold_in(stream, pair[0]), pair[1])
        return jax.random.fold_in(key, sample_id)

    by_slot = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(by_slot)(context_words, sample_ids)


def threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encipher counters under a key with Threefry-2x32 (20 rounds); return two uint32 words.

    The counters have two words, high and low. This is the generator of `jax.random`, written out:
    there the rounds are a loop on CPU, which no compiler fuses with the code that uses the bits.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    Args:
        key: uint32 [..., 2].
        high, low: uint32, broadcastable to each other and to [...].
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
    """Return the Gumbel noise of one token of every sample, float32 [P, G, V].

    Args:
        keys: PRNG keys [P, G], from `row_keys`.
        positions: int32 [P, G], places in the continuation, from 0. The counter of the cipher is
            (position, token id).
        vocab_size: V.
    """
    key_words = jax.random.key_data(keys)[..., None, :]
    counter = positions[..., None].astype(jnp.uint32), jnp.arange(vocab_size, dtype=jnp.uint32)
    first, second = threefry(key_words, *counter)
    bits = (first ^ second) >> 9  # 23 random bits are the mantissa of a float in [1, 2)
    uniform = jax.lax.bitcast_convert_type(bits | jnp.uint32(0x3F800000), jnp.float32) - 1
    return -jnp.log(-jnp.log(jnp.maximum(uniform, jnp.finfo(jnp.float32).tiny)))
