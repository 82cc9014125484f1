"""Supervised batches: the task's own text for a base model, the corpus's traces for fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.group import Context, Group, bucket, pad_rows
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.runtime.processes import local_slice
from prefixrl_jax.sampling.noise import walk
from prefixrl_jax.seeds import generator
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.training.loop import Batch

Pair = tuple[list[int], list[int]]  # token ids of a prompt and of its response


@dataclasses.dataclass(frozen=True)
class Supervised:
    """The source of supervised batches: groups of one row whose reward is 1.

    The update takes the reward itself as the advantage (kind "none", see `experiment/fit.py`), so
    that the policy gradient is the gradient of the likelihood. Texts that do not fit are cut at the
    end.

    Attributes:
        texts: of a step, the same on every process.
        phase: of the ledger, "base" or "train".
        mesh: where batches are placed.
        cost: FLOPs a token.
        columns: T, tokens a response may have.
        buckets: prompt lengths S that are compiled for.
    """

    texts: Callable[[int], list[Pair]]
    phase: str
    mesh: Mesh
    cost: Costs
    columns: int
    buckets: tuple[int, ...]

    def __call__(self, params: Any, step: int, ledger: Ledger, memory: dict[str, Any]) -> Batch:
        """Return the batch of `step`.

        Every process draws all of it, so that it does not depend on their number, and keeps its
        own part.
        """
        longest = max(self.buckets)
        pairs = [
            (prompt[-longest:], response[: self.columns]) for prompt, response in self.texts(step)
        ]
        size = bucket(max(len(prompt) for prompt, _ in pairs), self.buckets)
        prompts, responses = zip(*local_slice(pairs), strict=True)
        context = Context(*pad_rows(prompts, size))
        tokens, lengths = pad_rows(responses, self.columns)
        group = Group(
            context=context,
            tokens=tokens[:, None],
            lengths=lengths[:, None],
            logprobs=np.zeros((len(prompts), 1, self.columns), np.float32),
            rewards=np.ones((len(prompts), 1), np.float32),
        )

        def charge(ledger: Ledger, update_metrics: dict[str, float]) -> None:
            for prompt, response in zip(prompts, responses, strict=True):
                ledger.add_training(self.cost, self.phase, len(prompt), [len(response)])
            positions = context.tokens.size + tokens.size
            ledger.add("hardware", self.phase, self.cost.trained_positions(positions))

        return Batch(
            group=meshes.to_global(self.mesh, group),
            description=f"text of step {step + 1}",
            tokens=sum(len(response) for _, response in pairs),
            metrics={},
            charge=charge,
        )


def base_texts(task: Task, batch: int, seed: int) -> Callable[[int], list[Pair]]:
    """Return a function from a step to `batch` texts of the task's own."""
    return lambda step: task.base_text(generator(seed, step, 0), batch)


def trace_texts(traces: Sequence[Trace], batch: int, seed: int) -> Callable[[int], list[Pair]]:
    """Return a function from a step to `batch` whole traces, shuffled anew every epoch."""
    pairs = [(list(t.context_ids), list(t.token_ids)) for t in traces]
    return lambda step: [pairs[i] for i in walk(seed, "sft", len(pairs), step * batch, batch)]
