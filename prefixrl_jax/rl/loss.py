"""Policy-gradient losses on the continuation tokens of groups.

Context tokens (problem and prefix) carry no loss, unless the likelihood of prefixes is asked for:
they are only attended to. Denominators are counted over the whole global batch before it is cut
into micro-batches, so neither accumulation nor sharding changes the loss.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prefixrl_jax.group import Array, Group, length_mask, row_inputs
from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params
from prefixrl_jax.rl.surrogate import KL, LOSSES, OFF_POLICY, LossSettings


def token_logprobs(
    params: Params, config: ModelConfig, group: Group, temperature: float, chunk: int
) -> jax.Array:
    """Log-probs of the continuation tokens, float32 [P, G, T]. The context is encoded once a
    group.
    """
    return _logprobs_and_states(params, config, group, temperature, chunk)[0]


def _logprobs_and_states(
    params: Params, config: ModelConfig, group: Group, temperature: float, chunk: int
):
    """Log-probs of the continuation tokens [P, G, T], and the context's hidden states [P, S, d]."""
    states, kv = transformer.encode(params, config, group.context)
    hidden = transformer.continue_group(
        params, config, group.context, kv, row_inputs(group.context, group.tokens)
    )
    return pick_logprobs(params, config, hidden, group.tokens, temperature, chunk), states


def pick_logprobs(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    tokens: Array,
    temperature: float,
    chunk: int,
):
    """Log-probs float32 [P, G, T] of int32 tokens [P, G, T] by hidden states [P, G, T, d] at the
    positions before them.

    Logits exist for `chunk` positions at a time and are recomputed in the backward pass, so nothing
    of size [P, G, T, V] is ever held.
    """
    p, g, t = tokens.shape
    chunk = min(chunk, t)
    pad = -t % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, pad)))

    @jax.checkpoint
    def piece(_, at):
        h = jax.lax.dynamic_slice_in_dim(hidden, at, chunk, axis=2)
        picked = jax.lax.dynamic_slice_in_dim(tokens, at, chunk, axis=2)
        logprobs = jax.nn.log_softmax(transformer.logits(params, config, h) / temperature)
        return None, jnp.take_along_axis(logprobs, picked[..., None], axis=-1)[..., 0]

    logprobs = jax.lax.scan(piece, None, jnp.arange(0, t + pad, chunk))[1]
    return jnp.moveaxis(logprobs, 0, 2).reshape(p, g, t + pad)[..., :t]


def informative(advantages: jax.Array) -> jax.Array:
    """bool [P]: groups with a nonzero advantage (float32 [P, G]).

    The others have gradient 0 under every surrogate.
    """
    return (advantages != 0).any(axis=1)  # NaN is not 0: a bad reward is seen, not skipped


def denominators(
    group: Group, advantages: jax.Array, settings: LossSettings
) -> dict[str, jax.Array]:
    """Counts over the global batch: "tokens" that carry loss, "sequences" with at least one, "rows"
    altogether, all of them of informative groups alone under `drop_uniform`.

    "trained" counts the sampled tokens of informative groups, over which the metrics of the update
    are means; "scored" all tokens, over which the metric of the KL divergence is a mean; "prefix"
    the prefixes' tokens.
    """
    useful = informative(advantages)
    kept = (useful if settings.drop_uniform else jnp.ones_like(useful))[:, None].astype(jnp.float32)
    per_row = group.mask().sum(2)
    counts = {
        "tokens": (per_row * kept).sum(),
        "sequences": ((group.lengths > 0) * kept).sum(),
        "rows": jnp.float32(group.lengths.shape[1]) * kept.sum(),
        "scored": per_row.sum(),
        "trained": (_on_policy(group) * group.mask() * useful[:, None, None]).sum(),
        "prefix": (
            jnp.float32(0)
            if group.prefix_lengths is None
            else group.prefix_lengths.sum().astype(jnp.float32)
        ),
    }
    return jax.tree.map(lambda n: jnp.maximum(n, 1), counts)


def _on_policy(group: Group) -> jax.Array:
    """float32 [P, G, 1]: 1 for a row that the policy has sampled, 0 for one that is a trace."""
    if group.off_policy is None:
        return jnp.ones((*group.lengths.shape, 1))
    return 1.0 - jnp.asarray(group.off_policy)[..., None].astype(jnp.float32)


def aggregate(
    values: jax.Array, mask: jax.Array, total: dict[str, jax.Array], settings: LossSettings
) -> jax.Array:
    """Sum of per-token values [P, G, T] over explicit denominators; micro-batches' results add up
    to the batch's.

    token_mean: / all tokens. sequence_mean: each row's mean, / rows that have tokens. constant: row
    sums / (rows · constant_length).
    """
    rows = (values * mask).sum(-1)
    if settings.aggregation == "token_mean":
        return rows.sum() / total["tokens"]
    if settings.aggregation == "sequence_mean":
        return (rows / jnp.maximum(mask.sum(-1), 1)).sum() / total["sequences"]
    return rows.sum() / (total["rows"] * settings.constant_length)


def group_loss(
    params, config: ModelConfig, group: Group, advantages: jax.Array, total, settings: LossSettings
):
    """The loss of (a micro-batch of) groups, and sums for the metrics.

    advantages: float32 [P, G]. total: `denominators` of the whole batch.
    """
    mask = group.mask()
    logprobs, states = _logprobs_and_states(
        params, config, group, settings.temperature, settings.logprob_chunk
    )
    # a padded row's -inf must not become NaN through 0 * inf
    logprobs = jnp.where(mask > 0, logprobs, 0.0)
    values, means = _surrogate(logprobs, group, advantages[..., None], mask, settings), {}
    if settings.kl_coef:  # a term of every token, averaged as the loss is (GRPO, equation 3)
        kl = KL[settings.kl_estimator](logprobs, group.reference)
        # as the denominators count
        kept = informative(advantages)[:, None, None] if settings.drop_uniform else 1.0
        values += settings.kl_coef * kl * kept
        means["kl"] = jax.lax.stop_gradient((kl * mask).sum() / total["scored"])
    loss = aggregate(values, mask, total, settings)
    if settings.prefix_coef:
        nll = _prefix_nll(params, config, group, states, settings) / total["prefix"]
        loss, means["prefix/nll"] = loss + settings.prefix_coef * nll, jax.lax.stop_gradient(nll)
    trained = mask * informative(advantages)[:, None, None] * _on_policy(group)
    gap = jax.lax.stop_gradient(jnp.abs(logprobs - group.logprobs) * trained)
    ratio = jax.lax.stop_gradient(jnp.exp(logprobs - group.logprobs))
    means |= {
        "sampler_trainer/logp_diff_mean": gap.sum() / total["trained"],
        "clip_ratio/low": ((ratio < 1 - settings.clip_low) * trained).sum() / total["trained"],
        "clip_ratio/high": ((ratio > 1 + settings.clip_high) * trained).sum() / total["trained"],
    }
    return loss, (means, {"sampler_trainer/logp_diff_max": gap.max()})


def _surrogate(logprobs, group: Group, advantages, mask, settings: LossSettings) -> jax.Array:
    """Per-token values [P, G, T]: the policy gradient's, and on rows that are traces their own."""
    on_policy, off_policy = LOSSES[settings.kind], OFF_POLICY[settings.off_policy]
    if group.off_policy is None or off_policy is None:
        return on_policy(logprobs, group.logprobs, advantages, mask, settings)
    off = group.off_policy[..., None]
    # A trace's ratio may overflow, and an infinity that is not selected would still make the
    # gradient NaN.
    behaviour = jnp.where(off, jax.lax.stop_gradient(logprobs), group.logprobs)
    return jnp.where(
        off,
        off_policy(logprobs, group.logprobs, advantages, settings),
        on_policy(logprobs, behaviour, advantages, mask, settings),
    )


def _prefix_nll(
    params, config: ModelConfig, group: Group, states: jax.Array, settings: LossSettings
) -> jax.Array:
    """Sum of -log pi over the prefixes' tokens, the last ones of each context; at temperature 1, as
    any likelihood.
    """
    tokens = group.context.tokens[:, None, 1:]  # the state at i predicts token i + 1
    logprobs = pick_logprobs(
        params, config, states[:, None, :-1], tokens, 1.0, settings.logprob_chunk
    )[:, 0]
    ends = group.context.lengths - 1
    assert group.prefix_lengths is not None  # the batch was made for this loss
    mask = length_mask(ends, tokens.shape[-1]) & ~length_mask(
        ends - group.prefix_lengths, tokens.shape[-1]
    )
    return -jnp.where(mask, logprobs, 0.0).sum()
