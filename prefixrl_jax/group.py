"""The unit of everything here: a context asked G times, and the group of its continuations.

A *context* is a problem rendered to token ids, or a problem followed by the first tokens of one of
its correct traces (an unfinished assistant turn). A *group* is the G continuations of one context.
The first axis of every array below is P, the number of contexts in the batch. Padding stands on the
right and is told by lengths, never by token id.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray  # on the devices, or on the host before it goes there


@flax.struct.dataclass
class Context:
    """The token ids of P contexts, padded on the right.

    The last token of each is the first input of every continuation row (`row_inputs`), which
    attends to the keys of the tokens before it.
    """

    tokens: Array  # int32 [P, S]
    lengths: Array  # int32 [P], 1 <= length <= S


@flax.struct.dataclass
class Group:
    """G continuations of each of P contexts, with the arrays that the loss needs."""

    context: Context
    tokens: Array  # int32 [P, G, T] continuation, the stop id included
    lengths: Array  # int32 [P, G], 0 for a row that must count for nothing
    logprobs: Array  # float32 [P, G, T] of the sampled tokens when they were sampled
    rewards: Array  # float32 [P, G]
    # What only some methods need; else None.
    # bool [P, G]: rows that are traces; their `logprobs` are those of the policy that wrote them
    off_policy: Array | None = None
    # float32 [P, G, T]: log-probs of the tokens under the reference model
    reference: Array | None = None
    # int32 [P]: how many of the context's last tokens are a prefix
    prefix_lengths: Array | None = None

    def mask(self) -> jax.Array:
        """Return the mask of the continuation tokens: 1 on tokens, 0 on padding.

        The mask is float32 [P, G, T].
        """
        return length_mask(self.lengths, self.tokens.shape[-1]).astype(jnp.float32)


def length_mask(lengths, size: int):
    """Return a mask that is true at the first `lengths` of `size` positions.

    The mask is bool [..., size], for lengths [...].
    """
    return jnp.arange(size) < lengths[..., None]


def row_inputs(context: Context, continuations: Array) -> jax.Array:
    """Return the input tokens of the continuation rows: [last context token, c1, ..., c(T-1)].

    The inputs are int32 [P, G, T], like the continuations [c1, ..., cT]. The logits at column t
    (from 0) predict c(t+1).
    """
    last = jnp.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)  # [P, 1]
    first = jnp.broadcast_to(last[:, :, None], (*continuations.shape[:2], 1))
    return jnp.concatenate([first, continuations[..., :-1]], axis=-1)


def pad_rows(
    rows: Sequence[Sequence[int] | np.ndarray], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pad N token lists on the right to one size; return the tokens and their lengths.

    Tokens are int32 [N, size], lengths int32 [N]. Raises ValueError if a list is longer than
    `size`.
    """
    out = np.zeros((len(rows), size), np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    for i, row in enumerate(rows):
        if len(row) > size:
            raise ValueError(f"row {i} has {len(row)} tokens, the bucket holds {size}")
        out[i, : len(row)] = row
    return out, lengths


def bucket(length: int, buckets: tuple[int, ...]) -> int:
    """Return the smallest bucket that holds `length` tokens.

    Arrays are padded to a few bucket sizes because every new shape is compiled. Raises ValueError
    if no bucket is large enough.
    """
    for size in sorted(buckets):
        if length <= size:
            return size
    raise ValueError(
        f"a context of {length} tokens is longer than the largest of"
        f" sampling.context_buckets={tuple(buckets)}"
    )
