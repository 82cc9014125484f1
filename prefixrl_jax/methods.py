"""Methods as data: each is a few fields of the configuration, and everything else is the same for
all.

`--config.method=rl` or `--methods=prefixrl,sft_rl`; presets and single fields are joined by "+",
later ones win: `prefixrl+grpo+adaptive`, `sft_rl+sft.epochs=8+train.learning_rate=1e-3`.
Precedence: prefixrl_jax/config.py < the experiment's file < the method < what the command line
sets.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.config import flatten, get_config

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
_DEFAULTS = flatten(get_config())


def preset(method: str) -> dict[str, Any]:
    """Return the fields that a method sets, by dotted name.

    Raises ValueError for an unknown name, an unknown field, or a value that does not fit its field.
    """
    fields: dict[str, Any] = {}
    for name in method.split("+"):
        if "=" in name:
            fields |= _single_field(*name.split("=", 1))
        elif name in PRESETS:
            fields |= PRESETS[name]
        else:
            raise ValueError(
                f"method={method!r}: {name!r} is none of the {_preset_names()}; several are joined"
                " by +"
            )
    return fields


def _preset_names() -> str:
    kinds = {"methods": METHODS, "schedules": SCHEDULES, "losses": LOSSES, "options": OPTIONS}
    return "; ".join(f"{kind} {', '.join(presets)}" for kind, presets in kinds.items())


def _single_field(field: str, text: str) -> dict[str, Any]:
    """A field and its value as they are written in a method's name."""
    if field not in _DEFAULTS:
        near = ", ".join(difflib.get_close_matches(field, _DEFAULTS, 3))
        hint = f"near it: {near}" if near else "all are named in prefixrl_jax/config.py"
        raise ValueError(f"method: there is no field {field!r}; {hint}")
    default = _DEFAULTS[field]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    wanted = tuple if isinstance(default, list) else type(default)
    if wanted is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, wanted):
        raise ValueError(f"method: {field}={text}: a value like {default!r} is expected")
    return {field: value}


def configure(config: ConfigDict, method: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of the configuration with the method's fields.

    overrides: fields by dotted name that win over the method's, such as the command line's.
    """
    out = ConfigDict(config.to_dict())
    out.method = method
    with out.unlocked():
        out.update_from_flattened_dict({**preset(method), **overrides, "method": method})
    return out
