"""Tiny models of every family: their configurations as transformers makes them, and random tensors
by their names there.
"""

from functools import cache

import numpy as np
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prefixrl_jax.model.hf_config import model_config_from_hf
from prefixrl_jax.model.weights import weight_table

VOCAB = 61
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
}
FAMILIES = {
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama3_untied": ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "smollm2": (
        "llama",
        {
            "hidden_size": 36,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5,
            "is_llama_config": True,
            "rope_interleaved": False,
        },
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": False, "rope_theta": 1000000.0}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
}


def words(count: int = VOCAB - 4) -> list[str]:
    """Words of a tokenizer that has four special tokens besides."""
    return [f"w{i}" for i in range(count)]


def configuration(family: str) -> transformers.PretrainedConfig:
    """The family's configuration."""
    model_type, fields = FAMILIES[family]
    return transformers.AutoConfig.for_model(model_type, **SHAPE | fields)


def architecture(family: str) -> str:
    """The name of its class in transformers."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[FAMILIES[family][0]]


@cache
def tensors(family: str) -> dict[str, np.ndarray]:
    """Random float32 tensors with the names and shapes of a checkpoint, which test_weights.py
    compares with PyTorch's.
    """
    rng, config = np.random.default_rng(0), model_config_from_hf(configuration(family).to_dict())
    return {
        w.hf.format(layer): rng.normal(size=w.to_hf(np.zeros(w.shape)).shape).astype(np.float32)
        for w in weight_table(config)
        for layer in range(config.num_layers if w.stacked else 1)
    }
