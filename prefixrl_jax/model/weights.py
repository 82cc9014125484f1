"""Every weight of the model, declared once: name, shape, logical axes, initialiser and Hugging Face
name.

Initialisation, sharding, parameter counts, import and export all iterate `weight_table`, so a
tensor that is missing, left over or of another shape is an error by construction.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prefixrl_jax.flops import Costs, costs
from prefixrl_jax.model.config import ModelConfig

Params = dict[str, Any]  # nested dict of arrays, in Flax layout


@dataclasses.dataclass(frozen=True)
class Weight:
    """One leaf of the parameter tree.

    Leaves below "layers" are stacked: a leading axis of num_layers.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]  # of one layer
    axes: tuple[str | None, ...]  # logical axis of each dimension; mesh.py maps them to mesh axes
    hf: str  # name in a Hugging Face checkpoint, {} standing for the layer
    init: str = "normal"  # "normal" (std 1/sqrt(inputs)), "embedding" (std 0.02), "ones", "zeros"
    # leading dimensions that are contracted over; Hugging Face stores [outputs, inputs] transposed
    inputs: int = 1
    linear: bool = False

    @property
    def stacked(self) -> bool:
        """Whether every layer has one."""
        return self.path[0] == "layers"

    def full_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The leaf's shape, layers included."""
        return (config.num_layers, *self.shape) if self.stacked else self.shape

    def full_axes(self) -> tuple[str | None, ...]:
        """The leaf's logical axes, layers included."""
        return (None, *self.axes) if self.stacked else self.axes

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The tensor's shape in a Hugging Face checkpoint: projections [outputs, inputs], biases
        flat.
        """
        if self.linear:
            fan_in = math.prod(self.shape[: self.inputs])
            return (math.prod(self.shape) // fan_in, fan_in)
        return (math.prod(self.shape),) if self.path[-1] == "bias" else self.shape

    def to_hf(self, value: np.ndarray) -> np.ndarray:
        """One layer's value in Hugging Face layout."""
        if not self.linear:
            return value.reshape(self.hf_shape)
        return np.ascontiguousarray(value.reshape(self.hf_shape[::-1]).T)

    def from_hf(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `to_hf`; raises ValueError naming the tensor if the shape differs."""
        if tuple(value.shape) != self.hf_shape:
            raise ValueError(
                f"tensor {self.hf}: shape {tuple(value.shape)}, the configuration asks for"
                f" {self.hf_shape}"
            )
        return np.ascontiguousarray(value.T if self.linear else value).reshape(self.shape)


def weight_table(c: ModelConfig) -> tuple[Weight, ...]:
    """The weights of a model, in a fixed order."""
    d, f, h, k, e = c.hidden_size, c.intermediate_size, c.num_heads, c.num_kv_heads, c.head_dim
    block, attn, mlp = "model.layers.{}.", "model.layers.{}.self_attn.", "model.layers.{}.mlp."

    def dense(path, shape, axes, hf, inputs=1):
        return Weight(
            ("layers", *path, "kernel"), shape, axes, hf + ".weight", inputs=inputs, linear=True
        )

    table = [
        Weight(
            ("embed", "embedding"),
            (c.vocab_size, d),
            ("vocab", "embed"),
            "model.embed_tokens.weight",
            init="embedding",
        ),
        Weight(
            ("layers", "attn_norm", "scale"),
            (d,),
            (None,),
            block + "input_layernorm.weight",
            init="ones",
        ),
        dense(("attn", "q"), (d, h, e), ("embed", "heads", None), attn + "q_proj"),
        dense(("attn", "k"), (d, k, e), ("embed", "kv_heads", None), attn + "k_proj"),
        dense(("attn", "v"), (d, k, e), ("embed", "kv_heads", None), attn + "v_proj"),
        dense(("attn", "o"), (h, e, d), ("heads", None, "embed"), attn + "o_proj", inputs=2),
        Weight(
            ("layers", "mlp_norm", "scale"),
            (d,),
            (None,),
            block + "post_attention_layernorm.weight",
            init="ones",
        ),
        dense(("mlp", "gate"), (d, f), ("embed", "mlp"), mlp + "gate_proj"),
        dense(("mlp", "up"), (d, f), ("embed", "mlp"), mlp + "up_proj"),
        dense(("mlp", "down"), (f, d), ("mlp", "embed"), mlp + "down_proj"),
        Weight(("final_norm", "scale"), (d,), (None,), "model.norm.weight", init="ones"),
    ]
    if c.attention_bias:
        for name, heads, axis in (("q", h, "heads"), ("k", k, "kv_heads"), ("v", k, "kv_heads")):
            table.append(
                Weight(
                    ("layers", "attn", name, "bias"),
                    (heads, e),
                    (axis, None),
                    f"{attn}{name}_proj.bias",
                    init="zeros",
                )
            )
    if c.qk_norm:
        for name in ("q", "k"):
            table.append(
                Weight(
                    ("layers", "attn", f"{name}_norm", "scale"),
                    (e,),
                    (None,),
                    f"{attn}{name}_norm.weight",
                    init="ones",
                )
            )
    if not c.tie_embeddings:
        table.append(
            Weight(
                ("head", "kernel"),
                (d, c.vocab_size),
                ("embed", "vocab"),
                "lm_head.weight",
                linear=True,
            )
        )
    return tuple(table)


def tree_from(table: tuple[Weight, ...], leaf) -> Params:
    """The nested dict whose leaf at `w.path` is `leaf(w)`."""
    tree: Params = {}
    for w in table:
        node = tree
        for name in w.path[:-1]:
            node = node.setdefault(name, {})
        node[w.path[-1]] = leaf(w)
    return tree


def leaf_of(params: Params, w: Weight) -> Any:
    """The leaf of `params` that `w` declares."""
    for name in w.path:
        params = params[name]
    return params


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes only: what an ahead-of-time compile or a restore needs."""
    return tree_from(
        weight_table(config),
        lambda w: jax.ShapeDtypeStruct(w.full_shape(config), jnp.dtype(config.param_dtype)),
    )


def init_params(config: ModelConfig, seed: int, shardings: Params | None = None) -> Params:
    """Random weights (see `init_from_key`), made where `shardings` wants them: no device ever holds
    more than its part.
    """
    return jax.jit(partial(init_from_key, config), out_shardings=shardings)(jax.random.key(seed))


@partial(jax.jit, static_argnames=("config",))
def init_from_key(config: ModelConfig, key: jax.Array) -> Params:
    """Random weights: projections N(0, 1/inputs) with the two that write to the residual stream
    scaled by 1/sqrt(2L).
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
    """{"total": every weight, "matmul": N of the FLOPs formulas}.

    N counts the matrices a token is multiplied with, the output head included (also when it is the
    tied embedding table), and leaves out the embedding look-up, norms and biases.
    """
    total = sum(math.prod(w.full_shape(config)) for w in weight_table(config))
    matmul = sum(
        math.prod(w.full_shape(config)) for w in weight_table(config) if w.linear and w.stacked
    )
    return {"total": total, "matmul": matmul + config.vocab_size * config.hidden_size}


def flop_costs(config: ModelConfig) -> Costs:
    """FLOPs of a token and of an attention pair in this model, for the ledger."""
    return costs(
        count_params(config)["matmul"],
        config.num_layers,
        config.num_heads,
        config.head_dim,
        config.remat,
    )


def params_fingerprint(params: Params) -> str:
    """16 hex digits that identify the weights as float32: two sums modulo 2^32 of every leaf's
    bits, mixed with their positions.

    Reductions, so that a sharded model is not gathered, and of integers, so that every mesh gives
    the same; enough to tell checkpoints apart, not to detect tampering.
    """
    return hashlib.sha256(str(jax.tree.map(int, _sums(params))).encode()).hexdigest()[:16]


@jax.jit
def _sums(tree: Params) -> list[list[jax.Array]]:
    return [
        [_mixed(leaf, multiplier).sum() for multiplier in (0x85EBCA6B, 0xC2B2AE35)]
        for leaf in jax.tree.leaves(tree)
    ]


def _mixed(leaf: jax.Array, multiplier: int) -> jax.Array:
    """uint32 like `leaf`: a hash of each entry's bits and place.

    The multipliers are those of MurmurHash3's finaliser.
    """
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed = (
        jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32) ^ place
    ) * jnp.uint32(multiplier)
    return (mixed ^ (mixed >> 16)) * jnp.uint32(multiplier)
