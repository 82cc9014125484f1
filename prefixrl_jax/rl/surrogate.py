"""What a continuation token adds to the loss: surrogates of the policy gradient, KL estimators.

Every function takes log-probs float32 [P, G, T] of the same tokens under two policies and returns
one value for each token, float32 [P, G, T]. Of these, `logprobs` are under pi, the policy that is
trained, and `behaviour` under the one that sampled them; rho is pi(token) / behaviour(token). A is
the advantage, float32 [P, G, 1]. `mask` (float32 [P, G, T], 1 where a token stands) is for those
that look at a row as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from prefixrl_jax.model.vocabulary import IdRanges

stop = jax.lax.stop_gradient


def reinforce(logprobs, behaviour, advantages, mask, settings: LossSettings) -> jax.Array:
    """Return -A log pi, the paper's objective (section 3).

    With `truncate_ratio` c > 0 it is multiplied by min(rho, c), held constant: truncated importance
    sampling, for a sampler whose arithmetic differs from the trainer's (Yao et al. 2025).
    """
    values = -advantages * logprobs
    if settings.truncate_ratio:
        values *= stop(jnp.minimum(jnp.exp(logprobs - behaviour), settings.truncate_ratio))
    return values


def ppo_clip(logprobs, behaviour, advantages, mask, settings: LossSettings) -> jax.Array:
    """Return -min(rho A, clip(rho, 1 - low, 1 + high) A).

    Source: PPO (Schulman et al. 2017, equation 7).
    """
    return _clipped(jnp.exp(logprobs - behaviour), advantages, settings)


def gspo(logprobs, behaviour, advantages, mask, settings: LossSettings) -> jax.Array:
    """Return PPO's clipped objective with one ratio for a whole row.

    The ratio is the geometric mean of those of the row's tokens; each token gets the row's value.
    Source: Zheng et al. 2025, equation 7.
    """
    tokens = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean = ((logprobs - behaviour) * mask).sum(-1, keepdims=True) / tokens
    return jnp.broadcast_to(_clipped(jnp.exp(mean), advantages, settings), logprobs.shape)


def cispo(logprobs, behaviour, advantages, mask, settings: LossSettings) -> jax.Array:
    """Return -clip(rho, 1 - low, 1 + high) A log pi, with the clipped ratio held constant.

    Unlike under PPO's clip, every token keeps a gradient. Source: MiniMax-M1 2025, equation 4.
    """
    ratio = jnp.clip(jnp.exp(logprobs - behaviour), 1 - settings.clip_low, 1 + settings.clip_high)
    return -stop(ratio) * advantages * logprobs


def _clipped(ratio, advantages, settings: LossSettings) -> jax.Array:
    """Return -min(ratio A, clip(ratio) A)."""
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


LOSSES: dict[str, Callable] = {
    "reinforce": reinforce,
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "cispo": cispo,
}


SHAPING = 0.1  # the constant of `shaped`


def importance(logprobs, behaviour, advantages, settings: LossSettings) -> jax.Array:
    """Return -rho A, with the ratio of each token alone instead of all tokens up to it.

    The estimate is biased, but its variance does not grow with the length of the trace.
    """
    return -jnp.exp(logprobs - behaviour) * advantages


def shaped(logprobs, behaviour, advantages, settings: LossSettings) -> jax.Array:
    """Return -f(pi) A with f(p) = p / (p + 0.1) (LUFFY, Yan et al. 2025).

    Unlikely tokens of a trace weigh more than they would under pi A.
    """
    p = jnp.exp(logprobs)
    return -p / (p + SHAPING) * advantages


# The loss of a row that is a trace, not a sample of the policy; "none": there are no such rows.
OFF_POLICY: dict[str, Callable | None] = {"none": None, "importance": importance, "shaped": shaped}


def k1(logprobs, reference) -> jax.Array:
    """Return log(pi / ref), an unbiased KL estimate of high variance (Schulman 2020).

    Its own gradient is zero on average, so it acts as a reward would: the gradient is
    log(pi / ref) grad log pi.
    """
    gap = logprobs - reference
    return stop(gap) + stop(gap) * (logprobs - stop(logprobs))


def k2(logprobs, reference) -> jax.Array:
    """Return log(pi / ref)^2 / 2, a biased KL estimate that has the gradient of the divergence."""
    return jnp.square(logprobs - reference) / 2


def k3(logprobs, reference) -> jax.Array:
    """Return ref / pi - 1 - log(ref / pi), an unbiased KL estimate that is never negative.

    Source: Schulman 2020; it is the estimate of GRPO.
    """
    gap = reference - logprobs
    return jnp.expm1(gap) - gap


KL: dict[str, Callable] = {"k1": k1, "k2": k2, "k3": k3}
AGGREGATIONS = ("token_mean", "sequence_mean", "constant")


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The settings of the loss: which one it is, and over what it is averaged.

    Raises ValueError, naming the field of the run's configuration, if a value is not allowed.
    """

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
    absent_ids: IdRanges = ()  # of the sampler too: ids that the tokenizer lacks
    logprob_chunk: int = 64  # positions whose logits exist at a time

    def __post_init__(self):
        self._check_choices()
        self._check_ranges()
        if self.truncate_ratio and self.kind != "reinforce":
            raise ValueError(
                f"train.truncate_ratio={self.truncate_ratio} with train.loss={self.kind!r}: the"
                " other losses weigh and clip the ratio themselves; use reinforce, or 0"
            )

    def _check_choices(self) -> None:
        """Raise ValueError if a setting names an entry that its table does not have."""
        for field, value, choices in (
            ("loss", self.kind, LOSSES),
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("off_policy", self.off_policy, OFF_POLICY),
            ("kl_estimator", self.kl_estimator, KL),
        ):
            if value not in choices:
                raise ValueError(f"train.{field}={value!r}: one of {', '.join(choices)}")

    def _check_ranges(self) -> None:
        """Raise ValueError if a number is out of its range."""
        if not 0 < self.clip_low <= 1 or not self.clip_high > 0:
            raise ValueError(
                f"train.clip_low={self.clip_low}, train.clip_high={self.clip_high}: in (0, 1] and"
                " positive"
            )
        for name in ("truncate_ratio", "kl_coef", "prefix_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 0 (off)")
        if not self.temperature > 0:
            raise ValueError(
                f"sampling.temperature={self.temperature}: training needs a positive temperature"
            )
        if self.logprob_chunk < 1:
            raise ValueError(f"train.logprob_chunk={self.logprob_chunk}: must be at least 1")
        if self.constant_length < 1:
            raise ValueError(f"constant_length={self.constant_length}: must be at least 1")

    @property
    def every_group(self) -> bool:
        """Whether groups whose advantages are all zero have a gradient too."""
        return self.kl_coef > 0 or self.prefix_coef > 0
