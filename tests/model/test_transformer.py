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

from prefixrl_jax.group import Context, row_inputs
from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import RopeScaling

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
