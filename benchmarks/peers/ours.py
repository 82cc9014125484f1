"""The same work by this package, in this process."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.peers.cases import LEARNING_RATE, MAX_GRAD_NORM, SHAPES, Case, prompts, rewards
from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.group import Context, Group, pad_rows
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.hf import export_hf, import_hf
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.model.weights import Params, flop_costs, init_params
from prefixrl_jax.rl.step import (
    OptimizerSettings,
    UpdateSettings,
    init_state,
    make_optimizer,
    make_train_step,
)
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime.mesh import make_mesh, to_global
from prefixrl_jax.runtime.metrics import host_metrics
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.job import FixedJob
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine


def export_models(folder: Path) -> None:
    """Write a random model of every shape into `folder`, for the peers to load."""
    for name, shape in SHAPES.items():
        config = ModelConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            num_layers=shape.layers,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.hidden // shape.heads,
            intermediate_size=shape.intermediate,
            attention_bias=True,
        )
        special_tokens = 4
        tokenizer = word_tokenizer([f"w{i}" for i in range(shape.vocabulary - special_tokens)])
        export_hf(init_params(config, 0), config, tokenizer, folder / name)


def random_tokens(columns: int, vocabulary: int, rows: int) -> np.ndarray:
    """Return random ids, int32 [rows, columns]."""
    return np.random.default_rng(0).integers(3, vocabulary, (rows, columns)).astype(np.int32)


def in_mesh(mesh: Mesh, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return `call` as one that runs under the mesh."""

    def inside():
        with jax.set_mesh(mesh):
            return call()

    return inside


class Model(NamedTuple):
    """Weights, configuration, and what a token costs."""

    params: Params
    config: ModelConfig
    cost: Costs


class Ours:
    """The exported models in `folder`, their layers unrolled.

    Methods named after a kind of work return the call to time.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.one = make_mesh(devices=jax.devices()[:1])
        self.all = make_mesh()
        self._optimizer = make_optimizer(
            OptimizerSettings(learning_rate=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM)
        )

    def model(self, name: str) -> Model:
        """Load an exported model."""
        params, config = import_hf(self._folder / name)
        config = dataclasses.replace(config, unroll_layers=True)
        return Model(params, config, flop_costs(config))

    def mesh(self, work: str, case: Case) -> Mesh:
        """Return the mesh that is fastest for a case.

        Sampling is faster on a device a core than on one of all cores, unless the weights are so
        large that reading them once a device and token costs more.
        """
        return self.one if work == "step" or case.model == "smollm2" else self.all

    def sampler(self, case: Case) -> Callable[[], object]:
        """Prefill, and decode every row to its full length."""
        model = self.model(case.model)
        mesh = self.mesh("sampler", case)
        params = jax.device_put(model.params, param_shardings(model.config, mesh, "decode"))
        sample = self._rollouts(case, model, mesh)
        steps = itertools.count()
        return in_mesh(mesh, lambda: sample(params, next(steps)))

    def _rollouts(
        self, case: Case, model: Model, mesh: Mesh
    ) -> Callable[[Params, int], list[FixedJob]]:
        """A function of weights and step that samples every row of the case to its full length."""
        vocabulary = model.config.vocab_size
        contexts = prompts(case, vocabulary)
        engine = Engine(
            model.config, mesh, model.cost, case.contexts, case.group, case.new, (case.context,)
        )
        never_drawn = vocabulary  # as the end token
        sampling = Sampling(case.new, (never_drawn,))

        def sample(params: Params, step: int) -> list[FixedJob]:
            jobs = [FixedJob(str(i), ids, case.group) for i, ids in enumerate(contexts)]
            engine.run(
                params,
                list(jobs),
                sampling,
                stream_key(0, "bench", step),
                Ledger(),
                ("prefill", "decode"),
            )
            return jobs

        return sample

    def rl(self, case: Case) -> Callable[[], object]:
        """Sample from the current weights, compute rewards, and update once with GRPO."""
        model = self.model(case.model)
        config = model.config
        mesh = self.mesh("rl", case)
        sample = self._rollouts(case, model, mesh)
        steps = itertools.count()
        loss = LossSettings(kind="ppo_clip", logprob_chunk=case.new)
        settings = UpdateSettings(loss, "std_normalised")
        update = make_train_step(config, self._optimizer, settings, mesh)
        shardings = param_shardings(config, mesh, "decode")
        state = in_mesh(mesh, lambda: init_state(model.params, config, self._optimizer, mesh))()

        def call():
            nonlocal state
            jobs = sample(jax.device_put(state.params, shardings), next(steps))
            state, metrics = update(state, to_global(mesh, graded(case, jobs)))
            return host_metrics(metrics)

        return in_mesh(mesh, call)

    def step(self, case: Case, shared: bool) -> tuple[Callable[[], object], float]:
        """Update once on every row, with shared or with repeated contexts.

        Returns the call, and the FLOPs of its products.
        """
        model = self.model(case.model)
        config = model.config
        p, g = (case.contexts, case.group) if shared else (case.rows, 1)
        context_tokens = random_tokens(case.context, config.vocab_size, p)
        tokens = random_tokens(case.new, config.vocab_size, p * g)
        shape = (p, g, case.new)
        group = Group(
            context=Context(jnp.asarray(context_tokens), jnp.full((p,), case.context, jnp.int32)),
            tokens=jnp.asarray(tokens).reshape(shape),
            lengths=jnp.full((p, g), case.new, jnp.int32),
            logprobs=jnp.zeros(shape),
            rewards=jnp.asarray(np.arange(case.rows) % 2 - 0.5, jnp.float32).reshape(p, g),
        )
        mesh = self.mesh("step", case)
        settings = UpdateSettings(LossSettings(logprob_chunk=case.new), "none")
        update = make_train_step(config, self._optimizer, settings, mesh)
        state = in_mesh(mesh, lambda: init_state(model.params, config, self._optimizer, mesh))()

        def call():
            nonlocal state
            state, metrics = update(state, group)
            return jax.block_until_ready(metrics)

        return in_mesh(mesh, call), step_flops(model, case, p)


def step_flops(model: Model, case: Case, contexts: int) -> float:
    """Return the FLOPs of an update on all rows, with `contexts` encoded contexts."""
    config, cost = model.config, model.cost
    positions = contexts * case.context + case.rows * case.new
    pairs = contexts * case.context**2 + case.rows * case.new * (case.context + case.new)
    # The output head is not applied to contexts.
    head = 2 * contexts * case.context * config.vocab_size * config.hidden_size
    return cost.tokens(positions, train=True) - 3 * head + cost.pairs(pairs, train=True)


def graded(case: Case, jobs: list[FixedJob]) -> Group:
    """Return the rollouts with their rewards, in numpy arrays."""
    samples = [job.samples[i] for job in jobs for i in range(case.group)]
    completions = [sample.token_ids.tolist() for sample in samples]
    shape = (case.contexts, case.group)
    return Group(
        context=Context(*pad_rows([job.context_ids for job in jobs], case.context)),
        tokens=np.array(completions, np.int32).reshape(*shape, case.new),
        lengths=np.full(shape, case.new, np.int32),
        logprobs=np.stack([sample.logprobs for sample in samples]).reshape(*shape, case.new),
        rewards=np.array(rewards(completions, case.new), np.float32).reshape(shape),
    )
