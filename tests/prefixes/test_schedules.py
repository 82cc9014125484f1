"""The stream keeps its share and its epochs, schedules give the lengths they promise, and what they
learn is their memory.
"""

import collections
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixrl_jax.prefixes.contexts import ContextStream, number_repeats
from prefixrl_jax.prefixes.schedules import (
    SCHEDULES,
    Adaptive,
    Band,
    ScheduleSettings,
    ShortestSolvable,
    TraceCutter,
    make_schedule,
)
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Problem


class Plain:
    """As much of a task as a schedule needs: nothing leaks before the last token."""

    def leaks(self, problem, prefix):
        return len(prefix) >= 40


def traces_of(count=5, length=40) -> TraceCutter:
    return TraceCutter(Plain(), [(Problem(f"p{i}", {}), list(range(length))) for i in range(count)])


def schedule_of(kind, count=5):
    return make_schedule(ScheduleSettings(kind, 0.8, 10, 0), [], traces_of(count))


def make_stream(prefixed=9, plain=5, share=0.75, batch=8, seed=0, schedule=None):
    first = [Prompt(Problem(f"p{i}", {}), (1,), i) for i in range(prefixed)]
    return ContextStream(
        schedule or Band(first, seed),
        [Prompt(Problem(f"q{i}", {})) for i in range(plain)],
        share,
        batch,
        seed,
    )


@settings(max_examples=40)
@given(
    prefixed=st.integers(1, 20),
    plain=st.integers(1, 20),
    quarter=st.integers(0, 4),
    batch=st.sampled_from([4, 8, 12]),
    seed=st.integers(0, 5),
)
def test_every_batch_has_its_share_and_every_epoch_every_context(
    prefixed, plain, quarter, batch, seed
):
    stream = make_stream(prefixed, plain, quarter / 4, batch, seed)
    batches = [stream.at(step, {}) for step in range(12)]
    count = batch * quarter // 4
    for part, size, of in (
        ((0, count), prefixed, stream.prefixed.prompts),
        ((count, batch), plain, stream.plain),
    ):
        drawn = [p.name.split("~")[0] for b in batches for p in b[slice(*part)]]
        assert len(drawn) == 12 * (part[1] - part[0])
        epochs = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        for epoch in epochs:
            assert max(collections.Counter(epoch).values()) == 1
            assert len(epoch) < size or set(epoch) == {p.name for p in of}
    assert all(len(b) == batch for b in batches)
    # equal names would draw equal samples
    assert all(len({p.name for p in b}) == batch for b in batches)


def test_contexts_that_occur_again_are_told_apart():
    a, b = Prompt(Problem("a", {})), Prompt(Problem("a", {}), (1,), 2)
    assert [p.name for p in number_repeats([a, b, a, a, b])] == ["a", "a#2", "a~1", "a~2", "a#2~1"]


def test_a_batch_depends_on_seed_and_step_alone():
    stream = make_stream()
    late = stream.at(7, {})
    assert [stream.at(step, {}) for step in (3, 7, 0)][1] == late == make_stream().at(7, {})
    assert make_stream(seed=1).at(7, {}) != late
    orders = {
        tuple(p.name for step in range(3 * e, 3 * e + 3) for p in stream.at(step, {})[:6])
        for e in range(4)
    }
    assert len(orders) == 4  # shuffled anew every epoch


def test_another_attempt_at_a_step_has_the_same_share_of_other_contexts():
    stream = make_stream(prefixed=500, plain=500)
    first, again = stream.at(3, {}), stream.at(3, {}, attempt=1)
    assert again == stream.at(3, {}, attempt=1)
    assert (
        [bool(p.prefix) for p in first]
        == [bool(p.prefix) for p in again]
        == [True] * 6 + [False] * 2
    )
    assert not {p.name for p in first} & {p.name for p in again}


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_no_fraction_is_refused(share):
    with pytest.raises(ValueError, match=rf"prefix\.share={share}"):
        make_stream(share=share)


def test_a_stream_without_prefixes_says_what_to_change():
    with pytest.raises(ValueError, match=r"no trace \(raise collect\.cap"):
        make_stream(prefixed=0)
    assert len(make_stream(prefixed=0, share=0.0).at(0, {})) == 8


def test_an_unknown_schedule_is_named():
    with pytest.raises(
        ValueError, match=f"prefix.schedule='linear': one of {', '.join(SCHEDULES)}"
    ):
        ScheduleSettings("linear", 0.8, 10, 0)


@pytest.mark.parametrize("kind", ["reverse", "cosine"])
def test_annealed_prefixes_shrink_to_none(kind):
    schedule = schedule_of(kind)
    sizes = [[len(p.prefix) for p in schedule.draw(step, 0, 500, {})] for step in range(12)]
    top = {
        "reverse": lambda s: 0.8 * max(1 - s / 10, 0),
        "cosine": lambda s: 0.4 * (1 + math.cos(math.pi * min(s / 10, 1))),
    }[kind]
    for step, drawn in enumerate(sizes[:10]):
        longest = math.floor(top(step) * 40 + 1e-9)
        assert max(drawn, default=0) <= longest
        if kind == "reverse":
            assert set(drawn) == {longest}
        else:  # uniform below the cosine; those too short for a token are no prefixes
            drawn += [0] * (500 - len(drawn))
            assert sum(drawn) / 500 == pytest.approx(top(step) * 20 - 0.5, abs=1.5)
    assert sizes[10] == sizes[11] == []
    batch = make_stream(share=0.5, batch=8, schedule=schedule).at(10, {})
    # any plain problems take their places
    assert len(batch) == 8 and {p.problem.id[0] for p in batch} == {"q"}


def test_the_groups_of_a_problem_count_as_one():
    stream = make_stream(share=1.0, batch=8, schedule=Adaptive(traces_of(1), 0.8, 0, gain=0.4))
    four = [{"problem": "p0", "fraction": 0.8, "solved": s} for s in (1.0, 1.0, 0.5, 0.5)]
    # one move for their mean, not four
    assert stream.learn(four, {}) == {"p0": pytest.approx(0.8 - 0.4 * 0.25)}


def test_a_failure_inside_the_interval_keeps_its_solvable_end():
    schedule, memory = ShortestSolvable(traces_of(1), 0.8, 0), {"p0": [0.2, 0.4]}
    schedule.learn("p0", 0.3, 0.0, memory)
    assert memory["p0"] == [0.3, 0.4]
    schedule.learn("p0", 0.4, 0.0, memory)  # and at that end it begins again
    assert memory["p0"] == [0.4, 0.8]


class Learner:
    """A policy that solves a prefix of at least `skill` of the trace with probability one, a
    shorter one never.
    """

    def __init__(self, skill):
        self.skill = skill

    def groups(self, prompts):
        return [
            {
                "problem": p.problem.id,
                "fraction": p.fraction,
                "solved": float(p.fraction >= self.skill),
            }
            for p in prompts
        ]


@pytest.mark.parametrize("kind", ["adaptive", "shortest_solvable"])
def test_a_learning_schedule_finds_the_length_at_which_success_begins_and_follows_it(kind):
    stream = make_stream(share=1.0, batch=5, schedule=schedule_of(kind))
    memory = {}
    for skill in (0.45, 0.2):
        for step in range(40):
            memory = stream.learn(Learner(skill).groups(stream.at(step, memory)), memory)
            memory = json.loads(json.dumps(memory))  # as a checkpoint gives it back
        fractions = [p.fraction for step in range(4) for p in stream.at(step, memory)]
        # adaptive swings by half its gain around the edge; the search ends within its precision
        # above it.
        low, high = (
            (skill - 0.21, skill + 0.21) if kind == "adaptive" else (skill - 0.1, skill + 0.1)
        )
        assert all(low <= f <= high for f in fractions)


@pytest.mark.parametrize("kind", ["adaptive", "shortest_solvable"])
def test_a_problem_solved_without_a_prefix_needs_none_any_more(kind):
    stream = make_stream(share=0.5, batch=8, schedule=schedule_of(kind, count=4))
    solved = [{"problem": f"p{i}", "fraction": 0.0, "solved": 0.75} for i in range(4)]
    some, every = stream.learn(solved[:3], {}), stream.learn(solved, {})
    assert {p.problem.id for p in stream.at(0, some) if p.prefix} == {"p3"}
    batch = stream.at(0, every)
    assert len(batch) == 8 and not any(p.prefix for p in batch)  # plain problems take their places
    # and that is final
    assert stream.learn([{"problem": "p0", "fraction": 0.5, "solved": 0.0}], every) == every
    failed = [{"problem": "p0", "fraction": 0.0, "solved": 0.25}]
    assert stream.learn(failed, {}) == {}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=40))
def test_proposals_stay_within_the_trace_whatever_happens(outcomes):
    for schedule in (Adaptive(traces_of(1), 0.8, 0), ShortestSolvable(traces_of(1), 0.8, 0)):
        memory = {}
        for plain, success in outcomes:
            prompts = schedule.draw(0, 0, 2, memory)
            assert all(0 < p.fraction <= 0.8 and 1 <= len(p.prefix) <= 32 for p in prompts)
            schedule.learn(
                "p0", 0.0 if plain or not prompts else prompts[0].fraction, success, memory
            )
