"""What is wanted of a context: the interface between the sampler and whoever needs its samples.

Screening with a fixed number of samples, sampling until the first success, and the rollouts of RL
are three small jobs over one loop (`refill`).
"""

from __future__ import annotations

import abc
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sample:
    """One finished sample.

    token_ids: int32 [n], the stop id included.
    logprobs: float32 [n], under the distribution the tokens were drawn from.
    """

    sample_id: int
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: str  # "stop", or "length" when max_new_tokens cut it


class Job(abc.ABC):
    """A context and the samples that are still wanted of it."""

    name: str  # identity of the context; with the sample id it fixes the noise
    context_ids: list[int]

    @abc.abstractmethod
    def next_sample(self) -> int | None:
        """Return the id of the next sample to begin, or None if no more are wanted now."""

    @abc.abstractmethod
    def deliver(self, sample: Sample) -> None:
        """Accept a finished sample; samples come in the order in which they finish."""

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """Whether the job's row may go to the next job.

        Samples that are still in flight are then dropped, but charged.
        """

    def known_length(self, sample_id: int) -> int:
        """Return the number of tokens of a sample that an interrupted run has already finished.

        It is 0 for a sample that has yet to be drawn. A sample of known length is replayed: it
        holds a slot for as long as it did then, without being computed, and comes back by
        `redeliver` instead of `deliver`.
        """
        return 0

    def redeliver(self, sample_id: int) -> None:
        """Accept a replayed sample, at the moment at which the interrupted run delivered it.

        Raises LookupError in a job that has no samples to replay.
        """
        raise LookupError(f"{self.name}: sample {sample_id} was not finished before")


class FixedJob(Job):
    """A job for exactly n samples of a context, with consecutive ids.

    Once the job is closed, `samples` holds all of them by id.
    """

    def __init__(self, name: str, context_ids: list[int], samples: int, first: int = 0):
        self.name = name
        self.context_ids = context_ids
        self.samples: dict[int, Sample] = {}
        self._ids = iter(range(first, first + samples))
        self._missing = samples

    def next_sample(self) -> int | None:
        """Return the next id, or None once every sample has been begun."""
        return next(self._ids, None)

    def deliver(self, sample: Sample) -> None:
        """Store a finished sample under its id."""
        self.samples[sample.sample_id] = sample
        self._missing -= 1

    @property
    def closed(self) -> bool:
        """Whether all samples have arrived."""
        return self._missing == 0
