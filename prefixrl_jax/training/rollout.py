"""Rollouts: groups of sampled continuations with their verdicts, and the arrays they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Context, Group, bucket, pad_rows
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime.processes import agree
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.job import FixedJob, Sample
from prefixrl_jax.sampling.refill import Engine
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Task, Verdict, begin_grading


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """n samples and their verdicts for each of P prompts, in the prompts' order.

    Attributes:
        prompts: P prompts.
        samples: P lists of n samples; the first of a list may be a trace instead of a sample.
        verdicts: P lists of n verdicts.
        off_policy: bool [P, n], true for traces.
    """

    prompts: list[Prompt]
    samples: list[list[Sample]]
    verdicts: list[list[Verdict]]
    off_policy: np.ndarray

    @property
    def rewards(self) -> np.ndarray:
        """float32 [P, n]: 1 for a correct response, else 0."""
        return np.array([[v.reward for v in row] for row in self.verdicts], np.float32)

    @property
    def prefixed(self) -> np.ndarray:
        """bool [P]: whether a prompt has a prefix."""
        return np.array([bool(prompt.prefix) for prompt in self.prompts])


class _GradedJob(FixedJob):
    """n samples of a prompt, each sent to the grader as soon as it is finished."""

    def __init__(self, task: Task, prompt: Prompt, samples: int):
        super().__init__(prompt.name, prompt.context(task), samples)
        self._task = task
        self._prompt = prompt
        self.verdicts: dict[int, Callable[[], Verdict]] = {}

    def deliver(self, sample: Sample) -> None:
        """Keep the sample and begin to grade the response it completes."""
        super().deliver(sample)
        response = self._prompt.response(sample.token_ids.tolist())
        self.verdicts[sample.sample_id] = begin_grading(self._task, self._prompt.problem, response)


@dataclasses.dataclass(frozen=True)
class RolloutSampler:
    """Samples continuations with one engine and has the task grade them.

    Attributes:
        engine: the sampler's shape on the mesh.
        task: renders prompts and grades responses.
        sampling: temperature and length of the continuations.
        phases: where the ledger books them, (prefill, decode).
    """

    engine: Engine
    task: Task
    sampling: Sampling
    phases: tuple[str, str] = ("prefill", "decode")

    def sample(
        self,
        params: Params,
        prompts: Sequence[Prompt],
        n: int,
        stream: jax.Array,
        ledger: Ledger,
        *,
        traces: Mapping[str, Sample] | None = None,
        on_chunk: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Draw n samples of each of this process's prompts; other processes do theirs.

        Args:
            params: the policy, placed by the "decode" rules.
            prompts: this process's part of the batch.
            n: rollouts a prompt (G).
            stream: key of this step's noise (`noise.stream_key`).
            ledger: is charged for every token.
            traces: by problem id, a correct response that stands in for the first of the n samples
                of a plain prompt (off-policy methods).
            on_chunk: called between chunks with the number of samples finished here, if there is
                anything to call.
        """
        stand_ins = [_stand_in(prompt, traces) for prompt in prompts]
        jobs = [
            _GradedJob(self.task, prompt, n - (trace is not None))
            for prompt, trace in zip(prompts, stand_ins, strict=True)
        ]

        def meanwhile(due: bool) -> None:
            if on_chunk is not None:
                on_chunk(sum(len(job.samples) for job in jobs))

        self.engine.run(params, list(jobs), self.sampling, stream, ledger, self.phases, meanwhile)
        samples: list[list[Sample]] = []
        verdicts: list[list[Verdict]] = []
        for job, trace in zip(jobs, stand_ins, strict=True):
            in_order = sorted(job.samples)
            drawn = [job.samples[i] for i in in_order]
            graded = [job.verdicts[i]() for i in in_order]
            samples.append(drawn if trace is None else [trace, *drawn])
            verdicts.append(graded if trace is None else [Verdict.CORRECT, *graded])
        off_policy = np.zeros((len(prompts), n), bool)
        off_policy[:, 0] = [trace is not None for trace in stand_ins]
        return Rollouts(list(prompts), samples, verdicts, off_policy)


def _stand_in(prompt: Prompt, traces: Mapping[str, Sample] | None) -> Sample | None:
    """The trace that takes the place of the first sample, for a plain prompt that has one."""
    if traces is None or prompt.prefix:
        return None
    return traces.get(prompt.problem.id)


def as_group(
    rollouts: Rollouts,
    contexts: list[list[int]],
    buckets: tuple[int, ...],
    columns: int,
    mask_truncated: bool,
) -> Group:
    """Pad rollouts to arrays: this process's rows of the global batch, in numpy.

    Args:
        rollouts: P prompts with n samples each.
        contexts: P lists of token ids that the rollouts are trained to continue.
        buckets: context lengths S that are compiled for.
        columns: T, tokens a row holds.
        mask_truncated: rows cut by the length limit carry no loss (their reward still counts in
            the group's mean).
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
