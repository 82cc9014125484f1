"""Cuts lie in the band, by token id, frozen, and give nothing away; the stream keeps its share and its epochs."""

import collections
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixrl_jax.prefixes import MAX_REDRAWS, ContextStream, Cuts, draw_cuts, fraction_cut, read_cuts, write_cuts
from prefixrl_jax.rollout import Prompt
from prefixrl_jax.tasks.task import Problem
from prefixrl_jax.traces import Trace


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
    return problems, traces, draw_cuts(task or Words(), problems, traces, count, band, seed)


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
        assert math.floor(band[0] * len(ids)) <= len(prompt.prefix) <= math.floor(band[1] * len(ids) + 1e-9)
    assert len(cuts.prompts) + cuts.dropped == 3 * len(lengths)


@given(order=st.permutations(range(5)), seed=st.integers(0, 9))
def test_a_cut_depends_on_seed_problem_and_number_alone(order, seed):
    problems, traces, cuts = cuts_of([20, 31, 42, 13, 24], seed=seed)
    shuffled = draw_cuts(Words(), problems, [traces[i] for i in order], 3, (0.4, 0.8), seed)
    assert {p.name: p for p in shuffled.prompts} == {p.name: p for p in cuts.prompts}
    fewer = draw_cuts(Words(), problems, traces[:2], 2, (0.4, 0.8), seed)
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
    assert {p.name: p for p in free.prompts if len(p.prefix) < 60}.items() <= {p.name: p for p in cuts.prompts}.items()


class Secrets(Words):
    """A prefix leaks when it ends in one of these tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def leaks(self, problem, prefix):
        return prefix[-1] in self.tokens


@given(st.lists(st.integers(1, 30), max_size=5), st.sets(st.integers(1000, 1029)), st.integers(1, 4), st.integers(0, 99))
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
    assert [(p.problem, p.prefix, p.cut) for p in found] == [(p.problem, p.prefix, p.cut) for p in cuts.prompts]
    assert [p.fraction for p in found] == pytest.approx([p.fraction for p in cuts.prompts], abs=1e-4)
    row = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert row["prompt"] == Words().text([1, 2]) and row["prefix"] == Words().text(cuts.prompts[0].prefix)


def test_a_prefix_of_an_unknown_problem_is_named(tmp_path):
    problems, _, cuts = cuts_of([20, 31])
    write_cuts(Words(), Cuts(cuts.prompts[2:], 0, 0), tmp_path / "prefixes.jsonl")
    with pytest.raises(ValueError, match=r"prefixes\.jsonl, line 2: problem 'p1' is not in the hard set"):
        read_cuts({"p0": problems["p0"]}, tmp_path / "prefixes.jsonl")


def make_stream(prefixed=9, plain=5, share=0.75, batch=8, seed=0):
    first = [Prompt(Problem(f"p{i}", {}), (1,), i) for i in range(prefixed)]
    return ContextStream(first, [Prompt(Problem(f"q{i}", {})) for i in range(plain)], share, batch, seed)


@settings(max_examples=40)
@given(
    prefixed=st.integers(1, 20),
    plain=st.integers(1, 20),
    quarter=st.integers(0, 4),
    batch=st.sampled_from([4, 8, 12]),
    seed=st.integers(0, 5),
)
def test_every_batch_has_its_share_and_every_epoch_every_context(prefixed, plain, quarter, batch, seed):
    stream = make_stream(prefixed, plain, quarter / 4, batch, seed)
    batches = [stream.at(step) for step in range(12)]
    count = batch * quarter // 4
    for part, size, of in (((0, count), prefixed, stream.prefixed), ((count, batch), plain, stream.plain)):
        drawn = [p.name for b in batches for p in b[slice(*part)]]
        assert len(drawn) == 12 * (part[1] - part[0])
        epochs = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        for epoch in epochs:
            assert max(collections.Counter(epoch).values()) == 1
            assert len(epoch) < size or set(epoch) == {p.name for p in of}
    assert all(len(b) == batch for b in batches)


def test_a_batch_depends_on_seed_and_step_alone():
    stream = make_stream()
    late = stream.at(7)
    assert [stream.at(step) for step in (3, 7, 0)][1] == late == make_stream().at(7)
    assert make_stream(seed=1).at(7) != late
    orders = {tuple(p.name for step in range(3 * e, 3 * e + 3) for p in stream.at(step)[:6]) for e in range(4)}
    assert len(orders) == 4  # shuffled anew every epoch


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_no_fraction_is_refused(share):
    with pytest.raises(ValueError, match=rf"prefix\.share={share}"):
        make_stream(share=share)


def test_a_stream_without_prefixes_says_what_to_change():
    with pytest.raises(ValueError, match=r"no trace \(raise collect\.cap"):
        make_stream(prefixed=0)
    assert len(make_stream(prefixed=0, share=0.0).at(0)) == 8
