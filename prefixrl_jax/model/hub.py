"""Where a model comes from: a folder, a GGUF file or a hub id.

Its tokenizer and the ids that end its turn are read here too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.fields import is_integer
from prefixrl_jax.model.folder_files import read_object_if_any
from prefixrl_jax.model.gguf import open_gguf
from prefixrl_jax.model.hf_config import CONFIG, GENERATION, eos_ids
from prefixrl_jax.model.tokenizer import load_tokenizer

# What is fetched from the hub.
FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
]


def find_model(name: str | Path) -> Path:
    """Return the local path of a folder, of a GGUF file, or of a model fetched from the hub.

    Raises ValueError saying which files to bring when there is no such model.
    """
    path = Path(name)
    if os.path.exists(path):  # which raises nothing, unlike Path.exists
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=FILES))
    # No network, no such model, no right to it: the hub raises kinds of its own.
    except Exception as error:
        reason, *_ = str(error).splitlines() or [""]
        raise ValueError(
            f"model {str(name)!r}: neither a folder nor a file here, and the hub did not send it"
            f" ({type(error).__name__}: {reason}); without network bring a"
            f" folder with {', '.join(FILES[:5])}"
        ) from error


def tokenizer_of(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer stored in a model's folder or GGUF file.

    Raises ValueError naming `path` if it is damaged, or too large to be one, or has token ids that
    the model beside it lacks.
    """
    try:
        tokenizer = open_gguf(path).tokenizer() if path.suffix == ".gguf" else load_tokenizer(path)
        tokenizer.encode("a")  # some settings are only read here
    except (OSError, ValueError):
        raise
    # transformers, tokenizers and protobuf raise what their code runs into, and tokenizers' Rust
    # code panics with a BaseException.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: the tokenizer is damaged ({type(error).__name__}: {reason}); whole"
            " tokenizer.json and tokenizer_config.json are accepted"
        ) from error
    _check_ids(path, tokenizer)
    return tokenizer


def _check_ids(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError for a token id that the model in the same folder lacks."""
    vocab_size = _vocab_size(read_object_if_any(path, CONFIG))
    largest = max(tokenizer.get_vocab().values(), default=0)
    if vocab_size is not None and largest >= vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens with ids up to {largest}, the model"
            f" a vocabulary of {vocab_size} (config.json: vocab_size); ids from 0 to"
            f" {vocab_size - 1} are accepted"
        )


def _vocab_size(config_json: dict[str, Any]) -> int | None:
    """Return the size of the model's vocabulary; None where config.json does not say it."""
    size: Any = config_json.get("vocab_size")
    return size if is_integer(size) and size > 0 else None


def stop_ids(path: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return the token ids that end a text, in ascending order.

    They are eos_token_id of config.json and of generation_config.json (one or several) and the
    tokenizer's own. Raises ValueError when there is none, or one that is not in the vocabulary.
    """
    config_json = read_object_if_any(path, CONFIG)
    generation_json = read_object_if_any(path, GENERATION)
    vocab_size = _vocab_size(config_json)
    ids = eos_ids(config_json, generation_json, vocab_size)
    tokenizer_id = tokenizer.eos_token_id
    if tokenizer_id is not None:
        if vocab_size is not None and tokenizer_id >= vocab_size:
            raise ValueError(
                f"{path}: the tokenizer's eos_token {tokenizer.eos_token!r} has the id"
                f" {tokenizer_id}; an id from 0 to {vocab_size - 1} is accepted"
            )
        ids.add(tokenizer_id)
    if not ids:
        raise ValueError(
            f"{path}: neither config.json nor generation_config.json nor the tokenizer names an eos"
            " token; no text could end"
        )
    return tuple(sorted(ids))
