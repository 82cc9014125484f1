"""Attention of rows over a shared context, and within a context, against a numpy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from prefixrl_jax.model.attention import causal_attention, shared_attention
from prefixrl_jax.model.cache import LayerKV, head_major


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
