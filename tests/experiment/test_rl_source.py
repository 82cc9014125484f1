"""Traces that a method trains on beside its samples, as rows of a batch."""

import numpy as np
import pytest

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.experiment.rl_source import off_policy_rows


def a_trace(**fields) -> Trace:
    return Trace(
        "a",
        3,
        [1, 2],
        [5, 6, 7],
        fields.pop("logprobs", [-1.0, -2.0, -0.5]),
        "stop",
        20,
        0.0,
        **fields,
    )


def test_a_trace_as_a_row_has_the_log_probs_of_the_policy_that_made_it():
    rows = {
        how: off_policy_rows([a_trace()], "importance", how, 3)["a"].logprobs
        for how in ("sampled", "acceptance")
    }
    np.testing.assert_array_equal(rows["sampled"], np.float32([-1, -2, -0.5]))
    # Kept among 20 samples: its probability given that it was kept is 20 times as large, spread
    # over three tokens.
    assert rows["acceptance"].sum() == pytest.approx(-3.5 + np.log(20), rel=1e-6)
    assert not off_policy_rows([a_trace(logprobs=[], source="foreign")], "shaped", "sampled", 3)[
        "a"
    ].logprobs.any()
    with pytest.raises(
        ValueError,
        match=(
            r"train\.off_policy='importance': the trace of problem 'a' was imported without"
            r" log-probs"
        ),
    ):
        off_policy_rows([a_trace(logprobs=[], source="foreign")], "importance", "sampled", 3)
    with pytest.raises(ValueError, match=r"train\.off_policy='shaped': the corpus has no trace"):
        off_policy_rows([], "shaped", "sampled", 3)


def test_a_trace_longer_than_a_row_is_named_before_training():
    with pytest.raises(
        ValueError, match=r"sampling\.max_new_tokens=2: the trace of problem 'a' has 3 tokens"
    ):
        off_policy_rows([a_trace()], "shaped", "sampled", 2)
    assert off_policy_rows([a_trace()], "none", "sampled", 2) is None
