"""The update against a numpy AdamW; micro-batches; non-finite steps; schedules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import TINY, as_context, random_contexts, random_params

from prefixrl_jax.group import Group
from prefixrl_jax.rl.advantage import advantages
from prefixrl_jax.rl.loss import denominators, group_loss, token_logprobs
from prefixrl_jax.rl.step import (
    OptimizerSettings,
    UpdateSettings,
    _informative_first,
    abstract_state,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
)
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime.mesh import make_mesh

SMALL = dataclasses.replace(
    TINY, num_layers=1, hidden_size=8, head_dim=4, intermediate_size=12, unroll_layers=True
)
P, G, T = 4, 3, 4


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


def make_group(seed=0) -> Group:
    rng = np.random.default_rng(seed)
    context = as_context(random_contexts(SMALL, [3, 5, 2, 4], seed))
    tokens = rng.integers(0, SMALL.vocab_size, (P, G, T)).astype(np.int32)
    lengths = rng.integers(1, T + 1, (P, G)).astype(np.int32)
    logprobs = (-3 + 0.1 * rng.normal(size=(P, G, T))).astype(np.float32)
    rewards = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]], np.float32)
    return jax.tree.map(jnp.asarray, Group(context, tokens, lengths, logprobs, rewards))


@functools.cache
def make_step(
    mesh, optimizer=None, micro_batches=1, config=SMALL, settings=None, advantage="group_mean"
):
    """The update and `init`, compiled once for all tests that want the same."""
    optimizer = make_optimizer(optimizer or OptimizerSettings(learning_rate=1e-2))
    settings = UpdateSettings(settings or LossSettings(logprob_chunk=2), advantage, micro_batches)
    step = make_train_step(config, optimizer, settings, mesh)
    return step, lambda params: init_state(params, config, optimizer, mesh)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_micro_batches_change_nothing(mesh, aggregation):
    # A large eps keeps Adam's first step proportional to the gradient, so that a wrong scale would
    # show.
    optimizer = OptimizerSettings(learning_rate=1e-2, eps=1e-1, max_grad_norm=1e9)
    results = []
    for micro_batches in (1, 4) if aggregation == "token_mean" else (1, 2):
        step, init = make_step(
            mesh,
            optimizer,
            micro_batches,
            settings=LossSettings(aggregation=aggregation, logprob_chunk=2),
        )
        state, metrics = step(init(random_params(SMALL)), make_group())
        results.append((jax.device_get(state.params), {k: float(v) for k, v in metrics.items()}))
    before = random_params(SMALL)
    assert (
        max(
            float(np.abs(a - b).max())
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(results[0][0]))
        )
        > 1e-4
    )
    for params, metrics in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, results[0][0]
        )
        assert metrics == pytest.approx(results[0][1], rel=1e-4, abs=1e-6)
        assert metrics["groups/computed"] == P


# 0, 3 and 7 differ
SPLIT = [[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize(("micro_batches", "computed"), [(1, 8), (2, 4), (4, 4), (8, 3)])
def test_groups_without_a_difference_are_left_out_and_change_nothing(mesh, micro_batches, computed):
    rewards = jnp.array(SPLIT, jnp.float32)
    group = jax.tree.map(lambda x: jnp.resize(x, (8, *x.shape[1:])), make_group()).replace(
        rewards=rewards
    )
    step, init = make_step(
        mesh, OptimizerSettings(learning_rate=1e-2, eps=1e-1, max_grad_norm=1e9), micro_batches
    )
    _, metrics = step(init(random_params(SMALL)), group)
    assert int(metrics["groups/computed"]) == computed
    norm = np.sqrt(
        sum(float((g**2).sum()) for g in jax.tree.leaves(gradient(random_params(SMALL), group)))
    )
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    gap = jnp.abs(logprobs_of(random_params(SMALL), group) - group.logprobs) * group.mask()
    expected = float(gap[jnp.array([0, 3, 7])].max())
    assert float(metrics["sampler_trainer/logp_diff_max"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("blocks", "micro_batches", "order", "needed"),
    [
        (1, 2, [0, 3, 7, 1, 2, 4, 5, 6], 1),
        (1, 8, [0, 3, 7, 1, 2, 4, 5, 6], 3),
        # groups 0-3 lie on one device and 4-7 on another: both give two
        (2, 2, [0, 3, 7, 4, 1, 2, 5, 6], 1),
        (2, 4, [0, 7, 3, 4, 1, 5, 2, 6], 2),  # the device with two that differ decides
    ],
)
def test_every_device_gives_its_own_informative_groups_first(blocks, micro_batches, order, needed):
    wanted = np.ptp(SPLIT, axis=1) > 0
    parts, count = _informative_first(jnp.arange(8), jnp.asarray(wanted), micro_batches, blocks)
    assert parts.reshape(-1).tolist() == order and int(count) == needed
    assert int(_informative_first(jnp.arange(8), jnp.zeros(8, bool), micro_batches, blocks)[1]) == 0


@jax.jit
def logprobs_of(params, group):
    return token_logprobs(params, SMALL, group, 1.0, T)


@jax.jit
def gradient(params, group):
    scores = advantages(group.rewards)
    return jax.grad(
        lambda p: group_loss(
            p, SMALL, group, scores, denominators(group, scores, LossSettings()), LossSettings()
        )[0]
    )(params)


def numpy_adamw(params, grads, moments, count, s: OptimizerSettings, rate: float):
    """One AdamW update with global-norm clipping, float64 lists of leaves; moments = (m, v)."""
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    grads = [g * min(1.0, s.max_grad_norm / norm) for g in grads]
    m = [s.b1 * a + (1 - s.b1) * g for a, g in zip(moments[0], grads, strict=True)]
    v = [s.b2 * a + (1 - s.b2) * g**2 for a, g in zip(moments[1], grads, strict=True)]
    hats = [(a / (1 - s.b1**count), b / (1 - s.b2**count)) for a, b in zip(m, v, strict=True)]
    new = [
        p - rate * (a / (np.sqrt(b) + s.eps) + s.weight_decay * p)
        for p, (a, b) in zip(params, hats, strict=True)
    ]
    return new, (m, v), norm


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e6])
def test_updates_are_those_of_adamw_with_clipping(mesh, max_grad_norm):
    s = OptimizerSettings(
        1e-2, warmup_steps=2, b2=0.95, eps=1e-3, weight_decay=0.1, max_grad_norm=max_grad_norm
    )
    step, init = make_step(mesh, s)
    state = init(random_params(SMALL))
    leaves, tree = jax.tree.flatten(random_params(SMALL))
    leaves = [np.asarray(x, np.float64) for x in leaves]
    moments = ([np.zeros_like(x) for x in leaves],) * 2
    for i, rate in enumerate((5e-3, 1e-2, 1e-2)):
        group = make_group(i)
        grads = gradient(
            jax.tree.unflatten(tree, [jnp.asarray(x, jnp.float32) for x in leaves]), group
        )
        grads = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
        leaves, moments, norm = numpy_adamw(leaves, grads, moments, i + 1, s, rate)
        state, metrics = step(state, group)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
        assert bool(metrics["finite"]) and int(state.step) == i + 1
        for leaf, expected in zip(jax.tree.leaves(state.params), leaves, strict=True):
            np.testing.assert_allclose(leaf, expected, atol=2e-5)


def spoil(state, group, what):
    if what == "reward":
        return state, group.replace(rewards=group.rewards.at[1, 2].set(jnp.nan))
    value = jnp.nan if what == "nan weight" else jnp.inf
    scale = state.params["final_norm"]["scale"].at[0].set(value)
    return state.replace(params={**state.params, "final_norm": {"scale": scale}}), group


@pytest.mark.parametrize("what", ["reward", "nan weight", "infinite weight"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_non_finite_step_leaves_the_state_as_it_was(mesh, what, micro_batches):
    step, init = make_step(mesh, micro_batches=micro_batches)
    state, _ = step(init(random_params(SMALL)), make_group(1))
    state, group = spoil(state, make_group(), what)
    before = jax.device_get(state)
    after, metrics = step(state, group)
    assert not bool(metrics["finite"])
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(after)), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("settings", "rewards"),
    [
        (OptimizerSettings(1e-2, max_grad_norm=0.0), 0.0),  # clips a gradient of 0: 0 / 0
        (OptimizerSettings(1e39), None),  # infinite in float32
    ],
)
def test_parameters_that_would_not_be_finite_are_not_taken(mesh, settings, rewards):
    """Loss and gradient are finite, and yet the update is not."""
    step, init = make_step(mesh, settings)
    state, group = init(random_params(SMALL)), make_group(1)
    if rewards is not None:
        group = group.replace(rewards=jnp.full((P, G), rewards))
    before = jax.device_get(state)
    after, metrics = step(state, group)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert not bool(metrics["finite"])
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(after)), strict=True):
        assert a.tobytes() == b.tobytes()


def test_reward_one_without_baseline_takes_the_sft_step(mesh):
    """Adam with a large eps steps along the gradient, here that of the mean negative log-prob."""
    s = OptimizerSettings(1e-2, eps=1.0, max_grad_norm=1e9)
    step, init = make_step(mesh, s, advantage="none")
    group, params = make_group().replace(rewards=jnp.ones((P, G))), random_params(SMALL)

    def cross_entropy(params):
        logprobs = token_logprobs(params, SMALL, group, 1.0, T)
        return -(logprobs * group.mask()).sum() / group.lengths.sum()

    loss, slopes = jax.jit(jax.value_and_grad(cross_entropy))(params)
    after, metrics = step(init(params), group)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    for new, old, g in zip(*map(jax.tree.leaves, (after.params, params, slopes)), strict=True):
        np.testing.assert_allclose(new, old - 1e-2 * g / (np.abs(g) + 1), atol=1e-6)


def test_rewards_that_do_not_differ_within_groups_teach_nothing(mesh):
    step, init = make_step(mesh)
    group = make_group()
    _, metrics = step(
        init(random_params(SMALL)), group.replace(rewards=jnp.ones((P, G)).at[0].set(0))
    )
    assert float(metrics["grad_norm"]) == 0 and float(metrics["loss"]) == 0


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_an_update_keeps_dtypes_and_compiles_once(mesh, param_dtype):
    config = dataclasses.replace(SMALL, param_dtype=param_dtype)
    step, init = make_step.__wrapped__(mesh, config=config)
    state = init(random_params(config))
    expected = abstract_state(config, make_optimizer(OptimizerSettings(learning_rate=1e-2)), mesh)
    for seed in range(3):
        state, _ = step(state, make_group(seed))
        assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), state) == jax.tree.map(
            lambda x: (x.shape, str(x.dtype)), expected
        )
    assert step._cache_size() == 1


def test_the_params_handed_in_survive_the_donation(mesh):
    step, init = make_step(mesh)
    params = random_params(SMALL)
    step(init(params), make_group())
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", lambda t: 1.0),
        ("linear", lambda t: 1 - 0.9 * t),
        ("cosine", lambda t: 0.1 + 0.45 * (1 + np.cos(np.pi * t))),
    ],
)
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_learning_rates(schedule, after, warmup):
    rate = learning_rate(
        OptimizerSettings(2e-3, warmup, schedule, total_steps=20, final_fraction=0.1)
    )
    for step in range(25):
        ramp = (
            (step + 1) / warmup if step < warmup else after(min((step - warmup) / (20 - warmup), 1))
        )
        assert float(rate(step)) == pytest.approx(2e-3 * ramp, rel=1e-5)


def test_an_unknown_schedule_is_refused_with_a_list():
    with pytest.raises(ValueError, match=r"schedule='step': one of constant, linear, cosine"):
        learning_rate(OptimizerSettings(schedule="step"))
