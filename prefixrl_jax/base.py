"""The base stage: a small model trained from scratch on the task's own text, so that it knows format and elementary steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from prefixrl_jax import mesh as meshes
from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.group import Context, Group, bucket, pad_rows
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
        """The batch of `step`; each process draws its own rows."""
        rows = self.batch // jax.process_count()
        rng = np.random.default_rng([self.seed, step, jax.process_index()])
        pairs = self.task.base_text(rng, rows)
        largest = max(self.buckets)
        prompts = [prompt[-largest:] for prompt, _ in pairs]
        # One bucket for every step, so that the update compiles once: the smallest for tasks whose prompts fit it.
        contexts = Context(*pad_rows(prompts, bucket(max(map(len, prompts)), self.buckets)))
        tokens, lengths = pad_rows([response[: self.columns] for _, response in pairs], self.columns)
        group = Group(context=contexts, tokens=tokens[:, None], lengths=lengths[:, None],
                      logprobs=np.zeros((rows, 1, self.columns), np.float32), rewards=np.ones((rows, 1), np.float32))  # fmt: skip

        def charge(book: Ledger, update: dict[str, float]) -> None:
            for prompt, n in zip(prompts, lengths.tolist(), strict=True):
                book.add_training(self.cost, "base", len(prompt), [n])
            book.add("hardware", "base", self.cost.trained_positions(contexts.tokens.size + tokens.size))

        return Batch(meshes.to_global(self.mesh, group), f"base text of step {step + 1}", int(lengths.sum()), {}, charge)
