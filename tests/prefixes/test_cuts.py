"""Cuts lie in the band, by token id, frozen, and give nothing away; controls cut what they say they
cut.
"""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.prefixes.cuts import (
    MAX_REDRAWS,
    Cuts,
    CutSettings,
    cut_before,
    draw_cuts,
    fraction_cut,
    read_cuts,
    sources,
    write_cuts,
)
from prefixrl_jax.tasks.task import Problem


class Words:
    """As much of a task as the cuts need: a prefix leaks from `answer_at` tokens on."""

    def __init__(self, answer_at: int = 10**9):
        self.answer_at = answer_at

    def leaks(self, problem, prefix):
        return len(prefix) >= self.answer_at

    def render(self, problem):
        return [1, 2]

    def text(self, ids):
        return " ".join(f"token\u2028{i}" for i in ids)


def make_trace(name: str, length: int) -> Trace:
    return Trace(name, 0, [1], [1000 + i for i in range(length)], [0.0] * length, "stop", 1, 0.0)


def cuts_of(lengths, task=None, band=(0.4, 0.8), count=3, seed=0):
    problems = {f"p{i}": Problem(f"p{i}", {}) for i in range(len(lengths))}
    traces = [make_trace(f"p{i}", n) for i, n in enumerate(lengths)]
    return (
        problems,
        traces,
        draw_cuts(
            task or Words(),
            problems,
            sources(traces, "own", {}, 0),
            CutSettings(count, tuple(band), seed),
        ),
    )


@given(st.integers(0, 400), st.integers(0, 100))
def test_a_fraction_is_the_floor_of_the_exact_product(length, per_cent):
    assert fraction_cut(length, per_cent / 100) == length * per_cent // 100


@given(
    lengths=st.lists(st.integers(3, 60), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    band=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)).map(sorted),
)
def test_cuts_are_token_prefixes_inside_the_band(lengths, seed, band):
    _, traces, cuts = cuts_of(lengths, band=band, seed=seed)
    by_name = {t.problem_id: t for t in traces}
    for prompt in cuts.prompts:
        ids = by_name[prompt.problem.id].token_ids
        assert list(prompt.prefix) == ids[: len(prompt.prefix)]
        assert band[0] <= prompt.fraction <= band[1]
        assert prompt.prefix
        assert (
            math.floor(band[0] * len(ids))
            <= len(prompt.prefix)
            <= math.floor(band[1] * len(ids) + 1e-9)
        )
    assert len(cuts.prompts) + cuts.dropped == 3 * len(lengths)


@given(order=st.permutations(range(5)), seed=st.integers(0, 9))
def test_a_cut_depends_on_seed_problem_and_number_alone(order, seed):
    problems, traces, cuts = cuts_of([20, 31, 42, 13, 24], seed=seed)
    settings = CutSettings(3, (0.4, 0.8), seed)
    shuffled = draw_cuts(
        Words(), problems, sources([traces[i] for i in order], "own", {}, 0), settings
    )
    assert {p.name: p for p in shuffled.prompts} == {p.name: p for p in cuts.prompts}
    two = CutSettings(2, (0.4, 0.8), seed)
    fewer = draw_cuts(Words(), problems, sources(traces[:2], "own", {}, 0), two)
    assert fewer.prompts == [p for p in cuts.prompts if p.problem.id in ("p0", "p1") and p.cut < 2]


def test_cuts_are_spread_over_the_band_and_differ_by_seed():
    *_, cuts = cuts_of([1000] * 300)
    fractions = sorted(p.fraction for p in cuts.prompts)
    for quantile in (0.1, 0.5, 0.9):
        assert fractions[int(quantile * 900)] == pytest.approx(0.4 + 0.4 * quantile, abs=0.025)
    assert cuts_of([1000], seed=1)[2].prompts != cuts_of([1000], seed=2)[2].prompts


def test_a_cut_that_leaks_is_drawn_again():
    *_, cuts = cuts_of([100] * 50, Words(answer_at=60))
    assert (len(cuts.prompts), cuts.dropped) == (150, 0)
    assert all(len(p.prefix) < 60 for p in cuts.prompts)
    assert 75 < cuts.redrawn < 300  # each draw leaks with probability 1/2: 150 expected
    *_, free = cuts_of([100] * 50)
    assert free.redrawn == 0
    assert {p.name: p for p in free.prompts if len(p.prefix) < 60}.items() <= {
        p.name: p for p in cuts.prompts
    }.items()


class Secrets(Words):
    """A prefix leaks when it ends in one of these tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def leaks(self, problem, prefix):
        return prefix[-1] in self.tokens


@given(
    st.lists(st.integers(1, 30), max_size=5),
    st.sets(st.integers(1000, 1029)),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_no_prefix_leaks_and_every_cut_is_accounted_for(lengths, secrets, count, seed):
    task = Secrets(secrets)
    *_, cuts = cuts_of(lengths, task, band=(0.05, 0.95), count=count, seed=seed)
    assert not any(task.leaks(p.problem, p.prefix) for p in cuts.prompts)
    assert len(cuts.prompts) + cuts.dropped == count * len(lengths)
    assert MAX_REDRAWS * cuts.dropped <= cuts.redrawn <= MAX_REDRAWS * count * len(lengths)
    assert len({p.name for p in cuts.prompts}) == len(cuts.prompts)


def test_a_cut_that_always_leaks_is_dropped_after_its_redraws():
    *_, cuts = cuts_of([100, 30], Words(answer_at=30))
    assert {p.problem.id for p in cuts.prompts} == {"p1"}
    assert (cuts.dropped, cuts.redrawn) == (3, 3 * MAX_REDRAWS)


def test_a_trace_too_short_for_a_prefix_is_dropped():
    *_, cuts = cuts_of([1])
    assert cuts.prompts == [] and cuts.dropped == 3


@pytest.mark.parametrize("band", [(0.0, 0.5), (0.5, 1.0), (0.8, 0.4), (float("nan"), 0.5)])
def test_a_band_outside_the_trace_is_refused(band):
    with pytest.raises(ValueError, match=r"prefix\.band=.*0 < low <= high < 1"):
        cuts_of([10], band=band)


def test_cuts_come_back_from_their_file(tmp_path):
    problems, _, cuts = cuts_of([20, 31])
    path = tmp_path / "new" / "prefixes.jsonl"
    write_cuts(Words(), cuts, path)
    assert [p.name for p in path.parent.iterdir()] == ["prefixes.jsonl"]
    found = read_cuts(problems, path)
    assert [(p.problem, p.prefix, p.cut) for p in found] == [
        (p.problem, p.prefix, p.cut) for p in cuts.prompts
    ]
    assert [p.fraction for p in found] == pytest.approx(
        [p.fraction for p in cuts.prompts], abs=1e-4
    )
    row = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert row["prompt"] == Words().text([1, 2]) and row["prefix"] == Words().text(
        cuts.prompts[0].prefix
    )


def test_a_prefix_of_an_unknown_problem_is_named(tmp_path):
    problems, _, cuts = cuts_of([20, 31])
    write_cuts(Words(), Cuts(cuts.prompts[2:], 0, 0), tmp_path / "prefixes.jsonl")
    with pytest.raises(
        ValueError, match=r"prefixes\.jsonl, line 2: problem 'p1' is not in the hard set"
    ):
        read_cuts({"p0": problems["p0"]}, tmp_path / "prefixes.jsonl")


@given(st.integers(2, 12), st.integers(0, 9))
def test_an_unrelated_prefix_is_of_another_problem_and_every_trace_serves_once(count, seed):
    traces = [make_trace(f"p{i}", 5 + i) for i in range(count)]
    pairs = sources(traces, "unrelated", {}, seed)
    assert [problem for problem, _ in pairs] == [t.problem_id for t in traces]
    assert all(ids != t.token_ids for (_, ids), t in zip(pairs, traces, strict=True))
    assert sorted(len(ids) for _, ids in pairs) == [5 + i for i in range(count)]


def test_an_unrelated_prefix_that_could_begin_an_answer_is_drawn_again():
    class Short(Words):
        def could_begin(self, problem, prefix):
            return len(prefix) < 60

    problems = {f"p{i}": Problem(f"p{i}", {}) for i in range(50)}
    pairs = sources([make_trace(name, 100) for name in problems], "unrelated", {}, 0)
    cuts = draw_cuts(Short(), problems, pairs, CutSettings(3, (0.4, 0.8), 0, unrelated=True))
    assert (len(cuts.prompts), cuts.dropped) == (150, 0) and all(
        len(p.prefix) >= 60 for p in cuts.prompts
    )
    assert 75 < cuts.redrawn < 300  # each draw with probability 1/2
    free = draw_cuts(Short(), problems, pairs, CutSettings(3, (0.4, 0.8), 0))
    assert free.redrawn == 0 and any(len(p.prefix) < 60 for p in free.prompts)


def test_a_wrong_prefix_is_of_a_wrong_response_to_the_same_problem():
    traces = [make_trace("a", 5), make_trace("b", 6)]
    assert sources(traces, "wrong", {"b": [7, 8], "c": [9]}, 0) == [("b", [7, 8])]
    assert sources([], "wrong", {}, 0) == sources([], "own", {}, 0) == []


@pytest.mark.parametrize(
    ("traces", "content", "message"),
    [
        (
            [make_trace("a", 5)],
            "unrelated",
            r"prefix\.content='unrelated': there is one trace only",
        ),
        (
            [make_trace("a", 5)],
            "wrong",
            r"prefix\.content='wrong': none of the 1 problems with a trace has a wrong response",
        ),
        ([make_trace("a", 5)], "other", r"prefix\.content='other': one of own, unrelated, wrong"),
    ],
)
def test_contents_that_cannot_be_had_are_named(traces, content, message):
    with pytest.raises(ValueError, match=message):
        sources(traces, content, {}, 0)


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(1, 60))
def test_a_cut_before_a_fraction_is_the_longest_sound_one(length, fraction, answer_at):
    trace = list(range(length))
    found = cut_before(Words(answer_at), Problem("a", {}), trace, fraction)
    assert list(found) == trace[: min(fraction_cut(length, fraction), answer_at - 1)]
