"""Long-tailed sampling: a batch that stays full although samples end at different times.

Each row of the batch is one context. A free slot takes the next sample of the same context; when a
context wants no more samples its row takes the next context. What is wanted is decided by a `Job`.
`Engine.run` repeats two steps until nothing is wanted: `_Loop.fill` gives rows contexts and slots
samples, `_Loop.decode` decodes a chunk of tokens and delivers what has ended.

Replay of logged samples: which sample is begun when depends on the lengths of those before it
alone. So an interrupted run is gone through again with its finished samples holding their slots for
as long as they did, without being computed (`Job.known_length`, `Slots.replay`, `Job.redeliver`).
What has to be drawn again then finds the same neighbours, the same cache columns and the same bits,
and the ledger of the two runs together is that of one.
"""

from __future__ import annotations

import dataclasses
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
from prefixrl_jax.sampling.bill import Bill
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.job import Job, Sample
from prefixrl_jax.sampling.slots import Slots

# How long a process may keep finished samples from the others: what a kill of it can cost.
SHARE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Engine:
    """A sampler of fixed shape: `rows` contexts x `slots` samples, refilled every `chunk` tokens.

    rows: rows of all processes together, a multiple of the mesh's batch divisor.
    buckets: sizes that contexts are padded to; a call uses the smallest that holds its contexts.
    """

    config: ModelConfig
    mesh: Mesh
    cost: Costs
    rows: int
    slots: int
    chunk: int
    buckets: tuple[int, ...]

    def wide(self, samples: int) -> Engine:
        """Return an engine with more rows of fewer slots, for jobs of few samples.

        Slots would stay idle otherwise. The number of samples in flight is the same.
        """
        divisors = (n for n in range(1, self.slots + 1) if self.slots % n == 0)
        slots = max(n for n in divisors if n <= max(samples, 1))
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
        """Sample until every job of every process is closed.

        Args:
            params: parameters placed by the "decode" rules.
            jobs: the jobs of this process.
            sampling: how tokens are drawn.
            stream: key of the stage and step, from `noise.stream_key`.
            ledger: is charged for prefill and for decoding under `phases`, in this order.
            meanwhile: is called while the device decodes a chunk, to process the samples delivered
                before it. Its argument says whether it is time to share with the other processes,
                and is the same on each.

        Raises:
            Interrupted: between chunks, when any process was asked to stop.
            ValueError: when a context fits no bucket.
        """
        longest = agree(max((len(job.context_ids) for job in jobs), default=1), np.max)
        size = bucket(longest, self.buckets)
        bill = Bill(self.cost, ledger, phases)
        loop = _Loop(self, params, sampling, stream, iter(jobs), bill, size)
        while (work := loop.fill()).running:
            if work.stop:
                raise interrupt.Interrupted
            loop.decode(work, meanwhile)


class _Work(NamedTuple):
    """The work to be done before and in the next chunk.

    Each number is the largest that any process has, so that all processes do the same.
    """

    running: int  # slots that hold a sample; 0 is the end
    replacements: int  # calls that give rows new contexts
    changed: int  # whether the device has to be told of samples that begin or were dropped
    drawn: int  # whether any sample is drawn, rather than replayed
    replay_ticks: int  # ticks of the clock in which a replayed sample is running
    stop: int  # whether the process was asked to stop
    due: int  # whether it has waited long enough to share what it has


class _Loop:
    """One call of `Engine.run`: the state on the device and the host's view of the slots."""

    def __init__(
        self,
        engine: Engine,
        params: Params,
        sampling: Sampling,
        stream: jax.Array,
        jobs: Iterator[Job],
        bill: Bill,
        size: int,
    ):
        self.engine = engine
        self.params = params
        self.sampling = sampling
        self.stream = stream
        self.jobs = jobs
        self.bill = bill
        self.size = size  # columns of a padded context
        # The batch is cut into blocks of rows, one for each device it is spread over.
        self.blocks = meshes.batch_divisor(engine.mesh)
        self.local_blocks = max(self.blocks // jax.process_count(), 1)
        self.block_rows = engine.rows // self.blocks
        self.replaced_rows = max(self.block_rows // 8, 1)  # of a block, in one call

        local_rows = engine.rows // jax.process_count()
        self.slots = Slots([next(jobs, None) for _ in range(local_rows)], engine.slots)
        self.words = np.stack([_words(job) for job in self.slots.jobs])
        self.state = sampler.start(
            params,
            meshes.to_global(engine.mesh, self._contexts(self.slots.jobs)),
            config=engine.config,
            slots=engine.slots,
            columns=sampling.max_new_tokens,
        )
        self.bill.charge_hardware(prefilled=engine.rows * size)
        self.ticks = 0  # of the clock, those that only replayed samples needed included
        self.stale = False  # whether the device still runs samples that were dropped
        self.shared = time.monotonic()  # when the processes last shared what they have

    def _contexts(self, jobs: list[Job | None]) -> Context:
        """Return the padded contexts of the jobs; a missing job gets a dummy of one token."""
        return Context(*pad_rows([job.context_ids if job else [0] for job in jobs], self.size))

    def fill(self) -> _Work:
        """Give free rows new contexts and free slots new samples.

        Returns the work of the next chunk.
        """
        waiting = self._replace_closed_jobs()
        begun = self.slots.begin_samples()
        work = self._agree(waiting, begun)
        for _ in range(work.replacements):
            self._send_contexts(waiting)
        if work.changed:
            self._assign(begun)
        return work

    def _replace_closed_jobs(self) -> list[int]:
        """Charge the jobs that are closed and put the next jobs in their rows.

        Returns the rows whose new context has yet to be sent to the device.
        """
        waiting = []
        for row in range(len(self.slots.jobs)):
            while (job := self.slots.jobs[row]) is not None and job.closed:
                delivered, dropped = self.slots.empty(row)
                self.bill.charge_context(job, delivered + dropped)
                self.stale |= bool(dropped)
                successor = self.slots.jobs[row] = next(self.jobs, None)
                if successor is not None and not successor.closed:
                    waiting.append(row)
        return waiting

    def _agree(self, waiting: list[int], begun: np.ndarray) -> _Work:
        """Agree with all processes, in one exchange, on the work of the next chunk.

        All of them then make the same number of calls.
        """
        crowd = max(
            sum(row // self.block_rows == block for row in waiting)
            for block in range(self.local_blocks)
        )
        due = jax.process_count() == 1 or time.monotonic() - self.shared > SHARE_SECONDS
        wanted = _Work(
            running=int(self.slots.held.sum()),
            replacements=-(-crowd // self.replaced_rows),
            changed=int(begun.any() or self.stale),
            drawn=int(self.slots.drawn.any()),
            replay_ticks=self.slots.ticks_to_replay(self.engine.chunk),
            stop=int(interrupt.wanted()),
            due=int(due),
        )
        work = _Work(*agree(wanted, np.max))
        if work.due:
            self.shared = time.monotonic()
        return work

    def _send_contexts(self, waiting: list[int]) -> None:
        """Prefill the contexts of some waiting rows and remove these rows from `waiting`.

        One call takes up to `replaced_rows` rows in every block, since its shape is static.
        """
        # a row out of range: nothing to replace
        rows = np.full((self.local_blocks, self.replaced_rows), self.block_rows, np.int32)
        jobs: list[Job | None] = [None] * rows.size
        for block in range(self.local_blocks):
            in_block = [row for row in waiting if row // self.block_rows == block]
            for i, row in enumerate(in_block[: self.replaced_rows]):
                rows[block, i] = row % self.block_rows
                jobs[block * self.replaced_rows + i] = self.slots.jobs[row]
                self.words[row] = _words(self.slots.jobs[row])
                waiting.remove(row)
        rows_and_contexts = meshes.to_global(self.engine.mesh, (rows, self._contexts(jobs)))
        self.state = sampler.replace_contexts(
            self.params, self.state, *rows_and_contexts, config=self.engine.config
        )
        self.bill.charge_hardware(prefilled=self.blocks * self.replaced_rows * self.size)

    def _assign(self, begun: np.ndarray) -> None:
        """Tell the device which samples begin and that the dropped ones no longer run."""
        sample_ids = np.maximum(self.slots.sample_ids, 0).astype(np.int32)
        slots = meshes.to_global(
            self.engine.mesh, (self.words, sample_ids, begun, self.slots.drawn)
        )
        self.state = sampler.assign(self.state, self.stream, *slots, ticks=np.int32(self.ticks))
        self.stale = False

    def decode(self, work: _Work, meanwhile: Callable[[bool], None]) -> None:
        """Decode one chunk of tokens in every slot, then deliver the samples that have ended."""
        slots = self.slots
        drawn = slots.drawn
        stopped = np.zeros(slots.held.shape, bool)
        if work.drawn:
            self.state = sampler.decode_chunk(
                self.params,
                self.state,
                config=self.engine.config,
                sampling=self.sampling,
                steps=self.engine.chunk,
            )
        meanwhile(bool(work.due))  # the device is at work: nothing above waits for it
        # Replayed samples take the ticks they took when they were drawn. If that is more than the
        # device has done, it has left the chunk early with no sample running; `_assign` sets its
        # clock right before it begins another.
        ticks = work.replay_ticks
        if work.drawn:
            ticks = max(ticks, int(self.state.ticks) - self.ticks)
            slots.ages = np.where(drawn, meshes.to_local(self.state.age), slots.ages)
            stopped = drawn & ~meshes.to_local(self.state.active)
        replayed = slots.replay(int(ticks))
        self.ticks += int(ticks)
        self.bill.charge_hardware(decoded=int(ticks) * self.engine.rows * self.engine.slots)
        self._deliver(stopped, replayed)

    def _deliver(self, drawn: np.ndarray, replayed: np.ndarray) -> None:
        """Hand the samples that have ended to their jobs, in the order of rows and slots.

        drawn, replayed: bool [rows, G], the slots of these samples.
        """
        if drawn.any():
            rings = (self.state.begin, self.state.tokens, self.state.logprobs)
            tokens, logprobs = sampler.unroll_rings(*(meshes.to_local(ring) for ring in rings))
        for row, slot in np.argwhere(drawn | replayed):
            job = self.slots.jobs[row]
            sample_id = int(self.slots.sample_ids[row, slot])
            assert job is not None  # a row without a job holds no sample
            if replayed[row, slot]:
                job.redeliver(sample_id)
            else:
                length = int(self.slots.ages[row, slot])
                ids = tokens[row, slot, :length].copy()
                reason = "stop" if ids[-1] in self.sampling.stop_ids else "length"
                job.deliver(Sample(sample_id, ids, logprobs[row, slot, :length].copy(), reason))
            self.slots.finish(row, slot)


def _words(job: Job | None) -> np.ndarray:
    """Return the hash of the job's name, which fixes its noise, or zeros without a job.

    The hash is uint32 [2].
    """
    return np.zeros(2, np.uint32) if job is None else noise.words(job.name)
