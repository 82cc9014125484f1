"""The transformer as a `flax.linen` module, for those who live in Flax: the same functions over the
same tree of weights.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import abstract_params, init_from_key


class CausalLM(nn.Module):
    """`CausalLM(config).apply({"params": params}, tokens)`; `params` is the tree of checkpoints and
    of `init_params`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits float32 [B, T, V] of tokens int32 [B, T]; those at column t predict token t +
        1.
        """
        shapes = abstract_params(self.config)
        fresh = (
            init_from_key(self.config, self.make_rng("params")) if self.is_initializing() else None
        )

        def weights(_, name):  # Flax also asks when it applies given weights, to check their shapes
            return (
                fresh[name]
                if fresh
                else jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[name])
            )

        params = {name: self.param(name, weights, name) for name in shapes}
        return transformer.text_logits(params, self.config, tokens)
