"""config.json of Llama, Qwen2 and Qwen3 models, both ways.

A field that would change the computation is refused by name.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.config import BOUNDS, LARGEST, ModelConfig, RopeScaling
from prefixrl_jax.model.fields import boolean, integer, is_integer, number, refuse, shown, texts

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
MAX_POSITIONS = 2**31 - 1  # those that an int32 can number
CONFIG, GENERATION = "config.json", "generation_config.json"
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
    if 0 < tokenizer.model_max_length < 10**9:  # transformers writes 10**30 for "unknown"
        return int(tokenizer.model_max_length)
    scaling = config.rope_scaling
    if scaling is None:
        return 32768
    positions = int(scaling.factor * scaling.original_max_position)
    return min(max(positions, 1), MAX_POSITIONS)


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
    max_positions(config_json)  # refuses what is no length
    theta, scaling = _rope(config_json)
    values = sizes | {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": number(CONFIG, config_json, "rms_norm_eps", 1e-6, BOUNDS["norm_eps"]),
        "qk_norm": family == "Qwen3ForCausalLM",
        "attention_bias": family == "Qwen2ForCausalLM",
        "tie_embeddings": boolean(CONFIG, config_json, "tie_word_embeddings"),
    }
    return ModelConfig(**(values | overrides))


def max_positions(config_json: dict[str, Any]) -> int | None:
    """Return the tokens that a text may have; None if the file does not say."""
    if config_json.get("max_position_embeddings") is None:
        return None
    return integer(CONFIG, config_json, "max_position_embeddings", MAX_POSITIONS)


def eos_ids(
    config_json: dict[str, Any], generation_json: dict[str, Any], vocab_size: int | None
) -> set[int]:
    """Return the token ids that end a text by config.json and generation_config.json together.

    Args:
        config_json: content of config.json; {} if there is none.
        generation_json: content of generation_config.json; {} if there is none.
        vocab_size: ids are below it; None: the model's vocabulary is not known.

    Raises:
        ValueError: an eos_token_id is neither null, an id of the vocabulary, nor a list of ids.
    """
    ids: set[int] = set()
    contents = {CONFIG: config_json, GENERATION: generation_json}
    for file, content in contents.items():
        value = content.get("eos_token_id")
        if value is None:
            continue
        listed = value if isinstance(value, list) else [value]
        # Without a configuration, ids are bounded by the int32 that holds a token.
        largest = (vocab_size or 2**31) - 1
        if not all(is_integer(token) and 0 <= token <= largest for token in listed):
            accepted = f"a token id from 0 to {largest}, a list of such ids or null"
            refuse(file, "eos_token_id", value, accepted)
        ids |= set(listed)
    return ids


def _family(config_json: dict[str, Any]) -> str:
    architectures = texts(CONFIG, config_json, "architectures")
    model_type = config_json.get("model_type")
    if architectures:
        family = architectures[0]
    else:
        family = next((f for f, of_family in MODEL_TYPES.items() if of_family == model_type), "")
    if family not in MODEL_TYPES:
        raise ValueError(
            f"config.json: architectures={shown(architectures)}, model_type={shown(model_type)}:"
            f" supported are {', '.join(MODEL_TYPES)}"
        )
    return family


def _refuse_unsupported(config_json: dict[str, Any], family: str) -> None:
    for name, allowed in NEUTRAL.items():
        value = config_json.get(name)
        if value is not None and value not in allowed:
            accepted = " or ".join(map(repr, allowed)) or "no such field"
            raise ValueError(
                f"config.json: {name}={shown(value)} is not supported; accepted is {accepted}"
            )
    if boolean(CONFIG, config_json, "attention_bias") and family != "Qwen2ForCausalLM":
        raise ValueError(
            f"config.json: attention_bias=True of {family} puts a bias on o_proj too, which is not"
            " supported; accepted is False"
        )
    default_types = ["sliding_attention"] if _is_windowed(config_json) else []
    layer_types = set(texts(CONFIG, config_json, "layer_types") or default_types)
    if layer_types - {"full_attention"}:
        raise ValueError(
            f"config.json: sliding_window={config_json.get('sliding_window')}, layer_types of"
            f" {shown(sorted(layer_types))}: accepted is full_attention in every layer"
        )


def _is_windowed(config_json: dict[str, Any]) -> bool:
    """Return whether some layer attends to a window of the text only."""
    if not boolean(CONFIG, config_json, "use_sliding_window") or not config_json.get(
        "sliding_window"
    ):
        return False
    full_layers = config_json.get("max_window_layers", 0)
    if not is_integer(full_layers):
        refuse(CONFIG, "max_window_layers", full_layers, "an integer")
    return full_layers < config_json["num_hidden_layers"]


def _sizes(config_json: dict[str, Any], family: str) -> dict[str, int]:
    """Return every size under our name, as transformers reads a file that leaves some out."""
    sizes = {
        theirs: integer(CONFIG, config_json, theirs, LARGEST[ours])
        for theirs, ours in SIZES.items()
        if config_json.get(theirs) is not None
    }
    if family == "LlamaForCausalLM" and "num_attention_heads" in sizes:
        sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
    if family != "Qwen3ForCausalLM" and {"hidden_size", "num_attention_heads"} <= sizes.keys():
        sizes.setdefault("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"])
    missing = [name for name in SIZES if name not in sizes]
    if missing:
        raise ValueError(
            f"config.json: {', '.join(missing)} missing; {family} needs a value for each"
        )
    return {ours: sizes[theirs] for theirs, ours in SIZES.items()}


def _rope(config_json: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return theta and, with Llama 3's scaling, the scaling."""
    rope = config_json.get("rope_scaling") or config_json.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        refuse(CONFIG, "rope_parameters or rope_scaling", rope, "an object or null")
    theta = number(CONFIG, config_json, "rope_theta", 10000.0, BOUNDS["rope_theta"])
    if "rope_theta" in rope:  # transformers 5 has it here, version 4 outside, some files both
        inner_theta = number(CONFIG, rope, "rope_theta", theta, BOUNDS["rope_theta"])
        if "rope_theta" in config_json and theta != inner_theta:
            refuse(CONFIG, "rope_theta", theta, f"{inner_theta}, as in rope_parameters,")
        theta = inner_theta
    kind = rope.get("rope_type", rope.get("type", "default"))
    unknown = set(rope) - ROPE_FIELDS
    if kind not in ("default", "llama3") or unknown or rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"config.json: rope_parameters or rope_scaling {shown(rope)}: accepted is rope_type"
            " 'default' or 'llama3', partial_rotary_factor=1 and no field but"
            f" {sorted(ROPE_FIELDS)}"
        )
    if kind == "default":
        return theta, None
    missing = [name for name in ROPE_SCALING if rope.get(name) is None]
    if missing:
        raise ValueError(
            f"config.json: rope_type 'llama3' without {', '.join(missing)}: {shown(rope)}"
        )
    return theta, RopeScaling(
        factor=number(CONFIG, rope, "factor", 1.0, BOUNDS["factor"]),
        low_freq_factor=number(CONFIG, rope, "low_freq_factor", 1.0, BOUNDS["low_freq_factor"]),
        high_freq_factor=number(CONFIG, rope, "high_freq_factor", 4.0, BOUNDS["high_freq_factor"]),
        original_max_position=integer(
            CONFIG, rope, "original_max_position_embeddings", MAX_POSITIONS
        ),
    )
