"""Advantages: a rollout's reward against those of its group (paper, section 3: minus the mean)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prefixrl_jax.group import Array

KINDS = ("group_mean", "leave_one_out", "std_normalised", "none")


def advantages(rewards: Array, kind: str = "group_mean", eps: float = 1e-6) -> jax.Array:
    """Return the advantages of rewards, each group measured against its own baseline.

    Rewards and advantages are float32 [P, G]. A group is the rollouts of one (problem, prefix). A
    group of one rollout has advantage 0 under every baseline.

    A group is the rollouts of one (problem, prefix). A group of one rollout has advantage 0 under
    every baseline.

    Args:
        rewards: by context and rollout.
        kind: one of KINDS.
            group_mean: r - mean(r), the paper's and the default.
            leave_one_out: r - mean of the others (RLOO), i.e. group_mean times G / (G - 1).
            std_normalised: group_mean divided by the group's standard deviation (GRPO), that of
                the rollouts themselves (over G, not G - 1).
            none: the reward itself; with rewards of 1 the policy-gradient loss is the SFT loss.
        eps: under std_normalised, groups whose deviation is not above it have advantage 0.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"train.advantage={kind!r}: one of {', '.join(KINDS)}")
    rewards = jnp.asarray(rewards)
    if kind == "none":
        return rewards
    g = rewards.shape[1]
    if g == 1:
        return jnp.zeros_like(rewards)
    # Relative to the first reward before the mean is taken: equal rewards then give exactly 0,
    # however the mean is rounded.
    shifted = rewards - rewards[:, :1]
    centred = shifted - shifted.mean(axis=1, keepdims=True)
    if kind == "leave_one_out":
        return centred * (g / (g - 1))
    if kind == "std_normalised":
        deviation = rewards.std(axis=1, keepdims=True)
        return jnp.where(deviation > eps, centred / (deviation + eps), 0.0)
    return centred
