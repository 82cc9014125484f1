"""Methods as data: each is a few fields of the configuration, and everything else is the same for
all.

`--config.method=rl` or `--methods=prefixrl,sft_rl`; presets and single fields are joined by "+",
later ones win: `prefixrl+grpo+adaptive`, `sft_rl+sft.epochs=8+train.learning_rate=1e-3`.
Precedence: prefixrl_jax/config.py < the experiment's file < the method < what the command line
sets.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.config import FIELDS, check_fields, get_config
from prefixrl_jax.fields import check_values, hint, is_number, shown

_PLAIN = {"prefix.share": 0.0, "collect.cap": 0}  # no corpus is made, and none is charged
_SFT = {"prefix.share": 0.0, "sft.enabled": True}
_MIXED = {"prefix.share": 0.0}  # one trace beside the rollouts of a plain group

METHODS: dict[str, dict[str, Any]] = {
    # prefixed and plain problems, 3:1 unless the experiment says otherwise (paper, section 3)
    "prefixrl": {},
    "prefix_only": {"prefix.share": 1.0},  # the paper's study of back-generalization
    "rl": _PLAIN,
    "rl_n64": _PLAIN | {"train.group": 64},
    "sft": _SFT | {"train.steps": 0},
    "sft_rl": _SFT,
    "importance_weighted": _MIXED | {"train.off_policy": "importance"},
    "luffy": _MIXED | {"train.off_policy": "shaped"},  # arXiv 2504.14945
    "hint": {"prefix.place": "user"},  # the prefix in the question; the paper's BREAD-like baseline
    "unrelated_prefix": {"prefix.content": "unrelated"},
    "wrong_prefix": {"prefix.content": "wrong"},
}
# What may be combined with a method.
SCHEDULES: dict[str, dict[str, Any]] = {
    name: {"prefix.schedule": name}
    for name in ("reverse", "cosine", "adaptive", "shortest_solvable")
}
LOSSES: dict[str, dict[str, Any]] = {
    "reinforce": {"train.loss": "reinforce", "train.advantage": "group_mean"},
    "grpo": {
        "train.loss": "ppo_clip",
        "train.advantage": "std_normalised",
        "train.aggregation": "sequence_mean",
    },
    "dr_grpo": {
        "train.loss": "ppo_clip",
        "train.advantage": "group_mean",
        "train.aggregation": "constant",
    },
    "rloo": {
        "train.loss": "reinforce",
        "train.advantage": "leave_one_out",
        "train.aggregation": "constant",
    },
    "dapo": {
        "train.loss": "ppo_clip",
        "train.advantage": "std_normalised",
        "train.aggregation": "token_mean",
        "train.clip_high": 0.28,
        "train.filter": "refill",
    },
    # The weight has no lower bound.
    "cispo": {
        "train.loss": "cispo",
        "train.advantage": "std_normalised",
        "train.aggregation": "token_mean",
        "train.clip_low": 1.0,
        "train.clip_high": 4.0,
    },
    # A whole row's ratio varies far less than a token's: section 5.1 of the paper clips at 3e-4 and
    # 4e-4.
    "gspo": {
        "train.loss": "gspo",
        "train.advantage": "std_normalised",
        "train.aggregation": "sequence_mean",
        "train.clip_low": 3e-4,
        "train.clip_high": 4e-4,
    },
}
OPTIONS: dict[str, dict[str, Any]] = {
    # Length annealed, and a likelihood on the prefix (arXiv 2505.16984).
    "uft": {"prefix.schedule": "cosine", "train.prefix_coef": 1e-3},
    "prefix_likelihood": {"train.prefix_coef": 1e-3},
    # Sampled with the hint, trained at the plain problem with clipped ratios (arXiv 2607.19313).
    "oc_grpo": {
        "prefix.place": "user",
        "train.at_plain": True,
        "train.loss": "cispo",
        "train.advantage": "std_normalised",
    },
    "truncated_is": {"train.truncate_ratio": 2.0},
    "kl": {"train.kl_coef": 1e-3},
    "drop_uniform": {"train.filter": "drop"},
    "refill": {"train.filter": "refill"},
}
PRESETS = METHODS | SCHEDULES | LOSSES | OPTIONS


def preset(method: str) -> dict[str, Any]:
    """Return the fields that a method sets, by dotted name.

    Raises ValueError for an unknown name, an unknown field, or a value that its field refuses.
    """
    FIELDS["method"].check("method", method)
    fields: dict[str, Any] = {}
    for name in method.split("+"):
        if "=" in name:
            fields |= _single_field(*name.split("=", 1))
        elif name in PRESETS:
            fields |= PRESETS[name]
        else:
            raise ValueError(
                f"method={shown(method)}: {shown(name)} is none of the {_preset_names()}; several"
                " are joined by +"
            )
    return fields


def _preset_names() -> str:
    kinds = {"methods": METHODS, "schedules": SCHEDULES, "losses": LOSSES, "options": OPTIONS}
    return "; ".join(f"{kind} {', '.join(presets)}" for kind, presets in kinds.items())


def _single_field(field: str, text: str) -> dict[str, Any]:
    """Return a field and its value as they are written in a method's name.

    Raises ValueError, naming the field, if there is none of this name or it refuses the value.
    """
    if field not in FIELDS:
        raise ValueError(f"method: there is no field {shown(field)}; {hint(field, FIELDS)}")
    if field == "method":
        raise ValueError("method: a method cannot set the field 'method'; join methods by +")
    declared = FIELDS[field]
    try:
        value = ast.literal_eval(text)
    # A word; or numbers too long, or brackets too deep, to be read.
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(declared.default, str) and not isinstance(value, str):
        value = text  # which looks like a number
    if isinstance(declared.default, float) and is_number(value):
        value = float(value)
    if isinstance(declared.default, tuple) and isinstance(value, list):
        value = tuple(value)
    if not declared.accepts(value):
        raise ValueError(f"method: {field}={shown(value)}: {declared.expected}")
    return {field: value}


def configure(config: ConfigDict, method: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of the configuration with the method's fields.

    Args:
        config: the experiment's.
        method: presets and fields, joined by +.
        overrides: fields by dotted name that win over the method's, such as the command line's.

    Raises:
        ValueError: the configuration, the method or an override has a field that is not accepted.
    """
    check_fields(config)
    check_values(FIELDS, overrides)
    out = get_config()
    out.update(config.to_dict())
    out.update_from_flattened_dict({**preset(method), **overrides, "method": method})
    return out
