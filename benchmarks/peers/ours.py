"""The same work by this package, in this process."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from prefixrl_jax.rl.step import OptimizerSettings, init_state, make_optimizer, make_train_step
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime.mesh import make_mesh, to_global
from prefixrl_jax.runtime.metrics import host_metrics
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine, FixedJob
from prefixrl_jax.sampling.sampler import Sampling


def export_models(folder: Path) -> None:
    """Random models of every shape, for the peers to load."""
    for name, (hidden, layers, heads, kv_heads, intermediate, vocabulary) in SHAPES.items():
        config = ModelConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=hidden // heads,
            intermediate_size=intermediate,
            attention_bias=True,
        )
        tokenizer = word_tokenizer([f"w{i}" for i in range(vocabulary - 4)])
        export_hf(init_params(config, 0), config, tokenizer, folder / name)


def tokens(columns: int, vocabulary: int, rows: int) -> np.ndarray:
    """int32 [rows, columns] of random ids."""
    return np.random.default_rng(0).integers(3, vocabulary, (rows, columns)).astype(np.int32)


def in_mesh(mesh: Mesh, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, under the mesh."""

    def inside():
        with jax.set_mesh(mesh):
            return call()

    return inside


class Ours:
    """The exported models in `folder`, unrolled."""

    def __init__(self, folder: Path):
        self._folder, self.one, self.all = folder, make_mesh(devices=jax.devices()[:1]), make_mesh()
        self._optimizer = make_optimizer(
            OptimizerSettings(learning_rate=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM)
        )

    def model(self, name: str) -> tuple[dict, ModelConfig, Costs]:
        """Weights, configuration, and what a token costs."""
        params, config = import_hf(self._folder / name)
        config = dataclasses.replace(config, unroll_layers=True)
        return params, config, flop_costs(config)

    def mesh(self, work: str, case: Case) -> Mesh:
        """All devices for sampling, where a device a core is faster than one of all cores, unless
        the weights are so large that reading them once a device and token costs more.
        """
        return self.one if work == "step" or case.model == "smollm2" else self.all

    def _rollouts(
        self, case: Case, config: ModelConfig, cost: Costs, mesh: Mesh
    ) -> Callable[[Params, int], list[FixedJob]]:
        """Function of (weights, step) that samples every row of the case to its full length."""
        contexts = prompts(case, config.vocab_size)
        engine = Engine(config, mesh, cost, case.contexts, case.group, case.new, (case.context,))
        sampling = Sampling(case.new, (config.vocab_size,))  # an id that is never drawn

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

    def sampler(self, case: Case) -> Callable[[], object]:
        """Prefill and decoding of every row to its full length."""
        params, config, cost = self.model(case.model)
        mesh = self.mesh("sampler", case)
        params = jax.device_put(params, param_shardings(config, mesh, "decode"))
        sample, steps = self._rollouts(case, config, cost, mesh), itertools.count()
        return in_mesh(mesh, lambda: sample(params, next(steps)))

    def rl(self, case: Case) -> Callable[[], object]:
        """A whole step: rollouts of the current weights, their rewards, one update of GRPO on the
        groups.
        """
        params, config, cost = self.model(case.model)
        mesh = self.mesh("rl", case)
        sample, steps = self._rollouts(case, config, cost, mesh), itertools.count()
        loss = LossSettings(kind="ppo_clip", logprob_chunk=case.new)
        update = make_train_step(config, self._optimizer, loss, "std_normalised", 1, mesh)
        shardings = param_shardings(config, mesh, "decode")
        state = [in_mesh(mesh, lambda: init_state(params, config, self._optimizer, mesh))()]

        def call():
            group = graded(case, sample(jax.device_put(state[0].params, shardings), next(steps)))
            state[0], metrics = update(state[0], to_global(mesh, group))
            return host_metrics(metrics)

        return in_mesh(mesh, call)

    def step(self, case: Case, shared: bool) -> tuple[Callable[[], object], float]:
        """One update of every row, with shared or with repeated contexts, and the FLOPs of its
        products.
        """
        params, config, cost = self.model(case.model)
        p, g = (case.contexts, case.group) if shared else (case.rows, 1)
        context = Context(
            jnp.asarray(tokens(case.context, config.vocab_size, p)),
            jnp.full((p,), case.context, jnp.int32),
        )
        shape = (p, g, case.new)
        group = Group(
            context=context,
            tokens=jnp.asarray(tokens(case.new, config.vocab_size, p * g)).reshape(shape),
            lengths=jnp.full((p, g), case.new, jnp.int32),
            logprobs=jnp.zeros(shape),
            rewards=jnp.asarray(np.arange(case.rows) % 2 - 0.5, jnp.float32).reshape(p, g),
        )
        update = make_train_step(
            config, self._optimizer, LossSettings(logprob_chunk=case.new), "none", 1, self.one
        )
        state = [in_mesh(self.one, lambda: init_state(params, config, self._optimizer, self.one))()]

        def call():
            state[0], metrics = update(state[0], group)
            return jax.block_until_ready(metrics)

        positions = p * case.context + case.rows * case.new
        pairs = p * case.context**2 + case.rows * case.new * (case.context + case.new)
        # the head is not applied to contexts
        head = 2 * p * case.context * config.vocab_size * config.hidden_size
        return in_mesh(self.one, call), cost.tokens(positions, train=True) - 3 * head + cost.pairs(
            pairs, train=True
        )


def graded(case: Case, jobs: list[FixedJob]) -> Group:
    """The rollouts with their rewards, numpy arrays."""
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
