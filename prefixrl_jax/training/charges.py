"""What an update on rollouts costs: where training and scoring are booked in the FLOPs ledger.

Sampling is booked where it happens, in `sampling/`.
"""

from __future__ import annotations

import jax
import numpy as np

from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.group import Group
from prefixrl_jax.training.rollout import Rollouts


def charge_update(
    ledger: Ledger,
    cost: Costs,
    rollouts: Rollouts,
    group: Group,
    trained: np.ndarray,
    groups_computed: float,
) -> None:
    """Book one update on this process's rollouts, under "train".

    Args:
        ledger: is charged.
        cost: FLOPs a token.
        rollouts: P prompts with their samples.
        group: the same as padded arrays, contexts [P, S] and rows [P, G, T].
        trained: bool [P], groups that have a gradient; the others cost nothing in "actual".
        groups_computed: groups of all processes that the device was given, padding included.
    """
    for context, row, is_trained in zip(
        group.context.lengths.tolist(), rollouts.samples, trained, strict=True
    ):
        lengths = [len(sample.token_ids) for sample in row]
        ledger.add_training(cost, "train", context, lengths, bool(is_trained))
    positions = groups_computed / jax.process_count() * _positions(group)
    ledger.add("hardware", "train", cost.trained_positions(positions))


def charge_scoring(ledger: Ledger, cost: Costs, rollouts: Rollouts, group: Group) -> None:
    """Book the reference model's pass over this process's rollouts, under "score"."""
    for context, row in zip(group.context.lengths.tolist(), rollouts.samples, strict=True):
        ledger.add_scoring(cost, context, [len(sample.token_ids) for sample in row])
    positions = len(rollouts.prompts) * _positions(group)
    ledger.add("hardware", "score", cost.tokens(positions))


def _positions(group: Group) -> int:
    """Positions the device computes for one group: the padded context and the padded rows."""
    return group.context.tokens.shape[-1] + group.tokens[0].size
