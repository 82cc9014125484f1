"""The distribution that tokens are drawn from, against float64 numpy."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from prefixrl_jax.sampling.distribution import Sampling, distribution


@hypothesis.settings(max_examples=150, derandomize=True)
@hypothesis.given(
    quarters=st.lists(st.integers(-20, 20), min_size=6, max_size=6),
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.7]),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([1.0, 0.95, 0.8, 0.5, 0.1]),
)
def test_distribution(quarters, temperature, top_k, top_p):
    # either equal or clearly apart, so that float32 orders them as float64 does
    logits = np.array(quarters) / 4
    hypothesis.assume(np.abs(oracle.nucleus_mass(logits, temperature, top_k) - top_p).min() > 1e-5)
    sampling = Sampling(1, (0,), temperature=temperature, top_k=top_k, top_p=top_p)
    p = np.exp(distribution(jnp.asarray(logits, jnp.float32), sampling))
    np.testing.assert_allclose(
        p, oracle.distribution(logits, temperature, top_k, top_p), rtol=1e-5, atol=1e-7
    )
    assert abs(p.sum() - 1) < 1e-5


def test_distribution_treats_every_row_alone():
    logits = np.random.default_rng(0).normal(size=(2, 3, 37)).astype(np.float32) * 2
    p = np.exp(
        distribution(jnp.asarray(logits), Sampling(1, (0,), temperature=0.8, top_k=9, top_p=0.7))
    )
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(
            p[i], oracle.distribution(logits[i], 0.8, 9, 0.7), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"stop_ids": ()}, "stop_ids is empty"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.5}, r"top_p=1\.5"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**({"max_new_tokens": 4, "stop_ids": (0,)} | fields))
