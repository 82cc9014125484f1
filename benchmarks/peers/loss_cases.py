"""Pairs of losses and of advantages that are compared: ours, and those of TRL's trainers.

Ours are described by their settings, TRL's by the attributes that its trainers are given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

P, G, T = 3, 4, 6  # groups, rows of a group, tokens of a row
LENGTHS = np.array([[6, 1, 3, 2], [5, 4, 6, 4], [2, 2, 1, 6]], np.int32)
AN_EMPTY_ROW = LENGTHS * (np.arange(P * G).reshape(P, G) != 5)
LONGEST = 9  # tokens a row may have, the constant of Dr. GRPO
BETA = 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss, as our settings and as a trainer's attributes.

    Attributes:
        ours: Fields of `LossSettings`.
        theirs: Attributes of the trainer.
        note: How one maps to the other, or why they differ.
        should: "equal"; "gradient": equal in it alone; "differ": another formula, on purpose.
        trainer: "grpo" or "rloo".
        on_policy: Whether the tokens were sampled from the policy as it is now.
        lengths: Tokens of each row, int [P, G].
        uniform: Whether the first group's advantages are 0.
        times: What our loss is multiplied by.
    """

    ours: dict[str, Any]
    theirs: dict[str, Any]
    note: str = ""
    should: str = "equal"
    trainer: str = "grpo"
    on_policy: bool = False
    lengths: np.ndarray = dataclasses.field(default_factory=lambda: LENGTHS)
    uniform: bool = False
    times: float = 1.0


@dataclasses.dataclass(frozen=True)
class AdvantageCase:
    """A kind of advantage, as our settings and as a trainer's attributes.

    Attributes:
        kind: Our name of it.
        theirs: Attributes of the trainer.
        note: How one maps to the other, or why they differ.
        should: "equal" or "differ".
        trainer: "grpo" or "rloo".
        eps: What we add to a standard deviation.
        times: What our advantages are multiplied by.
    """

    kind: str
    theirs: dict[str, Any]
    note: str = ""
    should: str = "equal"
    trainer: str = "grpo"
    eps: float = 1e-6
    times: float = 1.0


def ours(kind: str, aggregation: str = "token_mean", **fields) -> dict[str, Any]:
    """Return fields of `LossSettings`, with the asymmetric clip of DAPO."""
    defaults = {"clip_low": 0.2, "clip_high": 0.28, "constant_length": LONGEST}
    return {"kind": kind, "aggregation": aggregation, **defaults, **fields}


def theirs(loss_type: str, level: str = "token", **fields) -> dict[str, Any]:
    """Return a trainer's attributes, with the same clip."""
    return {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "max_completion_length": LONGEST,
        **fields,
    }


KL_OURS = {"kl_coef": BETA, "kl_estimator": "k3"}
KL_THEIRS = {"beta": BETA, "args": {"use_bias_correction_kl": False}}
# Bounds of the ratio of a whole row, which is closer to 1 than that of a token.
ROW_OURS = {"clip_low": 0.05, "clip_high": 0.1}
ROW_THEIRS = {"epsilon_low": 0.05, "epsilon_high": 0.1}
# TRL's cispo has no lower bound, and its upper one is absolute where ours is 1 + clip_high.
BOUND = {"epsilon_high": 1.28}
NO_LOWER = {"clip_low": 1.0}

CASES = {
    "grpo": Case(ours("ppo_clip", "sequence_mean"), theirs("grpo")),
    "bnpo": Case(ours("ppo_clip"), theirs("bnpo")),
    "dr_grpo": Case(ours("ppo_clip", "constant"), theirs("dr_grpo")),
    "dapo": Case(ours("ppo_clip"), theirs("dapo")),
    "cispo": Case(
        ours("cispo", **NO_LOWER),
        theirs("cispo", **BOUND),
        "epsilon_high = 1 + clip_high; clip_low = 1",
    ),
    "gspo": Case(
        ours("gspo", "sequence_mean", **ROW_OURS), theirs("grpo", "sequence", **ROW_THEIRS)
    ),
    "gspo, token mean": Case(ours("gspo", **ROW_OURS), theirs("dapo", "sequence", **ROW_THEIRS)),
    "gspo, row sums": Case(
        ours("gspo", "constant", **ROW_OURS | {"constant_length": 1}),
        theirs("luspo", "sequence", **ROW_THEIRS),
        "TRL's luspo; constant_length = 1",
    ),
    "reinforce": Case(
        ours("reinforce"),
        theirs("cispo", **BOUND),
        "TRL's cispo on policy: every ratio is 1",
        on_policy=True,
    ),
    "reinforce, truncated": Case(
        ours("reinforce", truncate_ratio=1.28),
        theirs("cispo", **BOUND),
        "TRL's cispo; epsilon_high = truncate_ratio",
    ),
    "rloo": Case(
        ours("reinforce", "constant", constant_length=1),
        theirs("rloo"),
        "constant_length = 1; TRL's value is -A ratio",
        "gradient",
        "rloo",
        on_policy=True,
    ),
    "bnpo, KL": Case(ours("ppo_clip", **KL_OURS), theirs("bnpo", **KL_THEIRS)),
    "dapo, KL": Case(ours("ppo_clip", **KL_OURS), theirs("dapo", **KL_THEIRS)),
    "cispo, KL": Case(
        ours("cispo", **NO_LOWER, **KL_OURS), theirs("cispo", **BOUND, **KL_THEIRS), "as cispo"
    ),
    "grpo, KL": Case(ours("ppo_clip", "sequence_mean", **KL_OURS), theirs("grpo", **KL_THEIRS)),
    "dr_grpo, KL": Case(ours("ppo_clip", "constant", **KL_OURS), theirs("dr_grpo", **KL_THEIRS)),
    "grpo, a row without tokens": Case(
        ours("ppo_clip", "sequence_mean"),
        theirs("grpo"),
        "ours x 11/12: TRL's mean counts it",
        lengths=AN_EMPTY_ROW,
        times=11 / 12,
    ),
    "dapo, an uninformative group": Case(
        ours("ppo_clip", drop_uniform=True),
        theirs("dapo"),
        "ours x its tokens: drop_uniform leaves it out, TRL counts it",
        uniform=True,
        times=float(LENGTHS[1:].sum() / LENGTHS.sum()),
    ),
    # TRL's estimator is log(pi / ref) times the ratio. Our k1 and k2 have its gradient as long as
    # the ratio is 1.
    "bnpo, KL by TRL's default, on policy": Case(
        ours("ppo_clip", kl_coef=BETA, kl_estimator="k2"),
        theirs("bnpo", beta=BETA),
        "k2; TRL's value is k3",
        "gradient",
        on_policy=True,
    ),
    "bnpo, KL by TRL's default": Case(
        ours("ppo_clip", **KL_OURS),
        theirs("bnpo", beta=BETA),
        "use_bias_correction_kl: TRL multiplies k3 by the ratio",
        "differ",
    ),
    "cispo, clip_low 0.2": Case(
        ours("cispo"), theirs("cispo", **BOUND), "TRL has no lower bound", "differ"
    ),
    "rloo, off policy": Case(
        ours("reinforce", "constant", constant_length=1),
        theirs("rloo"),
        "reinforce has no ratio; TRL clips a whole row's",
        "differ",
        "rloo",
    ),
}

# TRL's correction of the variance, n / (n - 1), is float32 whatever the rewards are: groups of
# five, since 5 / 4 is exact in it.
REWARDS = np.random.default_rng(2).normal(size=(P, 5))
REWARDS[1] = 1
SAMPLE = 4 / 5  # TRL divides squares by n - 1, we by n
ADVANTAGES = {
    "group_mean": AdvantageCase("group_mean", {"scale_rewards": "none"}),
    "leave_one_out": AdvantageCase("leave_one_out", {}, trainer="rloo"),
    "std_normalised, mapped": AdvantageCase(
        "std_normalised",
        {"scale_rewards": "group"},
        "ours x sqrt((n - 1) / n), eps = 1e-4 x the same",
        eps=1e-4 * SAMPLE**0.5,
        times=SAMPLE**0.5,
    ),
    "std_normalised": AdvantageCase(
        "std_normalised",
        {"scale_rewards": "group"},
        "TRL: the sample's deviation (n - 1), eps 1e-4; ours: the group's (n), 1e-6",
        "differ",
    ),
}
