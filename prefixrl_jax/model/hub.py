"""Where a model comes from: a folder, a GGUF file or a hub id.

Its tokenizer and the ids that end its turn are read here too.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.gguf import open_gguf
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
    if path.exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=FILES))
    # No network, no such model, no right to it: the hub raises kinds of its own.
    except Exception as error:
        raise ValueError(
            f"model {str(name)!r}: neither a folder nor a file here, and the hub did not send it"
            f" ({type(error).__name__}: {str(error).splitlines()[0]}); without network bring a"
            f" folder with {', '.join(FILES[:5])}"
        ) from error


def tokenizer_of(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer stored in a model's folder or GGUF file."""
    return open_gguf(path).tokenizer() if path.suffix == ".gguf" else load_tokenizer(path)


def stop_ids(path: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return the token ids that end a text, in ascending order.

    They are eos_token_id of generation_config.json (one or several) and the tokenizer's own. Raises
    ValueError when there is none.
    """
    file = path / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    ids = named if isinstance(named, list) else [named]
    stops = sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None})
    if not stops:
        raise ValueError(
            f"{path}: neither generation_config.json nor the tokenizer names an eos token; no text"
            " could end"
        )
    return tuple(stops)
