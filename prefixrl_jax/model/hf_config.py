"""config.json of Llama, Qwen2 and Qwen3 models, both ways.

A field that would change the computation is refused by name.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.config import ModelConfig, RopeScaling

MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
SIZES = {  # Hugging Face's name of each size, and ours
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
}
ROPE_FIELDS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
}
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


def hf_config(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    dtype: str | None = None,
    max_positions: int | None = None,
) -> dict[str, Any]:
    """The config.json of a model, in the spelling of transformers 4 and of 5.

    Args:
        dtype: of the stored weights; config.param_dtype by default.
        max_positions: longest text the model is meant for, in tokens; by default what the
            tokenizer, else the RoPE scaling says.

    Raises ValueError for a model that transformers cannot express, or whose vocabulary is smaller
    than the tokenizer's.
    """
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
    theta, scaling = float(config.rope_theta), _rope_scaling_fields(config.rope_scaling)
    dtype = dtype or config.param_dtype
    qwen = (
        {}
        if config.family == "LlamaForCausalLM"
        else {"use_sliding_window": False, "sliding_window": None}
    )
    biases = {} if config.family == "Qwen2ForCausalLM" else {"attention_bias": False}
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
        "max_position_embeddings": max_positions or _max_positions(config, tokenizer),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **biases,
        **qwen,
        "torch_dtype": dtype,
        "dtype": dtype,
        **special_ids(tokenizer),
    }


def _rope_scaling_fields(s: RopeScaling | None) -> dict[str, Any] | None:
    if s is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": s.factor,
        "original_max_position_embeddings": s.original_max_position,
        "low_freq_factor": s.low_freq_factor,
        "high_freq_factor": s.high_freq_factor,
    }


def _max_positions(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    if tokenizer.model_max_length < 10**9:  # transformers writes 10**30 for "unknown"
        return int(tokenizer.model_max_length)
    s = config.rope_scaling
    return int(s.factor * s.original_max_position) if s else 32768


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """The ids of bos, eos and pad under their names in config.json; None for one the tokenizer
    lacks.
    """
    return {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }


def model_config_from_hf(config_json: dict[str, Any], **overrides: Any) -> ModelConfig:
    """The ModelConfig of a config.json, rotary fields in either spelling; `overrides` are fields of
    ModelConfig.

    The precision is not taken from the file: it is float32 unless overridden. Raises ValueError
    naming the field when the file asks for a computation that this model does not have.
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


def _family(c: dict[str, Any]) -> str:
    by_type = {model_type: family for family, model_type in MODEL_TYPES.items()}
    family = (c.get("architectures") or [by_type.get(c.get("model_type", ""))])[0]
    if family not in MODEL_TYPES:
        raise ValueError(
            f"config.json: architectures={c.get('architectures')},"
            f" model_type={c.get('model_type')!r}: supported are {', '.join(MODEL_TYPES)}"
        )
    return family


def _refuse_unsupported(c: dict[str, Any], family: str) -> None:
    for name, allowed in NEUTRAL.items():
        if c.get(name) is not None and c[name] not in allowed:
            accepted = " or ".join(map(repr, allowed)) or "no such field"
            raise ValueError(
                f"config.json: {name}={c[name]!r} is not supported; accepted is {accepted}"
            )
    if c.get("attention_bias") and family != "Qwen2ForCausalLM":
        raise ValueError(
            f"config.json: attention_bias=True of {family} puts a bias on o_proj too, which is not"
            " supported; accepted is False"
        )
    windowed = (
        c.get("use_sliding_window")
        and c.get("sliding_window")
        and c.get("max_window_layers", 0) < c["num_hidden_layers"]
    )
    kinds = set(c.get("layer_types") or (["sliding_attention"] if windowed else []))
    if kinds - {"full_attention"}:
        raise ValueError(
            f"config.json: sliding_window={c.get('sliding_window')}, layer_types of"
            f" {sorted(kinds)}: accepted is full_attention in every layer"
        )


def _sizes(c: dict[str, Any], family: str) -> dict[str, int]:
    c = {name: c[name] for name in SIZES if c.get(name) is not None}
    if family == "LlamaForCausalLM" and "num_attention_heads" in c:
        c.setdefault("num_key_value_heads", c["num_attention_heads"])
    if family != "Qwen3ForCausalLM" and {"hidden_size", "num_attention_heads"} <= c.keys():
        c.setdefault("head_dim", c["hidden_size"] // c["num_attention_heads"])
    if missing := [name for name in SIZES if name not in c]:
        raise ValueError(
            f"config.json: {', '.join(missing)} missing; {family} needs a value for each"
        )
    return {ours: int(c[theirs]) for theirs, ours in SIZES.items()}


def _rope(c: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta", c.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    unknown = sorted(set(rope) - ROPE_FIELDS)
    if kind not in ("default", "llama3") or unknown or rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"config.json: rope_parameters or rope_scaling {rope}: accepted is rope_type 'default'"
            f" or 'llama3', partial_rotary_factor=1 and no field but {sorted(ROPE_FIELDS)}"
        )
    if kind == "default":
        return theta, None
    fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [name for name in fields if rope.get(name) is None]:
        raise ValueError(f"config.json: rope_type 'llama3' without {', '.join(missing)}: {rope}")
    factor, low, high, original = (rope[name] for name in fields)
    return theta, RopeScaling(float(factor), float(low), float(high), int(original))
