"""Sample and grade: groups of continuations of prefixed or plain contexts, ready for the train step or for evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Context, Group, bucket, pad_rows
from prefixrl_jax.model.weights import Params
from prefixrl_jax.processes import agree
from prefixrl_jax.sampling.refill import Engine, FixedJob, Sample
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.task import Problem, Task, Verdict, begin_grading


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A context to continue: a problem, and the prefix (token ids of one of its traces) put in front; empty if plain."""

    problem: Problem
    prefix: tuple[int, ...] = ()
    cut: int = 0  # tells apart several prefixes of one problem
    fraction: float = 0.0  # of the trace

    @property
    def name(self) -> str:
        """Identity of the (problem, prefix) pair."""
        return f"{self.problem.id}#{self.cut}" if self.prefix else self.problem.id


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """n samples and their verdicts for each prompt, in the prompts' order."""

    prompts: list[Prompt]
    samples: list[list[Sample]]
    verdicts: list[list[Verdict]]

    @property
    def rewards(self) -> np.ndarray:
        """float32 [P, n]."""
        return np.array([[v.reward for v in row] for row in self.verdicts], np.float32)


class _GradedJob(FixedJob):
    """n samples of a prompt, each graded from the moment it is finished."""

    def __init__(self, task: Task, prompt: Prompt, samples: int):
        super().__init__(prompt.name, task.render(prompt.problem) + list(prompt.prefix), samples)
        self._task, self._prompt = task, prompt
        self.verdicts: dict[int, Callable[[], Verdict]] = {}

    def deliver(self, sample: Sample) -> None:
        """Keeps the sample and has it graded."""
        super().deliver(sample)
        response = [*self._prompt.prefix, *sample.token_ids.tolist()]
        self.verdicts[sample.sample_id] = begin_grading(self._task, self._prompt.problem, response)


def sample_and_grade(engine: Engine, params: Params, task: Task, prompts: Sequence[Prompt], n: int, sampling: Sampling,
                     stream: jax.Array, ledger: Ledger, phases: tuple[str, str]) -> Rollouts:  # fmt: skip
    """n samples of each of this process's prompts, graded here; other processes do theirs."""
    jobs = [_GradedJob(task, p, n) for p in prompts]
    engine.run(params, list(jobs), sampling, stream, ledger, phases)
    samples = [[job.samples[i] for i in range(n)] for job in jobs]
    verdicts = [[job.verdicts[i]() for i in range(n)] for job in jobs]
    return Rollouts(list(prompts), samples, verdicts)


def as_group(task: Task, rollouts: Rollouts, buckets: tuple[int, ...], columns: int, mask_truncated: bool) -> Group:
    """Rollouts as padded numpy arrays (this process's rows of the global batch).

    columns: T. mask_truncated: rows cut by the length limit carry no loss (their reward still counts in the baseline).
    """
    contexts = [task.render(p.problem) + list(p.prefix) for p in rollouts.prompts]
    size = bucket(agree(max(map(len, contexts)), np.max), buckets)  # one shape on every process
    flat = [s for row in rollouts.samples for s in row]
    tokens, lengths = pad_rows([s.token_ids for s in flat], columns)
    logprobs = np.zeros(tokens.shape, np.float32)
    for row, sample in zip(logprobs, flat, strict=True):
        row[: len(sample.logprobs)] = sample.logprobs
    if mask_truncated:
        lengths = np.where([s.finish_reason == "length" for s in flat], 0, lengths)
    shape = (len(contexts), len(rollouts.samples[0]))
    return Group(
        context=Context(*pad_rows(contexts, size)), tokens=tokens.reshape(*shape, columns), lengths=lengths.reshape(shape),
        logprobs=logprobs.reshape(*shape, columns), rewards=rollouts.rewards,
    )  # fmt: skip
