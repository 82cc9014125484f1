"""How the next token is drawn: temperature, top-k, top-p, and the largest of noisy log-probs."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from prefixrl_jax.model.vocabulary import IdRanges, mask_absent
from prefixrl_jax.sampling import noise

# Logits over a smaller temperature overflow float32.
LEAST_TEMPERATURE = 1e-6


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The settings that say how tokens are drawn and when a sample ends.

    Reinforcement learning needs the untruncated distribution: top_p = 1 and top_k = 0. Raises
    ValueError for a value out of range.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    absent_ids: IdRanges = ()  # that the tokenizer lacks: never drawn

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature}: must be 0 (greedy) or a number from"
                f" {LEAST_TEMPERATURE} upwards"
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"top_p={self.top_p}, top_k={self.top_k}: top_p lies in (0, 1], top_k is 0 (off) or"
                " positive"
            )
        if not self.stop_ids:
            raise ValueError("stop_ids is empty: no sample could end before max_new_tokens")


def distribution(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Return the log-probs of the distribution that tokens are drawn from.

    Logits and log-probs are float32 [..., V]. Temperature is applied first, then top-k, then top-p;
    the result is renormalised. Ids that the tokenizer lacks have log-prob -inf.
    """
    logits = mask_absent(logits, sampling.absent_ids)
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        descending = -jnp.sort(-jax.nn.log_softmax(logits), axis=-1)
        # A token stays if the tokens more likely than it have a mass below top_p.
        mass_before = jnp.cumsum(jnp.exp(descending), axis=-1) - jnp.exp(descending)
        kept = jnp.where(mass_before < sampling.top_p, descending, jnp.inf)
        least = jnp.min(kept, axis=-1, keepdims=True)
        logits = jnp.where(jax.nn.log_softmax(logits) < least, -jnp.inf, logits)
    return jax.nn.log_softmax(logits)


def draw(
    logits: jax.Array, keys: jax.Array, ages: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Draw the next token of every row; return the tokens and their log-probs.

    Tokens are int32 [P, G], log-probs float32 [P, G]. This is the Gumbel-max trick: the largest of
    log-probs plus Gumbel noise is a draw from the softmax.

    Args:
        logits: float32 [P, G, V].
        keys: PRNG keys [P, G] of the samples, from `noise.row_keys`.
        ages: int32 [P, G], how many tokens each sample has already.
        sampling: the distribution; at temperature 0 no noise is added.
    """
    logprobs = distribution(logits, sampling)
    scores = logprobs
    if sampling.temperature > 0:
        scores = logprobs + noise.gumbel(keys, ages, logits.shape[-1])
    token = _argmax(scores)
    return token, jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]


def _argmax(scores: jax.Array) -> jax.Array:
    """Return the int32 index of the largest score, the lowest index among equal scores.

    XLA's own argmax is a scalar loop on CPU, twice as slow.
    """
    ids = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    is_largest = scores == scores.max(-1, keepdims=True)
    return jnp.min(jnp.where(is_largest, ids, scores.shape[-1] - 1), axis=-1)
