"""Decoding against teacher forcing and numpy; refills, rings, stop ids, memory, compilations."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tiny_models import TINY, as_context, continuation_logprobs, random_contexts, random_params

from prefixrl_jax.model.weights import abstract_params
from prefixrl_jax.sampling import noise, sampler
from prefixrl_jax.sampling.distribution import Sampling

STREAM = noise.stream_key(0, "collect", 4)
SIZE = 8  # of the context bucket
COLUMNS = 8  # of the ring
LENGTHS = [5, 1, 8, 3]


class Shape(NamedTuple):
    """Of a batch, and ticks between refills."""

    rows: int
    slots: int
    steps: int


FULL = Shape(4, 4, COLUMNS)  # every context at once: few shapes, so that few are compiled
NARROW = Shape(2, 2, 3)
STOPPING = Sampling(COLUMNS, stop_ids=(3, 11, 20, 21, 30))
ENDLESS = Sampling(COLUMNS, stop_ids=(TINY.vocab_size,))  # a stop id that no token has
GREEDY = Sampling(6, ENDLESS.stop_ids, temperature=0.0)


def name_of(context: list[int]) -> np.ndarray:
    return noise.words(f"context {context}")


def drain(params, config, sampling, contexts, samples, shape: Shape):
    """Samples ids 0..samples-1 of every context through a batch that is refilled.

    Slots take ids as they fall free, and a row whose samples are all done takes the next context.
    Returns {(context index, sample id): (tokens, log-probs)} and the ticks taken.
    """
    rows, slots, steps = shape
    waiting = list(range(len(contexts)))
    held, waiting = waiting[:rows], waiting[rows:]
    todo = [list(range(samples)) for _ in held]
    ids, results = np.full((rows, slots), -1), {}
    state = sampler.start(
        params,
        as_context([contexts[c] for c in held], SIZE),
        config=config,
        slots=slots,
        columns=COLUMNS,
    )
    while True:
        for row in range(rows):
            if not waiting or todo[row] or np.any(ids[row] >= 0):
                continue
            held[row], todo[row] = waiting.pop(0), list(range(samples))
            new = as_context([contexts[held[row]]], SIZE)
            state = sampler.replace_contexts(params, state, jnp.array([[row]]), new, config=config)
        fresh = np.zeros(ids.shape, bool)
        for row, slot in np.argwhere(ids < 0):
            if todo[row]:
                ids[row, slot], fresh[row, slot] = todo[row].pop(0), True
        if np.all(ids < 0):
            return results, int(state.ticks)
        words = jnp.asarray(np.stack([name_of(contexts[c]) for c in held]))
        sample_ids = jnp.asarray(np.maximum(ids, 0), jnp.int32)
        state = sampler.assign(
            state, STREAM, words, sample_ids, jnp.asarray(fresh), jnp.asarray(ids >= 0)
        )
        state = sampler.decode_chunk(params, state, config=config, sampling=sampling, steps=steps)
        begin, age, active = (np.asarray(x) for x in (state.begin, state.age, state.active))
        tokens, logprobs = sampler.unroll_rings(
            begin, np.asarray(state.tokens), np.asarray(state.logprobs)
        )
        for row, slot in np.argwhere((ids >= 0) & ~active):
            n = age[row, slot]
            results[held[row], ids[row, slot]] = tokens[row, slot, :n], logprobs[row, slot, :n]
            ids[row, slot] = -1


def forced_logprobs(params, config, context, tokens, temperature=1.0) -> np.ndarray:
    """Log-probs of one continuation as the train step computes them."""
    padded = jnp.asarray(np.pad(tokens, (0, 16 - len(tokens)))[None, None], jnp.int32)
    logprobs = teacher_forced(params, config, as_context([context], SIZE), padded, temperature)
    return np.asarray(logprobs)[0, 0, : len(tokens)]


teacher_forced = jax.jit(continuation_logprobs, static_argnums=1)


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


@pytest.fixture(scope="module")
def contexts():
    return random_contexts(TINY, LENGTHS)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_refilled_slots_sample_what_a_fresh_batch_does(config, params, contexts, temperature):
    """Two rows of two slots serve four contexts of four samples each.

    Samples end by stop id at many ages, so slots of all ages meet, cache columns wrap, and rows
    change contexts while others run.
    """
    sampling = dataclasses.replace(STOPPING, temperature=temperature)
    refilled, ticks = drain(params, config, sampling, contexts, 4, NARROW)
    assert set(refilled) == {(c, i) for c in range(4) for i in range(4)}
    assert len({len(tokens) for tokens, _ in refilled.values()}) >= 4 and ticks > 2 * COLUMNS
    fresh, _ = drain(params, TINY, sampling, contexts, 4, FULL)
    for (c, i), (tokens, logprobs) in refilled.items():
        np.testing.assert_array_equal(tokens, fresh[c, i][0])
        forced = forced_logprobs(params, config, contexts[c], tokens, temperature)
        np.testing.assert_allclose(logprobs, forced, rtol=0, atol=1e-4)
        np.testing.assert_allclose(fresh[c, i][1], forced, rtol=0, atol=1e-4)


def test_tokens_do_not_depend_on_batch_size_or_position(params, contexts):
    together, _ = drain(params, TINY, ENDLESS, contexts, 4, FULL)
    backwards, _ = drain(params, TINY, ENDLESS, contexts[::-1], 4, FULL)
    one_by_one, _ = drain(params, TINY, ENDLESS, contexts, 4, Shape(1, 1, COLUMNS))
    for (c, i), (tokens, _) in together.items():
        np.testing.assert_array_equal(tokens, backwards[3 - c, i][0])
        np.testing.assert_array_equal(tokens, one_by_one[c, i][0])


def test_tokens_and_logprobs_are_of_the_renormalised_distribution(params, contexts):
    """The draw is recomputed in numpy from the reference model and the noise."""
    sampling = dataclasses.replace(ENDLESS, temperature=0.7, top_k=5, top_p=0.8)
    got, _ = drain(params, TINY, sampling, contexts, 4, FULL)
    keys = noise.row_keys(
        STREAM,
        jnp.asarray(np.stack([name_of(c) for c in contexts])),
        jnp.tile(jnp.arange(4), (4, 1)),
    )
    gumbel = [
        np.asarray(noise.gumbel(keys, jnp.full((4, 4), t), TINY.vocab_size)) for t in range(COLUMNS)
    ]
    supports = set()
    for (c, i), (tokens, logprobs) in got.items():
        for t, logits in enumerate(oracle.continuation_logits(params, TINY, contexts[c], tokens)):
            p = oracle.distribution(logits, 0.7, 5, 0.8)
            supports.add(int((p > 0).sum()))
            with np.errstate(divide="ignore"):
                assert tokens[t] == np.argmax(np.log(p) + gumbel[t][c, i])
            np.testing.assert_allclose(logprobs[t], np.log(p[tokens[t]]), rtol=0, atol=1e-4)
    assert max(supports) <= 5 and len(supports) > 2  # top-p cuts below top-k, and not always


def test_greedy_takes_the_largest_logit(params, contexts):
    got, _ = drain(params, TINY, GREEDY, contexts, 1, FULL)
    for (c, _), (tokens, logprobs) in got.items():
        logits = oracle.continuation_logits(params, TINY, contexts[c], tokens)
        assert tokens.tolist() == logits.argmax(-1).tolist() and len(tokens) == 6
        np.testing.assert_allclose(
            logprobs, np.log(oracle.softmax(logits).max(-1)), rtol=0, atol=1e-4
        )


def test_any_stop_id_ends_a_sample_and_the_limit_cuts_it(params, contexts):
    free, _ = drain(params, TINY, ENDLESS, contexts, 4, FULL)
    assert all(len(tokens) == COLUMNS for tokens, _ in free.values())
    got, _ = drain(params, TINY, STOPPING, contexts, 4, FULL)
    ended = set()
    for key, (tokens, logprobs) in got.items():
        whole = free[key][0]
        hits = np.flatnonzero(np.isin(whole, STOPPING.stop_ids))
        n = hits[0] + 1 if len(hits) else COLUMNS  # the stop id is the last token kept
        np.testing.assert_array_equal(tokens, whole[:n])
        np.testing.assert_allclose(logprobs, free[key][1][:n], rtol=0, atol=1e-5)
        ended.add(int(tokens[-1]) if len(hits) else None)
    assert None in ended and len(ended) > 2


def test_a_chunk_ends_when_no_slot_is_active(params, contexts):
    state = sampler.start(params, as_context(contexts, SIZE), config=TINY, slots=4, columns=COLUMNS)
    decode = partial(sampler.decode_chunk, params, config=TINY, sampling=GREEDY, steps=COLUMNS)
    state = decode(state)
    assert int(state.ticks) == 0 and not state.age.any()
    one = jnp.zeros((4, 4), bool).at[2, 1].set(True)
    state = decode(
        sampler.assign(
            state, STREAM, jnp.zeros((4, 2), jnp.uint32), jnp.zeros((4, 4), jnp.int32), one, one
        )
    )
    assert (
        int(state.ticks) == 6 < COLUMNS
        and state.age.tolist() == (6 * one).tolist()
        and not state.active.any()
    )
    assert int(decode(state).ticks) == 6


def test_a_finished_sample_survives_its_neighbours_wrapping_round_the_ring(params, contexts):
    """One slot of each row stays done while the others write every column of the ring."""
    state = sampler.start(params, as_context(contexts, SIZE), config=TINY, slots=4, columns=COLUMNS)
    words = jnp.asarray(np.stack([name_of(c) for c in contexts]))
    kept = None
    for sample in range(3):
        fresh = jnp.ones((4, 4), bool) if sample == 0 else jnp.tile(jnp.arange(4) > 0, (4, 1))
        state = sampler.assign(state, STREAM, words, jnp.full((4, 4), sample), fresh, fresh)
        state = sampler.decode_chunk(params, state, config=TINY, sampling=ENDLESS, steps=COLUMNS)
        rings = np.asarray(state.tokens), np.asarray(state.logprobs)
        kept = kept or rings
        for ring, first in zip(rings, kept, strict=True):
            np.testing.assert_array_equal(ring[:, 0], first[:, 0])
            assert sample == 0 or np.any(ring[:, 1:] != first[:, 1:])
    assert int(state.ticks) == 3 * COLUMNS


def test_replacing_some_rows_leaves_the_others_alone(config, params, contexts):
    """Two blocks of two rows; row 1 of the first block and none of the second is replaced."""
    old, new = as_context(contexts, SIZE), as_context(random_contexts(TINY, [6, 2], seed=5), SIZE)
    start = partial(sampler.start, params, config=config, slots=2, columns=COLUMNS)
    state = start(old)
    before = jax.tree.map(np.array, state.context_kv)
    state = sampler.replace_contexts(params, state, jnp.array([[1], [2]]), new, config=config)
    expected = start(new).context_kv
    axis = expected.row_axis
    np.testing.assert_array_equal(state.context.lengths, [5, 6, 8, 3])
    for leaves in zip(*map(jax.tree.leaves, (state.context_kv, before, expected)), strict=True):
        got, was, now = map(np.asarray, leaves)
        np.testing.assert_array_equal(np.delete(got, 1, axis), np.delete(was, 1, axis))
        np.testing.assert_allclose(np.take(got, 1, axis), np.take(now, 0, axis), rtol=0, atol=1e-5)


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("unroll", [False, True], ids=["scanned", "unrolled"])
def test_the_cache_is_updated_in_place(unroll, slots):
    """Temporaries of a decode chunk stay below a quarter of the rows' cache, which is aliased.

    In a model where the cache is what is large.
    """
    config = dataclasses.replace(TINY, num_layers=8, unroll_layers=unroll)
    params = abstract_params(config)
    context = jax.eval_shape(lambda: as_context([[1] * SIZE] * 4, SIZE))
    state = jax.eval_shape(
        lambda p, c: sampler.start(p, c, config=config, slots=slots, columns=1024), params, context
    )
    lowered = sampler.decode_chunk.lower(
        params, state, config=config, sampling=Sampling(1024, (0,)), steps=16
    )
    memory = lowered.compile().memory_analysis()
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.row_kv))
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 4


def test_nothing_is_compiled_twice(params, contexts):
    """One compilation of each function serves any number of refills, contexts, chunks and calls."""
    functions = (sampler.start, sampler.assign, sampler.decode_chunk, sampler.replace_contexts)
    for f in functions:
        f.clear_cache()
    for order in (contexts, contexts[::-1]):
        drain(params, dataclasses.replace(TINY, unroll_layers=True), STOPPING, order, 4, NARROW)
    assert [f._cache_size() for f in functions] == [1, 1, 1, 1]
