"""Masks come from lengths, rows begin with the last context token, buckets hold or refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixrl_jax.group import Context, Group, bucket, length_mask, pad_rows, row_inputs


def test_length_mask_counts_from_the_left():
    assert length_mask(np.array([0, 2, 3]), 3).tolist() == [
        [False] * 3,
        [True, True, False],
        [True] * 3,
    ]


def test_group_mask_does_not_look_at_token_ids():
    context = Context(np.zeros((2, 1), np.int32), np.ones(2, np.int32))
    tokens = np.zeros((2, 2, 4), np.int32)  # every real token has the id that also pads
    lengths = np.array([[4, 0], [1, 3]], np.int32)
    mask = Group(context, tokens, lengths, np.zeros((2, 2, 4)), np.zeros((2, 2))).mask()
    assert mask.dtype == np.float32
    assert mask.sum(-1).tolist() == lengths.tolist()
    assert np.all(np.diff(mask, axis=-1) <= 0)


def test_row_inputs_shift_by_one_and_begin_with_the_last_context_token():
    rng = np.random.default_rng(0)
    lengths = [5, 1, 3]
    tokens, continuations = rng.integers(0, 99, (3, 5)), rng.integers(100, 199, (3, 2, 4))
    inputs = row_inputs(Context(tokens, np.array(lengths)), continuations)
    for p, length in enumerate(lengths):
        for g in range(2):
            assert inputs[p, g].tolist() == [tokens[p, length - 1], *continuations[p, g, :-1]]


@pytest.mark.parametrize("kind", [list, np.array])
def test_pad_rows(kind):
    tokens, lengths = pad_rows([kind([5, 6]), kind([7]), kind([1, 2, 3])], 4)
    assert tokens.dtype == lengths.dtype == np.int32
    assert lengths.tolist() == [2, 1, 3]
    assert tokens.tolist() == [[5, 6, 0, 0], [7, 0, 0, 0], [1, 2, 3, 0]]


def test_pad_rows_names_the_row_that_does_not_fit():
    with pytest.raises(ValueError, match=r"row 1 has 3 tokens, the bucket holds 2"):
        pad_rows([[1], [1, 2, 3]], 2)


def test_bucket_is_the_smallest_that_holds_the_context():
    assert [bucket(n, (32, 8, 16)) for n in (1, 8, 9, 16, 17, 32)] == [8, 8, 16, 16, 32, 32]
    with pytest.raises(ValueError, match=r"33 tokens .*context_buckets=\(32, 8, 16\)"):
        bucket(33, (32, 8, 16))


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=5), st.integers(0, 4))
def test_packing_gives_back_every_row(rows, spare):
    size = max(map(len, rows), default=0) + spare
    tokens, lengths = pad_rows(rows, size)
    assert tokens.shape == (len(rows), size)
    assert [row[:n].tolist() for row, n in zip(tokens, lengths)] == rows
    assert not (tokens * ~length_mask(lengths, size)).any()


@given(st.lists(st.integers(1, 99), min_size=1, max_size=5).map(tuple), st.integers(1, 99))
def test_no_smaller_bucket_would_hold_it(buckets, length):
    if length > max(buckets):
        with pytest.raises(ValueError, match=f"{length} tokens"):
            bucket(length, buckets)
    else:
        size = bucket(length, buckets)
        assert size in buckets and size >= length
        assert not any(length <= other < size for other in buckets)
