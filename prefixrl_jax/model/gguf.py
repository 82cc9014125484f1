"""GGUF files of Llama, Qwen2 and Qwen3 models, as if they were Hugging Face folders: config.json,
tensors and tokenizer.

Quantised tensors are dequantised with numpy, one at a time, as they are asked for. Needs the [gguf]
extra.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# How text is split before byte-pair merging, by tokenizer.ggml.pre; {} stands for how many digits
# go together.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"llama-bpe": "{1,3}", "qwen2": ""}
CONTROL, USER_DEFINED = 3, 4  # token types


@functools.lru_cache(maxsize=1)
def open_gguf(path: Path) -> GGUF:
    """The file, read once for its weights and its tokenizer."""
    return GGUF(path)


class GGUF:
    """An open GGUF file. Raises ValueError for a file, family or tokenizer that is not
    supported.
    """

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError as error:
            raise ValueError(
                f"{path}: GGUF files need the [gguf] extra: pip install 'prefixrl_jax[gguf]'"
            ) from error
        self._path, self._gguf = path, gguf
        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: not a readable GGUF file ({error})") from error
        self._fields = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {self._hf_name(t.name): t for t in reader.tensors}
        self.config_json = self._config_json()

    def _hf_name(self, name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if stem in TENSORS:
            return f"{TENSORS[stem]}.{kind}"
        block, _, part = stem.removeprefix("blk.").partition(".")
        if not stem.startswith("blk.") or part not in LAYER:
            raise ValueError(
                f"{self._path}: tensor {name} is of a computation that is not supported (Llama 3's"
                " rotary scaling is read from safetensors only)"
            )
        return f"model.layers.{block}.{LAYER[part]}.{kind}"

    def _config_json(self) -> dict[str, Any]:
        kind = self._fields.get("general.architecture")
        if kind not in FAMILIES:
            raise ValueError(
                f"{self._path}: general.architecture={kind!r}; supported are {', '.join(FAMILIES)}"
            )

        def get(name: str, default: Any = None) -> Any:
            return self._fields.get(f"{kind}.{name}", default)

        heads = get("attention.head_count")
        return {
            "architectures": [FAMILIES[kind]],
            "vocab_size": int(self._tensors["model.embed_tokens.weight"].shape[1]),
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "head_dim": get("attention.key_length", get("embedding_length") // heads),
            "rope_theta": get("rope.freq_base", 10000.0),
            "rope_scaling": self._rope_scaling(kind),
            # stored in float32
            "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }

    def _rope_scaling(self, kind: str) -> dict[str, Any] | None:
        scaling = self._fields.get(f"{kind}.rope.scaling.type", "none")
        # which the reader of config.json refuses by name
        return None if scaling == "none" else {"rope_type": scaling}

    def keys(self) -> list[str]:
        """The Hugging Face names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, in Hugging Face's order."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def get_tensor(self, name: str) -> np.ndarray:
        """float32 values of one tensor, in Hugging Face's layout."""
        tensor = self._tensors[name]
        value = self._gguf.dequantize(tensor.data, tensor.tensor_type).astype(
            np.float32, copy=False
        )
        if self.config_json["architectures"] == ["LlamaForCausalLM"] and name.split(".")[-2] in (
            "q_proj",
            "k_proj",
        ):
            heads = self.config_json[
                "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            ]
            # llama.cpp turns neighbouring pairs of a head, Hugging Face its two halves.
            value = (
                value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
            )
        return value

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The byte-level BPE tokenizer in the file, chat template included."""

        def field(name: str) -> Any:
            return self._fields.get(f"tokenizer.ggml.{name}")

        if field("model") != "gpt2" or field("pre") not in ("smollm", *DIGITS):
            raise ValueError(
                f"{self._path}: tokenizer.ggml.model={field('model')!r}, pre={field('pre')!r}:"
                f" supported is 'gpt2' with smollm, {', '.join(DIGITS)}; give a folder with"
                " tokenizer.json instead"
            )
        tokens = field("tokens")
        merges = [tuple(merge.split(" ")) for merge in field("merges")]
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        split: Any = pre_tokenizers.Digits(individual_digits=True)
        if field("pre") in DIGITS:
            split = pre_tokenizers.Split(
                Regex(WORDS.replace("{}", DIGITS[field("pre")], 1)), "isolated"
            )
        if field("pre") == "qwen2":
            backend.normalizer = normalizers.NFC()
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=field("pre") == "smollm")
        backend.pre_tokenizer, backend.decoder = (
            pre_tokenizers.Sequence([split, level]),
            decoders.ByteLevel(),
        )
        for token, kind in zip(tokens, field("token_type"), strict=True):
            if kind in (CONTROL, USER_DEFINED):
                backend.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
        names = {
            "bos_token": "bos",
            "eos_token": "eos",
            "unk_token": "unknown",
            "pad_token": "padding",
        }
        special = {
            name: tokens[i]
            for name, key in names.items()
            if (i := field(f"{key}_token_id")) is not None
        }
        template = self._fields.get("tokenizer.chat_template")
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=template,
            clean_up_tokenization_spaces=False,
            **special,
        )
