"""Checks of a configuration that no single object can make, before anything is computed.

Every error names the field, its value, and what would be accepted.
"""

from __future__ import annotations

import math
import operator

from jax.sharding import Mesh
from ml_collections import ConfigDict

from prefixrl_jax.prefixes.cuts import CONTENTS, PLACES
from prefixrl_jax.prefixes.schedules import SCHEDULES as PREFIX_SCHEDULES
from prefixrl_jax.rl.advantage import KINDS
from prefixrl_jax.rl.step import SCHEDULES as RATE_SCHEDULES
from prefixrl_jax.runtime.mesh import batch_divisor
from prefixrl_jax.training.evaluate import PARTS

FILTERS = ("none", "drop", "refill")
BEHAVIOURS = ("sampled", "acceptance")
CHOICES = {
    "prefix.schedule": PREFIX_SCHEDULES,
    "prefix.content": CONTENTS,
    "prefix.place": PLACES,
    "eval.heldout_part": tuple(PARTS),
    "train.filter": FILTERS,
    "train.behaviour": BEHAVIOURS,
    "train.advantage": KINDS,
    "base.schedule": RATE_SCHEDULES,
    "sft.schedule": RATE_SCHEDULES,
    "train.schedule": RATE_SCHEDULES,
}
LEAST = {
    "base.steps": 1,
    "select.samples": 0,
    "select.train_problems": 1,
    "collect.cap": 0,
    "rounds": 1,
    "prefix.cuts": 1,
    "prefix.anneal_steps": 0,
    "sft.epochs": 1,
    "sft.batch": 1,
    "train.steps": 0,
    "train.schedule_steps": 0,
    "train.refills": 1,
    "train.max_logp_diff": 0,
    "train.min_entropy": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "eval.samples": 1,
    "eval.every": 0,
    "eval.every_samples": 1,
    "eval.fraction_samples": 1,
    "sampling.slots": 1,
    "sampling.chunk": 1,
}


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raise ValueError for the first field that does not fit the others or the mesh."""
    _check_values(config)
    _check_batches(config, mesh)
    _check_groups(config)
    _check_fractions(config)
    _check_method(config)


def _check_values(config: ConfigDict) -> None:
    for field, choices in CHOICES.items():
        value = operator.attrgetter(field)(config)
        if value not in choices:
            raise ValueError(f"{field}={value!r}: one of {', '.join(choices)}")
    for field, least in LEAST.items():
        value = operator.attrgetter(field)(config)
        if value < least:
            raise ValueError(f"{field}={value}: must be at least {least}")
    _check_numbers(config)


def _check_numbers(config: ConfigDict) -> None:
    """Learning rates, ends of bands, and lists of sizes."""
    for section in ("base", "sft", "train"):
        rate = config[section].learning_rate
        if not math.isfinite(rate) or rate <= 0:
            raise ValueError(f"{section}.learning_rate={rate}: must be positive")
    for field in ("prefix.band", "select.band", "data.filter_band"):
        band = tuple(operator.attrgetter(field)(config))
        if len(band) != 2:
            raise ValueError(f"{field}={band}: two numbers are expected, the ends of the band")
    for field in ("sampling.context_buckets", "eval.k"):
        sizes = tuple(operator.attrgetter(field)(config))
        if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
            raise ValueError(f"{field}={sizes}: whole numbers from 1 on are expected")


def _check_batches(config: ConfigDict, mesh: Mesh) -> None:
    """Sizes against the mesh: groups are not divided, and every device gets as many."""
    devices = batch_divisor(mesh)
    for field in ("train.batch", "base.batch", "sft.batch", "sampling.rows"):
        value = operator.attrgetter(field)(config)
        if value < 1 or value % devices:
            raise ValueError(
                f"{field}={value}: must be a positive multiple of the mesh's data x fsdp ="
                f" {devices}"
            )
    batch, micro_batches = config.train.batch, config.train.micro_batches
    if micro_batches < 1 or batch % (micro_batches * devices):
        raise ValueError(
            f"train.micro_batches={micro_batches}: train.batch={batch} must be a multiple of"
            f" micro_batches x {devices} devices, since groups are not divided"
        )


def _check_groups(config: ConfigDict) -> None:
    train, sampling = config.train, config.sampling
    if train.group < 2 and train.advantage != "none":
        raise ValueError(
            f"train.group={train.group}: a group of one has no baseline; at least 2 are needed"
        )
    if sampling.top_p != 1.0 or sampling.top_k != 0:
        raise ValueError(
            f"sampling.top_p={sampling.top_p}, sampling.top_k={sampling.top_k}: training samples"
            " from the full distribution (top_p=1, top_k=0), else its gradient is that of another"
            " policy"
        )
    if train.updates_per_batch > 1 and train.loss == "reinforce":
        raise ValueError(
            f"train.updates_per_batch={train.updates_per_batch} with train.loss='reinforce': the"
            " second update is off-policy; use ppo_clip, gspo or cispo"
        )


def _check_fractions(config: ConfigDict) -> None:
    low, high = config.prefix.band
    if not 0 < low <= high < 1:
        raise ValueError(
            f"prefix.band=({low}, {high}): fractions of a trace with 0 < low <= high < 1 are"
            " expected"
        )
    if not 0 <= config.prefix.share <= 1:
        raise ValueError(
            f"prefix.share={config.prefix.share}: a fraction from 0 (plain RL) to 1 is expected"
        )
    low, high = config.select.band
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"select.band=({low}, {high}): pass rates with 0 <= low <= high <= 1 are expected"
        )
    if not all(0 <= fraction < 1 for fraction in config.eval.fractions):
        raise ValueError(
            f"eval.fractions={tuple(config.eval.fractions)}: fractions from 0 to below 1 are"
            " expected"
        )


def _check_method(config: ConfigDict) -> None:
    """Fields of the method that must fit together."""
    prefix, train = config.prefix, config.train
    if train.at_plain and (prefix.place != "user" or train.loss == "reinforce"):
        raise ValueError(
            f"train.at_plain needs prefix.place='user' (here {prefix.place!r}), whose responses"
            " start from the beginning, and a loss with a ratio (here"
            f" {train.loss!r}): another context gave them"
        )
    if train.prefix_coef and prefix.place != "assistant":
        raise ValueError(
            f"train.prefix_coef={train.prefix_coef} with prefix.place='user': only a prefix inside"
            " the answer has a likelihood to raise"
        )
    if needs_corpus(config) and not config.collect.cap and not config.collect.traces_path:
        raise ValueError(
            "collect.cap=0 and no collect.traces_path: there is no corpus, which"
            f" prefix.share={prefix.share}, sft.enabled={config.sft.enabled} or"
            f" train.off_policy={train.off_policy!r} needs"
        )


def needs_corpus(config: ConfigDict) -> bool:
    """Return whether anything is trained on traces."""
    trains = config.train.steps and (config.prefix.share > 0 or config.train.off_policy != "none")
    return bool(trains or config.sft.enabled)
