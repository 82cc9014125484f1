"""Tunix, the peer in JAX: its Sampler, and its GRPOLearner, which samples with it."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.models.qwen2.params import create_model_from_safe_tensors
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from benchmarks.peers.cases import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    PROBE,
    RL,
    SAMPLER,
    Case,
    prompts,
    rewards,
)
from benchmarks.peers.server import Turns, serve

NEVER = 10**9  # steps


class Ids:
    """Stands in for a tokenizer, so that no time goes into text.

    A prompt's text is its index, and that of a completion its ids. No id ends a completion, and
    none is padding: whatever the model draws is a token.
    """

    def __init__(self, contexts: list[list[int]]):
        self._contexts = contexts

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt."""
        return self._contexts[int(text)]

    def decode(self, ids: list[int]) -> list[int]:
        """Return the ids as they are."""
        return ids

    def bos_id(self) -> None:
        """Return None: no token is put in front."""

    def eos_id(self) -> int:
        """Return an id that is never drawn."""
        return -1

    def pad_id(self) -> int:
        """Return an id that is never drawn."""
        return -1


class Peer:
    """The exported models in `folder`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._mesh = jax.make_mesh(
            (1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
        )

    def _model(self, name: str) -> Qwen2:
        hf_config = json.loads((self._folder / name / "config.json").read_text())
        config = ModelConfig(
            num_layers=hf_config["num_hidden_layers"],
            vocab_size=hf_config["vocab_size"],
            embed_dim=hf_config["hidden_size"],
            hidden_dim=hf_config["intermediate_size"],
            num_heads=hf_config["num_attention_heads"],
            head_dim=hf_config["hidden_size"] // hf_config["num_attention_heads"],
            num_kv_heads=hf_config["num_key_value_heads"],
            rope_theta=hf_config["rope_theta"],
            norm_eps=hf_config["rms_norm_eps"],
            use_tied_embedding=hf_config["tie_word_embeddings"],
        )
        return create_model_from_safe_tensors(
            str(self._folder / name), config, self._mesh, dtype=jnp.float32
        )

    def prepare(self, what: str, name: str) -> Callable[[], object]:
        """Return the call that a case times."""
        if what == "logits":
            return self._logits(name)
        return self._sampler(SAMPLER[name]) if what == "sampler" else self._rl(RL[name])

    def _logits(self, name: str) -> Callable[[], list[float]]:
        model = self._model(name)
        positions = jnp.arange(len(PROBE))[None]
        causal = jnp.tril(jnp.ones((1, len(PROBE), len(PROBE)), bool))

        def call() -> list[float]:
            logits = model(jnp.array([PROBE]), positions, None, causal)[0]
            return logits[0, -1].tolist()

        return call

    def _sampler(self, case: Case) -> Callable[[], int]:
        model = self._model(case.model)
        config = model.config
        cache = CacheConfig(
            case.context + case.new, config.num_layers, config.num_kv_heads, config.head_dim
        )
        sampler = Sampler(model, Ids(prompts(case, config.vocab_size)), cache)
        names = [str(i // case.group) for i in range(case.rows)]
        seeds = itertools.count()

        def call() -> int:
            out = sampler(
                names,
                max_generation_steps=case.new,
                max_prompt_length=case.context,
                temperature=1.0,
                top_p=1.0,
                seed=next(seeds),
            )
            return min(map(len, out.tokens))

        return call

    def _rl(self, case: Case) -> Turns:
        model = self._model(case.model)
        rollout = RolloutConfig(
            max_tokens_to_generate=case.new,
            max_prompt_length=case.context,
            kv_cache_size=case.context + case.new,
            temperature=1.0,
            top_p=1.0,
        )
        optimizer = optax.chain(
            optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adamw(LEARNING_RATE, weight_decay=0.0)
        )
        training = RLTrainingConfig(
            actor_optimizer=optimizer, eval_every_n_steps=NEVER, max_steps=NEVER
        )
        settings = ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.ROLLOUT, Role.REFERENCE), self._mesh),
            training_config=training,
            rollout_config=rollout,
        )
        tokenizer = Ids(prompts(case, model.config.vocab_size))
        learner = GRPOLearner(
            rl_cluster=RLCluster(actor=model, tokenizer=tokenizer, cluster_config=settings),
            algo_config=GRPOConfig(num_generations=case.group, beta=0.0),
            reward_fns=lambda prompts, completions, **_: rewards(completions, case.new),
        )

        def batches(turn: Callable[[], None]) -> Iterator[dict[str, np.ndarray]]:
            for seed in itertools.count():
                turn()
                rollout.seed = seed  # without it every step would draw the same noise
                yield {"prompts": np.array([str(i) for i in range(case.contexts)])}

        return Turns(lambda turn: learner.train(batches(turn)))


if __name__ == "__main__":
    serve(Peer(Path(sys.argv[1])).prepare)
