"""From a configuration to the objects a run is made of: task, model, mesh, engine, loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from prefixrl_jax.experiment.checks import check, check_batches, check_model
from prefixrl_jax.flops import Costs
from prefixrl_jax.model.config import ModelConfig, model_config
from prefixrl_jax.model.hf import pretrained_config
from prefixrl_jax.model.hf_config import hf_config
from prefixrl_jax.model.hub import find_model
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.vocabulary import IdRanges, absent_ids
from prefixrl_jax.model.weights import Params, flop_costs
from prefixrl_jax.rl.step import OptimizerSettings
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime.mesh import make_mesh
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.refill import Engine
from prefixrl_jax.tasks.registry import make_task
from prefixrl_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a configuration resolves to.

    Attributes:
        config: the configuration itself.
        task: problems, prompts, verdicts.
        model: sizes and dtypes.
        mesh: devices.
        cost: FLOPs a token.
        engine: the sampler's shape.
        sampling: how tokens are drawn in select, collect and training.
        loss: of reinforcement learning.
    """

    config: ConfigDict
    task: Task
    model: ModelConfig
    mesh: Mesh
    cost: Costs
    engine: Engine
    sampling: Sampling
    loss: LossSettings

    def optimizer(self, section: str, steps: int) -> OptimizerSettings:
        """Return the optimizer of "base", "sft" or "train", whose schedule is `steps` long."""
        names = {f.name for f in dataclasses.fields(OptimizerSettings)}
        fields = {k: v for k, v in self.config[section].items() if k in names}
        return OptimizerSettings(total_steps=steps, **fields)

    def shardings(self, rules: str) -> Params:
        """Return where the weights lie, by the "train" or the "decode" rules."""
        return param_shardings(self.model, self.mesh, rules)

    @property
    def schedule_steps(self) -> int:
        """Steps of RL that the learning rate's schedule is made for."""
        return self.config.train.schedule_steps or self.config.train.steps

    @property
    def eval_sampling(self) -> Sampling:
        """How evaluation draws tokens."""
        return dataclasses.replace(self.sampling, temperature=self.config.eval.temperature)

    def generation_config(self) -> dict[str, Any]:
        """Return how an exported model is to be sampled: fields of generation_config.json."""
        return {
            "eos_token_id": list(self.task.stop_ids),
            "do_sample": True,
            "temperature": float(self.sampling.temperature),
        }


def resolve(config: ConfigDict) -> Settings:
    """Check a configuration and build its objects; nothing is computed.

    Raises ValueError naming the field, its value and what would be accepted.
    """
    check(config)
    task = make_task(config.task.name, dict(config.task[config.task.name]), config.model.path)
    model = _model(config, task)
    check_model(config, model)
    hf_config(model, task.tokenizer)  # refuses now what could not be exported at the end
    mesh = make_mesh(**config.mesh)
    check_batches(config, mesh)
    absent = absent_ids(task.tokenizer, model.vocab_size)
    sampling = Sampling(
        max_new_tokens=config.sampling.max_new_tokens,
        stop_ids=task.stop_ids,
        temperature=config.sampling.temperature,
        top_k=config.sampling.top_k,
        top_p=config.sampling.top_p,
        absent_ids=absent,
    )
    cost = flop_costs(model)
    engine = Engine(
        config=model,
        mesh=mesh,
        cost=cost,
        rows=config.sampling.rows,
        slots=config.sampling.slots,
        chunk=config.sampling.chunk,
        buckets=tuple(config.sampling.context_buckets),
    )
    return Settings(config, task, model, mesh, cost, engine, sampling, _loss(config, absent))


def _model(config: ConfigDict, task: Task) -> ModelConfig:
    """The pretrained model's sizes if there is one, else those of the configuration."""
    fields = dict(config.model)
    if not config.model.path:
        return model_config(fields, len(task.tokenizer))
    overrides = {name: fields[name] for name in ("param_dtype", "dtype", "remat", "unroll_layers")}
    return pretrained_config(find_model(config.model.path), **overrides)


def _loss(config: ConfigDict, absent: IdRanges) -> LossSettings:
    train = config.train
    return LossSettings(
        kind=train.loss,
        aggregation=train.aggregation,
        constant_length=config.sampling.max_new_tokens,
        clip_low=train.clip_low,
        clip_high=train.clip_high,
        truncate_ratio=train.truncate_ratio,
        off_policy=train.off_policy,
        kl_estimator=train.kl_estimator,
        kl_coef=train.kl_coef,
        prefix_coef=train.prefix_coef,
        drop_uniform=train.filter != "none",
        temperature=config.sampling.temperature,
        absent_ids=absent,
        logprob_chunk=train.logprob_chunk,
    )
