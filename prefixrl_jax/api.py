"""A model in a few lines, for notebooks.

    lm = prefixrl_jax.load("folder")
    lm.generate(["2 + 2 ="])

Everything here is a thin layer over the sampler and the forward pass that training uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Context, Group
from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.hf import export_hf, import_hf
from prefixrl_jax.model.hub import find_model, stop_ids, tokenizer_of
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.weights import Params, flop_costs
from prefixrl_jax.rl.loss import token_logprobs
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.job import FixedJob, Sample
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine

Message = dict[str, str]  # {"role": "user", "content": ...}
CHUNK = 8  # tokens decoded between refills of finished slots


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sample.

    Attributes:
        text: the completion as text, without the stop id.
        token_ids: its token ids, the stop id included.
        logprobs: of each token when it was sampled.
        finish_reason: "stop", or "length" when max_new_tokens cut it.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class LM:
    """A causal language model with its tokenizer, placed on a mesh for sampling."""

    params: Params
    config: ModelConfig
    tokenizer: PreTrainedTokenizerFast
    mesh: Mesh
    stop_ids: tuple[int, ...]

    def logits(self, ids: Any) -> jax.Array:
        """Return the logits of whole texts.

        Args:
            ids: token ids int [B, T].

        Returns:
            float32 [B, T, V]; those at column t predict token t + 1.
        """
        with jax.set_mesh(self.mesh):
            return _logits(self.params, self.config, jnp.asarray(ids, jnp.int32))

    def logprobs(self, ids: Any) -> jax.Array:
        """Return the log-prob of each token but the first, given those before it.

        Args:
            ids: token ids int [B, T].

        Returns:
            float32 [B, T - 1].
        """
        with jax.set_mesh(self.mesh):
            return _logprobs(self.params, self.config, jnp.asarray(ids, jnp.int32))

    def generate(
        self,
        prompts: Sequence[str] | Sequence[list[Message]],
        n: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        prefix: str | list[int] | None = None,
        seed: int = 0,
    ) -> list[Completion]:
        """Sample n completions of every prompt.

        Args:
            prompts: texts, or conversations that the chat template renders with the assistant's
                turn left open.
            n: completions a prompt.
            max_new_tokens: tokens a completion may have.
            temperature: 0 is greedy.
            prefix: how every answer begins, as text or token ids; it is not part of the
                completions.
            seed: of the sampling noise.

        Returns:
            len(prompts) * n completions, those of one prompt side by side.
        """
        if isinstance(prefix, str):
            prefix = self.tokenizer.encode(prefix, add_special_tokens=False)
        contexts = [[*self.render(prompt), *(prefix or [])] for prompt in prompts]
        if not contexts:
            return []
        divisor = meshes.batch_divisor(self.mesh)
        rows = -(-len(contexts) // divisor) * divisor  # every device gets as many
        longest = max(map(len, contexts))
        bucket = max(16, 1 << (longest - 1).bit_length())  # powers of two: few shapes to compile
        engine = Engine(self.config, self.mesh, flop_costs(self.config), rows, n, CHUNK, (bucket,))
        jobs = [FixedJob(str(i), ids, n) for i, ids in enumerate(contexts)]
        sampling = Sampling(max_new_tokens, self.stop_ids, temperature)
        stream = stream_key(seed, "generate")
        with jax.set_mesh(self.mesh):
            engine.run(self.params, list(jobs), sampling, stream, Ledger(), ("eval", "eval"))
        return [self._completion(job.samples[i]) for job in jobs for i in range(n)]

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Return the token ids of a text, or of a conversation with the assistant's turn left open.

        Raises ValueError for a prompt without tokens, and for a conversation without a template.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif not self.tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat_template: give prompts as texts, or set"
                " tokenizer.chat_template"
            )
        else:
            ids = self.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        if not ids:
            raise ValueError(f"prompt {prompt!r} has no tokens; at least one is needed")
        return list(ids)

    def _completion(self, sample: Sample) -> Completion:
        ids = sample.token_ids.tolist()
        without_stop = ids[:-1] if sample.finish_reason == "stop" else ids
        text = str(self.tokenizer.decode(without_stop))
        return Completion(text, ids, sample.logprobs.tolist(), sample.finish_reason)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a folder that transformers loads."""
        export_hf(
            self.params,
            self.config,
            self.tokenizer,
            directory,
            generation={"eos_token_id": list(self.stop_ids)},
        )


def load(path_or_id: str | Path, mesh: Mesh | None = None, dtype: str = "float32") -> LM:
    """Load a model: a Hugging Face folder, a hub id, or a GGUF file.

    Args:
        path_or_id: the model.
        mesh: where to place it; all devices, data-parallel, by default.
        dtype: of weights and computation, "float32" or "bfloat16".

    Raises:
        ValueError, FileNotFoundError: saying what is missing.
    """
    path = find_model(path_or_id)
    chosen_mesh = meshes.make_mesh() if mesh is None else mesh
    params, config = import_hf(
        path, dtype, lambda config: param_shardings(config, chosen_mesh, "decode")
    )
    tokenizer = tokenizer_of(path)
    return LM(params, config, tokenizer, chosen_mesh, stop_ids(path, tokenizer))


_logits = jax.jit(transformer.text_logits, static_argnums=1)


@partial(jax.jit, static_argnums=1)
def _logprobs(params: Params, config: ModelConfig, ids: jax.Array) -> jax.Array:
    b, t = ids.shape
    blank = jnp.zeros((b, 1, t - 1))
    group = Group(
        Context(ids[:, :1], jnp.ones(b, jnp.int32)),
        ids[:, None, 1:],
        jnp.full((b, 1), t - 1),
        blank,
        blank[..., 0],
    )
    return token_logprobs(params, config, group, 1.0, 64)[:, 0]
