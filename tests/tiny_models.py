"""A tiny model, random weights and contexts for it, and log-probs as training computes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from prefixrl_jax.group import Context, pad_rows, row_inputs
from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import abstract_params

TINY = ModelConfig(
    vocab_size=37,
    hidden_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
)


def as_float64(config: ModelConfig) -> ModelConfig:
    """The model in float64, weights included."""
    return dataclasses.replace(config, dtype="float64", param_dtype="float64")


def random_params(config: ModelConfig, seed: int = 0):
    """Draws weights far from their initialisation.

    No scale is one, no bias is zero, and the logits are not nearly equal.
    """
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        return jnp.asarray(
            (path[-1].key == "scale") + 0.3 * rng.normal(size=shape.shape), shape.dtype
        )

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def random_contexts(config: ModelConfig, lengths, seed: int = 0) -> list[list[int]]:
    """Draws contexts of these lengths, as token lists."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]


def as_context(contexts: list[list[int]], size: int | None = None) -> Context:
    """Token lists as a padded Context of int32 arrays."""
    tokens, lengths = pad_rows(contexts, size or max(map(len, contexts)))
    return Context(jnp.asarray(tokens), jnp.asarray(lengths))


def continuation_logprobs(
    params, config: ModelConfig, context: Context, tokens, temperature: float = 1.0
) -> jax.Array:
    """Teacher-forced log-probs [P, G, T] of continuations [P, G, T] over a shared context."""
    kv = transformer.encode_context(params, config, context)
    hidden = transformer.continue_group(params, config, context, kv, row_inputs(context, tokens))
    logprobs = jax.nn.log_softmax(transformer.logits(params, config, hidden) / temperature)
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def relative_errors(tree, reference) -> dict[str, float]:
    """Compares two trees leaf by leaf.

    Returns, by the leaf's path, the largest error relative to the largest entry of the reference's
    leaf.
    """

    def error(a, b):
        return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))

    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(error, tree, reference))
    return {jax.tree_util.keystr(path): value for path, value in errors}
