"""Sample and grade: groups of continuations of prefixed or plain contexts, ready for the train step
or for evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Context, Group, bucket, pad_rows
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime.processes import agree
from prefixrl_jax.sampling.refill import Engine, FixedJob, Sample
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.task import Problem, Task, Verdict, begin_grading


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A context to continue: a problem, and the prefix (token ids of one of its traces) put in
    front; empty if plain.
    """

    problem: Problem
    prefix: tuple[int, ...] = ()
    cut: int = 0  # tells apart several prefixes of one problem
    fraction: float = 0.0  # of the trace
    hinted: bool = False  # the prefix stands in the user's turn, and is no part of the response
    # tells apart equal contexts of one batch, which would else draw the same samples
    repeat: int = 0

    @property
    def name(self) -> str:
        """Identity of the (problem, prefix) pair in its batch."""
        name = f"{self.problem.id}#{self.cut}" if self.prefix else self.problem.id
        return f"{name}~{self.repeat}" if self.repeat else name

    def context(self, task: Task) -> list[int]:
        """Token ids of what is continued."""
        if self.hinted and self.prefix:
            return task.hint(self.problem, self.prefix)
        return [*task.render(self.problem), *self.prefix]

    def response(self, continuation: Sequence[int]) -> list[int]:
        """Token ids of the whole response, as it is graded."""
        return [*continuation] if self.hinted else [*self.prefix, *continuation]


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """n samples and their verdicts for each prompt, in the prompts' order; the first may be a trace
    instead of a sample.
    """

    prompts: list[Prompt]
    samples: list[list[Sample]]
    verdicts: list[list[Verdict]]
    off_policy: np.ndarray  # bool [P, n]: which are traces

    @property
    def rewards(self) -> np.ndarray:
        """float32 [P, n]."""
        return np.array([[v.reward for v in row] for row in self.verdicts], np.float32)


class _GradedJob(FixedJob):
    """n samples of a prompt, each graded from the moment it is finished."""

    def __init__(self, task: Task, prompt: Prompt, samples: int):
        super().__init__(prompt.name, prompt.context(task), samples)
        self._task, self._prompt = task, prompt
        self.verdicts: dict[int, Callable[[], Verdict]] = {}

    def deliver(self, sample: Sample) -> None:
        """Keeps the sample and has it graded."""
        super().deliver(sample)
        response = self._prompt.response(sample.token_ids.tolist())
        self.verdicts[sample.sample_id] = begin_grading(self._task, self._prompt.problem, response)


def sample_and_grade(
    engine: Engine,
    params: Params,
    task: Task,
    prompts: Sequence[Prompt],
    n: int,
    sampling: Sampling,
    stream: jax.Array,
    ledger: Ledger,
    phases: tuple[str, str],
    traces: Mapping[str, Sample] | None = None,
) -> Rollouts:
    """n samples of each of this process's prompts, graded here; other processes do theirs.

    traces: by problem id, a correct response that stands in for the first of a plain prompt's n
    samples.
    """
    given = [None if p.prefix or traces is None else traces.get(p.problem.id) for p in prompts]
    jobs = [
        _GradedJob(task, p, n - (trace is not None))
        for p, trace in zip(prompts, given, strict=True)
    ]
    engine.run(params, list(jobs), sampling, stream, ledger, phases)
    samples = [[] if trace is None else [trace] for trace in given]
    verdicts = [[] if trace is None else [Verdict.CORRECT] for trace in given]
    for job, drawn, verdict in zip(jobs, samples, verdicts, strict=True):
        drawn += [job.samples[i] for i in sorted(job.samples)]
        verdict += [job.verdicts[i]() for i in sorted(job.verdicts)]
    off_policy = np.zeros((len(prompts), n), bool)
    off_policy[:, 0] = [trace is not None for trace in given]
    return Rollouts(list(prompts), samples, verdicts, off_policy)


def as_group(
    rollouts: Rollouts,
    contexts: list[list[int]],
    buckets: tuple[int, ...],
    columns: int,
    mask_truncated: bool,
) -> Group:
    """Rollouts as padded numpy arrays (this process's rows of the global batch).

    contexts: token ids that the rollouts are trained to continue, one list a prompt. columns: T.
    mask_truncated: rows cut by the length limit carry no loss (their reward still counts in the
    baseline).
    """
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
        context=Context(*pad_rows(contexts, size)),
        tokens=tokens.reshape(*shape, columns),
        lengths=lengths.reshape(shape),
        logprobs=logprobs.reshape(*shape, columns),
        rewards=rollouts.rewards,
    )
