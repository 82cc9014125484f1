"""Shape and precision of the decoder; Llama 3.x, Qwen2/2.5, Qwen3, SmolLM2 are settings of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the low RoPE frequencies (`rope_type: llama3`)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm before each part, GQA with RoPE, gated SiLU MLP.

    Raises ValueError when the sizes do not fit each other.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    qk_norm: bool = False  # RMSNorm on each head's query and key (Qwen3)
    attention_bias: bool = False  # biases on q, k, v (Qwen2)
    tie_embeddings: bool = True
    param_dtype: str = "float32"  # storage of the weights
    # matmuls and activations; softmax, norms' statistics and log-probs are always float32
    dtype: str = "float32"
    remat: bool = False  # recompute a layer's activations in the backward pass
    # a Python loop instead of lax.scan: faster for a few small layers, slower to compile
    unroll_layers: bool = False

    def __post_init__(self):
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} is not a multiple of"
                f" model.num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim}: rotary embeddings need an even size")
        for name in ("param_dtype", "dtype"):
            if getattr(self, name) not in ("float32", "bfloat16", "float64"):
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r}: use 'float32' or 'bfloat16'"
                )

    @property
    def compute_dtype(self) -> Any:
        """The JAX dtype of matmuls and activations."""
        return jnp.dtype(self.dtype)

    @property
    def family(self) -> str:
        """The Hugging Face architecture this setting is exported as."""
        if self.qk_norm:
            return "Qwen3ForCausalLM"
        return "Qwen2ForCausalLM" if self.attention_bias else "LlamaForCausalLM"


def model_config(fields: dict[str, Any], vocab_size: int) -> ModelConfig:
    """Return the ModelConfig that the `model` section of a run's configuration describes.

    Args:
        fields: the section; entries that are not fields of ModelConfig are ignored.
        vocab_size: size of the tokenizer's vocabulary.
    """
    names = {f.name for f in dataclasses.fields(ModelConfig)} - {"vocab_size"}
    values = {name: value for name, value in fields.items() if name in names}
    scaling = fields.get("rope_scaling")
    values["rope_scaling"] = RopeScaling(**scaling) if scaling else None
    return ModelConfig(vocab_size=vocab_size, **values)
