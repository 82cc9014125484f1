"""The stream of contexts keeps its share of prefixes and its epochs; repeats are told apart."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import make_stream, traces_of

from prefixrl_jax.prefixes.contexts import number_repeats
from prefixrl_jax.prefixes.schedules import Adaptive
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Problem


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
    assert all(len(b) == batch for b in batches)
    # Prompts of equal names would draw equal samples.
    assert all(len({p.name for p in b}) == batch for b in batches)

    split = batch * quarter // 4
    assert_epochs([p for b in batches for p in b[:split]], stream.prefixed.prompts, 12 * split)
    assert_epochs([p for b in batches for p in b[split:]], stream.plain, 12 * (batch - split))


def assert_epochs(drawn, prompts, count):
    """Check that `count` were drawn, and all the prompts before any comes again."""
    assert len(drawn) == count
    names = [p.name.split("~")[0] for p in drawn]  # without the mark of a repetition in a batch
    size = len(prompts)
    for start in range(0, count, size):
        epoch = names[start : start + size]
        assert max(collections.Counter(epoch).values()) == 1
        assert len(epoch) < size or set(epoch) == {p.name for p in prompts}


def test_contexts_that_occur_again_are_told_apart():
    a = Prompt(Problem("a", {}))
    b = Prompt(Problem("a", {}), (1,), 2)
    assert [p.name for p in number_repeats([a, b, a, a, b])] == ["a", "a#2", "a~1", "a~2", "a#2~1"]


def test_a_batch_depends_on_seed_and_step_alone():
    stream = make_stream()
    batch = stream.at(7, {})
    assert [stream.at(step, {}) for step in (3, 7, 0)][1] == batch
    assert make_stream().at(7, {}) == batch
    assert make_stream(seed=1).at(7, {}) != batch


def test_the_order_is_shuffled_anew_every_epoch():
    stream = make_stream()  # 9 prefixed contexts, 6 in each batch: 3 steps are 2 epochs
    orders = {
        tuple(p.name for step in range(first, first + 3) for p in stream.at(step, {})[:6])
        for first in (0, 3, 6, 9)
    }
    assert len(orders) == 4


def test_another_attempt_at_a_step_has_the_same_share_of_other_contexts():
    stream = make_stream(prefixed=500, plain=500)
    first = stream.at(3, {})
    second = stream.at(3, {}, attempt=1)
    assert second == stream.at(3, {}, attempt=1)
    share = [True] * 6 + [False] * 2
    assert [bool(p.prefix) for p in first] == share
    assert [bool(p.prefix) for p in second] == share
    assert not {p.name for p in first} & {p.name for p in second}


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_no_fraction_is_refused(share):
    with pytest.raises(ValueError, match=rf"prefix\.share={share}"):
        make_stream(share=share)


def test_a_stream_without_prefixes_says_what_to_change():
    with pytest.raises(ValueError, match=r"no trace \(raise collect\.cap"):
        make_stream(prefixed=0)
    assert len(make_stream(prefixed=0, share=0.0).at(0, {})) == 8


def test_the_groups_of_a_problem_count_as_one():
    stream = make_stream(share=1.0, batch=8, schedule=Adaptive(traces_of(1), 0.8, 0, gain=0.4))
    four = [{"problem": "p0", "fraction": 0.8, "solved": s} for s in (1.0, 1.0, 0.5, 0.5)]
    # The schedule moves once for their mean, not four times.
    assert stream.learn(four, {}) == {"p0": pytest.approx(0.8 - 0.4 * 0.25)}
