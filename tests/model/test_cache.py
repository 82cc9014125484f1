"""The cache of keys and values: both layouts hold the same and are written the same way."""

import jax
import jax.numpy as jnp
import numpy as np

from prefixrl_jax.model.cache import KVCache, head_major

ROWS, COLUMNS = 3, 5


def test_a_new_cache_is_zero_and_has_the_shapes_of_the_model(config):
    cache = KVCache.empty(config, ROWS, COLUMNS)
    assert cache.stacked != config.unroll_layers
    for i in range(config.num_layers):
        keys, values = cache.layer(i)
        assert keys.shape == (ROWS, config.num_kv_heads, config.head_dim, COLUMNS)
        assert values.shape == (ROWS, config.num_kv_heads, COLUMNS, config.head_dim)
        assert keys.dtype == values.dtype == config.compute_dtype
        assert not keys.any() and not values.any()


def test_a_column_is_written_in_one_layer_alone(config):
    rng = np.random.default_rng(0)
    k, v = jnp.asarray(rng.normal(size=(2, ROWS, config.num_kv_heads, config.head_dim)))
    write = jax.jit(lambda cache, column: cache.write(1, column, k, v))
    cache = write(KVCache.empty(config, ROWS, COLUMNS), jnp.int32(2))
    keys, values = cache.layer(1)
    np.testing.assert_array_equal(keys[..., 2], k.astype(keys.dtype))
    np.testing.assert_array_equal(values[:, :, 2], v.astype(values.dtype))
    others = np.arange(COLUMNS) != 2
    assert not keys[..., others].any() and not values[:, :, others].any()
    assert not any(leaf.any() for leaf in cache.layer(0))


def test_the_axis_of_rows(config):
    cache = KVCache.empty(config, ROWS, COLUMNS)
    assert all(leaf.shape[cache.row_axis] == ROWS for leaf in jax.tree.leaves(cache))
    assert jax.tree.structure(cache.spread()) == jax.tree.structure(cache)


def test_head_major_puts_heads_first_and_transposes_keys():
    k, v = np.random.default_rng(0).normal(size=(2, ROWS, COLUMNS, 2, 4))
    keys, values = head_major(jnp.asarray(k), jnp.asarray(v))
    for n, u, h in np.ndindex(ROWS, COLUMNS, 2):
        np.testing.assert_array_equal(keys[n, h, :, u], k[n, u, h].astype(keys.dtype))
        np.testing.assert_array_equal(values[n, h, u], v[n, u, h].astype(values.dtype))
