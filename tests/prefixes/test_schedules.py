"""Schedules give the lengths of prefix that they promise, and learn from outcomes."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import make_stream, traces_of

from prefixrl_jax.prefixes.schedules import (
    SCHEDULES,
    Adaptive,
    ScheduleSettings,
    ShortestSolvable,
    make_schedule,
)


def schedule_of(kind, count=5):
    return make_schedule(ScheduleSettings(kind, 0.8, 10, 0), [], traces_of(count))


def test_an_unknown_schedule_is_named():
    message = f"prefix.schedule='linear': one of {', '.join(SCHEDULES)}"
    with pytest.raises(ValueError, match=message):
        ScheduleSettings("linear", 0.8, 10, 0)


@pytest.mark.parametrize("kind", ["reverse", "cosine"])
def test_annealed_prefixes_shrink_to_none(kind):
    schedule = schedule_of(kind)
    sizes = [[len(p.prefix) for p in schedule.draw(step, 0, 500, {})] for step in range(12)]
    largest_fraction = {
        "reverse": lambda step: 0.8 * max(1 - step / 10, 0),
        "cosine": lambda step: 0.4 * (1 + math.cos(math.pi * min(step / 10, 1))),
    }[kind]
    for step, drawn in enumerate(sizes[:10]):
        longest = math.floor(largest_fraction(step) * 40 + 1e-9)
        assert max(drawn, default=0) <= longest
        if kind == "reverse":
            assert set(drawn) == {longest}
        else:
            # Uniform below the cosine; a fraction of less than one token gives no prefix.
            drawn += [0] * (500 - len(drawn))
            mean = largest_fraction(step) * 40 / 2
            assert sum(drawn) / 500 == pytest.approx(mean - 0.5, abs=1.5)
    assert sizes[10] == sizes[11] == []
    batch = make_stream(share=0.5, batch=8, schedule=schedule).at(10, {})
    # Plain problems take the places of the prefixes.
    assert len(batch) == 8
    assert {p.problem.id[0] for p in batch} == {"q"}


def test_a_failure_inside_the_interval_keeps_its_solvable_end():
    schedule = ShortestSolvable(traces_of(1), 0.8, 0)
    memory = {"p0": [0.2, 0.4]}
    schedule.learn("p0", 0.3, 0.0, memory)
    assert memory["p0"] == [0.3, 0.4]
    schedule.learn("p0", 0.4, 0.0, memory)  # a failure at the solvable end: the search starts anew
    assert memory["p0"] == [0.4, 0.8]


class Learner:
    """A policy that always solves a prefix of at least `skill` of the trace, and never less."""

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
        # Adaptive swings around the skill by half its gain; the search ends close above it.
        tolerance = {"adaptive": 0.21, "shortest_solvable": 0.1}[kind]
        assert all(skill - tolerance <= f <= skill + tolerance for f in fractions)


@pytest.mark.parametrize("kind", ["adaptive", "shortest_solvable"])
def test_a_problem_solved_without_a_prefix_needs_none_any_more(kind):
    stream = make_stream(share=0.5, batch=8, schedule=schedule_of(kind, count=4))
    solved = [{"problem": f"p{i}", "fraction": 0.0, "solved": 0.75} for i in range(4)]
    three_solved = stream.learn(solved[:3], {})
    assert {p.problem.id for p in stream.at(0, three_solved) if p.prefix} == {"p3"}

    all_solved = stream.learn(solved, {})
    batch = stream.at(0, all_solved)
    assert len(batch) == 8
    assert not any(p.prefix for p in batch)  # plain problems take their places

    # A later failure with a prefix changes nothing.
    failed_with_prefix = [{"problem": "p0", "fraction": 0.5, "solved": 0.0}]
    assert stream.learn(failed_with_prefix, all_solved) == all_solved
    failed = [{"problem": "p0", "fraction": 0.0, "solved": 0.25}]
    assert stream.learn(failed, {}) == {}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=40))
def test_proposals_stay_within_the_trace_whatever_happens(outcomes):
    for schedule in (Adaptive(traces_of(1), 0.8, 0), ShortestSolvable(traces_of(1), 0.8, 0)):
        memory = {}
        for plain, success in outcomes:
            prompts = schedule.draw(0, 0, 2, memory)
            assert all(0 < p.fraction <= 0.8 and 1 <= len(p.prefix) <= 32 for p in prompts)
            fraction = prompts[0].fraction if prompts and not plain else 0.0
            schedule.learn("p0", fraction, success, memory)
