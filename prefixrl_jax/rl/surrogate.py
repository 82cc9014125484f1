"""What a continuation token adds to the loss: policy-gradient surrogates, their off-policy forms,
KL estimators; their settings.

Every function takes log-probs float32 [P, G, T] of the same tokens under two policies and gives one
value per token; `mask` (float32, 1 where a token stands) is for those that look at a row as a
whole. rho is pi(token) / behaviour(token).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

stop = jax.lax.stop_gradient


def reinforce(logprobs, behaviour, advantages, mask, settings: LossSettings) -> jax.Array:
    """-A log pi (the paper's objective).

    With `truncate_ratio` c > 0, times min(rho, c) held constant: truncated importance sampling, for
    a sampler whose arithmetic differs from the trainer's (Yao et al. 2025).
    """
    values = -advantages * logprobs
    if settings.truncate_ratio:
        values *= stop(jnp.minimum(jnp.exp(logprobs - behaviour), settings.truncate_ratio))
    return values


def ppo_clip(logprobs, behaviour, advantages, mask, settings: LossSettings) -> jax.Array:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) (Schulman et al. 2017, equation 7)."""
    return _clipped(jnp.exp(logprobs - behaviour), advantages, settings)


def gspo(logprobs, behaviour, advantages, mask, settings: LossSettings) -> jax.Array:
    """PPO's clip with one ratio a row, the geometric mean of its tokens' (Zheng et al. 2025,
    equation 7), at every token.
    """
    mean = ((logprobs - behaviour) * mask).sum(-1, keepdims=True) / jnp.maximum(
        mask.sum(-1, keepdims=True), 1
    )
    return jnp.broadcast_to(_clipped(jnp.exp(mean), advantages, settings), logprobs.shape)


def cispo(logprobs, behaviour, advantages, mask, settings: LossSettings) -> jax.Array:
    """-clip(rho, 1 - low, 1 + high) A log pi, the clipped ratio held constant (MiniMax-M1 2025,
    equation 4): no token is lost.
    """
    ratio = jnp.clip(jnp.exp(logprobs - behaviour), 1 - settings.clip_low, 1 + settings.clip_high)
    return -stop(ratio) * advantages * logprobs


def _clipped(ratio, advantages, settings: LossSettings) -> jax.Array:
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


LOSSES: dict[str, Callable] = {
    "reinforce": reinforce,
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "cispo": cispo,
}


def importance(logprobs, behaviour, advantages, settings: LossSettings) -> jax.Array:
    """-rho A, the ratio of each token alone rather than that of all tokens before it: biased, of
    bounded length in variance.
    """
    return -jnp.exp(logprobs - behaviour) * advantages


def shaped(logprobs, behaviour, advantages, settings: LossSettings) -> jax.Array:
    """-f(pi) A with f(p) = p / (p + 0.1) (LUFFY, Yan et al. 2025): unlikely tokens of a trace weigh
    more than under pi A.
    """
    p = jnp.exp(logprobs)
    return -p / (p + SHAPING) * advantages


SHAPING = 0.1
# How a row that is a trace, not a sample of the policy, enters the loss; "none": there are no such
# rows.
OFF_POLICY: dict[str, Callable | None] = {"none": None, "importance": importance, "shaped": shaped}


def k1(logprobs, reference) -> jax.Array:
    """log pi / ref: unbiased, of high variance.

    Its own gradient is zero on average, so it acts as a reward would: the gradient is (log pi /
    ref) grad log pi.
    """
    gap = logprobs - reference
    return stop(gap) + stop(gap) * (logprobs - stop(logprobs))


def k2(logprobs, reference) -> jax.Array:
    """(log pi / ref)^2 / 2: biased in value, its gradient is that of the KL divergence."""
    return jnp.square(logprobs - reference) / 2


def k3(logprobs, reference) -> jax.Array:
    """ref / pi - 1 - log ref / pi: unbiased in value, never negative (Schulman 2020; GRPO's)."""
    gap = reference - logprobs
    return jnp.expm1(gap) - gap


KL: dict[str, Callable] = {"k1": k1, "k2": k2, "k3": k3}
AGGREGATIONS = ("token_mean", "sequence_mean", "constant")


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Which loss, and over what it is averaged."""

    kind: str = "reinforce"
    aggregation: str = "token_mean"
    # the constant a row's sum is divided by under "constant" (Dr. GRPO), in tokens
    constant_length: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    truncate_ratio: float = 0.0  # reinforce: largest weight pi / sampler of a token; 0: none
    off_policy: str = "none"  # how rows that are traces enter
    kl_estimator: str = "k3"
    kl_coef: float = 0.0  # of the KL divergence from the reference; 0: no reference is needed
    prefix_coef: float = 0.0  # of the prefixes' negative log-likelihood, per prefix token
    # whether groups without a nonzero advantage are left out of the denominators (DAPO)
    drop_uniform: bool = False
    # of the sampler: the log-probs trained are those of the distribution sampled from
    temperature: float = 1.0
    logprob_chunk: int = 64  # positions whose logits exist at a time

    def __post_init__(self):
        if self.kind not in LOSSES:
            raise ValueError(f"train.loss={self.kind!r}: one of {', '.join(LOSSES)}")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"train.aggregation={self.aggregation!r}: one of {', '.join(AGGREGATIONS)}"
            )
        if not 0 < self.clip_low <= 1 or self.clip_high <= 0:
            raise ValueError(
                f"train.clip_low={self.clip_low}, train.clip_high={self.clip_high}: in (0, 1] and"
                " positive"
            )
        for name, known in (("off_policy", OFF_POLICY), ("kl_estimator", KL)):
            if getattr(self, name) not in known:
                raise ValueError(f"train.{name}={getattr(self, name)!r}: one of {', '.join(known)}")
        for name in ("truncate_ratio", "kl_coef", "prefix_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 0 (off)")
        if self.truncate_ratio and self.kind != "reinforce":
            raise ValueError(
                f"train.truncate_ratio={self.truncate_ratio} with train.loss={self.kind!r}: the"
                " other losses weigh and clip the ratio themselves; use reinforce, or 0"
            )
        if self.temperature <= 0:
            raise ValueError(
                f"sampling.temperature={self.temperature}: training needs a positive temperature"
            )
        if self.logprob_chunk < 1 or self.constant_length < 1:
            raise ValueError(f"train.logprob_chunk={self.logprob_chunk}: must be at least 1")

    @property
    def every_group(self) -> bool:
        """Whether also groups whose advantages are all zero have a gradient."""
        return self.kl_coef > 0 or self.prefix_coef > 0
