"""The host's view of a batch: which sample each slot holds, and how far it is. Numpy only.

A *row* of the batch is one context, whose *job* says which samples are wanted of it. A row has G
*slots*, each of which holds one *sample* at a time. A sample is *drawn* by the device, or
*replayed* if an interrupted run has finished it before: then its length is known, and it holds its
slot for as many tokens without being computed.
"""

from __future__ import annotations

import numpy as np

from prefixrl_jax.sampling.job import Job


class Slots:
    """The rows of this process and their slots.

    jobs: the job of each row, None once there is none left for it.
    sample_ids: int64 [rows, G], -1 in an empty slot.
    ages: int32 [rows, G], tokens that the sample in the slot has by now.
    replay_lengths: int32 [rows, G], the length of a replayed sample, 0 for one that is drawn.
    """

    def __init__(self, jobs: list[Job | None], slots: int):
        self.jobs = jobs
        shape = (len(jobs), slots)
        self.sample_ids = np.full(shape, -1)
        self.ages = np.zeros(shape, np.int32)
        self.replay_lengths = np.zeros(shape, np.int32)
        # lengths of the samples that each row has delivered of its present job
        self._delivered: list[list[int]] = [[] for _ in jobs]

    @property
    def held(self) -> np.ndarray:
        """Mask of the slots that hold a sample, bool [rows, G]."""
        return self.sample_ids >= 0

    @property
    def drawn(self) -> np.ndarray:
        """Mask of the slots whose sample is drawn by the device, bool [rows, G]."""
        return self.held & (self.replay_lengths == 0)

    @property
    def replayed(self) -> np.ndarray:
        """Mask of the slots whose sample is replayed, bool [rows, G]."""
        return self.held & (self.replay_lengths > 0)

    def begin_samples(self) -> np.ndarray:
        """Begin in every empty slot the next sample that its job wants.

        Returns the mask of the slots in which the device begins to draw a sample, bool [rows, G].
        """
        begun = np.zeros(self.sample_ids.shape, bool)
        for row, job in enumerate(self.jobs):
            if job is None:
                continue
            for slot in np.flatnonzero(~self.held[row]):
                sample_id = job.next_sample()
                if sample_id is None:
                    break
                self.sample_ids[row, slot] = sample_id
                self.ages[row, slot] = 0
                self.replay_lengths[row, slot] = job.known_length(sample_id)
                begun[row, slot] = self.replay_lengths[row, slot] == 0
        return begun

    def ticks_to_replay(self, limit: int) -> int:
        """Return the ticks until the last replayed sample ends, at most `limit`.

        A tick of the clock is one token in every slot.
        """
        left = np.minimum(self.replay_lengths - self.ages, limit)
        return int(np.where(self.replayed, left, 0).max())

    def replay(self, ticks: int) -> np.ndarray:
        """Age the replayed samples by some ticks and return the mask of those that end by it.

        The mask is bool [rows, G].
        """
        replayed = self.replayed
        aged = np.minimum(self.ages + ticks, self.replay_lengths)
        self.ages = np.where(replayed, aged, self.ages)
        return replayed & (self.ages == self.replay_lengths)

    def finish(self, row: int, slot: int) -> None:
        """Free a slot whose sample has been delivered."""
        self._delivered[row].append(int(self.ages[row, slot]))
        self.sample_ids[row, slot] = -1

    def empty(self, row: int) -> tuple[list[int], list[int]]:
        """Empty a row whose job is closed.

        Returns the lengths of the samples that the job has received, and the lengths so far of the
        samples that are dropped.
        """
        delivered = self._delivered[row]
        dropped = self.ages[row, self.held[row]].tolist()
        self._delivered[row] = []
        self.sample_ids[row] = -1
        return delivered, dropped
