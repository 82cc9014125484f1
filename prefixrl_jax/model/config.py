"""Shape and precision of the decoder; Llama 3.x, Qwen2/2.5, Qwen3, SmolLM2 are settings of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from prefixrl_jax.model.fields import is_integer, is_positive_number, shown

# The sizes of a model, and the largest that is accepted of each: far beyond every published model,
# and small enough that a configuration that lies is refused before it costs memory.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "num_layers": 2000,
    "num_heads": 2**14,
    "num_kv_heads": 2**14,
    "head_dim": 2**14,
    "intermediate_size": 2**24,
}
# Numbers outside of these bounds are in no published model, and overflow or vanish in float32.
BOUNDS = {
    "rope_theta": (1.0, 1e12),
    "norm_eps": (1e-12, 1.0),
    "factor": (1e-3, 1e6),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
    "original_max_position": (1, 2**31 - 1),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the low RoPE frequencies (`rope_type: llama3`).

    Raises ValueError for a number outside of its BOUNDS, and unless low_freq_factor is
    less than high_freq_factor: the frequencies between them are interpolated.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_bounds("model.rope_scaling", field.name, getattr(self, field.name))
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"model.rope_scaling.low_freq_factor={self.low_freq_factor} must be less than"
                f" model.rope_scaling.high_freq_factor={self.high_freq_factor}"
            )


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
        for name, largest in LARGEST.items():
            size = getattr(self, name)
            if not is_integer(size) or not 1 <= size <= largest:
                raise ValueError(
                    f"model.{name}={shown(size)}: an integer from 1 to {largest} is accepted"
                )
        _check_bounds("model", "rope_theta", self.rope_theta)
        _check_bounds("model", "norm_eps", self.norm_eps)
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


def _check_bounds(section: str, name: str, value: Any) -> None:
    least, most = BOUNDS[name]
    if not is_positive_number(value) or not least <= float(value) <= most:
        raise ValueError(
            f"{section}.{name}={shown(value)}: a number from {least:g} to {most:g} is accepted"
        )


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
