"""GGUF files of Llama, Qwen2 and Qwen3 models, read as if they were Hugging Face folders.

A file holds config.json, tensors and tokenizer. Quantised tensors are dequantised with numpy, one
at a time, as they are asked for. Needs the [gguf] extra.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.config import BOUNDS, LARGEST
from prefixrl_jax.model.fields import integer, is_integer, number, refuse, shown, texts
from prefixrl_jax.model.gguf_layout import check_layout
from prefixrl_jax.model.sentencepiece import CONTROL, USER_DEFINED

# general.architecture of a file, and the class of transformers.
FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# llama.cpp's names of tensors, and Hugging Face's.
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
EMBEDDING = "model.embed_tokens.weight"
# How text is split before byte-pair merging; {} stands for how many digits go together.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The tokenizers (tokenizer.ggml.pre) that split so; "smollm" takes each digit alone, and then
# splits as GPT-2 does.
DIGITS = {"llama-bpe": "{1,3}", "qwen2": ""}
SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


@functools.lru_cache(maxsize=1)
def open_gguf(path: Path) -> GGUF:
    """Open a GGUF file, which gives both the weights and the tokenizer."""
    return GGUF(path)


class GGUF:
    """An open GGUF file.

    Raises ValueError for a file, a family or a tokenizer that is not supported.

    Attributes:
        config_json: what the config.json of the model would hold.
    """

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError as error:
            raise ValueError(
                f"{path}: GGUF files need the [gguf] extra: pip install 'prefixrl_jax[gguf]'"
            ) from error
        self._path = path
        self._gguf = gguf
        check_layout(path)
        try:
            reader = gguf.GGUFReader(path)
            self._fields = {name: field.contents() for name, field in reader.fields.items()}
        # The package raises what numpy and its enumerations raise for a value they do not expect.
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable GGUF file ({error})") from error
        self._tensors = {self._hf_name(t.name): t for t in reader.tensors}
        self.config_json = self._config_json()

    def _hf_name(self, name: str) -> str:
        """Return the name that Hugging Face gives a tensor."""
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
        architecture = self._fields.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in FAMILIES:
            raise ValueError(
                f"{self._path}: general.architecture={shown(architecture)}; supported are"
                f" {', '.join(FAMILIES)}"
            )

        # The names in messages: what config.json would call a field is not what the file calls it.
        file = f"{self._path} ({architecture}.*)"
        own_fields = {
            name.removeprefix(f"{architecture}."): value
            for name, value in self._fields.items()
            if name.startswith(f"{architecture}.")
        }

        def size(name: str, of: str, default: int | None = None) -> int:
            if default is not None and name not in own_fields:
                return default
            return integer(file, own_fields, name, LARGEST[of])

        embedding = self._tensors.get(EMBEDDING)
        if embedding is None or len(embedding.shape) != 2:
            raise ValueError(f"{self._path}: no matrix token_embd.weight; every model has one")
        hidden = size("embedding_length", "hidden_size")
        heads = size("attention.head_count", "num_heads")
        epsilon = number(
            file, own_fields, "attention.layer_norm_rms_epsilon", 0.0, BOUNDS["norm_eps"]
        )
        scaling = own_fields.get("rope.scaling.type", "none")
        return {
            "architectures": [FAMILIES[architecture]],
            "vocab_size": int(embedding.shape[1]),
            "hidden_size": hidden,
            "intermediate_size": size("feed_forward_length", "intermediate_size"),
            "num_hidden_layers": size("block_count", "num_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": size("attention.head_count_kv", "num_kv_heads", heads),
            "head_dim": size("attention.key_length", "head_dim", hidden // heads),
            "rope_theta": number(file, own_fields, "rope.freq_base", 10000.0, BOUNDS["rope_theta"]),
            # Any kind of scaling is refused by name where config.json is read.
            "rope_scaling": None if scaling == "none" else {"rope_type": scaling},
            # Stored in float32: six digits are what was written.
            "rms_norm_eps": float(f"{epsilon:.6g}"),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }

    # Tensors

    def keys(self) -> list[str]:
        """Return the Hugging Face names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor, with its axes in Hugging Face's order."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> str:
        """Return the type of the values that `get_tensor` returns, as safetensors names it."""
        return "F32"

    def get_tensor(self, name: str) -> np.ndarray:
        """Return the values of one tensor, float32, in Hugging Face's layout."""
        tensor = self._tensors[name]
        try:
            value = self._gguf.dequantize(tensor.data, tensor.tensor_type)
        except (LookupError, NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path}: tensor {name} is not readable ({error})") from error
        value = value.astype(np.float32, copy=False)
        if self.config_json["architectures"] != ["LlamaForCausalLM"]:
            return value
        heads_field = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(
            name.split(".")[-2]
        )
        if heads_field is None:
            return value
        # For Llama, llama.cpp rotates neighbouring pairs of a head, Hugging Face its two halves.
        heads = self.config_json[heads_field]
        pairs = value.reshape(heads, -1, 2, *value.shape[1:])
        return pairs.swapaxes(1, 2).reshape(value.shape)

    # Tokenizer

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the byte-level BPE tokenizer in the file, chat template included."""
        kind = self._tokenizer_field("model")
        splitting = self._tokenizer_field("pre")
        if kind != "gpt2" or splitting not in ("smollm", *DIGITS):
            raise ValueError(
                f"{self._path}: tokenizer.ggml.model={kind!r}, pre={splitting!r}: supported is"
                f" 'gpt2' with smollm, {', '.join(DIGITS)}; give a folder with tokenizer.json"
                " instead"
            )
        tokens, token_types, merges = self._vocabulary()
        try:
            backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(f"{self._path}: tokenizer.ggml.merges: {error}") from error
        if splitting == "qwen2":
            backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = _pre_tokenizer(splitting)
        backend.decoder = decoders.ByteLevel()
        for token, token_type in zip(tokens, token_types, strict=True):
            if token_type in (CONTROL, USER_DEFINED):
                special = token_type == CONTROL
                backend.add_tokens([AddedToken(token, special=special, normalized=False)])
        template = self._fields.get("tokenizer.chat_template")
        if not isinstance(template, str | None):
            refuse(str(self._path), "tokenizer.chat_template", template, "a text")
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=template,
            clean_up_tokenization_spaces=False,
            **self._named_tokens(tokens),
        )

    def _vocabulary(self) -> tuple[list[str], list[int], list[tuple[str, str]]]:
        """Return the tokens, the type of each, and the pairs that are merged, best first.

        Raises ValueError naming a field that does not hold them.
        """
        file = str(self._path)
        fields = {
            name: self._fields.get(f"tokenizer.ggml.{name}")
            for name in ("tokens", "merges", "token_type")
        }
        tokens = texts(file, fields, "tokens")
        merges = []
        for merge in texts(file, fields, "merges"):
            left, space, right = merge.partition(" ")
            if not space or " " in right:
                refuse(file, "tokenizer.ggml.merges", merge, "a pair of texts with one space")
            merges.append((left, right))
        token_types = fields["token_type"]
        if len(set(tokens)) < len(tokens) or not tokens:
            refuse(file, "tokenizer.ggml.tokens", tokens, "a list of different texts")
        if not isinstance(token_types, list) or len(token_types) != len(tokens):
            refuse(file, "tokenizer.ggml.token_type", token_types, "a type for each token")
        return tokens, token_types, merges

    def _named_tokens(self, tokens: list[str]) -> dict[str, str]:
        """Return the special tokens that have a name, such as eos_token."""
        named_tokens = {}
        for name, key in SPECIAL_TOKENS.items():
            token_id = self._tokenizer_field(f"{key}_token_id")
            if token_id is None:
                continue
            if not is_integer(token_id) or not 0 <= token_id < len(tokens):
                accepted = f"an id from 0 to {len(tokens) - 1}"
                refuse(str(self._path), f"tokenizer.ggml.{key}_token_id", token_id, accepted)
            named_tokens[name] = tokens[token_id]
        return named_tokens

    def _tokenizer_field(self, name: str) -> Any:
        return self._fields.get(f"tokenizer.ggml.{name}")


def _pre_tokenizer(splitting: str) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer that a value of tokenizer.ggml.pre stands for.

    It splits the text before byte-pair merging.
    """
    split: pre_tokenizers.PreTokenizer
    if splitting in DIGITS:
        pattern = WORDS.replace("{}", DIGITS[splitting], 1)
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    else:
        split = pre_tokenizers.Digits(individual_digits=True)
    by_gpt2 = splitting not in DIGITS
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_gpt2)
    return pre_tokenizers.Sequence([split, level])
