"""The host's bookkeeping of slots: begin, age, replay, finish, drop."""

import numpy as np
import pytest

from prefixrl_jax.sampling.job import FixedJob
from prefixrl_jax.sampling.slots import Slots


class LoggedJob(FixedJob):
    """A job some of whose samples an interrupted run has finished."""

    def __init__(self, samples: int, lengths: dict[int, int]):
        super().__init__("logged", [1], samples)
        self._lengths = lengths

    def known_length(self, sample_id):
        return self._lengths.get(sample_id, 0)


def test_empty_slots_take_ids_in_order_and_rows_without_a_job_take_none():
    slots = Slots([FixedJob("a", [1], 2), None, FixedJob("b", [1], 9)], slots=3)
    begun = slots.begin_samples()
    assert slots.sample_ids.tolist() == [[0, 1, -1], [-1, -1, -1], [0, 1, 2]]
    assert begun.tolist() == slots.held.tolist() == slots.drawn.tolist()
    assert not slots.replayed.any() and not slots.begin_samples().any()


def test_replayed_samples_hold_their_slots_for_as_long_as_they_are():
    slots = Slots([LoggedJob(3, {0: 5, 2: 2})], slots=3)
    assert slots.begin_samples().tolist() == [[False, True, False]]
    assert slots.replayed.tolist() == [[True, False, True]]
    assert [slots.ticks_to_replay(limit) for limit in (1, 4, 9)] == [1, 4, 5]
    assert slots.replay(3).tolist() == [[False, False, True]]
    assert slots.ages.tolist() == [[3, 0, 2]]  # the device ages those that are drawn
    slots.finish(0, 2)
    assert slots.ticks_to_replay(9) == 2
    assert slots.replay(3).tolist() == [[True, False, False]]


def test_a_row_that_is_emptied_gives_the_lengths_of_its_samples():
    slots = Slots([FixedJob("a", [1], 4), FixedJob("b", [1], 4)], slots=2)
    slots.begin_samples()
    slots.ages[:] = [[3, 1], [7, 7]]
    slots.finish(0, 0)
    slots.begin_samples()
    assert slots.sample_ids.tolist() == [[2, 1], [0, 1]] and slots.ages[0, 0] == 0
    assert slots.empty(0) == ([3], [0, 1])
    assert slots.empty(0) == ([], [])
    assert slots.held.tolist() == [[False, False], [True, True]]
    np.testing.assert_array_equal(slots.ages[1], 7)


def test_a_job_that_knows_no_lengths_is_handed_no_replayed_sample():
    job = FixedJob("p", [1], 2)
    assert job.known_length(0) == 0
    with pytest.raises(LookupError, match="p: sample 0 was not finished before"):
        job.redeliver(0)
