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
from prefixrl_jax.model.vocabulary import IdRanges, mask_absent
from prefixrl_jax.model.weights import Params
from prefixrl_jax.rl.surrogate import KL, LOSSES, OFF_POLICY, LossSettings

Counts = dict[str, jax.Array]  # float32 scalars by name


def token_logprobs(
    params: Params,
    config: ModelConfig,
    group: Group,
    temperature: float,
    chunk: int,
    absent_ids: IdRanges = (),
) -> jax.Array:
    """Return the log-probs of the continuation tokens, encoding each context once.

    The log-probs are float32 [P, G, T]. Logits are divided by `temperature` and exist for `chunk`
    positions of a row at a time; those of `absent_ids` are masked, as in sampling.
    """
    return _logprobs_and_states(params, config, group, temperature, chunk, absent_ids)[0]


def _logprobs_and_states(
    params: Params,
    config: ModelConfig,
    group: Group,
    temperature: float,
    chunk: int,
    absent_ids: IdRanges,
) -> tuple[jax.Array, jax.Array]:
    """Return the log-probs of the continuation tokens and the hidden states of the contexts.

    Log-probs are float32 [P, G, T], states [P, S, d].
    """
    states, context_kv = transformer.encode(params, config, group.context)
    inputs = row_inputs(group.context, group.tokens)
    hidden = transformer.continue_group(params, config, group.context, context_kv, inputs)
    logprobs = pick_logprobs(params, config, hidden, group.tokens, temperature, chunk, absent_ids)
    return logprobs, states


def pick_logprobs(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    tokens: Array,
    temperature: float,
    chunk: int,
    absent_ids: IdRanges = (),
) -> jax.Array:
    """Return the log-probs of tokens, given the hidden states at the positions before them.

    The log-probs are float32 [P, G, T]. Logits exist for `chunk` positions at a time and are
    recomputed in the backward pass, so nothing of size [P, G, T, V] is ever held.

    Args:
        hidden: [P, G, T, d], before the final norm.
        tokens: int32 [P, G, T].
        temperature: divides the logits.
        chunk: number of positions of T whose logits exist at a time.
        absent_ids: ids that the tokenizer lacks; their probability is 0.
    """
    p, g, t = tokens.shape
    chunk = min(chunk, t)
    pad = -t % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, pad)))

    @jax.checkpoint
    def piece(_, at):
        h = jax.lax.dynamic_slice_in_dim(hidden, at, chunk, axis=2)
        targets = jax.lax.dynamic_slice_in_dim(tokens, at, chunk, axis=2)
        logits = mask_absent(transformer.logits(params, config, h), absent_ids)
        logprobs = jax.nn.log_softmax(logits / temperature)
        return None, jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]

    logprobs = jax.lax.scan(piece, None, jnp.arange(0, t + pad, chunk))[1]
    return jnp.moveaxis(logprobs, 0, 2).reshape(p, g, t + pad)[..., :t]


def informative(advantages: jax.Array) -> jax.Array:
    """Return which groups have a nonzero advantage.

    The result is bool [P], for advantages float32 [P, G]. The other groups have gradient 0 under
    every surrogate.
    """
    return (advantages != 0).any(axis=1)  # NaN is not 0: a bad reward is seen, not skipped


def denominators(group: Group, advantages: jax.Array, settings: LossSettings) -> Counts:
    """Count the tokens and rows that the loss and the metrics are averaged over.

    Each count is of the global batch and at least 1, so that it can be divided by.

    Args:
        group: the whole batch.
        advantages: float32 [P, G].
        settings: under `drop_uniform` the first three count informative groups alone (DAPO).

    Returns:
        tokens: number of tokens that carry loss.
        sequences: number of rows with at least one such token.
        rows: number of rows.
        scored: number of tokens of all groups; the metric of the KL divergence is a mean over them.
        trained: number of sampled tokens of informative groups; the metrics of the update are means
            over them.
        prefix: number of tokens of the prefixes.
    """
    useful = informative(advantages)
    kept = (useful if settings.drop_uniform else jnp.ones_like(useful))[:, None].astype(jnp.float32)
    per_row = group.mask().sum(2)
    prefix = jnp.float32(0)
    if group.prefix_lengths is not None:
        prefix = group.prefix_lengths.sum().astype(jnp.float32)
    counts = {
        "tokens": (per_row * kept).sum(),
        "sequences": ((group.lengths > 0) * kept).sum(),
        "rows": jnp.float32(group.lengths.shape[1]) * kept.sum(),
        "scored": per_row.sum(),
        "trained": (_on_policy(group) * group.mask() * useful[:, None, None]).sum(),
        "prefix": prefix,
    }
    return jax.tree.map(lambda n: jnp.maximum(n, 1), counts)


def _on_policy(group: Group) -> jax.Array:
    """Return 1 for each row that the policy has sampled and 0 for each row that is a trace.

    The result is float32 [P, G, 1].
    """
    if group.off_policy is None:
        return jnp.ones((*group.lengths.shape, 1))
    return 1.0 - jnp.asarray(group.off_policy)[..., None].astype(jnp.float32)


def aggregate(
    values: jax.Array, mask: jax.Array, counts: Counts, settings: LossSettings
) -> jax.Array:
    """Reduce per-token values to the loss, so that the results of micro-batches add up to it.

    The values are float32 [P, G, T]. `settings.aggregation` chooses the reduction, with `counts`
    from `denominators` of the whole batch:
        token_mean: sum over tokens / all tokens.
        sequence_mean: sum of each row's mean / rows that have tokens.
        constant: sum over tokens / (rows · constant_length).
    """
    rows = (values * mask).sum(-1)
    if settings.aggregation == "token_mean":
        return rows.sum() / counts["tokens"]
    if settings.aggregation == "sequence_mean":
        return (rows / jnp.maximum(mask.sum(-1), 1)).sum() / counts["sequences"]
    return rows.sum() / (counts["rows"] * settings.constant_length)


def group_loss(
    params: Params,
    config: ModelConfig,
    group: Group,
    advantages: jax.Array,
    counts: Counts,
    settings: LossSettings,
) -> tuple[jax.Array, tuple[Counts, Counts]]:
    """Return the loss of the groups of a batch or micro-batch, and their part of the metrics.

    Args:
        group: P groups.
        advantages: float32 [P, G].
        counts: `denominators` of the whole batch.
        settings: which loss.

    Returns:
        The loss, float32 []; metrics to be added up over micro-batches, and metrics of which the
        largest is wanted.
    """
    mask = group.mask()
    logprobs, states = _logprobs_and_states(
        params,
        config,
        group,
        settings.temperature,
        settings.logprob_chunk,
        settings.absent_ids,
    )
    # a padded row's -inf must not become NaN through 0 * inf
    logprobs = jnp.where(mask > 0, logprobs, 0.0)
    values = _surrogate(logprobs, group, advantages[..., None], mask, settings)
    metrics = {}
    if settings.kl_coef:  # a term of every token, averaged as the loss is (GRPO, equation 3)
        kl = KL[settings.kl_estimator](logprobs, group.reference)
        # of the same groups as the denominators count
        kept = informative(advantages)[:, None, None] if settings.drop_uniform else 1.0
        values += settings.kl_coef * kl * kept
        metrics["kl"] = jax.lax.stop_gradient((kl * mask).sum() / counts["scored"])
    loss = aggregate(values, mask, counts, settings)
    if settings.prefix_coef:
        nll = _prefix_nll(params, config, group, states, settings) / counts["prefix"]
        loss += settings.prefix_coef * nll
        metrics["prefix/nll"] = jax.lax.stop_gradient(nll)

    trained = mask * informative(advantages)[:, None, None] * _on_policy(group)
    gap = jax.lax.stop_gradient(jnp.abs(logprobs - group.logprobs) * trained)
    ratio = jax.lax.stop_gradient(jnp.exp(logprobs - group.logprobs))
    metrics |= {
        "sampler_trainer/logp_diff_mean": gap.sum() / counts["trained"],
        "clip_ratio/low": ((ratio < 1 - settings.clip_low) * trained).sum() / counts["trained"],
        "clip_ratio/high": ((ratio > 1 + settings.clip_high) * trained).sum() / counts["trained"],
    }
    return loss, (metrics, {"sampler_trainer/logp_diff_max": gap.max()})


def _surrogate(
    logprobs: jax.Array,
    group: Group,
    advantages: jax.Array,
    mask: jax.Array,
    settings: LossSettings,
) -> jax.Array:
    """Return the per-token surrogate: policy gradient on sampled rows, OFF_POLICY on traces.

    The result is float32 [P, G, T], for advantages float32 [P, G, 1].
    """
    on_policy, off_policy = LOSSES[settings.kind], OFF_POLICY[settings.off_policy]
    if group.off_policy is None or off_policy is None:
        return on_policy(logprobs, group.logprobs, advantages, mask, settings)
    is_trace = group.off_policy[..., None]
    # A trace's ratio may overflow, and an infinity that is not selected would still make the
    # gradient NaN; so the on-policy branch sees a ratio of 1 there.
    behaviour = jnp.where(is_trace, jax.lax.stop_gradient(logprobs), group.logprobs)
    return jnp.where(
        is_trace,
        off_policy(logprobs, group.logprobs, advantages, settings),
        on_policy(logprobs, behaviour, advantages, mask, settings),
    )


def _prefix_nll(
    params: Params, config: ModelConfig, group: Group, states: jax.Array, settings: LossSettings
) -> jax.Array:
    """Return the negative log-likelihood of the prefixes, summed over their tokens.

    The prefix of a context is its last `prefix_lengths` tokens; `states` are the context's,
    [P, S, d]. The temperature is 1, as for any likelihood.
    """
    tokens = group.context.tokens[:, None, 1:]  # the state at i predicts token i + 1
    logprobs = pick_logprobs(
        params,
        config,
        states[:, None, :-1],
        tokens,
        1.0,
        settings.logprob_chunk,
        settings.absent_ids,
    )[:, 0]
    ends = group.context.lengths - 1
    assert group.prefix_lengths is not None  # the batch was made for this loss
    size = tokens.shape[-1]
    mask = length_mask(ends, size) & ~length_mask(ends - group.prefix_lengths, size)
    return -jnp.where(mask, logprobs, 0.0).sum()
