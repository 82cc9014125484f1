"""Long-tailed sampling: a batch that stays full although samples end at different times.

A row of the batch is one context. A free slot takes the next sample id of the same context; when a
context wants no more samples its row takes the next one. What is wanted is decided by a `Job`, so
fixed-k screening, sampling until the first success and RL rollouts are three small jobs over this
one loop.

Which sample is begun when depends on the lengths of those before it alone. So a run that was
interrupted is replayed: finished samples hold their slots for as long as they did, without being
computed, and what is drawn again finds the same neighbours, the same cache columns and the same
bits. The ledger of the two runs together is that of one.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.group import Context, bucket, pad_rows
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime import interrupt
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.runtime.processes import agree
from prefixrl_jax.sampling import noise, sampler
from prefixrl_jax.sampling.sampler import Sampling

# how long a process may keep finished samples from the others: what the kill of one can cost
SHARE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Sample:
    """One finished sample.

    token_ids int32 [n], stop id included; logprobs float32 [n] of the sampled distribution.
    """

    sample_id: int
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: str  # "stop", or "length" when max_new_tokens cut it


class Job(abc.ABC):
    """A context and what is still wanted of it."""

    name: str  # identity of the context; with the sample id it fixes the noise
    context_ids: list[int]

    @abc.abstractmethod
    def next_sample(self) -> int | None:
        """The next sample id to begin, or None if no more are wanted now."""

    @abc.abstractmethod
    def deliver(self, sample: Sample) -> None:
        """Takes a finished sample, in whatever order samples finish."""

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """Whether the row may be given away; samples still in flight are then dropped, but
        charged.
        """

    def known_length(self, sample_id: int) -> int:
        """Tokens of a sample that an interrupted run has finished, or 0 if it has to be drawn."""
        return 0

    def redeliver(self, sample_id: int) -> None:
        """Takes a sample of known length at the moment at which the interrupted run delivered
        it.
        """
        raise LookupError(f"{self.name}: sample {sample_id} was not finished before")


class FixedJob(Job):
    """Exactly n samples of a context."""

    def __init__(self, name: str, context_ids: list[int], samples: int):
        self.name, self.context_ids = name, context_ids
        self.samples: dict[int, Sample] = {}
        self._ids = iter(range(samples))
        self._open = samples

    def next_sample(self) -> int | None:
        """Ids in ascending order."""
        return next(self._ids, None)

    def deliver(self, sample: Sample) -> None:
        """Keeps the sample."""
        self.samples[sample.sample_id] = sample
        self._open -= 1

    @property
    def closed(self) -> bool:
        """When all have arrived."""
        return self._open == 0


@dataclasses.dataclass
class _Row:
    """The host's view of one batch row: its job, the sample in each slot (-1: none) and tokens
    sampled so far for it.
    """

    job: Job | None
    slots: np.ndarray  # int64 [G]
    lengths: list[int]


@dataclasses.dataclass(frozen=True)
class Engine:
    """A sampler of fixed shape: `rows` contexts x `slots` samples over a mesh, decoding `chunk`
    tokens between refills.
    """

    config: ModelConfig
    mesh: Mesh
    cost: Costs
    rows: int
    slots: int
    chunk: int
    buckets: tuple[int, ...]

    def wide(self, samples: int) -> Engine:
        """As many samples in flight with more rows, for jobs that want so few that slots would stay
        idle.
        """
        slots = max(
            n for n in range(1, self.slots + 1) if self.slots % n == 0 and n <= max(samples, 1)
        )
        return dataclasses.replace(self, rows=self.rows * self.slots // slots, slots=slots)

    def run(
        self,
        params: Params,
        jobs: Sequence[Job],
        sampling: Sampling,
        stream: jax.Array,
        ledger: Ledger,
        phases: tuple[str, str],
        meanwhile: Callable[[bool], None] = lambda due: None,
    ) -> None:
        """Samples until every job of every process is closed. Each process passes its own jobs.

        params: placed by the "decode" rules. stream: key of the stage and step
        (`noise.stream_key`). The ledger is charged under phases = (of prefill, of decode).
        `meanwhile` is called while the device decodes a chunk: the place for what the samples
        delivered before it have left to do. Its argument says whether it is time to tell other
        processes, the same on each. Raises Interrupted, between chunks, when any process was asked
        to stop.
        """
        longest = agree(max((len(j.context_ids) for j in jobs), default=1), np.max)
        loop = _Loop(
            self,
            params,
            iter(jobs),
            sampling,
            stream,
            ledger,
            phases,
            bucket(longest, self.buckets),
        )
        while (work := loop.fill()).running:
            if work.stop:
                raise interrupt.Interrupted
            loop.decode(work, meanwhile)


class _Work(NamedTuple):
    """What the processes have to do before and in the next chunk: the most that any of them wants,
    so that all do the same.
    """

    running: int  # samples that are held by slots; none: the end
    replacements: int  # calls that give rows new contexts
    changed: int  # whether any slot starts or drops a sample
    drawn: int  # whether any slot draws a sample, rather than replay one
    replayed: int  # tokens that replayed samples advance
    stop: int  # whether any process was asked to stop
    due: int  # whether any has waited long enough to tell the others what it has


class _Loop:
    """One call of `Engine.run`: the device state and the host's view of the rows."""

    def __init__(
        self,
        engine: Engine,
        params,
        jobs: Iterator[Job],
        sampling,
        stream,
        ledger,
        phases,
        size: int,
    ):
        self.e, self.params, self.jobs, self.sampling, self.stream = (
            engine,
            params,
            jobs,
            sampling,
            stream,
        )
        self.ledger, self.phases, self.size = ledger, phases, size
        self.blocks = math.prod(engine.mesh.shape[a] for a in meshes.BATCH)
        self.local_blocks = max(self.blocks // jax.process_count(), 1)
        self.local = engine.rows // jax.process_count()
        self.per_block = engine.rows // self.blocks
        self.per_call = max(self.per_block // 8, 1)
        self.rows = [_Row(None, np.full(engine.slots, -1), []) for _ in range(self.local)]
        for row in self.rows:
            row.job = next(self.jobs, None)
        contexts = self._contexts([row.job for row in self.rows])
        self.state = sampler.start(
            params,
            meshes.to_global(engine.mesh, contexts),
            config=engine.config,
            slots=engine.slots,
            columns=sampling.max_new_tokens,
        )
        self.words = np.stack([_words(row.job) for row in self.rows])
        self._charge_hardware(engine.rows * size)
        self.ticks = 0
        self.ages = np.zeros((self.local, engine.slots), np.int32)
        # length of the sample in the slot if it is replayed, or 0
        self.known = np.zeros((self.local, engine.slots), np.int32)
        self.stale = False  # whether the device still runs samples that were dropped
        self.told = time.monotonic()  # when the processes last told each other what they have

    def _contexts(self, jobs: list[Job | None]) -> Context:
        tokens, lengths = pad_rows(
            [[0] if job is None else job.context_ids for job in jobs], self.size
        )
        return Context(tokens, lengths)

    def _charge_hardware(self, tokens: float, decoded: float = 0.0) -> None:
        # every process charges its part; the parts are summed when ledgers are merged
        share = 1 / jax.process_count()
        self.ledger.add("hardware", self.phases[0], share * self.e.cost.tokens(tokens))
        self.ledger.add("hardware", self.phases[1], share * self.e.cost.tokens(decoded))

    def fill(self) -> _Work:
        """Gives free rows new contexts and free slots new samples; returns what there is to do in
        the next chunk.
        """
        waiting = self._replace_closed()
        fresh = self._begin_samples()
        ids, drawn = self._held()
        left = np.where(
            (ids >= 0) & ~drawn, np.minimum(self.known - self.ages, self.e.chunk), 0
        ).max()
        crowded = max(
            sum(i // self.per_block == b for i in waiting) for b in range(self.local_blocks)
        )
        due = jax.process_count() == 1 or time.monotonic() - self.told > SHARE_SECONDS
        own = _Work(
            int((ids >= 0).sum()),
            -(-crowded // self.per_call),
            int(fresh.any() or self.stale),
            int(drawn.any()),
            int(left),
            int(interrupt.wanted()),
            int(due),
        )
        work = _Work(*agree(own, np.max))  # agreed at once, so that trip counts never differ
        self.told = time.monotonic() if work.due else self.told
        for _ in range(work.replacements):
            self._send_contexts(waiting)
        if work.changed:
            self.stale = False
            given = meshes.to_global(
                self.e.mesh, (self.words, np.maximum(ids, 0).astype(np.int32), fresh, drawn)
            )
            self.state = sampler.assign(self.state, self.stream, *given, ticks=np.int32(self.ticks))
        return work

    def _begin_samples(self) -> np.ndarray:
        """Hands every free slot the next sample its job wants; returns the slots that draw one from
        here on, bool [rows, G].
        """
        fresh = np.zeros((self.local, self.e.slots), bool)
        for row, new, known, age in zip(self.rows, fresh, self.known, self.ages, strict=True):
            if (job := row.job) is None:
                continue
            for g in np.flatnonzero(row.slots < 0):
                if (wanted := job.next_sample()) is None:
                    break
                known[g] = job.known_length(wanted)
                row.slots[g], age[g], new[g] = wanted, 0, not known[g]
        return fresh

    def _held(self) -> tuple[np.ndarray, np.ndarray]:
        """Sample ids by slot (int64 [rows, G], -1: none), and which of them the device draws
        (bool).
        """
        ids = np.stack([row.slots for row in self.rows])
        return ids, (ids >= 0) & (self.known == 0)

    def _replace_closed(self) -> list[int]:
        """Takes closed jobs out of their rows; returns the rows whose new context the device has
        yet to get.
        """
        waiting = []
        for i, row in enumerate(self.rows):
            while row.job is not None and row.job.closed:
                self._release(i, row.job)
                row.job = next(self.jobs, None)
                if row.job is not None and not row.job.closed:
                    waiting.append(i)
        return waiting

    def _send_contexts(self, waiting: list[int]) -> None:
        """Prefills and replaces up to `per_call` contexts in every block, and takes them off the
        list.
        """
        # out of range: nothing to replace
        index = np.full((self.local_blocks, self.per_call), self.per_block, np.int32)
        jobs: list[Job | None] = [None] * index.size
        for b in range(self.local_blocks):
            for r, i in enumerate(
                [i for i in waiting if i // self.per_block == b][: self.per_call]
            ):
                index[b, r], jobs[b * self.per_call + r] = i % self.per_block, self.rows[i].job
                self.words[i] = _words(self.rows[i].job)
                waiting.remove(i)
        new = meshes.to_global(self.e.mesh, (index, self._contexts(jobs)))
        self.state = sampler.replace_contexts(self.params, self.state, *new, config=self.e.config)
        self._charge_hardware(self.blocks * self.per_call * self.size)

    def _release(self, i: int, job: Job) -> None:
        """Charges a closed context: its prefill once, every row's tokens, those of dropped samples
        included.
        """
        row = self.rows[i]
        dropped = [int(n) for n, held in zip(self.ages[i], row.slots, strict=True) if held >= 0]
        if row.lengths or dropped:
            self.ledger.add_group(
                self.e.cost, self.phases, len(job.context_ids), row.lengths + dropped
            )
        self.stale |= bool(dropped)
        row.slots[:], row.lengths = -1, []

    def decode(self, work: _Work, meanwhile: Callable[[bool], None]) -> None:
        """One chunk, then delivery of what finished in it."""
        ids, drawn = self._held()
        replayed = (ids >= 0) & ~drawn
        steps, ended = int(work.replayed), replayed
        if work.drawn:
            self.state = sampler.decode_chunk(
                self.params,
                self.state,
                config=self.e.config,
                sampling=self.sampling,
                steps=self.e.chunk,
            )
        meanwhile(bool(work.due))
        if work.drawn:
            steps = max(steps, int(self.state.ticks) - self.ticks)
            active, age = meshes.to_local(self.state.active), meshes.to_local(self.state.age)
            self.ages, ended = np.where(drawn, age, self.ages), replayed | ~active
        self.ages = np.where(replayed, np.minimum(self.ages + steps, self.known), self.ages)
        self.ticks += steps
        self._charge_hardware(0, decoded=steps * self.e.rows * self.e.slots)
        self._deliver(ids, (ids >= 0) & ended & (~replayed | (self.ages == self.known)), replayed)

    def _deliver(self, ids: np.ndarray, done: np.ndarray, replayed: np.ndarray) -> None:
        """Hands the jobs the samples that are `done`, in the order of rows and slots."""
        if (done & ~replayed).any():
            rings = (
                meshes.to_local(x)
                for x in (self.state.begin, self.state.tokens, self.state.logprobs)
            )
            tokens, logprobs = sampler.unroll_rings(*rings)
        for i, g in np.argwhere(done):
            row, job, n = self.rows[i], self.rows[i].job, int(self.ages[i, g])
            assert job is not None  # a row without a job holds no sample
            if replayed[i, g]:
                job.redeliver(int(ids[i, g]))
            else:
                ended = "stop" if tokens[i, g, n - 1] in self.sampling.stop_ids else "length"
                job.deliver(
                    Sample(
                        int(ids[i, g]), tokens[i, g, :n].copy(), logprobs[i, g, :n].copy(), ended
                    )
                )
            row.lengths.append(n)
            row.slots[g] = -1


def _words(job: Job | None) -> np.ndarray:
    return np.zeros(2, np.uint32) if job is None else noise.words(job.name)
