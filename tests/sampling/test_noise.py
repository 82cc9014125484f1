"""Noise is the same in any batch, shared by no two tokens, and Gumbel distributed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from prefixrl_jax.sampling import noise

NAMES = ["problem-0", "problem-1", "problem-10", "a longer name, é", ""]


def keys_of(stream, names, sample_ids):
    return noise.row_keys(
        stream,
        jnp.asarray(np.stack([noise.words(n) for n in names])),
        jnp.asarray(sample_ids, jnp.int32),
    )


def draw(stream, names, sample_ids, positions, vocab_size=16):
    return np.asarray(
        noise.gumbel(
            keys_of(stream, names, sample_ids), jnp.asarray(positions, jnp.int32), vocab_size
        )
    )


def test_words_are_stable_and_distinct():
    """Stored samples are continued by later runs, so the hash of a name may never change."""
    assert noise.words("problem-0").dtype == np.uint32
    assert noise.words("problem-0").tolist() == [65053379, 2361240317]
    assert (
        len({noise.words(f"{kind}-{i}").tobytes() for kind in ("p", "q") for i in range(5000)})
        == 10000
    )


def test_threefry_is_that_of_jax_random():
    """`jax.extend.random.threefry_2x32` takes the two counter words as halves of one vector."""
    rng = np.random.default_rng(0)
    key, high, low = (
        jnp.asarray(rng.integers(0, 2**32, n, dtype=np.uint32)) for n in (2, 1000, 1000)
    )
    first, second = noise.threefry(key, high, low)
    np.testing.assert_array_equal(
        jnp.concatenate([first, second]), threefry_2x32(key, jnp.concatenate([high, low]))
    )


def test_gumbel_noise_is_the_double_logarithm_of_its_own_uniform_bits():
    stream, ids, positions = noise.stream_key(0, "rollout"), [[3]], [[7]]
    drawn = draw(stream, NAMES[:1], ids, positions, 50)[0, 0]
    key = jax.random.key_data(keys_of(stream, NAMES[:1], ids))[0, 0]
    # one at a time: counter (position, token), the two words exclusive-or'ed
    for token in range(50):
        first, second = (
            int(word) for word in threefry_2x32(key, jnp.array([7, token], jnp.uint32))
        )
        uniform = max(((first ^ second) >> 9) / 2**23, np.finfo(np.float32).tiny)
        assert drawn[token] == pytest.approx(-np.log(-np.log(uniform)), rel=1e-5, abs=1e-6)


def test_noise_does_not_depend_on_batch_order_or_size():
    stream = noise.stream_key(0, "collect", 3)
    ids, positions = np.arange(20).reshape(5, 4), np.arange(20)[::-1].reshape(5, 4)
    whole = draw(stream, NAMES, ids, positions)
    rng = np.random.default_rng(0)
    rows, slots = rng.permutation(5), rng.permutation(4)
    permuted = draw(
        stream, [NAMES[r] for r in rows], ids[rows][:, slots], positions[rows][:, slots]
    )
    np.testing.assert_array_equal(permuted, whole[rows][:, slots])
    for p, g in np.ndindex(5, 4):
        np.testing.assert_array_equal(
            draw(stream, [NAMES[p]], [[ids[p, g]]], [[positions[p, g]]])[0, 0], whole[p, g]
        )


def test_noise_is_the_same_under_jit():
    stream, args = noise.stream_key(0, "rollout"), ([[0, 7]], [[2, 5]])
    jitted = jax.jit(
        lambda stream: noise.gumbel(keys_of(stream, NAMES[:1], args[0]), jnp.array(args[1]), 16)
    )(stream)
    np.testing.assert_array_equal(jitted, draw(stream, NAMES[:1], *args))


def test_no_two_tokens_share_noise():
    """Small numbers in every role, so that a sum or a swapped order anywhere would collide."""
    drawn = []
    for seed, stage, step in itertools.product(
        (0, 1, 2), ("select", "collect", "rollout"), (0, 1, 2, 3)
    ):
        ids, positions = np.meshgrid(np.arange(6), np.arange(6), indexing="ij")
        ids, positions = (np.broadcast_to(x.ravel(), (len(NAMES), 36)) for x in (ids, positions))
        stream = noise.stream_key(seed, stage, step)
        drawn.append(draw(stream, NAMES, ids, positions, 4).reshape(-1, 4))
    drawn = np.concatenate(drawn)
    assert len(drawn) == 3 * 3 * 4 * len(NAMES) * 36 == 6480
    assert len({row.tobytes() for row in drawn}) == len(drawn)


def test_context_ids_of_equal_halves_do_not_share_noise():
    stream = noise.stream_key(0, "rollout")
    pairs = jnp.array([[1, 2], [2, 1], [1, 1], [2, 2]], jnp.uint32)
    keys = jax.random.key_data(noise.row_keys(stream, pairs, jnp.tile(jnp.arange(3), (4, 1))))
    assert len(np.unique(keys.reshape(-1, keys.shape[-1]), axis=0)) == 12


def test_negative_step_is_refused():
    with pytest.raises(OverflowError):
        noise.stream_key(0, "rollout", -1)


def test_the_largest_sum_is_drawn_from_the_softmax():
    """Chi-square of 20,000 draws over 8 tokens, 7 degrees of freedom."""
    p = np.array([0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.015, 0.005])
    n = 20000
    g = draw(
        noise.stream_key(5, "rollout", 1),
        NAMES[:4],
        np.tile(np.arange(500), (4, 1)),
        np.zeros((4, 500)),
        80,
    )
    tokens = np.argmax(np.log(p) + g.reshape(n, 8), axis=-1)
    expected = n * p
    statistic = ((np.bincount(tokens, minlength=8) - expected) ** 2 / expected).sum()
    assert statistic < 29.9  # passed once in 10,000 seeds


def test_successive_positions_are_independent():
    """Chi-square of pairs (token, next token) over 4 tokens, 9 degrees of freedom."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    ids, positions = np.repeat(np.arange(4000), 8)[None], np.tile(np.arange(8), 4000)[None]
    g = draw(noise.stream_key(6, "rollout", 1), NAMES[:1], ids, positions, 4)
    tokens = np.argmax(np.log(p) + g, axis=-1).reshape(4000, 8)
    pairs = np.bincount((tokens[:, :-1] * 4 + tokens[:, 1:]).ravel(), minlength=16).reshape(4, 4)
    expected = np.outer(pairs.sum(1), pairs.sum(0)) / pairs.sum()
    assert ((pairs - expected) ** 2 / expected).sum() < 33.7  # passed once in 10,000 seeds
