"""The forward pass against a numpy reference, and shared contexts against repeated prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tiny_models import (
    TINY,
    as_context,
    as_float64,
    continuation_logprobs,
    random_contexts,
    random_params,
    relative_errors,
)

from prefixrl_jax.group import Context, Group, row_inputs
from prefixrl_jax.model import transformer
from prefixrl_jax.model.attention import causal_attention, shared_attention
from prefixrl_jax.model.cache import LayerKV, head_major
from prefixrl_jax.model.config import RopeScaling
from prefixrl_jax.rl import loss as losses

LENGTHS = [5, 1, 7]  # a context of one token has nothing to encode: its rows carry it
# Gradients are compared under scan and unrolled once; what does not depend on it uses the one that
# compiles faster.
UNROLLED64 = as_float64(dataclasses.replace(TINY, unroll_layers=True))
VARIANTS = {
    "llama": {},
    "llama3.1": {"rope_theta": 10000.0, "rope_scaling": RopeScaling(original_max_position=64)},
    "qwen2": {"attention_bias": True, "rope_theta": 1e6, "norm_eps": 1e-6},
    "qwen3": {"qk_norm": True, "tie_embeddings": False},
    "remat": {"remat": True},
}


def a_group(config, lengths=LENGTHS, g=3, t=6, seed=0):
    """Contexts as token lists, and int32 [P, G, T] continuations."""
    tokens = np.random.default_rng(seed + 1).integers(0, config.vocab_size, (len(lengths), g, t))
    return random_contexts(config, lengths, seed), jnp.asarray(tokens, jnp.int32)


def weights_of(tokens, seed=2):
    """A weight for every token, of both signs and zero, as advantages and masks give one."""
    w = np.random.default_rng(seed).normal(size=tokens.shape)
    w[..., -1] = 0
    return jnp.asarray(w)


def pg_loss(params, config, context, tokens, weights):
    """-sum of weighted log-probs, and the log-probs."""
    logprobs = continuation_logprobs(params, config, context, tokens)
    return -(weights * logprobs).sum(), logprobs


loss_and_grads = jax.jit(jax.value_and_grad(pg_loss, has_aux=True), static_argnums=1)


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (4, 1), (3, 3)])
def test_shared_attention_is_one_softmax_over_context_and_row(heads, kv_heads):
    p, g, t, d, s = 2, 3, 4, 6, 5
    rng = np.random.default_rng(0)
    q = rng.normal(size=(p, g, t, heads, d))
    k, v = rng.normal(size=(2, p, s, kv_heads, d))
    row_k, row_v = rng.normal(size=(2, p, g, t, kv_heads, d))
    # the second context is hidden altogether
    seen = np.array([[True, False, True, True, False], [False] * 5])
    with jax.enable_x64(True):
        context = head_major(jnp.asarray(k), jnp.asarray(v))
        flat_k, flat_v = (jnp.asarray(x).reshape(p * g, t, kv_heads, d) for x in (row_k, row_v))
        rows, causal = head_major(flat_k, flat_v), jnp.tri(t, dtype=bool)
        out = shared_attention(jnp.asarray(q), context, jnp.asarray(seen), rows, causal)
    for i, j, n in np.ndindex(p, g, t):
        keys = np.concatenate([k[i, seen[i]], row_k[i, j, : n + 1]])
        values = np.concatenate([v[i, seen[i]], row_v[i, j, : n + 1]])
        np.testing.assert_allclose(
            out[i, j, n], oracle.attention(q[i, j, n], keys, values), rtol=0, atol=1e-12
        )


def test_shared_attention_is_stable_when_one_part_dominates():
    q, seen = jnp.ones((1, 1, 1, 1, 2)), jnp.ones((1, 1), bool)
    for scale, expected in ((1e4, 3.0), (-1e4, 5.0)):
        context = LayerKV(jnp.full((1, 1, 2, 1), scale), jnp.full((1, 1, 1, 2), 3.0))
        rows = LayerKV(jnp.full((1, 1, 2, 1), -scale), jnp.full((1, 1, 1, 2), 5.0))
        out = shared_attention(q, context, seen, rows, seen[..., None, None])
        np.testing.assert_array_equal(out.ravel(), expected)


def test_causal_attention():
    p, s, h, kv, d = 2, 5, 4, 2, 6
    rng = np.random.default_rng(0)
    q, (k, v) = rng.normal(size=(p, s, h, d)), rng.normal(size=(2, p, s, kv, d))
    with jax.enable_x64(True):
        out = causal_attention(jnp.asarray(q), head_major(jnp.asarray(k), jnp.asarray(v)))
    for i, n in np.ndindex(p, s):
        np.testing.assert_allclose(
            out[i, n], oracle.attention(q[i, n], k[i, : n + 1], v[i, : n + 1]), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_a_plain_causal_pass(config, variant):
    config = dataclasses.replace(as_float64(config), **VARIANTS[variant])
    with jax.enable_x64(True):
        params = random_params(config)
        contexts, tokens = a_group(config)
        context = as_context(contexts, 9)

        @jax.jit
        def logits(params):
            kv = transformer.encode_context(params, config, context)
            hidden = transformer.continue_group(
                params, config, context, kv, row_inputs(context, tokens)
            )
            return transformer.logits(params, config, hidden)

        got = np.asarray(logits(params))
    params = jax.tree.map(np.asarray, params)
    for p, g in np.ndindex(tokens.shape[:2]):
        expected = oracle.continuation_logits(params, config, contexts[p], np.asarray(tokens[p, g]))
        # rotary angles are float32 under any dtype
        np.testing.assert_allclose(got[p, g], expected, rtol=0, atol=1e-5)


def test_shared_context_equals_repeated_prompts(config64):
    with jax.enable_x64(True):
        params = random_params(config64)
        contexts, tokens = a_group(config64)
        weights = weights_of(tokens)
        (shared_loss, shared), shared_grads = loss_and_grads(
            params, config64, as_context(contexts), tokens, weights
        )

        alone = as_context([c for c in contexts for _ in range(tokens.shape[1])])

        def split(x):
            return x.reshape(-1, 1, x.shape[-1])

        (loss, repeated), grads = loss_and_grads(
            params, config64, alone, split(tokens), split(weights)
        )
        np.testing.assert_allclose(
            split(shared), repeated, rtol=0, atol=1e-9 * np.abs(repeated).max()
        )
        assert abs(shared_loss - loss) < 1e-9 * abs(loss)
    errors = relative_errors(shared_grads, grads)
    assert len(errors) == 11
    assert max(errors.values()) < 1e-9, errors


def test_the_loss_sees_a_context_through_its_keys_and_values_alone():
    """Weights that only shape the outputs of context positions get exactly no gradient.

    The context pass gets weights of its own, so that its gradients are seen apart. Logits at
    context positions are made by the last layer's queries, attention output and MLP, and by the
    final norm and the head. Everything below the last layer's keys and values does get gradient,
    and it equals finite differences.
    """
    with jax.enable_x64(True):
        params = random_params(UNROLLED64)
        contexts, tokens = a_group(UNROLLED64)
        context, weights = as_context(contexts), weights_of(tokens)

        def loss(context_params):
            kv = transformer.encode_context(context_params, UNROLLED64, context)
            hidden = transformer.continue_group(
                params, UNROLLED64, context, kv, row_inputs(context, tokens)
            )
            logprobs = jax.nn.log_softmax(transformer.logits(params, UNROLLED64, hidden))
            return -(
                weights * jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]
            ).sum()

        grads = jax.jit(jax.grad(loss))(params)
        last = jax.tree.map(lambda leaf: leaf[-1], grads["layers"])
        silent = [
            last["attn"]["q"],
            last["attn"]["o"],
            last["mlp"],
            last["mlp_norm"],
            grads["final_norm"],
        ]
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(silent))
        first = jax.tree.map(lambda leaf: leaf[0], grads["layers"])
        heard = [first, last["attn"]["k"], last["attn"]["v"], last["attn_norm"], grads["embed"]]
        assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(heard))

        value = jax.jit(loss)
        leaves, tree = jax.tree.flatten(params)
        for i, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
            direction = np.random.default_rng(i).normal(size=leaf.shape)
            moved = [
                value(tree.unflatten([*leaves[:i], leaf + e * direction, *leaves[i + 1 :]]))
                for e in (1e-5, -1e-5)
            ]
            slope, scale = (moved[0] - moved[1]) / 2e-5, np.abs(grad * direction).sum()
            assert abs(slope - (grad * direction).sum()) <= 1e-6 * scale + 1e-8, i


def test_the_training_loss_puts_no_weight_on_context_positions():
    """The head's gradient, a sum over positions that carry loss, is that of continuations alone."""
    config = dataclasses.replace(UNROLLED64, tie_embeddings=False)
    with jax.enable_x64(True):
        params = random_params(config)
        contexts, tokens = a_group(config)
        context = as_context(contexts)
        lengths = jnp.array([[6, 2, 0], [1, 3, 4], [5, 6, 2]], jnp.int32)
        group = Group(context, tokens, lengths, jnp.zeros(tokens.shape), jnp.zeros(lengths.shape))
        advantages = jnp.asarray(np.random.default_rng(3).normal(size=lengths.shape))
        counts = losses.denominators(group, advantages, losses.LossSettings())

        def loss(params):
            return losses.group_loss(
                params, config, group, advantages, counts, losses.LossSettings()
            )[0]

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


def test_padding_and_buckets_change_nothing():
    """Garbage ids in all padding, and longer buckets, leave log-probs and gradients alone."""
    with jax.enable_x64(True):
        params = random_params(UNROLLED64)
        contexts, tokens = a_group(UNROLLED64)
        weights, t = weights_of(tokens), tokens.shape[-1]
        (_, plain), grads = loss_and_grads(
            params, UNROLLED64, as_context(contexts), tokens, weights
        )
        padded, longer = (
            np.random.default_rng(9).integers(0, TINY.vocab_size, s)
            for s in ((3, 16), (*tokens.shape[:2], t + 3))
        )
        for row, context in zip(padded, contexts, strict=True):
            row[: len(context)] = context
        longer[..., :t] = tokens
        context = Context(jnp.asarray(padded, jnp.int32), jnp.array(LENGTHS, jnp.int32))
        more = jnp.pad(weights, ((0, 0), (0, 0), (0, 3)))
        (_, got), got_grads = loss_and_grads(
            params, UNROLLED64, context, jnp.asarray(longer, jnp.int32), more
        )
    np.testing.assert_allclose(np.asarray(got)[..., :t], plain, rtol=0, atol=1e-12)
    errors = relative_errors(got_grads, grads)
    assert max(errors.values()) < 1e-11, errors


def test_padding_ids_have_exactly_no_influence(config):
    params = random_params(config)
    contexts, tokens = a_group(config)
    context = as_context(contexts, 9)
    past = np.arange(9) >= np.array(LENGTHS)[:, None]
    other = Context(jnp.where(past, 11, context.tokens), context.lengths)
    logprobs = jax.jit(continuation_logprobs, static_argnums=1)
    np.testing.assert_array_equal(
        logprobs(params, config, context, tokens), logprobs(params, config, other, tokens)
    )
    real = Context(context.tokens.at[2, 3].add(1), context.lengths)
    moved = np.abs(
        logprobs(params, config, real, tokens) - logprobs(params, config, context, tokens)
    ).max((1, 2))
    assert moved[0] == moved[1] == 0 and moved[2] > 1e-3


def test_micro_batches_add_up():
    """Log-probs of parts of the batch are those of the whole; their gradients add up to its own."""
    with jax.enable_x64(True):
        params = random_params(UNROLLED64)
        contexts, tokens = a_group(UNROLLED64)
        context, weights = as_context(contexts), weights_of(tokens)
        (_, whole), grads = loss_and_grads(params, UNROLLED64, context, tokens, weights)
        parts = []
        for row in (slice(p, p + 1) for p in range(len(contexts))):
            part = Context(context.tokens[row], context.lengths[row])
            parts.append(loss_and_grads(params, UNROLLED64, part, tokens[row], weights[row]))
    np.testing.assert_allclose(
        np.concatenate([logprobs for (_, logprobs), _ in parts]), whole, rtol=0, atol=1e-12
    )
    errors = relative_errors(
        jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)), *(g for _, g in parts)), grads
    )
    assert max(errors.values()) < 1e-11, errors
