"""Token ids that a model has and its tokenizer lacks: a vocabulary padded to a round size.

Such an id decodes to no text. It is masked wherever a distribution over tokens is formed, in
sampling and in the log-probs of training alike; the model's own logits keep it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

IdRanges = tuple[tuple[int, int], ...]  # (first, end) of ranges of ids, without the end


def absent_ids(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> IdRanges:
    """Return the ids below `vocab_size` that the tokenizer lacks, in ascending ranges."""
    absent = np.ones(vocab_size, bool)
    absent[[i for i in tokenizer.get_vocab().values() if i < vocab_size]] = False
    edges = np.flatnonzero(np.diff(absent, prepend=False, append=False)).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def mask_absent(logits: jax.Array, absent: IdRanges) -> jax.Array:
    """Set the logits [..., V] of absent ids to -inf; without such ids return them as they are."""
    if not absent:
        return logits
    ids = jnp.arange(logits.shape[-1])
    for first, end in absent:
        logits = jnp.where((ids >= first) & (ids < end), -jnp.inf, logits)
    return logits
