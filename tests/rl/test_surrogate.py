"""Per-token losses and KL estimators against numpy, gradients by formula and by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from prefixrl_jax.rl.surrogate import KL, LOSSES, OFF_POLICY, SHAPING, LossSettings

P, G, T = 3, 4, 6
LENGTHS = np.array([[6, 1, 3, 2], [5, 0, 6, 4], [2, 2, 1, 6]])
MASK = (np.arange(T) < LENGTHS[..., None]).astype(np.float64)


def arrays(seed=1):
    """Log-probs now and when sampled [P, G, T], advantages [P, G, 1].

    Their ratios lie on both sides of every clip.
    """
    rng = np.random.default_rng(seed)
    new = -np.abs(rng.normal(size=(P, G, T)))
    return new, new + 0.4 * rng.normal(size=(P, G, T)), rng.normal(size=(P, G, 1))


def expected(kind, new, old, a, s):
    """Values, and gradients of the masked sum with respect to `new`: float64 [P, G, T].

    One token at a time.
    """
    value, slope = np.zeros((P, G, T)), np.zeros((P, G, T))
    for p, g in np.ndindex(P, G):
        n, adv = int(LENGTHS[p, g]), a[p, g, 0]
        mean = np.exp((new - old)[p, g, :n].mean()) if n else 1.0
        for t in range(T):
            rho = np.exp(new[p, g, t] - old[p, g, t])
            if kind == "reinforce":
                weight = min(rho, s.truncate_ratio) if s.truncate_ratio else 1.0
                value[p, g, t], slope[p, g, t] = -weight * adv * new[p, g, t], -weight * adv
            elif kind == "cispo":
                weight = min(max(rho, 1 - s.clip_low), 1 + s.clip_high)
                value[p, g, t], slope[p, g, t] = -weight * adv * new[p, g, t], -weight * adv
            else:
                ratio = rho if kind == "ppo_clip" else mean
                free = ratio <= 1 + s.clip_high if adv > 0 else ratio >= 1 - s.clip_low
                bound = min(ratio, 1 + s.clip_high) if adv > 0 else max(ratio, 1 - s.clip_low)
                value[p, g, t] = -bound * adv
                # A row's mean ratio: each of its n tokens has 1 / n of the gradient of n equal
                # values.
                slope[p, g, t] = -ratio * adv * free
    return value, slope * MASK


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("reinforce", {}),
        ("reinforce", {"truncate_ratio": 1.1}),
        ("ppo_clip", {"clip_low": 0.1, "clip_high": 0.3}),
        ("gspo", {"clip_low": 0.05, "clip_high": 0.1}),
        ("cispo", {"clip_low": 0.1, "clip_high": 0.3}),
    ],
)
def test_values_and_gradients_against_numpy(kind, fields):
    new, old, a = arrays()
    settings = LossSettings(kind, **fields)
    with jax.enable_x64(True):

        def loss(x):
            return LOSSES[kind](x, jnp.asarray(old), jnp.asarray(a), jnp.asarray(MASK), settings)

        values = loss(jnp.asarray(new))
        slopes = jax.grad(lambda x: (loss(x) * MASK).sum())(jnp.asarray(new))
    value, slope = expected(kind, new, old, a, settings)
    np.testing.assert_allclose(np.asarray(values) * MASK, value * MASK, rtol=1e-12)
    np.testing.assert_allclose(slopes, slope, rtol=1e-12)


def test_ratios_of_the_test_lie_on_both_sides_of_the_clips():
    new, old, _ = arrays()
    ratio, means = np.exp(new - old), np.exp(((new - old) * MASK).sum(-1) / np.maximum(LENGTHS, 1))
    assert all(
        (x < low).any() and (x > high).any()
        for x, low, high in ((ratio, 0.9, 1.3), (means, 0.95, 1.1))
    )


@pytest.mark.parametrize("kind", [k for k, f in OFF_POLICY.items() if f])
def test_losses_of_traces_against_numpy_and_finite_differences(kind):
    new, old, a = arrays(2)
    p = np.exp(new)
    value = {"importance": -np.exp(new - old) * a, "shaped": -p / (p + SHAPING) * a}[kind]
    with jax.enable_x64(True):

        def loss(x):
            return OFF_POLICY[kind](x, jnp.asarray(old), jnp.asarray(a), LossSettings())

        def total(x):
            return float(loss(jnp.asarray(x.reshape(new.shape))).sum())

        np.testing.assert_allclose(loss(jnp.asarray(new)), value, rtol=1e-12)
        numeric = optimize.approx_fprime(new.ravel(), total, 1e-7).reshape(new.shape)
        np.testing.assert_allclose(
            jax.grad(lambda x: loss(x).sum())(jnp.asarray(new)), numeric, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", KL)
def test_kl_estimators_over_the_whole_vocabulary(kind):
    """Expected k1 and k3 are the divergence; expected k2, and k1 as a reward, have its gradient.

    The expectation is under the policy's own probabilities.
    """
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        logits, reference = (
            jnp.asarray(rng.normal(size=9)),
            jax.nn.log_softmax(jnp.asarray(rng.normal(size=9))),
        )

        def divergence(z):
            logp = jax.nn.log_softmax(z)
            return (jnp.exp(logp) * (logp - reference)).sum()

        def expected_value(z):
            logp = jax.nn.log_softmax(z)
            return (jax.lax.stop_gradient(jnp.exp(logp)) * KL[kind](logp, reference)).sum()

        logp = np.asarray(jax.nn.log_softmax(logits))
        by_hand = {
            "k1": logp - reference,
            "k2": (logp - reference) ** 2 / 2,
            "k3": np.exp(reference - logp) - 1 - reference + logp,
        }
        np.testing.assert_allclose(
            KL[kind](jnp.asarray(logp), reference), by_hand[kind], rtol=1e-12, atol=1e-14
        )
        if kind != "k2":
            assert float(expected_value(logits)) == pytest.approx(
                float(divergence(logits)), rel=1e-9
            )
        if kind != "k3":
            np.testing.assert_allclose(
                jax.grad(expected_value)(logits), jax.grad(divergence)(logits), atol=1e-12
            )
