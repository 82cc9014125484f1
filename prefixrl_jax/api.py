"""A model in a few lines, for notebooks.

    lm = prefixrl_jax.load("folder")
    lm.generate(["2 + 2 ="])

Everything here is a thin layer over the sampler and the forward pass that training uses.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from prefixrl_jax import arguments
from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Context, Group
from prefixrl_jax.model import transformer
from prefixrl_jax.model.chat_template import ChatTemplate, Message
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.folder_files import read_object_if_any
from prefixrl_jax.model.hf import export_hf, import_hf
from prefixrl_jax.model.hf_config import CONFIG, max_positions
from prefixrl_jax.model.hub import find_model, stop_ids, tokenizer_of
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.tokenizer import encode_prompt
from prefixrl_jax.model.vocabulary import IdRanges, absent_ids
from prefixrl_jax.model.weights import Params, flop_costs
from prefixrl_jax.rl.loss import token_logprobs
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.job import FixedJob, Sample
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine

CHUNK = 8  # tokens decoded between refills of finished slots
MAX_SAMPLES = 2**20  # of a prompt
MAX_NEW_TOKENS = 2**24  # more than any public model is made for
IN_FLIGHT = 1024  # samples decoded at a time, at most
DTYPES = ("float32", "bfloat16", "float64")


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
    """A causal language model with its tokenizer, placed on a mesh for sampling.

    Attributes:
        max_length: tokens that a text may have, by config.json; None where it is not said.
    """

    params: Params
    config: ModelConfig
    tokenizer: PreTrainedTokenizerFast
    mesh: Mesh
    stop_ids: tuple[int, ...]
    max_length: int | None = None

    @cached_property
    def absent_ids(self) -> IdRanges:
        """The ids that the model has and the tokenizer lacks; they are never sampled."""
        return absent_ids(self.tokenizer, self.config.vocab_size)

    def logits(self, ids: Any) -> jax.Array:
        """Return the logits of whole texts, also those of ids that the tokenizer lacks.

        Args:
            ids: token ids int [B, T].

        Returns:
            float32 [B, T, V]; those at column t predict token t + 1.
        """
        checked = self._texts(ids)
        with jax.set_mesh(self.mesh):
            return _logits(self.params, self.config, checked)

    def logprobs(self, ids: Any) -> jax.Array:
        """Return the log-prob of each token but the first, given those before it.

        It is that of sampling at temperature 1: -inf for an id that the tokenizer lacks.

        Args:
            ids: token ids int [B, T].

        Returns:
            float32 [B, T - 1].
        """
        checked = self._texts(ids)
        if checked.shape[1] == 1:
            return jnp.zeros((len(checked), 0))
        with jax.set_mesh(self.mesh):
            return _logprobs(self.params, self.config, checked, self.absent_ids)

    def _texts(self, ids: Any) -> np.ndarray:
        """Return the checked token ids of whole texts, int32 [B, T]."""
        checked = arguments.token_ids("ids", ids, self.config.vocab_size, 2, arguments.TEXTS)
        self._check_length("ids", checked.shape[1], 0)
        return checked

    def _check_length(self, name: str, tokens: int, new_tokens: int) -> None:
        if self.max_length is not None and tokens + new_tokens > self.max_length:
            raise ValueError(
                f"{name} has {tokens} tokens, and max_new_tokens={new_tokens} come on top: the"
                f" model is made for {self.max_length} together (max_position_embeddings)"
            )

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[list[Message]] | Sequence[Sequence[int]],
        n: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        prefix: str | list[int] | None = None,
        seed: int = 0,
    ) -> list[Completion]:
        """Sample n completions of every prompt.

        The noise of a sample is that of its prompt's tokens, the seed and its number among the
        samples of this prompt: not of the prompt's place in the list.

        Args:
            prompts: texts, conversations that the chat template renders with the assistant's
                turn left open, or token ids. A text alone is one prompt.
            n: completions a prompt.
            max_new_tokens: tokens a completion may have.
            temperature: 0 is greedy.
            prefix: how every answer begins, as text or token ids; it is not part of the
                completions.
            seed: of the sampling noise, below 2**64.

        Returns:
            len(prompts) * n completions, those of one prompt side by side.

        Raises:
            ValueError: naming the argument, its value and what is accepted.
        """
        n = arguments.whole_number("n", n, 1, MAX_SAMPLES)
        new_tokens = arguments.whole_number("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS)
        seed = arguments.whole_number("seed", seed, 0, 2**64 - 1)
        sampling = Sampling(
            new_tokens,
            self.stop_ids,
            arguments.temperature(temperature),
            absent_ids=self.absent_ids,
        )
        begun = self._prefix_ids(prefix)
        contexts = []
        for i, prompt in enumerate(arguments.prompts(prompts)):
            contexts.append([*self._prompt_ids(f"prompts[{i}]", prompt), *begun])
            self._check_length(f"prompts[{i}]", len(contexts[i]), new_tokens)
        if not contexts:
            return []
        jobs = _jobs(contexts, n)
        engine = self._engine(contexts, n)
        stream = stream_key(seed, "generate")
        with jax.set_mesh(self.mesh):
            engine.run(self.params, list(jobs), sampling, stream, Ledger(), ("eval", "eval"))
        return [self._completion(job.samples[i]) for job in jobs for i in sorted(job.samples)]

    def _engine(self, contexts: list[list[int]], n: int) -> Engine:
        """Return a sampler that holds the contexts with n samples each, or a part of them."""
        slots = min(n, IN_FLIGHT)
        divisor = meshes.batch_divisor(self.mesh)
        rows = min(len(contexts), max(IN_FLIGHT // slots, 1))
        rows = -(-rows // divisor) * divisor  # every device gets as many
        longest = max(map(len, contexts))
        bucket = max(16, 1 << (longest - 1).bit_length())  # powers of two: few shapes to compile
        cost = flop_costs(self.config)
        return Engine(self.config, self.mesh, cost, rows, slots, CHUNK, (bucket,))

    def render(self, prompt: str | list[Message] | Sequence[int]) -> list[int]:
        """Return the token ids of a text, or of a conversation with the assistant's turn left open.

        In a conversation, contents that spell control tokens stay text. Raises ValueError for a
        prompt without tokens, and for a conversation without a template.
        """
        return self._prompt_ids("prompt", prompt)

    def _prompt_ids(self, name: str, prompt: Any) -> list[int]:
        """Return the token ids of a prompt of any kind; `name` is for errors."""
        if isinstance(prompt, str):
            ids = encode_prompt(self.tokenizer, arguments.text(name, prompt))
            if not ids:
                raise ValueError(f"{name}={prompt!r} has no tokens; at least one is needed")
        elif arguments.is_conversation(prompt):
            template = ChatTemplate(self.tokenizer)
            ids = template.ids(
                [
                    {field: template.literal(value) for field, value in message.items()}
                    for message in arguments.conversation(name, prompt)
                ]
            )
            if not ids:
                raise ValueError(
                    f"the chat template renders {name} to a text without tokens; a template that"
                    " renders the messages is accepted"
                )
        else:
            ids = prompt
        size = self.config.vocab_size
        return arguments.token_ids(name, ids, size, 1, arguments.PROMPT).tolist()

    def _prefix_ids(self, prefix: Any) -> list[int]:
        """Return the token ids that every answer begins with; there may be none."""
        if isinstance(prefix, str):
            text = arguments.text("prefix", prefix)
            prefix = self.tokenizer.encode(text, add_special_tokens=False)
        if prefix is None or (isinstance(prefix, list | tuple) and not prefix):
            return []
        size = self.config.vocab_size
        return arguments.token_ids("prefix", prefix, size, 1, arguments.PREFIX).tolist()

    def _completion(self, sample: Sample) -> Completion:
        ids = sample.token_ids.tolist()
        without_stop = ids[:-1] if sample.finish_reason == "stop" else ids
        text = str(self.tokenizer.decode(without_stop))
        return Completion(text, ids, sample.logprobs.tolist(), sample.finish_reason)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a folder that transformers loads.

        Raises:
            ValueError: `directory` is no path, or may not be replaced (see `export_hf`).
            OSError: it cannot be written.
        """
        path = arguments.path("directory", directory)
        generation = {"eos_token_id": list(self.stop_ids)}
        try:
            export_hf(self.params, self.config, self.tokenizer, path, generation=generation)
        except OSError as error:
            reason = error.strerror or str(error)
            raise type(error)(
                f"directory={str(path)!r}: could not be written ({reason}); a folder that may be"
                " written is accepted"
            ) from error


def load(path_or_id: str | Path, mesh: Mesh | None = None, dtype: str = "float32") -> LM:
    """Load a model: a Hugging Face folder, a hub id, or a GGUF file.

    Args:
        path_or_id: the model.
        mesh: where to place it; all devices, data-parallel, by default.
        dtype: of weights and computation, "float32" or "bfloat16".

    Raises:
        ValueError, FileNotFoundError: saying what is missing.
    """
    path = find_model(arguments.path("path_or_id", path_or_id))
    dtype = arguments.choice("dtype", dtype, DTYPES)
    if not isinstance(mesh, Mesh | None):
        raise ValueError(f"mesh={mesh!r}: a jax.sharding.Mesh or None is accepted")
    chosen_mesh = meshes.make_mesh() if mesh is None else mesh
    params, config = import_hf(
        path, dtype, lambda config: param_shardings(config, chosen_mesh, "decode")
    )
    tokenizer = tokenizer_of(path)
    stops = stop_ids(path, tokenizer)
    max_length = max_positions(read_object_if_any(path, CONFIG))  # a GGUF file has none
    return LM(params, config, tokenizer, chosen_mesh, stops, max_length)


def _jobs(contexts: list[list[int]], n: int) -> list[FixedJob]:
    """Return a job for n samples of each context, named by its tokens.

    The samples of a context that stands in the list several times are numbered on.
    """
    jobs = []
    earlier: Counter[str] = Counter()
    for ids in contexts:
        name = " ".join(map(str, ids))
        jobs.append(FixedJob(name, ids, n, first=n * earlier[name]))
        earlier[name] += 1
    return jobs


_logits = jax.jit(transformer.text_logits, static_argnums=1)


@partial(jax.jit, static_argnums=(1, 3))
def _logprobs(params: Params, config: ModelConfig, ids: jax.Array, absent: IdRanges) -> jax.Array:
    b, t = ids.shape
    blank = jnp.zeros((b, 1, t - 1))
    group = Group(
        Context(ids[:, :1], jnp.ones(b, jnp.int32)),
        ids[:, None, 1:],
        jnp.full((b, 1), t - 1),
        blank,
        blank[..., 0],
    )
    return token_logprobs(params, config, group, 1.0, 64, absent)[:, 0]
