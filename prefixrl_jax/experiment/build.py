"""From a configuration to the objects a run is made of: task, model, mesh, engine, loss; all checks
happen here, first.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from prefixrl_jax.flops import Costs
from prefixrl_jax.model.config import ModelConfig, model_config
from prefixrl_jax.model.hf import pretrained_config
from prefixrl_jax.model.hf_config import hf_config
from prefixrl_jax.model.hub import find_model
from prefixrl_jax.model.weights import flop_costs
from prefixrl_jax.prefixes.cuts import CONTENTS, PLACES
from prefixrl_jax.prefixes.schedules import SCHEDULES as SCHEDULE_KINDS
from prefixrl_jax.rl.advantage import KINDS
from prefixrl_jax.rl.step import SCHEDULES, OptimizerSettings
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.sampling.refill import Engine
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.registry import make_task
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.training.evaluate import PARTS

FILTERS = ("none", "drop", "refill")
BEHAVIOURS = ("sampled", "acceptance")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a configuration resolves to."""

    config: ConfigDict
    task: Task
    model: ModelConfig
    mesh: Mesh
    cost: Costs
    engine: Engine
    sampling: Sampling
    loss: LossSettings

    def optimizer(self, section: str, steps: int) -> OptimizerSettings:
        """The optimizer of the "base", the "sft" or the "train" section, which runs over so many
        steps.
        """
        names = {f.name for f in dataclasses.fields(OptimizerSettings)}
        fields = {k: v for k, v in self.config[section].items() if k in names}
        return OptimizerSettings(total_steps=steps, **fields)

    @property
    def schedule_steps(self) -> int:
        """Steps of RL that the learning rate's schedule is made for."""
        return self.config.train.schedule_steps or self.config.train.steps

    def generation_config(self) -> dict[str, Any]:
        """How an exported model is to be sampled, in the fields of generation_config.json."""
        return {
            "eos_token_id": list(self.task.stop_ids),
            "do_sample": True,
            "temperature": float(self.sampling.temperature),
        }

    def eval_sampling(self) -> Sampling:
        """How evaluation draws tokens."""
        return dataclasses.replace(self.sampling, temperature=self.config.eval.temperature)


def resolve(config: ConfigDict) -> Settings:
    """Checks a configuration and builds its objects.

    Raises ValueError naming the field, its value and what would do.
    """
    task = make_task(
        config.task.name, dict(config.task.get(config.task.name, {})), config.model.path
    )
    fields = dict(config.model)
    if config.model.path:
        how = {name: fields[name] for name in ("param_dtype", "dtype", "remat", "unroll_layers")}
        model = pretrained_config(find_model(config.model.path), **how)
    else:
        model = model_config(fields, len(task.tokenizer))
    hf_config(model, task.tokenizer)  # refuses now what could not be exported at the end
    mesh = meshes.make_mesh(**config.mesh)
    s, t = config.sampling, config.train
    sampling = Sampling(s.max_new_tokens, task.stop_ids, s.temperature, s.top_k, s.top_p)
    loss = LossSettings(
        kind=t.loss,
        aggregation=t.aggregation,
        constant_length=s.max_new_tokens,
        clip_low=t.clip_low,
        clip_high=t.clip_high,
        truncate_ratio=t.truncate_ratio,
        off_policy=t.off_policy,
        kl_estimator=t.kl_estimator,
        kl_coef=t.kl_coef,
        prefix_coef=t.prefix_coef,
        drop_uniform=t.filter != "none",
        temperature=s.temperature,
        logprob_chunk=t.logprob_chunk,
    )
    _check(config, mesh)
    cost = flop_costs(model)
    engine = Engine(model, mesh, cost, s.rows, s.slots, s.chunk, tuple(s.context_buckets))
    settings = Settings(config, task, model, mesh, cost, engine, sampling, loss)
    settings.eval_sampling()
    return settings


def _check(config: ConfigDict, mesh: Mesh) -> None:
    """What no single object can check: sizes against the mesh and against each other."""
    devices, t = meshes.batch_divisor(mesh), config.train
    for name, value in (
        ("train.batch", t.batch),
        ("base.batch", config.base.batch),
        ("sft.batch", config.sft.batch),
        ("sampling.rows", config.sampling.rows),
    ):
        if value < 1 or value % devices:
            raise ValueError(
                f"{name}={value}: must be a positive multiple of the mesh's data x fsdp = {devices}"
            )
    if t.micro_batches < 1 or t.batch % (t.micro_batches * devices):
        raise ValueError(
            f"train.micro_batches={t.micro_batches}: train.batch={t.batch} must be a multiple of"
            f" micro_batches x {devices} devices, since groups are not divided"
        )
    if t.group < 2 and t.advantage != "none":
        raise ValueError(
            f"train.group={t.group}: a group of one has no baseline; at least 2 are needed"
        )
    if config.sampling.top_p != 1.0 or config.sampling.top_k != 0:
        raise ValueError(
            f"sampling.top_p={config.sampling.top_p}, sampling.top_k={config.sampling.top_k}:"
            " training samples from the full distribution (top_p=1, top_k=0), else its gradient is"
            " that of another policy"
        )
    if t.advantage not in KINDS:
        raise ValueError(f"train.advantage={t.advantage!r}: one of {', '.join(KINDS)}")
    if t.updates_per_batch > 1 and t.loss == "reinforce":
        raise ValueError(
            f"train.updates_per_batch={t.updates_per_batch} with train.loss='reinforce': the second"
            " update is off-policy; use ppo_clip, gspo or cispo"
        )
    low, high = config.prefix.band
    if not 0 < low <= high < 1:
        raise ValueError(
            f"prefix.band=({low}, {high}): fractions of a trace with 0 < low <= high < 1 are"
            " expected"
        )
    _check_method(config)
    if not 0 <= config.prefix.share <= 1 or config.prefix.cuts < 1:
        raise ValueError(
            f"prefix.share={config.prefix.share}, prefix.cuts={config.prefix.cuts}: a fraction, and"
            " at least 1 cut"
        )
    low, high = config.select.band
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"select.band=({low}, {high}): pass rates with 0 <= low <= high <= 1 are expected"
        )
    least_values = {
        "base.steps": 1,
        "select.samples": 0,
        "select.train_problems": 1,
        "collect.cap": 0,
        "rounds": 1,
        "prefix.anneal_steps": 0,
        "sft.epochs": 1,
        "sft.batch": 1,
        "train.steps": 0,
        "train.schedule_steps": 0,
        "train.refills": 1,
        "eval.samples": 1,
        "eval.fraction_samples": 1,
        "sampling.slots": 1,
        "sampling.chunk": 1,
    }
    for field, least in least_values.items():
        if (value := operator.attrgetter(field)(config)) < least:
            raise ValueError(f"{field}={value}: must be at least {least}")
    for section in ("base", "sft", "train"):
        if (schedule := config[section].schedule) not in SCHEDULES:
            raise ValueError(f"{section}.schedule={schedule!r}: one of {', '.join(SCHEDULES)}")
    if not all(0 <= f < 1 for f in config.eval.fractions):
        raise ValueError(
            f"eval.fractions={tuple(config.eval.fractions)}: fractions from 0 to below 1 are"
            " expected"
        )
    if t.max_logp_diff < 0 or t.min_entropy < 0:
        raise ValueError(
            f"train.max_logp_diff={t.max_logp_diff}, train.min_entropy={t.min_entropy}: nats, at"
            " least 0 (off)"
        )
    if not math.isfinite(t.learning_rate) or t.learning_rate <= 0:
        raise ValueError(f"train.learning_rate={t.learning_rate}: must be positive")


def _check_method(config: ConfigDict) -> None:
    """Fields of the method that must fit together."""
    p, t = config.prefix, config.train
    for field, value, known in (
        ("prefix.schedule", p.schedule, SCHEDULE_KINDS),
        ("prefix.content", p.content, CONTENTS),
        ("prefix.place", p.place, PLACES),
        ("eval.heldout_part", config.eval.heldout_part, PARTS),
        ("train.filter", t.filter, FILTERS),
        ("train.behaviour", t.behaviour, BEHAVIOURS),
    ):
        if value not in known:
            raise ValueError(f"{field}={value!r}: one of {', '.join(known)}")
    if t.at_plain and (p.place != "user" or t.loss == "reinforce"):
        raise ValueError(
            f"train.at_plain needs prefix.place='user' (here {p.place!r}), whose responses start"
            f" from the beginning, and a loss with a ratio (here {t.loss!r}): another context gave"
            " them"
        )
    if t.prefix_coef and p.place != "assistant":
        raise ValueError(
            f"train.prefix_coef={t.prefix_coef} with prefix.place='user': only a prefix inside the"
            " answer has a likelihood to raise"
        )
    if needs_corpus(config) and not config.collect.cap and not config.collect.traces_path:
        raise ValueError(
            "collect.cap=0 and no collect.traces_path: there is no corpus, which"
            f" prefix.share={p.share}, sft.enabled={config.sft.enabled} or"
            f" train.off_policy={t.off_policy!r} needs"
        )


def needs_corpus(config: ConfigDict) -> bool:
    """Whether anything is trained on traces."""
    trains = config.train.steps and (config.prefix.share > 0 or config.train.off_policy != "none")
    return bool(trains or config.sft.enabled)
