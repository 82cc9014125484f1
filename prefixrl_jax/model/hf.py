"""Hugging Face checkpoints in and out: config.json, safetensors and the tokenizer of Llama, Qwen2 and Qwen3 models.

Which tensors there are, their names and their layout is `weights.weight_table`; a tensor that is missing, left over or of
another shape is an error in either direction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prefixrl_jax.model.config import ModelConfig, RopeScaling
from prefixrl_jax.model.tokenizer import fingerprint
from prefixrl_jax.model.weights import Params, Weight, leaf_of, tree_from, weight_table

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MODEL_TYPES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
SIZES = {  # Hugging Face's name of each size, and ours
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "head_dim": "head_dim",
    "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads",
}  # fmt: skip
ROPE_FIELDS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "low_freq_factor", "high_freq_factor",
               "original_max_position_embeddings"}  # fmt: skip
# Fields that would change the computation, each with the values under which it does not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "mlp_bias": (False,), "rope_interleaved": (False,), "partial_rotary_factor": (1,),
    "num_experts": (0,), "num_local_experts": (0,), "n_routed_experts": (0,), "quantization_config": (),
    "attn_logit_softcapping": (), "final_logit_softcapping": (), "logit_scale": (1,), "logits_scaling": (1,),
    "embedding_multiplier": (1,), "residual_multiplier": (1,),
}  # fmt: skip


def hf_config(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast, dtype: str | None = None, max_positions: int | None = None
) -> dict[str, Any]:
    """The config.json of a model, in the spelling of transformers 4 and of 5.

    Args:
        dtype: of the stored weights; config.param_dtype by default.
        max_positions: longest text the model is meant for, in tokens; by default what the tokenizer, else the RoPE scaling says.

    Raises ValueError for a model that transformers cannot express, or whose vocabulary is smaller than the tokenizer's.
    """
    if config.qk_norm and config.attention_bias:
        raise ValueError("model.qk_norm=True with model.attention_bias=True: no Hugging Face family has both; set one of them")
    if config.family == "LlamaForCausalLM" and config.hidden_size % config.num_heads:
        raise ValueError(f"model.hidden_size={config.hidden_size} is not a multiple of model.num_heads={config.num_heads}, "
                         "which LlamaForCausalLM asks for")  # fmt: skip
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"model.vocab_size={config.vocab_size} is smaller than the tokenizer's {len(tokenizer)} ids")
    theta, scaling = float(config.rope_theta), _rope_scaling_fields(config.rope_scaling)
    dtype = dtype or config.param_dtype
    qwen = {} if config.family == "LlamaForCausalLM" else {"use_sliding_window": False, "sliding_window": None}
    biases = {} if config.family == "Qwen2ForCausalLM" else {"attention_bias": False}
    return {
        "architectures": [config.family], "model_type": MODEL_TYPES[config.family],
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "hidden_act": "silu", "rms_norm_eps": config.norm_eps, "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": theta, "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default"} | (scaling or {}) | {"rope_theta": theta},
        "max_position_embeddings": max_positions or _max_positions(config, tokenizer),
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, **biases, **qwen,
        "torch_dtype": dtype, "dtype": dtype, **_special_ids(tokenizer),
    }  # fmt: skip


def _rope_scaling_fields(s: RopeScaling | None) -> dict[str, Any] | None:
    if s is None:
        return None
    return {
        "rope_type": "llama3", "factor": s.factor, "original_max_position_embeddings": s.original_max_position,
        "low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor,
    }  # fmt: skip


def _max_positions(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    if tokenizer.model_max_length < 10**9:  # transformers writes 10**30 for "unknown"
        return int(tokenizer.model_max_length)
    s = config.rope_scaling
    return int(s.factor * s.original_max_position) if s else 32768


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def model_config_from_hf(config_json: dict[str, Any], **overrides: Any) -> ModelConfig:
    """The ModelConfig of a config.json, rotary fields in either spelling; `overrides` are fields of ModelConfig.

    The precision is not taken from the file: it is float32 unless overridden. Raises ValueError naming the field when the file
    asks for a computation that this model does not have.
    """
    family = _family(config_json)
    sizes = _sizes(config_json, family)
    _refuse_unsupported(config_json, family)
    theta, scaling = _rope(config_json)
    values = sizes | {
        "rope_theta": theta, "rope_scaling": scaling, "norm_eps": float(config_json.get("rms_norm_eps", 1e-6)),
        "qk_norm": family == "Qwen3ForCausalLM", "attention_bias": family == "Qwen2ForCausalLM",
        "tie_embeddings": bool(config_json.get("tie_word_embeddings", False)),
    }  # fmt: skip
    return ModelConfig(**(values | overrides))


def _family(c: dict[str, Any]) -> str:
    by_type = {model_type: family for family, model_type in MODEL_TYPES.items()}
    family = (c.get("architectures") or [by_type.get(c.get("model_type"))])[0]
    if family not in MODEL_TYPES:
        raise ValueError(f"config.json: architectures={c.get('architectures')}, model_type={c.get('model_type')!r}: "
                         f"supported are {', '.join(MODEL_TYPES)}")  # fmt: skip
    return family


def _refuse_unsupported(c: dict[str, Any], family: str) -> None:
    for name, allowed in NEUTRAL.items():
        if c.get(name) is not None and c[name] not in allowed:
            accepted = " or ".join(map(repr, allowed)) or "no such field"
            raise ValueError(f"config.json: {name}={c[name]!r} is not supported; accepted is {accepted}")
    if c.get("attention_bias") and family != "Qwen2ForCausalLM":
        raise ValueError(f"config.json: attention_bias=True of {family} puts a bias on o_proj too, which is not supported; "
                         "accepted is False")  # fmt: skip
    windowed = c.get("use_sliding_window") and c.get("sliding_window") and c.get("max_window_layers", 0) < c["num_hidden_layers"]
    kinds = set(c.get("layer_types") or (["sliding_attention"] if windowed else []))
    if kinds - {"full_attention"}:
        raise ValueError(f"config.json: sliding_window={c.get('sliding_window')}, layer_types of {sorted(kinds)}: "
                         "accepted is full_attention in every layer")  # fmt: skip


def _sizes(c: dict[str, Any], family: str) -> dict[str, int]:
    c = {name: c[name] for name in SIZES if c.get(name) is not None}
    if family == "LlamaForCausalLM" and "num_attention_heads" in c:
        c.setdefault("num_key_value_heads", c["num_attention_heads"])
    if family != "Qwen3ForCausalLM" and {"hidden_size", "num_attention_heads"} <= c.keys():
        c.setdefault("head_dim", c["hidden_size"] // c["num_attention_heads"])
    if missing := [name for name in SIZES if name not in c]:
        raise ValueError(f"config.json: {', '.join(missing)} missing; {family} needs a value for each")
    return {ours: int(c[theirs]) for theirs, ours in SIZES.items()}


def _rope(c: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta", c.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    unknown = sorted(set(rope) - ROPE_FIELDS)
    if kind not in ("default", "llama3") or unknown or rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"config.json: rope_parameters or rope_scaling {rope}: accepted is rope_type 'default' or 'llama3', "
                         f"partial_rotary_factor=1 and no field but {sorted(ROPE_FIELDS)}")  # fmt: skip
    if kind == "default":
        return theta, None
    fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [name for name in fields if rope.get(name) is None]:
        raise ValueError(f"config.json: rope_type 'llama3' without {', '.join(missing)}: {rope}")
    factor, low, high, original = (rope[name] for name in fields)
    return theta, RopeScaling(float(factor), float(low), float(high), int(original))


def _tensors(table: tuple[Weight, ...], config: ModelConfig) -> Iterator[tuple[Weight, int | None]]:
    """Every tensor of a checkpoint: its weight, named for its layer, and that layer (None for a weight outside the layers)."""
    for w in table:
        for layer in range(config.num_layers) if w.stacked else [None]:
            yield dataclasses.replace(w, hf=w.hf.format(layer)), layer


def export_hf(
    params: Params,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    directory: str | Path,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 2**30,
    generation: dict[str, Any] | None = None,
    card: str = "",
) -> None:
    """Writes a folder that transformers loads: weights, config.json, generation_config.json, tokenizer, README.md.

    Everything is written beside `directory` and renamed into its place at the end, replacing an earlier export.
    On several hosts every process must call this (weights are gathered one layer at a time); the first one writes.

    Args:
        params: arrays, sharded or not; each is brought to the host one layer at a time.
        dtype: of the stored weights; config.param_dtype by default.
        max_shard_bytes: a larger model is cut into several safetensors files of at most this size.
        generation: fields of generation_config.json beside the special token ids, which it may replace.
        card: Markdown of README.md, below the header that names the library.
    """
    directory = Path(directory)
    fields = hf_config(config, tokenizer, dtype)
    staging = directory.with_name(f".{directory.name}.partial")
    writes = jax.process_index() == 0
    if writes:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    _write_weights(params, config, staging, jnp.dtype(fields["dtype"]), max_shard_bytes, writes)
    if writes:
        _write_json(staging / "config.json", fields)
        _write_json(staging / "generation_config.json", _special_ids(tokenizer) | (generation or {}))
        tokenizer.save_pretrained(staging)
        header = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        (staging / "README.md").write_text("\n".join(filter(None, [header, card, _tokenizer_note(staging, tokenizer)])) + "\n")
        _replace(staging, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export_hf")


def _write_weights(params: Params, config: ModelConfig, directory: Path, dtype: np.dtype, max_bytes: int, writes: bool) -> None:
    shards: list[list[tuple[Weight, int | None]]] = [[]]
    sizes = [0]
    for w, layer in _tensors(weight_table(config), config):
        size = int(np.prod(w.shape)) * dtype.itemsize
        if shards[-1] and sizes[-1] + size > max_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append((w, layer))
        sizes[-1] += size
    names = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        values = {}
        for w, layer in shard:
            value = _to_host(leaf_of(params, w) if layer is None else leaf_of(params, w)[layer])
            if writes:
                values[w.hf] = np.ascontiguousarray(w.to_hf(value).astype(dtype))
        if writes:
            save_file(values, directory / name, metadata={"format": "pt"})  # transformers refuses a file without a format
    if writes and len(shards) > 1:
        files = {w.hf: name for name, shard in zip(names, shards, strict=True) for w, _ in shard}
        _write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": files})


def _to_host(x: jax.Array) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(jax.device_get(x))


def _tokenizer_note(directory: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the card must say when AutoTokenizer would change this tokenizer: it rebuilds Qwen2's own for any Qwen2 model."""
    try:
        if fingerprint(AutoTokenizer.from_pretrained(str(directory))) == fingerprint(tokenizer):
            return ""
    except (OSError, ValueError) as error:
        logging.warning("AutoTokenizer cannot read the exported tokenizer: %s", error)
    logging.warning("AutoTokenizer changes the exported tokenizer; PreTrainedTokenizerFast reads it as it is (README.md says so)")
    return ("\n## Tokenizer\n\n`AutoTokenizer` replaces this model's tokenizer with its family's own. Load it with\n"
            "`transformers.PreTrainedTokenizerFast.from_pretrained(path)`, which reads `tokenizer.json` as it is.")  # fmt: skip


def _replace(staging: Path, directory: Path) -> None:
    """Renames `staging` to `directory`; a directory that is there is moved aside first and removed last."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    staging.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def import_hf(directory: str | Path, dtype: str = "float32", shardings: Params | None = None) -> tuple[Params, ModelConfig]:
    """Parameters and configuration of the Hugging Face model in `directory` (safetensors, one file or several with an index).

    Args:
        dtype: of the parameters and, in the returned configuration, of storage and computation both.
        shardings: a tree of `jax.sharding.Sharding`, as `mesh.param_shardings` gives; without it leaves go to the default device.

    One leaf at a time is held on the host. Raises ValueError naming every tensor that is missing, left over or mis-shaped, and
    FileNotFoundError when a file is not there. Rotary buffers are ignored, and so is an output head equal to a tied embedding.
    """
    directory = Path(directory)
    config = model_config_from_hf(_read_json(directory / "config.json"), param_dtype=dtype, dtype=dtype)
    table = weight_table(config)
    with contextlib.ExitStack() as stack:
        source = _open(directory, stack)
        _check_names(source, {w.hf for w, _ in _tensors(table, config)}, config, directory)

        def leaf(w: Weight) -> jax.Array:
            host = np.empty(w.full_shape(config), jnp.dtype(dtype))
            for named, layer in _tensors((w,), config):
                host[... if layer is None else layer] = named.from_hf(source[named.hf].get_tensor(named.hf))
            if shardings is None:
                return jnp.asarray(host)
            # Each process hands over only what its devices hold.
            return jax.make_array_from_callback(host.shape, leaf_of(shardings, w), lambda index: host[index])

        return tree_from(table, leaf), config


def _open(directory: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The open safetensors file that holds each tensor."""
    names = [SINGLE]
    if (directory / INDEX).exists():
        names = sorted(set(_read_json(directory / INDEX)["weight_map"].values()))
    source = {}
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name}: not found; accepted are {SINGLE}, or the files that {INDEX} lists")
        file = stack.enter_context(safe_open(directory / name, framework="numpy"))
        source |= dict.fromkeys(file.keys(), file)
    return source


def _check_names(source: dict[str, Any], expected: set[str], config: ModelConfig, directory: Path) -> None:
    present = {name for name in source if not name.endswith("rotary_emb.inv_freq")}
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if config.tie_embeddings and {head, embedding} <= present:
        if not np.array_equal(source[head].get_tensor(head), source[embedding].get_tensor(embedding)):
            raise ValueError(f"{directory}: {head} differs from {embedding}, yet config.json says tie_word_embeddings=true")
        present.discard(head)
    found = {"missing": expected - present, "not of this model": present - expected}
    if problems := [f"{what}: {', '.join(sorted(names))}" for what, names in found.items() if names]:
        raise ValueError(f"{directory}: tensors {'; '.join(problems)}")
