"""The linen module: the same tree, the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from tiny_models import TINY, random_params

from prefixrl_jax.model.flax_module import CausalLM
from prefixrl_jax.model.weights import abstract_params


def test_logits_are_those_of_the_float64_oracle(config):
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 7))
    logits = jax.jit(CausalLM(config).apply)({"params": params}, jnp.asarray(tokens, jnp.int32))
    assert logits.shape == (2, 7, config.vocab_size) and logits.dtype == jnp.float32
    for row, text in zip(logits, tokens, strict=True):
        np.testing.assert_allclose(row, oracle.forward(params, config, text.tolist()), atol=1e-4)


def test_init_makes_the_tree_of_the_weight_table():
    variables = CausalLM(TINY).init(jax.random.key(1), jnp.zeros((1, 3), jnp.int32))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), variables)
    assert shapes == {"params": jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(TINY))}
    other = CausalLM(TINY).init(jax.random.key(2), jnp.zeros((1, 3), jnp.int32))
    embeddings = (v["params"]["embed"]["embedding"] for v in (variables, other))
    assert not jnp.array_equal(*embeddings)
