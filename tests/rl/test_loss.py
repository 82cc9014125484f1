"""Losses against float64 numpy, gradients against finite differences, and what carries no loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_models import TINY, as_context, as_float64, random_contexts, random_params

from prefixrl_jax.group import Context, Group, row_inputs
from prefixrl_jax.model import transformer
from prefixrl_jax.rl import loss as losses
from prefixrl_jax.rl.surrogate import AGGREGATIONS, LOSSES, LossSettings

SMALL = dataclasses.replace(
    TINY, num_layers=1, hidden_size=8, head_dim=4, intermediate_size=12, unroll_layers=True
)
UNTIED = dataclasses.replace(SMALL, tie_embeddings=False)
P, G, T = 3, 4, 6
LENGTHS = np.array([[6, 1, 3, 2], [5, 0, 6, 4], [2, 2, 1, 6]], np.int32)


def make_group(config=SMALL, seed=0, dtype=np.float32) -> tuple[Group, np.ndarray]:
    """A group with rows of every length, an empty one included, and advantages [P, G]."""
    rng = np.random.default_rng(seed)
    context = as_context(random_contexts(config, [5, 1, 4], seed))
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (P, G, T)), jnp.int32)
    logprobs = jnp.asarray(-3 + rng.normal(size=(P, G, T)), dtype)
    rewards = jnp.asarray(rng.integers(0, 2, (P, G)), dtype)
    return Group(context, tokens, jnp.asarray(LENGTHS), logprobs, rewards), rng.normal(
        size=(P, G)
    ).astype(dtype)


def group_loss(params, config, group, advantages, settings):
    advantages = jnp.asarray(advantages)
    return losses.group_loss(
        params,
        config,
        group,
        advantages,
        losses.denominators(group, advantages, settings),
        settings,
    )


loss_and_sums = jax.jit(group_loss, static_argnums=(1, 4))
value_and_gradient = jax.jit(jax.value_and_grad(group_loss, has_aux=True), static_argnums=(1, 4))


def expected_logprobs(params, config, group, temperature):
    """Log-probs of the tokens, float64 [P, G, T], one row and position at a time; 0 on padding."""
    logprobs = np.zeros((P, G, T))
    for p, g in np.ndindex(P, G):
        n, size = LENGTHS[p, g], int(group.context.lengths[p])
        context, tokens = (
            np.asarray(group.context.tokens[p, :size]).tolist(),
            np.asarray(group.tokens[p, g, :n]).tolist(),
        )
        for t in range(n):
            dist = oracle.softmax(
                oracle.continuation_logits(params, config, context, tokens)[t] / temperature
            )
            logprobs[p, g, t] = np.log(dist[tokens[t]])
    return logprobs


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregation_over_explicit_denominators(aggregation):
    rng = np.random.default_rng(2)
    values, mask = rng.normal(size=(P, G, T)), np.arange(T) < LENGTHS[..., None]
    settings = LossSettings(aggregation=aggregation, constant_length=11)
    group, _ = make_group()
    loss = losses.aggregate(
        jnp.asarray(values, jnp.float32),
        group.mask(),
        losses.denominators(group, jnp.ones((P, G)), settings),
        settings,
    )
    rows = [values[p, g, :n] for (p, g), n in np.ndenumerate(LENGTHS)]
    expected = {
        "token_mean": sum(r.sum() for r in rows) / sum(len(r) for r in rows),
        "sequence_mean": np.mean([r.mean() for r in rows if len(r)]),
        "constant": sum(r.sum() for r in rows) / (P * G * 11),
    }[aggregation]
    assert mask.sum() == 38
    assert loss == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60)
@given(
    st.sampled_from(AGGREGATIONS),
    hnp.arrays(np.int32, (P, G), elements=st.integers(0, T)),
    st.integers(0, 99),
    st.integers(1, 20),
)
def test_aggregation_is_that_of_numpy_for_any_lengths_and_any_cut_of_the_batch(
    aggregation, lengths, seed, constant
):
    rng = np.random.default_rng(seed)
    values, how = (
        rng.normal(size=(P, G, T)).astype(np.float32),
        LossSettings(aggregation=aggregation, constant_length=constant),
    )
    group = dataclasses.replace(make_group()[0], lengths=jnp.asarray(lengths))
    total = losses.denominators(group, jnp.ones((P, G)), LossSettings())
    rows = [values[at][:n].astype(np.float64) for at, n in np.ndenumerate(lengths)]
    expected = {
        "token_mean": sum(r.sum() for r in rows) / max(sum(map(len, rows)), 1),
        "sequence_mean": (
            sum(r.mean() for r in rows if len(r)) / max(sum(len(r) > 0 for r in rows), 1)
        ),
        "constant": sum(r.sum() for r in rows) / (P * G * constant),
    }[aggregation]
    whole = losses.aggregate(jnp.asarray(values), group.mask(), total, how)
    parts = [
        losses.aggregate(jnp.asarray(values[p : p + 1]), group.mask()[p : p + 1], total, how)
        for p in range(P)
    ]
    assert float(whole) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert sum(map(float, parts)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_parts_with_the_whole_batchs_denominators_add_up(aggregation):
    params, (group, adv), settings = (
        random_params(SMALL),
        make_group(),
        LossSettings(aggregation=aggregation, constant_length=T),
    )
    total = losses.denominators(group, jnp.asarray(adv), settings)
    loss = jax.jit(lambda part, a: losses.group_loss(params, SMALL, part, a, total, settings)[0])
    parts = [
        loss(jax.tree.map(lambda x, i=i: x[i : i + 1], group), adv[i : i + 1]) for i in range(P)
    ]
    assert sum(map(float, parts)) == pytest.approx(
        float(loss_and_sums(params, SMALL, group, adv, settings)[0]), rel=1e-5
    )


def test_a_batch_without_tokens_has_loss_zero():
    group, _ = make_group()
    group = group.replace(lengths=jnp.zeros_like(group.lengths))
    total = losses.denominators(group, jnp.ones((P, G)), LossSettings())
    for aggregation in AGGREGATIONS:
        assert (
            losses.aggregate(
                jnp.ones((P, G, T)), group.mask(), total, LossSettings(aggregation=aggregation)
            )
            == 0
        )


@pytest.mark.parametrize(
    ("kind", "aggregation", "temperature"),
    [
        ("reinforce", "token_mean", 0.7),
        ("ppo_clip", "sequence_mean", 1.0),
        ("reinforce", "constant", 1.3),
    ],
)
def test_loss_and_its_sums_against_numpy_model(kind, aggregation, temperature):
    params, (group, adv) = random_params(SMALL), make_group()
    settings = LossSettings(
        kind, aggregation, constant_length=T, temperature=temperature, logprob_chunk=4
    )
    loss, (means, maxima) = loss_and_sums(params, SMALL, group, adv, settings)
    logprobs = expected_logprobs(params, SMALL, group, temperature)
    mask, old, a = (
        np.arange(T) < LENGTHS[..., None],
        np.asarray(group.logprobs, np.float64),
        adv[..., None].astype(np.float64),
    )
    ratio = np.exp(logprobs - old)
    values = (
        -a * logprobs
        if kind == "reinforce"
        else -np.where(a > 0, np.minimum(ratio, 1.2), np.maximum(ratio, 0.8)) * a
    )
    sums = (values * mask).sum(-1)
    expected = {
        "token_mean": sums.sum() / mask.sum(),
        "constant": sums.sum() / (P * G * T),
        "sequence_mean": (sums / np.maximum(LENGTHS, 1)).sum() / (LENGTHS > 0).sum(),
    }[aggregation]
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    gap = np.abs(logprobs - old)
    assert float(means["sampler_trainer/logp_diff_mean"]) == pytest.approx(
        (gap * mask).sum() / mask.sum(), rel=1e-4
    )
    assert float(maxima["sampler_trainer/logp_diff_max"]) == pytest.approx(
        (gap * mask).max(), rel=1e-4
    )
    assert float(means["clip_ratio/low"]) == pytest.approx(
        ((ratio < 0.8) & mask).sum() / mask.sum(), rel=1e-5
    )
    assert float(means["clip_ratio/high"]) == pytest.approx(
        ((ratio > 1.2) & mask).sum() / mask.sum(), rel=1e-5
    )


# whose weight is held constant: see test_surrogate.py
SMOOTH = [kind for kind in LOSSES if kind != "cispo"]


@pytest.mark.parametrize("kind", SMOOTH)
def test_gradient_is_that_of_finite_differences(kind):
    with jax.enable_x64(True):
        config = as_float64(SMALL)
        params, (group, adv) = random_params(config), make_group(config, dtype=np.float64)
        sampled = jax.jit(lambda p: losses.token_logprobs(p, config, group, 1.0, T))(params)
        noise = np.random.default_rng(3).normal(size=sampled.shape)
        group = group.replace(logprobs=sampled + 0.3 * noise)  # ratios on both sides of the clip
        if kind == "gspo":  # with every term a loss can have besides
            group = group.replace(
                off_policy=jnp.arange(G) == jnp.zeros((P, 1)),
                reference=sampled - 0.2 * noise,
                prefix_lengths=jnp.array([2, 0, 3]),
            )
            more = {"off_policy": "importance", "kl_coef": 0.3, "prefix_coef": 0.2}
        else:
            more = {"off_policy": "none", "kl_coef": 0.0, "prefix_coef": 0.0}
        rest = config, group, adv, LossSettings(kind, logprob_chunk=2, **more)
        leaves, tree = jax.tree.flatten(params)
        rng, step = np.random.default_rng(4), 1e-6
        for i, slope in enumerate(jax.tree.leaves(value_and_gradient(params, *rest)[1])):
            direction = rng.normal(size=slope.shape)

            def moved(amount, i=i, direction=direction):
                changed = [*leaves[:i], leaves[i] + amount * direction, *leaves[i + 1 :]]
                return float(loss_and_sums(jax.tree.unflatten(tree, changed), *rest)[0])

            numeric = (moved(step) - moved(-step)) / (2 * step)
            assert float((slope * direction).sum()) == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def test_the_gradient_reaches_the_context_through_its_keys_and_values():
    params, (group, adv) = random_params(UNTIED), make_group()
    only_context = {36}  # a token that stands in a context, not as its last, and nowhere else
    tokens = jnp.where(group.tokens == 36, 0, group.tokens)
    context = Context(
        jnp.where(group.context.tokens == 36, 0, group.context.tokens).at[0, 2].set(36),
        group.context.lengths,
    )
    _, grads = value_and_gradient(
        params, UNTIED, group.replace(tokens=tokens, context=context), adv, LossSettings()
    )
    used = np.flatnonzero(np.any(np.asarray(grads["embed"]["embedding"]), axis=1))
    assert only_context <= set(used.tolist()) < set(range(SMALL.vocab_size))


def test_context_and_padding_tokens_carry_no_loss():
    """The loss is made of the logits of rows; what pads a context, a row or a batch is not seen."""
    params, (group, adv) = random_params(SMALL), make_group()
    beyond_row = jnp.arange(T) >= group.lengths[..., None]
    beyond_context = jnp.arange(5) >= group.context.lengths[:, None]
    changed = group.replace(
        tokens=jnp.where(beyond_row, 36, group.tokens),
        logprobs=jnp.where(beyond_row, -50.0, group.logprobs),
        context=Context(jnp.where(beyond_context, 35, group.context.tokens), group.context.lengths),
    )
    for kind in LOSSES:
        settings = LossSettings(kind)
        value = float(loss_and_sums(params, SMALL, group, adv, settings)[0])
        assert float(loss_and_sums(params, SMALL, changed, adv, settings)[0]) == pytest.approx(
            value, abs=1e-6
        )


def test_the_training_loss_puts_no_weight_on_context_positions():
    """The head's gradient, a sum over positions that carry loss, is that of continuations alone."""
    config = as_float64(dataclasses.replace(TINY, unroll_layers=True, tie_embeddings=False))
    with jax.enable_x64(True):
        params = random_params(config)
        context = as_context(random_contexts(config, [5, 1, 7]))
        drawn = np.random.default_rng(1).integers(0, config.vocab_size, (3, 3, 6))
        tokens = jnp.asarray(drawn, jnp.int32)
        lengths = jnp.array([[6, 2, 0], [1, 3, 4], [5, 6, 2]], jnp.int32)
        group = Group(context, tokens, lengths, jnp.zeros(tokens.shape), jnp.zeros(lengths.shape))
        advantages = jnp.asarray(np.random.default_rng(3).normal(size=lengths.shape))
        counts = losses.denominators(group, advantages, LossSettings())

        def loss(params):
            return losses.group_loss(params, config, group, advantages, counts, LossSettings())[0]

        def hidden(params):
            kv = transformer.encode_context(params, config, context)
            hidden = transformer.continue_group(
                params, config, context, kv, row_inputs(context, tokens)
            )
            return transformer.rms_norm(hidden, params["final_norm"]["scale"], config.norm_eps)

        grads, normed = jax.jit(lambda params: (jax.grad(loss)(params), hidden(params)))(params)
    normed, head = np.asarray(normed), np.asarray(params["head"]["kernel"])
    advantages, tokens, lengths = (np.asarray(x) for x in (advantages, tokens, lengths))
    chance = oracle.softmax(normed @ head)
    expected = np.zeros((config.hidden_size, config.vocab_size))
    for p, g in np.ndindex(lengths.shape):
        for t in range(lengths[p, g]):
            pull = np.eye(config.vocab_size)[tokens[p, g, t]] - chance[p, g, t]
            expected -= advantages[p, g] * np.outer(normed[p, g, t], pull) / lengths.sum()
    np.testing.assert_allclose(grads["head"]["kernel"], expected, rtol=0, atol=1e-9)


def test_logits_are_taken_of_continuation_rows_only(monkeypatch):
    """No hidden state of a context position reaches the output head: contexts carry no loss."""
    params, (group, _) = random_params(SMALL), make_group()
    seen, head = [], transformer.logits
    monkeypatch.setattr(
        transformer, "logits", lambda p, c, h: seen.append(h.shape) or head(p, c, h)
    )
    jax.eval_shape(lambda p: losses.token_logprobs(p, SMALL, group, 1.0, 4), params)
    assert set(seen) == {(P, G, 4, SMALL.hidden_size)}


@pytest.mark.parametrize("kind", LOSSES)
def test_the_chunk_of_logits_does_not_change_the_loss_or_its_gradient(kind):
    params, (group, adv) = random_params(SMALL), make_group()

    def run(chunk):
        settings = LossSettings(kind, logprob_chunk=chunk)
        return value_and_gradient(params, SMALL, group, adv, settings)

    (value, _), grads = run(T)
    for chunk in (1, 4):
        (other, _), other_grads = run(chunk)
        # the loss is a mean of terms of order 1 that nearly cancel
        assert float(other) == pytest.approx(float(value), rel=1e-6, abs=1e-7)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other_grads, grads
        )


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of every intermediate, those inside loops, checkpoints and calls included."""
    shapes = {tuple(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars}
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    shapes |= shapes_in(inner)
    return shapes


def test_logits_of_the_whole_batch_never_exist():
    params, (group, adv) = random_params(SMALL), make_group()

    def shapes(chunk):
        grad = jax.grad(
            lambda p: group_loss(p, SMALL, group, adv, LossSettings(logprob_chunk=chunk))[0]
        )
        whole = P * G * T * SMALL.vocab_size
        return {
            s
            for s in shapes_in(jax.make_jaxpr(grad)(params).jaxpr)
            if SMALL.vocab_size in s and np.prod(s) >= whole
        }

    assert shapes(T)  # the search finds them where they do exist
    assert not shapes(2)


def test_reward_one_without_baseline_is_the_cross_entropy():
    params, (group, _) = random_params(SMALL), make_group()
    group = group.replace(rewards=jnp.ones((P, G)), logprobs=jnp.zeros((P, G, T)))
    logprobs = expected_logprobs(params, SMALL, group, 1.0)
    loss, _ = loss_and_sums(params, SMALL, group, group.rewards, LossSettings())
    assert float(loss) == pytest.approx(-logprobs.sum() / LENGTHS.sum(), rel=1e-5)


def test_a_trace_in_the_group_the_divergence_and_the_prefixes_against_numpy_model():
    """Row 0 of every group is a trace, and the last tokens of two contexts are prefixes."""
    params, (group, adv) = random_params(SMALL), make_group()
    rng, prefix = np.random.default_rng(7), np.array([3, 0, 2], np.int32)
    reference = -3 + rng.normal(size=(P, G, T))
    group = group.replace(
        off_policy=jnp.zeros((P, G), bool).at[:, 0].set(True),
        reference=jnp.asarray(reference, jnp.float32),
        prefix_lengths=jnp.asarray(prefix),
    )
    settings = LossSettings(
        "reinforce",
        off_policy="shaped",
        kl_coef=0.5,
        kl_estimator="k3",
        prefix_coef=0.25,
        temperature=0.8,
    )
    loss, (means, _) = loss_and_sums(params, SMALL, group, adv, settings)

    mask, logprobs = np.arange(T) < LENGTHS[..., None], expected_logprobs(params, SMALL, group, 0.8)
    a, p = adv[..., None].astype(np.float64), np.exp(logprobs)
    values = np.where(np.arange(G)[None, :, None] == 0, -a * p / (p + 0.1), -a * logprobs)
    gap = reference - logprobs
    kl = ((np.exp(gap) - 1 - gap) * mask).sum() / mask.sum()
    nll = 0.0
    for i, m in enumerate(prefix):
        tokens = np.asarray(group.context.tokens[i, : int(group.context.lengths[i])]).tolist()
        rows = oracle.forward(params, SMALL, tokens)
        nll -= sum(
            np.log(oracle.softmax(rows[at - 1])[tokens[at]])
            for at in range(len(tokens) - m, len(tokens))
        )
    assert float(means["kl"]) == pytest.approx(kl, rel=1e-4)
    assert float(means["prefix/nll"]) == pytest.approx(nll / prefix.sum(), rel=1e-4)
    assert float(loss) == pytest.approx(
        (values * mask).sum() / mask.sum() + 0.5 * kl + 0.25 * nll / prefix.sum(), rel=1e-4
    )
    # the gap between sampler and trainer is that of rows that were sampled
    sampled = mask & (np.arange(G)[None, :, None] > 0)
    gaps = np.abs(logprobs - np.asarray(group.logprobs, np.float64))
    assert float(means["sampler_trainer/logp_diff_mean"]) == pytest.approx(
        (gaps * sampled).sum() / sampled.sum(), rel=1e-4
    )


def test_groups_that_are_left_out_are_left_out_of_the_divergence_too():
    params, (group, adv) = random_params(SMALL), make_group()
    adv[1] = 0.0
    group = group.replace(reference=group.logprobs - 0.5)
    settings = LossSettings(kl_coef=0.5, drop_uniform=True)
    loss, _ = loss_and_sums(params, SMALL, group, adv, settings)
    kept = jax.tree.map(lambda x: x[np.array([0, 2])], group)
    alone, _ = loss_and_sums(params, SMALL, kept, adv[[0, 2]], LossSettings(kl_coef=0.5))
    assert float(loss) == pytest.approx(float(alone), rel=1e-5)


def test_groups_without_a_gradient_may_be_left_out_of_the_denominators():
    group, _ = make_group()
    adv = jnp.ones((P, G)).at[1].set(0.0)
    every, useful = (
        losses.denominators(group, adv, LossSettings(drop_uniform=drop)) for drop in (False, True)
    )
    assert [float(every[k]) for k in ("tokens", "sequences", "rows")] == [38, 11, 12]
    assert [float(useful[k]) for k in ("tokens", "sequences", "rows")] == [12 + 11, 8, 8]
    assert float(every["trained"]) == float(useful["trained"]) == 23


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"off_policy": "luffy"}, r"train\.off_policy='luffy': one of none, importance, shaped"),
        ({"kl_estimator": "k4"}, r"train\.kl_estimator='k4': one of k1, k2, k3"),
        ({"kl_coef": -1.0}, r"train\.kl_coef=-1\.0: must be at least 0"),
        (
            {"kind": "cispo", "truncate_ratio": 2.0},
            r"train\.truncate_ratio=2\.0 with train\.loss='cispo'",
        ),
        ({"kind": "grpo"}, r"train\.loss='grpo': one of reinforce, ppo_clip"),
        (
            {"aggregation": "mean"},
            r"train\.aggregation='mean': one of token_mean, sequence_mean, constant",
        ),
        ({"clip_low": 1.1}, r"train\.clip_low=1\.1"),
        ({"clip_high": 0.0}, r"train\.clip_high=0\.0"),
        ({"temperature": 0.0}, r"sampling\.temperature=0\.0"),
        ({"logprob_chunk": 0}, r"train\.logprob_chunk=0"),
    ],
)
def test_settings_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LossSettings(**fields)
