"""Policy-gradient losses on the continuation tokens of groups.

Context tokens (problem and prefix) carry no loss: they are only attended to. Denominators are counted over the whole global
batch before it is cut into micro-batches, so neither accumulation nor sharding changes the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from prefixrl_jax.group import Group, row_inputs
from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params

AGGREGATIONS = ("token_mean", "sequence_mean", "constant")


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Which loss, and over what it is averaged."""

    kind: str = "reinforce"
    aggregation: str = "token_mean"
    constant_length: int = 1  # the constant a row's sum is divided by under "constant" (Dr. GRPO), in tokens
    clip_low: float = 0.2
    clip_high: float = 0.2
    temperature: float = 1.0  # of the sampler: the log-probs trained are those of the distribution sampled from
    logprob_chunk: int = 64  # positions whose logits exist at a time

    def __post_init__(self):
        if self.kind not in LOSSES:
            raise ValueError(f"train.loss={self.kind!r}: one of {', '.join(LOSSES)}")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"train.aggregation={self.aggregation!r}: one of {', '.join(AGGREGATIONS)}")
        if not 0 < self.clip_low < 1 or self.clip_high <= 0:
            raise ValueError(f"train.clip_low={self.clip_low}, train.clip_high={self.clip_high}: in (0, 1) and positive")
        if self.temperature <= 0:
            raise ValueError(f"sampling.temperature={self.temperature}: training needs a positive temperature")
        if self.logprob_chunk < 1 or self.constant_length < 1:
            raise ValueError(f"train.logprob_chunk={self.logprob_chunk}: must be at least 1")


def reinforce(logprobs, sampled, advantages, settings: LossSettings) -> jax.Array:
    """-A log pi(token), per token [P, G, T] (paper's objective; advantages [P, G, 1])."""
    return -advantages * logprobs


def ppo_clip(logprobs, sampled, advantages, settings: LossSettings) -> jax.Array:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) per token, rho = pi / pi when sampled."""
    ratio = jnp.exp(logprobs - sampled)
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


LOSSES: dict[str, Callable] = {"reinforce": reinforce, "ppo_clip": ppo_clip}


def token_logprobs(params: Params, config: ModelConfig, group: Group, temperature: float, chunk: int):
    """Log-probs of the continuation tokens, float32 [P, G, T].

    The context is encoded once a group. Logits exist for `chunk` positions at a time and are recomputed in the backward
    pass, so nothing of size [P, G, T, V] is ever held.
    """
    kv = transformer.encode_context(params, config, group.context)
    hidden = transformer.continue_group(params, config, group.context, kv, row_inputs(group.context, group.tokens))
    p, g, t = group.tokens.shape
    chunk = min(chunk, t)
    pad = -t % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
    tokens = jnp.pad(group.tokens, ((0, 0), (0, 0), (0, pad)))

    @jax.checkpoint
    def piece(_, at):
        h = jax.lax.dynamic_slice_in_dim(hidden, at, chunk, axis=2)
        picked = jax.lax.dynamic_slice_in_dim(tokens, at, chunk, axis=2)
        logprobs = jax.nn.log_softmax(transformer.logits(params, config, h) / temperature)
        return None, jnp.take_along_axis(logprobs, picked[..., None], axis=-1)[..., 0]

    logprobs = jax.lax.scan(piece, None, jnp.arange(0, t + pad, chunk))[1]
    return jnp.moveaxis(logprobs, 0, 2).reshape(p, g, t + pad)[..., :t]


def informative(advantages: jax.Array) -> jax.Array:
    """bool [P]: groups with a nonzero advantage (float32 [P, G]). The others have gradient 0 under every loss here."""
    return (advantages != 0).any(axis=1)  # NaN is not 0: a bad reward is seen, not skipped


def denominators(group: Group, advantages: jax.Array) -> dict[str, jax.Array]:
    """Counts over the global batch, all groups: "tokens" that carry loss, "sequences" with at least one, "rows" altogether.

    "trained" counts the tokens of informative groups, over which the metrics of the update are means.
    """
    per_group = group.mask().sum((1, 2))
    counts = {
        "tokens": per_group.sum(), "trained": (per_group * informative(advantages)).sum(),
        "sequences": (group.lengths > 0).sum().astype(jnp.float32), "rows": jnp.float32(group.lengths.size),
    }  # fmt: skip
    return jax.tree.map(lambda n: jnp.maximum(n, 1), counts)


def aggregate(values: jax.Array, mask: jax.Array, total: dict[str, jax.Array], settings: LossSettings) -> jax.Array:
    """Sum of per-token values [P, G, T] over explicit denominators; micro-batches' results add up to the batch's.

    token_mean: / all tokens. sequence_mean: each row's mean, / rows that have tokens. constant: row sums /
    (rows · constant_length).
    """
    rows = (values * mask).sum(-1)
    if settings.aggregation == "token_mean":
        return rows.sum() / total["tokens"]
    if settings.aggregation == "sequence_mean":
        return (rows / jnp.maximum(mask.sum(-1), 1)).sum() / total["sequences"]
    return rows.sum() / (total["rows"] * settings.constant_length)


def group_loss(params, config: ModelConfig, group: Group, advantages: jax.Array, total, settings: LossSettings):
    """The loss of (a micro-batch of) groups, and sums for the metrics.

    advantages: float32 [P, G]. total: `denominators` of the whole batch.
    """
    mask = group.mask()
    logprobs = token_logprobs(params, config, group, settings.temperature, settings.logprob_chunk)
    logprobs = jnp.where(mask > 0, logprobs, 0.0)  # a padded row's -inf must not become NaN through 0 * inf
    values = LOSSES[settings.kind](logprobs, group.logprobs, advantages[..., None], settings)
    trained = mask * informative(advantages)[:, None, None]
    gap = jax.lax.stop_gradient(jnp.abs(logprobs - group.logprobs) * trained)
    ratio = jax.lax.stop_gradient(jnp.exp(logprobs - group.logprobs))
    sums = {
        "sampler_trainer/logp_diff_mean": gap.sum() / total["trained"],
        "clip_ratio/low": ((ratio < 1 - settings.clip_low) * trained).sum() / total["trained"],
        "clip_ratio/high": ((ratio > 1 + settings.clip_high) * trained).sum() / total["trained"],
    }
    return aggregate(values, mask, total, settings), (sums, {"sampler_trainer/logp_diff_max": gap.max()})
