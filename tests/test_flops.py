"""Attention pairs by counting, the ledger by hand, and both against what XLA counts in a compiled
forward pass.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TINY, as_context, random_contexts, random_params

from prefixrl_jax.flops import (
    ACCOUNTINGS,
    PHASES,
    Ledger,
    causal_pairs,
    costs,
    format_flops,
    si_unit,
)
from prefixrl_jax.group import Group
from prefixrl_jax.model.weights import flop_costs
from prefixrl_jax.rl.loss import token_logprobs

COST = costs(1000, num_layers=3, num_heads=2, head_dim=5)


@given(context=st.integers(1, 12), rows=st.lists(st.integers(0, 9), max_size=4))
def test_pairs_are_those_of_the_masks(context, rows):
    """Position i of a text of context + n tokens is computed once for the context, and again in
    each row from context - 1 on.
    """
    pairs = sum(1 for query in range(context - 1) for key in range(context) if key <= query)
    for n in rows:
        pairs += sum(
            1
            for query in range(context - 1, context - 1 + n)
            for key in range(context + n)
            if key <= query
        )
    assert causal_pairs(context, rows) == pairs


def test_rematerialisation_runs_the_forward_pass_again():
    assert COST.trained_positions(7) == 6 * 1000 * 7
    assert costs(1000, 3, 2, 5, remat=True).trained_positions(7) == 8 * 1000 * 7


def test_costs():
    assert (COST.matmul_params, COST.attention_pair) == (1000, 4 * 3 * 2 * 5)
    assert (COST.tokens(7), COST.tokens(7, train=True)) == (14_000, 42_000)
    assert (COST.pairs(7), COST.pairs(7, train=True)) == (840, 2520)


def test_a_sampled_group_by_hand():
    """Context of 4 tokens, rows of 2 and 3: pairs 1 + 2 + 3 in the context; 4 + 5 and 4 + 5 + 6 in
    the rows.
    """
    ledger = Ledger()
    ledger.add_group(COST, ("prefill", "decode"), 4, [2, 3])
    assert ledger.state["paper"]["prefill"] == 2000 * 2 * 4
    assert ledger.state["paper"]["decode"] == ledger.state["actual"]["decode"] == 2000 * 5
    assert ledger.state["actual"]["prefill"] == 2000 * 3
    assert (ledger.state["attention"]["prefill"], ledger.state["attention"]["decode"]) == (
        120 * 6,
        120 * 24,
    )
    assert (
        ledger.total() == 2000 * 13
        and ledger.total("actual") == 2000 * 8
        and ledger.total("hardware") == 0
    )


def test_a_trained_group_by_hand():
    ledger = Ledger()
    ledger.add_training(COST, "train", 4, [2, 3])
    assert ledger.state["paper"]["train"] == 6000 * (2 * 4 + 5)
    assert ledger.state["actual"]["train"] == 6000 * (3 + 5)
    assert ledger.state["attention"]["train"] == 3 * 120 * 30


def test_a_group_that_teaches_nothing_costs_nothing_but_in_the_papers_accounting():
    ledger = Ledger()
    ledger.add_training(COST, "train", 4, [2, 3], informative=False)
    assert ledger.state["paper"]["train"] == 6000 * (2 * 4 + 5)
    assert ledger.state["actual"]["train"] == ledger.state["attention"]["train"] == 0


def test_the_total_leaves_out_base_training_and_evaluation():
    ledger = Ledger()
    for i, phase in enumerate((*PHASES, "base", "eval")):
        ledger.add("paper", phase, 10.0**i)
    assert ledger.total() == 111_111
    assert ledger.summary()["paper"] == {**ledger.state["paper"], "total": 111_111}
    assert set(ledger.summary()) == set(ACCOUNTINGS)


def test_a_ledger_comes_back_from_its_state_and_from_its_summary():
    ledger = Ledger()
    ledger.add_group(COST, ("select", "select"), 4, [2, 3])
    copies = [ledger.copy(), Ledger(ledger.state), Ledger(ledger.summary())]
    assert all(c.state == ledger.state for c in copies)
    ledger.add("paper", "select", 1)
    assert all(c.state != ledger.state for c in copies)


ROWS = st.lists(st.integers(0, 60), min_size=1, max_size=5)
KINDS = st.sampled_from(["group", "training", "teaches nothing"])
BOOKINGS = st.lists(st.tuples(KINDS, st.sampled_from(PHASES), st.integers(1, 50), ROWS), max_size=8)


def book(ledger, bookings):
    for kind, phase, context, rows in bookings:
        if kind == "group":
            ledger.add_group(COST, (phase, phase), context, rows)
        else:
            ledger.add_training(COST, phase, context, rows, informative=kind == "training")


@given(BOOKINGS, st.randoms())
def test_a_ledger_is_a_sum_whatever_the_order_and_wherever_it_is_cut(bookings, shuffle):
    whole, mixed = Ledger(), Ledger()
    book(whole, bookings)
    shuffled = shuffle.sample(bookings, len(bookings))
    book(mixed, shuffled[: len(bookings) // 2])
    mixed = Ledger(mixed.state)  # as from a checkpoint
    book(mixed, shuffled[len(bookings) // 2 :])
    assert mixed.state == whole.state  # exactly: these are integers far below 2**53
    for accounting in ACCOUNTINGS:
        assert whole.total(accounting) == sum(whole.state[accounting].values())
    tokens = {
        kind: sum(
            len(rows) * c + sum(rows)
            for k, _, c, rows in bookings
            if (k == "group") == (kind == "group")
        )
        for kind in ("group", "training")
    }
    assert whole.total() == COST.matmul_params * (2 * tokens["group"] + 6 * tokens["training"])
    assert whole.total("actual") <= whole.total()


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_only_finite_amounts_are_booked(amount):
    with pytest.raises(ValueError, match=r"flops\[paper\]\[train\]"):
        Ledger().add("paper", "train", amount)


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0, "0 MFLOP"),
        (5e5, "0.5 MFLOP"),
        (2e6, "2 MFLOP"),
        (1.234e9, "1.23 GFLOP"),
        (999.4e9, "999 GFLOP"),
        (999.7e9, "1 TFLOP"),
        (5e12, "5 TFLOP"),
        (7.5e15, "7.5 PFLOP"),
        (2e18, "2 EFLOP"),
        (2e25, "20 YFLOP"),
    ],
)
def test_flops_for_people(flops, text):
    assert format_flops(flops) == text


@given(st.floats(1, 9e26))
def test_a_unit_leaves_one_to_three_digits(value):
    scale, _ = si_unit(value)
    assert 0.999 < value / scale < 1000


def xla_flops(config, p, g, s, t) -> float:
    """FLOPs XLA counts in the compiled forward pass of P groups without padding."""
    context = as_context(random_contexts(config, [s] * p))
    blank = jnp.zeros((p, g, t), jnp.int32)
    group = Group(context, blank, jnp.full((p, g), t), blank.astype(jnp.float32), jnp.zeros((p, g)))
    forward = jax.jit(lambda params: token_logprobs(params, config, group, 1.0, t))
    return forward.lower(random_params(config)).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("s", "t", "hidden"), [(17, 8, 64), (33, 24, 64), (9, 4, 96)])
def test_the_formulas_are_within_ten_per_cent_of_xla(s, t, hidden):
    """2N per token and 4·D per head and pair, for what the program computes.

    XLA computes masked pairs too (S·S in the context, S + T for every token of a row) and passes
    the last context token through the layers although only the rows use it. It applies the head to
    the rows alone, and of the last layer it gives the context no more than keys and values, since
    nothing else of it is read. It also counts softmax, norms and rotations: that is the difference
    that is left.
    """
    config = dataclasses.replace(
        TINY,
        vocab_size=61,
        hidden_size=hidden,
        head_dim=16,
        intermediate_size=4 * hidden,
        unroll_layers=True,
    )
    p, g = 2, 4
    cost = flop_costs(config)
    keys_and_values = hidden * 2 * config.num_kv_heads * config.head_dim
    layer = (
        keys_and_values
        + hidden * 2 * config.num_heads * config.head_dim
        + 3 * hidden * config.intermediate_size
    )
    assert cost.matmul_params == 2 * layer + config.vocab_size * hidden
    expected = cost.tokens(p * g * t) + 2 * (layer + keys_and_values) * p * s
    expected += cost.pairs(p * s * s) / 2 + cost.pairs(p * g * t * (s + t))
    assert xla_flops(config, p, g, s, t) == pytest.approx(expected, rel=0.1)
