"""Advantages: a rollout's reward against the other rollouts of its group (paper, section 3: reward
minus the group's mean).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prefixrl_jax.group import Array

KINDS = ("group_mean", "leave_one_out", "std_normalised", "none")


def advantages(rewards: Array, kind: str = "group_mean", eps: float = 1e-6) -> jax.Array:
    """Advantages [P, G] of rewards [P, G]; a group is a row, i.e. the rollouts of one (problem,
    prefix).

    kind:
        group_mean: r - mean(r), the paper's and the default.
        leave_one_out: r - mean of the others (RLOO), i.e. group_mean times G / (G - 1).
        std_normalised: group_mean divided by the group's standard deviation (GRPO), that of the
            rollouts themselves (over G, not G - 1); nearly equal groups give 0.
        none: the reward itself; with rewards of 1 the policy-gradient loss is then the SFT loss.

    A group of one rollout has advantage 0 under every baseline. Raises ValueError for an unknown
    kind.
    """
    if kind not in KINDS:
        raise ValueError(f"train.advantage={kind!r}: one of {', '.join(KINDS)}")
    rewards = jnp.asarray(rewards)
    if kind == "none":
        return rewards
    g = rewards.shape[1]
    # Against the first reward before the mean: equal rewards then give exactly 0, however a mean is
    # rounded.
    shifted = rewards - rewards[:, :1]
    centred = shifted - shifted.mean(axis=1, keepdims=True)
    if g == 1:
        return jnp.zeros_like(rewards)
    if kind == "leave_one_out":
        return centred * (g / (g - 1))
    if kind == "std_normalised":
        return jnp.where(
            rewards.std(axis=1, keepdims=True) > eps,
            centred / (rewards.std(axis=1, keepdims=True) + eps),
            0.0,
        )
    return centred
