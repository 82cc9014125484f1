"""The engine on the real sampler: full slots, replay, and what is charged."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import TINY, random_params

from prefixrl_jax.flops import Ledger, causal_pairs, costs
from prefixrl_jax.runtime.mesh import make_mesh
from prefixrl_jax.sampling import refill
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.job import FixedJob
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine

COST = costs(1000, 1, 4, 8)
CONFIG = dataclasses.replace(TINY, num_layers=1, unroll_layers=True)
SAMPLING = Sampling(max_new_tokens=7, stop_ids=(0, 1, 2, 3, 4, 5))
CONTEXTS = {"a": [3], "bb": [4, 5, 6], "ccc": [9, 8, 7, 6], "d": [1, 2], "e": [30, 31, 32]}


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def make_engine(rows=2, slots=3, chunk=2):
    mesh = make_mesh(devices=jax.devices()[:1])
    return Engine(CONFIG, mesh, COST, rows, slots, chunk, buckets=(4, 8))


def run_fixed(params, engine, n=5, names=CONTEXTS, ledger=None):
    """Samples 0..n-1 of the contexts, by name and id."""
    jobs = [FixedJob(name, CONTEXTS[name], n) for name in names]
    engine.run(
        params, jobs, SAMPLING, stream_key(0, "test"), ledger or Ledger(), ("prefill", "decode")
    )
    return {job.name: job.samples for job in jobs}


@pytest.fixture(scope="module")
def reference(params):
    """The samples and the ledger of one run of the smaller engine."""
    ledger = Ledger()
    return run_fixed(params, make_engine(), ledger=ledger), ledger


def test_every_job_gets_exactly_its_ids(reference):
    samples, _ = reference
    ids = {name: sorted(by_id) for name, by_id in samples.items()}
    assert ids == {name: [0, 1, 2, 3, 4] for name in CONTEXTS}
    drawn = [s for by_id in samples.values() for s in by_id.values()]
    # ends of all kinds: slots were refilled out of step
    assert len({len(s.token_ids) for s in drawn}) > 2
    for s in drawn:
        stopped = s.token_ids[-1] in SAMPLING.stop_ids
        assert s.finish_reason == ("stop" if stopped else "length") and (
            stopped or len(s.token_ids) == 7
        )
        assert not np.isin(s.token_ids[:-1], SAMPLING.stop_ids).any()
        assert len(s.logprobs) == len(s.token_ids) and (s.logprobs < 0).all()


def test_samples_do_not_depend_on_rows_slots_or_neighbours(params, reference):
    other = run_fixed(
        params, make_engine(rows=3, slots=2, chunk=5), names=["e", "a", "ccc", "bb", "d"]
    )
    for name, by_id in reference[0].items():
        for i, s in by_id.items():
            np.testing.assert_array_equal(other[name][i].token_ids, s.token_ids)
            np.testing.assert_allclose(other[name][i].logprobs, s.logprobs, atol=2e-5)


def test_jobs_of_few_samples_take_rows_rather_than_slots(params, reference):
    engine = make_engine(rows=1, slots=6)
    shapes = {n: (engine.wide(n).rows, engine.wide(n).slots) for n in (1, 2, 3, 4, 5, 6, 50)}
    assert shapes == {1: (6, 1), 2: (3, 2), 3: (2, 3), 4: (2, 3), 5: (2, 3), 6: (1, 6), 50: (1, 6)}
    ledgers = Ledger(), Ledger()
    for ledger, used in zip(ledgers, (engine, engine.wide(1)), strict=True):
        for name, by_id in run_fixed(params, used, n=1, ledger=ledger).items():
            np.testing.assert_array_equal(by_id[0].token_ids, reference[0][name][0].token_ids)
    slow, fast = (ledger.state["hardware"]["decode"] for ledger in ledgers)
    assert fast < slow / 2  # what the device decodes, idle slots included


def test_the_ledger_counts_the_delivered_samples(reference):
    samples, ledger = reference
    lengths = {name: [len(s.token_ids) for s in by_id.values()] for name, by_id in samples.items()}
    tokens = sum(map(sum, lengths.values()))
    assert ledger.state["paper"]["decode"] == ledger.state["actual"]["decode"] == 2000 * tokens
    assert ledger.state["paper"]["prefill"] == 2000 * sum(
        5 * len(CONTEXTS[name]) for name in lengths
    )
    assert ledger.state["actual"]["prefill"] == 2000 * sum(
        len(CONTEXTS[name]) - 1 for name in lengths
    )
    attention = (
        sum(causal_pairs(len(CONTEXTS[name]), rows) for name, rows in lengths.items())
        * COST.attention_pair
    )
    assert ledger.state["attention"]["prefill"] + ledger.state["attention"][
        "decode"
    ] == pytest.approx(attention)
    assert ledger.state["hardware"]["decode"] >= ledger.state["actual"]["decode"]


def test_a_slot_idles_only_when_nothing_is_left_for_it(params, monkeypatch):
    fill, running = refill._Loop.fill, []

    def checked(loop):
        work = fill(loop)
        waiting = list(loop.jobs)
        loop.jobs = iter(waiting)
        for job, held in zip(loop.slots.jobs, loop.slots.held, strict=True):
            assert job is not None or not waiting
            assert held.all() or job is None or job.next_sample() is None
        running.append(work.running)
        return work

    monkeypatch.setattr(refill._Loop, "fill", checked)
    run_fixed(params, make_engine())
    assert running[0] == 6 and running[-1] == 0


class LoggedJob(FixedJob):
    """Knows the lengths of the samples of an interrupted run, and takes them from there."""

    def __init__(self, name, samples, finished):
        super().__init__(name, CONTEXTS[name], samples)
        self._finished, self.replayed = finished, []

    def known_length(self, sample_id):
        sample = self._finished.get(sample_id)
        return 0 if sample is None else len(sample.token_ids)

    def redeliver(self, sample_id):
        self.replayed.append(sample_id)
        self.deliver(self._finished[sample_id])


def test_what_is_drawn_beside_replayed_samples_is_the_same_to_the_bit(params, reference):
    """Every second sample was finished before; the ledger is that of a run without interruption."""
    whole, expected = reference
    finished = {name: {i: s for i, s in whole[name].items() if i % 2} for name in CONTEXTS}
    jobs = [LoggedJob(name, 5, finished[name]) for name in CONTEXTS]
    ledger = Ledger()
    make_engine().run(params, jobs, SAMPLING, stream_key(0, "test"), ledger, ("prefill", "decode"))
    assert ledger.state == expected.state
    for job in jobs:
        assert sorted(job.replayed) == [1, 3]
        for i, sample in job.samples.items():
            np.testing.assert_array_equal(sample.token_ids, whole[job.name][i].token_ids)
            np.testing.assert_array_equal(sample.logprobs, whole[job.name][i].logprobs)


def test_nothing_is_decoded_when_every_sample_is_replayed(params, reference, monkeypatch):
    whole, expected = reference
    monkeypatch.setattr(refill.sampler, "decode_chunk", None)  # a call would fail
    jobs = [LoggedJob(name, 5, whole[name]) for name in CONTEXTS]
    ledger = Ledger()
    make_engine().run(params, jobs, SAMPLING, stream_key(0, "test"), ledger, ("prefill", "decode"))
    assert ledger.state == expected.state and all(job.closed for job in jobs)
