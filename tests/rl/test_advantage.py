"""Advantages against float64 numpy, group by group, and their laws."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from prefixrl_jax.rl.advantage import KINDS, advantages

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9))
REWARDS = arrays.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 1.0, 0.5, -2.0]))


def oracle(rewards: np.ndarray, kind: str, eps: float = 1e-6) -> np.ndarray:
    """One group and one rollout at a time."""
    out = np.zeros(rewards.shape)
    for p, group in enumerate(rewards.astype(np.float64)):
        for i, r in enumerate(group):
            others = np.delete(group, i)
            if kind == "none":
                out[p, i] = r
            elif len(others) and kind == "leave_one_out":
                out[p, i] = r - others.mean()
            elif len(others) and kind == "group_mean":
                out[p, i] = r - group.mean()
            elif len(others) and group.std() > eps:
                out[p, i] = (r - group.mean()) / (group.std() + eps)
    return out


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(rewards=REWARDS)
def test_advantages_are_those_of_numpy(kind, rewards):
    np.testing.assert_allclose(
        advantages(rewards, kind), oracle(rewards, kind), rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
@settings(max_examples=30)
@given(rewards=REWARDS, scale=st.sampled_from([2.0, 0.25]))
def test_baselines_do_not_see_a_shift_and_sum_to_zero(kind, rewards, scale):
    scores = np.asarray(advantages(rewards, kind))
    np.testing.assert_allclose(scores.sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(advantages(rewards + np.float32(4), kind), scores, atol=1e-5)
    expected = scores if kind == "std_normalised" else scale * scores
    np.testing.assert_allclose(
        advantages(rewards * np.float32(scale), kind), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 41, 47, 64])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_give_exactly_zero_also_when_compiled(kind, size, reward):
    rewards = np.full((3, size), reward, np.float32)
    assert not np.any(advantages(rewards, kind))
    assert not np.any(jax.jit(lambda r: advantages(r, kind))(rewards))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_a_group_of_one_has_no_advantage(kind):
    assert not np.any(advantages(np.array([[1.0], [0.0], [7.0]], np.float32), kind))


def test_an_unknown_kind_is_refused_with_a_list():
    with pytest.raises(
        ValueError,
        match=r"train\.advantage='gae': one of group_mean, leave_one_out, std_normalised, none",
    ):
        advantages(np.zeros((1, 2), np.float32), "gae")
