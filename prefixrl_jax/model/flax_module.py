"""The transformer as a `flax.linen` module: the same functions over the same tree of weights."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import abstract_params, init_from_key


class CausalLM(nn.Module):
    """The model for users of Flax: `CausalLM(config).apply({"params": params}, tokens)`.

    `params` is the tree that checkpoints hold and `init_params` makes.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the logits of whole texts; column t predicts token t + 1.

        Tokens are int32 [B, T], logits float32 [B, T, V].
        """
        shapes = abstract_params(self.config)
        initial = None
        if self.is_initializing():
            initial = init_from_key(self.config, self.make_rng("params"))

        def weights(_, name):
            if initial is not None:
                return initial[name]
            # Flax asks for them also when it applies weights, to compare the shapes.
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[name])

        params = {name: self.param(name, weights, name) for name in shapes}
        return transformer.text_logits(params, self.config, tokens)
