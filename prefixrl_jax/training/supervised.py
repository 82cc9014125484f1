"""Learning from text: the base model from the task's own text, and supervised fine-tuning on the
corpus's traces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.group import Context, Group, bucket, pad_rows
from prefixrl_jax.prefixes.schedules import walk
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.runtime.processes import local_slice
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.training.loop import Batch

Pair = tuple[list[int], list[int]]  # token ids of a prompt and of its response


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Batches of text: groups of one row whose reward is 1, for which the policy gradient is the
    SFT gradient.

    Texts that do not fit (prompt over the largest bucket, response over `columns`) are cut at the
    end.
    """

    texts: Callable[[int], list[Pair]]  # of a step, the same on every process
    phase: str  # of the ledger
    mesh: Mesh
    cost: Costs
    columns: int
    buckets: tuple[int, ...]

    def __call__(self, params: Any, step: int, ledger: Ledger, memory: dict[str, Any]) -> Batch:
        """The batch of `step`.

        Every process draws all of it, so that it is the same for any number, and keeps its own.
        """
        largest = max(self.buckets)
        cut = [
            (prompt[-largest:], response[: self.columns]) for prompt, response in self.texts(step)
        ]
        size, total = (
            bucket(max(len(prompt) for prompt, _ in cut), self.buckets),
            sum(len(response) for _, response in cut),
        )
        prompts, responses = zip(*local_slice(cut), strict=True)
        contexts = Context(*pad_rows(prompts, size))
        tokens, lengths = pad_rows(responses, self.columns)
        group = Group(
            context=contexts,
            tokens=tokens[:, None],
            lengths=lengths[:, None],
            logprobs=np.zeros((len(prompts), 1, self.columns), np.float32),
            rewards=np.ones((len(prompts), 1), np.float32),
        )

        def charge(book: Ledger, update: dict[str, float]) -> None:
            for prompt, response in zip(prompts, responses, strict=True):
                book.add_training(self.cost, self.phase, len(prompt), [len(response)])
            book.add(
                "hardware",
                self.phase,
                self.cost.trained_positions(contexts.tokens.size + tokens.size),
            )

        return Batch(
            meshes.to_global(self.mesh, group), f"text of step {step + 1}", total, {}, charge
        )


def base_texts(task: Task, batch: int, seed: int) -> Callable[[int], list[Pair]]:
    """The task's own text."""
    return lambda step: task.base_text(np.random.default_rng([seed, step, 0]), batch)


def trace_texts(traces: Sequence[Trace], batch: int, seed: int) -> Callable[[int], list[Pair]]:
    """Whole traces, shuffled anew every epoch."""
    pairs = [(list(t.context_ids), list(t.token_ids)) for t in traces]
    return lambda step: [pairs[i] for i in walk(seed, "sft", len(pairs), step * batch, batch)]
