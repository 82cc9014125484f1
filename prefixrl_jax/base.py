"""The base stage: a small model trained from scratch on the task's own text, so that it knows format and elementary steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh

from prefixrl_jax import mesh as meshes
from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.group import Context, Group, bucket, pad_rows
from prefixrl_jax.processes import local_slice
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.train import Batch


@dataclasses.dataclass(frozen=True)
class BaseText:
    """Batches of the task's text: groups of one row whose reward is 1, for which the policy gradient is the SFT gradient.

    Texts that do not fit (prompt over the largest bucket, response over `columns`) are cut at the end.
    """

    task: Task
    mesh: Mesh
    cost: Costs
    batch: int
    columns: int
    buckets: tuple[int, ...]
    seed: int

    def __call__(self, params: Any, step: int, ledger: Ledger) -> Batch:
        """The batch of `step`. Every process draws all of it, so that it is the same for any number, and keeps its own."""
        pairs = self.task.base_text(np.random.default_rng([self.seed, step, 0]), self.batch)
        largest = max(self.buckets)
        cut = [(prompt[-largest:], response[: self.columns]) for prompt, response in pairs]
        size, total = bucket(max(len(prompt) for prompt, _ in cut), self.buckets), sum(len(response) for _, response in cut)
        prompts, responses = zip(*local_slice(cut), strict=True)
        contexts = Context(*pad_rows(prompts, size))
        tokens, lengths = pad_rows(responses, self.columns)
        group = Group(context=contexts, tokens=tokens[:, None], lengths=lengths[:, None],
                      logprobs=np.zeros((len(prompts), 1, self.columns), np.float32),
                      rewards=np.ones((len(prompts), 1), np.float32))  # fmt: skip

        def charge(book: Ledger, update: dict[str, float]) -> None:
            for prompt, response in zip(prompts, responses, strict=True):
                book.add_training(self.cost, "base", len(prompt), [len(response)])
            book.add("hardware", "base", self.cost.trained_positions(contexts.tokens.size + tokens.size))

        return Batch(meshes.to_global(self.mesh, group), f"base text of step {step + 1}", total, {}, charge)
