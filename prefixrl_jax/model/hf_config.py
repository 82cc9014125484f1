"""config.json of Llama, Qwen2 and Qwen3 models, both ways.

A field that would change the computation is refused by name.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.config import ModelConfig, RopeScaling

# The classes of transformers that are supported, and their model_type.
MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# Hugging Face's name of each size, and ours.
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
}
# Hugging Face's name of each field of Llama 3's rotary scaling, and ours.
ROPE_SCALING = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_position",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
}
ROPE_FIELDS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *ROPE_SCALING}
# Fields that would change the computation, each with the values under which it does not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "quantization_config": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
}


# Ours to Hugging Face's


def hf_config(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast, dtype: str | None = None
) -> dict[str, Any]:
    """Return the content of config.json for a model, readable by transformers 4 and 5.

    Args:
        dtype: of the stored weights; None: config.param_dtype.

    Raises:
        ValueError: transformers cannot express the model, or its vocabulary is smaller than the
            tokenizer's.
    """
    _refuse_inexpressible(config, tokenizer)
    theta = float(config.rope_theta)
    scaling = _rope_scaling_fields(config.rope_scaling)
    dtype = dtype or config.param_dtype
    family_fields: dict[str, Any] = {}
    if config.family != "Qwen2ForCausalLM":  # which always has biases
        family_fields["attention_bias"] = False
    if config.family != "LlamaForCausalLM":
        family_fields |= {"use_sliding_window": False, "sliding_window": None}
    return {
        "architectures": [config.family],
        "model_type": MODEL_TYPES[config.family],
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default"} | (scaling or {}) | {"rope_theta": theta},
        "max_position_embeddings": _max_positions(config, tokenizer),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **family_fields,
        "torch_dtype": dtype,
        "dtype": dtype,
        **special_ids(tokenizer),
    }


def _refuse_inexpressible(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    if config.qk_norm and config.attention_bias:
        raise ValueError(
            "model.qk_norm=True with model.attention_bias=True: no Hugging Face family has both;"
            " set one of them"
        )
    if config.family == "LlamaForCausalLM" and config.hidden_size % config.num_heads:
        raise ValueError(
            f"model.hidden_size={config.hidden_size} is not a multiple of"
            f" model.num_heads={config.num_heads}, which LlamaForCausalLM asks for"
        )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"model.vocab_size={config.vocab_size} is smaller than the tokenizer's"
            f" {len(tokenizer)} ids"
        )


def _rope_scaling_fields(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    fields = {theirs: getattr(scaling, ours) for theirs, ours in ROPE_SCALING.items()}
    return {"rope_type": "llama3"} | fields


def _max_positions(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the longest text, in tokens, that the model is meant for.

    The tokenizer says it, or else RoPE.
    """
    if tokenizer.model_max_length < 10**9:  # transformers writes 10**30 for "unknown"
        return int(tokenizer.model_max_length)
    scaling = config.rope_scaling
    return int(scaling.factor * scaling.original_max_position) if scaling else 32768


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """Return the ids of bos, eos and pad under their names in config.json.

    The id of a token that the tokenizer lacks is None.
    """
    return {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }


# Hugging Face's to ours


def model_config_from_hf(config_json: dict[str, Any], **overrides: Any) -> ModelConfig:
    """Return the ModelConfig that a Hugging Face config.json describes.

    The precision is not taken from the file: it is float32 unless overridden.

    Args:
        config_json: the file's content, its rotary fields in the spelling of transformers 4 or 5.
        overrides: fields of ModelConfig.

    Raises:
        ValueError: the file asks for a computation that this model does not have; the message names
            the field.
    """
    family = _family(config_json)
    sizes = _sizes(config_json, family)
    _refuse_unsupported(config_json, family)
    theta, scaling = _rope(config_json)
    values = sizes | {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": float(config_json.get("rms_norm_eps", 1e-6)),
        "qk_norm": family == "Qwen3ForCausalLM",
        "attention_bias": family == "Qwen2ForCausalLM",
        "tie_embeddings": bool(config_json.get("tie_word_embeddings", False)),
    }
    return ModelConfig(**(values | overrides))


def _family(config_json: dict[str, Any]) -> str:
    architectures = config_json.get("architectures")
    model_type = config_json.get("model_type")
    if architectures:
        family = architectures[0]
    else:
        family = next((f for f, of_family in MODEL_TYPES.items() if of_family == model_type), None)
    if family not in MODEL_TYPES:
        raise ValueError(
            f"config.json: architectures={architectures}, model_type={model_type!r}: supported are"
            f" {', '.join(MODEL_TYPES)}"
        )
    return family


def _refuse_unsupported(config_json: dict[str, Any], family: str) -> None:
    for name, allowed in NEUTRAL.items():
        value = config_json.get(name)
        if value is not None and value not in allowed:
            accepted = " or ".join(map(repr, allowed)) or "no such field"
            raise ValueError(
                f"config.json: {name}={value!r} is not supported; accepted is {accepted}"
            )
    if config_json.get("attention_bias") and family != "Qwen2ForCausalLM":
        raise ValueError(
            f"config.json: attention_bias=True of {family} puts a bias on o_proj too, which is not"
            " supported; accepted is False"
        )
    windowed = (
        config_json.get("use_sliding_window")
        and config_json.get("sliding_window")
        and config_json.get("max_window_layers", 0) < config_json["num_hidden_layers"]
    )
    default_types = ["sliding_attention"] if windowed else []
    layer_types = set(config_json.get("layer_types") or default_types)
    if layer_types - {"full_attention"}:
        raise ValueError(
            f"config.json: sliding_window={config_json.get('sliding_window')}, layer_types of"
            f" {sorted(layer_types)}: accepted is full_attention in every layer"
        )


def _sizes(config_json: dict[str, Any], family: str) -> dict[str, int]:
    sizes = {name: config_json[name] for name in SIZES if config_json.get(name) is not None}
    # What transformers takes when a file leaves these out.
    if family == "LlamaForCausalLM" and "num_attention_heads" in sizes:
        sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
    if family != "Qwen3ForCausalLM" and {"hidden_size", "num_attention_heads"} <= sizes.keys():
        sizes.setdefault("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"])
    missing = [name for name in SIZES if name not in sizes]
    if missing:
        raise ValueError(
            f"config.json: {', '.join(missing)} missing; {family} needs a value for each"
        )
    return {ours: int(sizes[theirs]) for theirs, ours in SIZES.items()}


def _rope(config_json: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return theta and, with Llama 3's scaling, the scaling."""
    rope = config_json.get("rope_scaling") or config_json.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta", config_json.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    unknown = set(rope) - ROPE_FIELDS
    if kind not in ("default", "llama3") or unknown or rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"config.json: rope_parameters or rope_scaling {rope}: accepted is rope_type 'default'"
            f" or 'llama3', partial_rotary_factor=1 and no field but {sorted(ROPE_FIELDS)}"
        )
    if kind == "default":
        return theta, None
    missing = [name for name in ROPE_SCALING if rope.get(name) is None]
    if missing:
        raise ValueError(f"config.json: rope_type 'llama3' without {', '.join(missing)}: {rope}")
    return theta, RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position=int(rope["original_max_position_embeddings"]),
    )
