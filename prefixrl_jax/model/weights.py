"""Every weight of the model, declared once: shape, logical axes, initialiser, Hugging Face name.

Initialisation, sharding, parameter counts, import and export all iterate `weight_table`, so a
tensor that is missing, left over or of another shape is an error by construction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prefixrl_jax.flops import Costs, costs
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.seeds import seed_key

Params = dict[str, Any]  # nested dict of arrays, in Flax layout


@dataclasses.dataclass(frozen=True)
class Weight:
    """The declaration of one leaf of the parameter tree.

    Leaves below "layers" are stacked: in the tree they have a leading axis of num_layers.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]  # of one layer
    axes: tuple[str | None, ...]  # logical axis of each dimension; see `sharding.RULES`
    hf: str  # name in a Hugging Face checkpoint, {} standing for the layer
    init: str = "normal"  # "normal" (std 1/sqrt(inputs)), "embedding" (std 0.02), "ones", "zeros"
    inputs: int = 1  # how many leading dimensions are contracted over
    linear: bool = False  # a projection, which Hugging Face stores as [outputs, inputs]

    @property
    def stacked(self) -> bool:
        """Whether every layer has such a weight."""
        return self.path[0] == "layers"

    def full_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Return the leaf's shape, with the leading axis of layers if it is stacked."""
        return (config.num_layers, *self.shape) if self.stacked else self.shape

    def full_axes(self) -> tuple[str | None, ...]:
        """Return the leaf's logical axes, with the leading axis of layers if it is stacked."""
        return (None, *self.axes) if self.stacked else self.axes

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The tensor's shape in a checkpoint.

        It is [outputs, inputs] for projections; biases are flat.
        """
        if self.linear:
            fan_in = math.prod(self.shape[: self.inputs])
            return (math.prod(self.shape) // fan_in, fan_in)
        if self.path[-1] == "bias":
            return (math.prod(self.shape),)
        return self.shape

    def to_hf(self, value: np.ndarray) -> np.ndarray:
        """Convert one layer's value to the layout of a Hugging Face checkpoint.

        The value has the shape `shape`.
        """
        if not self.linear:
            return value.reshape(self.hf_shape)
        return np.ascontiguousarray(value.reshape(self.hf_shape[::-1]).T)

    def from_hf(self, value: np.ndarray) -> np.ndarray:
        """Convert one tensor from the layout of a Hugging Face checkpoint, the inverse of `to_hf`.

        Raises ValueError naming the tensor if its shape is not the expected one.
        """
        if tuple(value.shape) != self.hf_shape:
            raise ValueError(
                f"tensor {self.hf}: shape {tuple(value.shape)}, the configuration asks for"
                f" {self.hf_shape}"
            )
        return np.ascontiguousarray(value.T if self.linear else value).reshape(self.shape)


def weight_table(c: ModelConfig) -> tuple[Weight, ...]:
    """Return the declarations of all weights of a model.

    Their order fixes the random numbers that each weight is initialised with.
    """
    d = c.hidden_size
    f = c.intermediate_size
    h = c.num_heads
    k = c.num_kv_heads
    e = c.head_dim
    block = "model.layers.{}."
    attn, mlp = block + "self_attn.", block + "mlp."
    embedding = Weight(
        ("embed", "embedding"),
        (c.vocab_size, d),
        ("vocab", "embed"),
        "model.embed_tokens.weight",
        init="embedding",
    )
    table = [
        embedding,
        _norm(("layers", "attn_norm"), d, block + "input_layernorm"),
        _projection(("attn", "q"), (d, h, e), ("embed", "heads", None), attn + "q_proj"),
        _projection(("attn", "k"), (d, k, e), ("embed", "kv_heads", None), attn + "k_proj"),
        _projection(("attn", "v"), (d, k, e), ("embed", "kv_heads", None), attn + "v_proj"),
        _projection(("attn", "o"), (h, e, d), ("heads", None, "embed"), attn + "o_proj", inputs=2),
        _norm(("layers", "mlp_norm"), d, block + "post_attention_layernorm"),
        _projection(("mlp", "gate"), (d, f), ("embed", "mlp"), mlp + "gate_proj"),
        _projection(("mlp", "up"), (d, f), ("embed", "mlp"), mlp + "up_proj"),
        _projection(("mlp", "down"), (f, d), ("mlp", "embed"), mlp + "down_proj"),
        _norm(("final_norm",), d, "model.norm"),
    ]
    if c.attention_bias:
        table += [
            _bias("q", (h, e), "heads", attn),
            _bias("k", (k, e), "kv_heads", attn),
            _bias("v", (k, e), "kv_heads", attn),
        ]
    if c.qk_norm:
        table += [
            _norm(("layers", "attn", "q_norm"), e, attn + "q_norm"),
            _norm(("layers", "attn", "k_norm"), e, attn + "k_norm"),
        ]
    if not c.tie_embeddings:
        axes = ("embed", "vocab")
        table.append(
            Weight(("head", "kernel"), (d, c.vocab_size), axes, "lm_head.weight", linear=True)
        )
    return tuple(table)


def _norm(path: tuple[str, ...], size: int, hf: str) -> Weight:
    """Declare the scale of an RMSNorm."""
    return Weight((*path, "scale"), (size,), (None,), f"{hf}.weight", init="ones")


def _projection(
    path: tuple[str, ...],
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    hf: str,
    inputs: int = 1,
) -> Weight:
    """Declare the kernel of a projection that every layer has."""
    kernel = ("layers", *path, "kernel")
    return Weight(kernel, shape, axes, f"{hf}.weight", inputs=inputs, linear=True)


def _bias(name: str, shape: tuple[int, ...], heads: str, hf: str) -> Weight:
    """Declare the bias that the projection q, k or v has in every layer."""
    path = ("layers", "attn", name, "bias")
    return Weight(path, shape, (heads, None), f"{hf}{name}_proj.bias", init="zeros")


def tree_from(table: tuple[Weight, ...], leaf: Callable[[Weight], Any]) -> Params:
    """Return the nested dict that holds `leaf(w)` at the path of every weight w."""
    tree: Params = {}
    for w in table:
        node = tree
        for name in w.path[:-1]:
            node = node.setdefault(name, {})
        node[w.path[-1]] = leaf(w)
    return tree


def leaf_of(params: Params, w: Weight) -> Any:
    """Return the leaf of the parameter tree that the weight `w` declares."""
    for name in w.path:
        params = params[name]
    return params


def abstract_params(config: ModelConfig) -> Params:
    """Return the shapes and dtypes of the parameters, to compile or restore without any array."""
    return tree_from(
        weight_table(config),
        lambda w: jax.ShapeDtypeStruct(w.full_shape(config), jnp.dtype(config.param_dtype)),
    )


def init_params(config: ModelConfig, seed: int, shardings: Params | None = None) -> Params:
    """Return random weights, created directly in the given shardings.

    The values are those of `init_from_key`. No device ever holds more than its part.
    """
    return jax.jit(partial(init_from_key, config), out_shardings=shardings)(seed_key(seed))


@partial(jax.jit, static_argnames=("config",))
def init_from_key(config: ModelConfig, key: jax.Array) -> Params:
    """Return random weights: projections N(0, 1/inputs), the embedding N(0, 0.02²).

    The two projections that write to the residual stream are scaled by 1/sqrt(2L), L layers.
    """
    table = weight_table(config)
    keys = dict(zip([w.path for w in table], jax.random.split(key, len(table)), strict=True))
    dtype = jnp.dtype(config.param_dtype)

    def leaf(w: Weight) -> jax.Array:
        shape = w.full_shape(config)
        if w.init in ("ones", "zeros"):
            return jnp.full(shape, float(w.init == "ones"), dtype)
        std = 0.02 if w.init == "embedding" else math.prod(w.shape[: w.inputs]) ** -0.5
        if w.path[-2] in ("o", "down"):
            std /= math.sqrt(2 * config.num_layers)
        return (std * jax.random.normal(keys[w.path], shape)).astype(dtype)

    return tree_from(table, leaf)


def count_params(config: ModelConfig) -> dict[str, int]:
    """Count the parameters of a model.

    Returns {"total": of all weights, "matmul": N of the formulas of FLOPs}. N counts the matrices a
    token is multiplied with, the output head included (also when it is the tied embedding table),
    and leaves out the embedding look-up, norms and biases.
    """
    table = weight_table(config)
    total = sum(math.prod(w.full_shape(config)) for w in table)
    of_layers = sum(math.prod(w.full_shape(config)) for w in table if w.linear and w.stacked)
    return {"total": total, "matmul": of_layers + config.vocab_size * config.hidden_size}


def flop_costs(config: ModelConfig) -> Costs:
    """Return what a token and an attention pair cost in this model, in FLOPs, for the ledger."""
    return costs(
        count_params(config)["matmul"],
        config.num_layers,
        config.num_heads,
        config.head_dim,
        config.remat,
    )
