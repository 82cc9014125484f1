"""Hugging Face checkpoints in and out: safetensors, config.json (see hf_config.py) and the
tokenizer.

Which tensors there are, their names and their layout is `weights.weight_table`; a tensor that is
missing, left over or of another shape is an error in either direction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.gguf import GGUF, open_gguf
from prefixrl_jax.model.hf_config import hf_config, model_config_from_hf, special_ids
from prefixrl_jax.model.tokenizer import fingerprint
from prefixrl_jax.model.weights import Params, Weight, leaf_of, tree_from, weight_table
from prefixrl_jax.runtime.files import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def _tensors(table: tuple[Weight, ...], config: ModelConfig) -> Iterator[tuple[Weight, int | None]]:
    """Every tensor of a checkpoint: its weight, named for its layer, and that layer (None for a
    weight outside the layers).
    """
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
    """Writes a folder that transformers loads: weights, config.json, generation_config.json,
    tokenizer, README.md.

    Everything is written beside `directory` and renamed into its place at the end, replacing an
    earlier export. On several hosts every process must call this (weights are gathered one layer at
    a time); the first one writes.

    Args:
        params: arrays, sharded or not; each is brought to the host one layer at a time.
        dtype: of the stored weights; config.param_dtype by default.
        max_shard_bytes: a larger model is cut into several safetensors files of at most this size.
        generation: fields of generation_config.json beside the special token ids, which it may
            replace.
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
        write_json(staging / "config.json", fields)
        # which safetensors makes for the owner's eyes alone
        for file in staging.glob("*.safetensors"):
            shutil.copymode(staging / "config.json", file)
        write_json(staging / "generation_config.json", special_ids(tokenizer) | (generation or {}))
        tokenizer.save_pretrained(staging)
        header = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        (staging / "README.md").write_text(
            "\n".join(filter(None, [header, card, _tokenizer_note(staging, tokenizer)])) + "\n"
        )
        _replace(staging, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export_hf")


def _write_weights(
    params: Params,
    config: ModelConfig,
    directory: Path,
    dtype: np.dtype,
    max_bytes: int,
    writes: bool,
) -> None:
    shards: list[list[tuple[Weight, int | None]]] = [[]]
    sizes = [0]
    for w, layer in _tensors(weight_table(config), config):
        size = int(np.prod(w.shape)) * dtype.itemsize
        if shards[-1] and sizes[-1] + size > max_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append((w, layer))
        sizes[-1] += size
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        values = {}
        for w, layer in shard:
            value = _to_host(leaf_of(params, w) if layer is None else leaf_of(params, w)[layer])
            if writes:
                values[w.hf] = np.ascontiguousarray(w.to_hf(value).astype(dtype))
        if writes:
            # transformers refuses a file without a format
            save_file(values, directory / name, metadata={"format": "pt"})
    if writes and len(shards) > 1:
        files = {w.hf: name for name, shard in zip(names, shards, strict=True) for w, _ in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": files})


def _to_host(x: jax.Array) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(jax.device_get(x))


def _tokenizer_note(directory: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the card must say when AutoTokenizer would change this tokenizer: it rebuilds Qwen2's
    own for any Qwen2 model.
    """
    from transformers import AutoTokenizer  # a third of a second that every start would pay

    try:
        if fingerprint(AutoTokenizer.from_pretrained(str(directory))) == fingerprint(tokenizer):
            return ""
    except (OSError, ValueError) as error:
        logging.warning("AutoTokenizer cannot read the exported tokenizer: %s", error)
    logging.warning(
        "AutoTokenizer changes the exported tokenizer; PreTrainedTokenizerFast reads it as it is"
        " (README.md says so)"
    )
    return (
        "\n## Tokenizer\n\n`AutoTokenizer` replaces this model's tokenizer with its family's own."
        " Load it with\n`transformers.PreTrainedTokenizerFast.from_pretrained(path)`, which reads"
        " `tokenizer.json` as it is."
    )


def _replace(staging: Path, directory: Path) -> None:
    """Renames `staging` to `directory`; a directory that is there is moved aside first and removed
    last.
    """
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    staging.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def import_hf(
    directory: str | Path,
    dtype: str = "float32",
    place: Callable[[ModelConfig], Params] | None = None,
) -> tuple[Params, ModelConfig]:
    """Parameters and configuration of the Hugging Face model in `directory` (safetensors, one file
    or several with an index), or of a GGUF file.

    Args:
        dtype: of the parameters and, in the returned configuration, of storage and computation
            both.
        place: gives the tree of shardings for a configuration, as `mesh.param_shardings` does;
            without it leaves go to the default device.

    One leaf at a time is held on the host. Raises ValueError naming every tensor that is missing,
    left over or mis-shaped, and FileNotFoundError when a file is not there. Rotary buffers are
    ignored, and so is an output head equal to a tied embedding.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:
        config_json, source = _open(directory, stack)
        config = model_config_from_hf(config_json, param_dtype=dtype, dtype=dtype)
        table = weight_table(config)
        shardings = None if place is None else place(config)
        _check_tensors(
            source, {w.hf: w.hf_shape for w, _ in _tensors(table, config)}, config, directory
        )

        def leaf(w: Weight) -> jax.Array:
            host = np.empty(w.full_shape(config), jnp.dtype(dtype))
            for named, layer in _tensors((w,), config):
                host[... if layer is None else layer] = named.from_hf(
                    source[named.hf].get_tensor(named.hf)
                )
            if shardings is None:
                return jnp.asarray(host)
            # Each process hands over only what its devices hold.
            return jax.make_array_from_callback(
                host.shape, leaf_of(shardings, w), lambda index: host[index]
            )

        return tree_from(table, leaf), config


def pretrained_config(directory: str | Path, **overrides: Any) -> ModelConfig:
    """The configuration of the model that `import_hf` reads there; overrides are fields of
    ModelConfig.
    """
    with contextlib.ExitStack() as stack:
        return model_config_from_hf(_open(Path(directory), stack)[0], **overrides)


def _open(directory: Path, stack: contextlib.ExitStack) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json, and the open file that holds each tensor."""
    if directory.suffix == ".gguf":
        file = open_gguf(directory)
        return file.config_json, dict.fromkeys(file.keys(), file)
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory}: no config.json; a Hugging Face folder (config.json, safetensors,"
            " tokenizer.json) or a GGUF file is accepted"
        )
    config_json = _read_json(directory / "config.json")
    names = [SINGLE]
    if (directory / INDEX).exists():
        names = sorted(set(_read_json(directory / INDEX)["weight_map"].values()))
    source: dict[str, Any] = {}
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name}: not found; accepted are {SINGLE}, or the files that {INDEX}"
                " lists"
            )
        file = stack.enter_context(safe_open(directory / name, framework="numpy"))
        source |= dict.fromkeys(file.keys(), file)
    return config_json, source


def _shape(file: Any, name: str) -> tuple[int, ...]:
    return file.shape(name) if isinstance(file, GGUF) else tuple(file.get_slice(name).get_shape())


def _check_tensors(
    source: dict[str, Any],
    expected: dict[str, tuple[int, ...]],
    config: ModelConfig,
    directory: Path,
) -> None:
    """Raises ValueError naming every tensor that is missing, left over or of another shape than
    expected.
    """
    present = {name for name in source if not name.endswith("rotary_emb.inv_freq")}
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if config.tie_embeddings and {head, embedding} <= present:
        if not np.array_equal(
            source[head].get_tensor(head), source[embedding].get_tensor(embedding)
        ):
            raise ValueError(
                f"{directory}: {head} differs from {embedding}, yet config.json says"
                " tie_word_embeddings=true"
            )
        present.discard(head)
    shapes = {name: _shape(source[name], name) for name in present & expected.keys()}
    misshaped = {
        f"{name} {shape} where the configuration asks for {expected[name]}"
        for name, shape in shapes.items()
        if shape != expected[name]
    }
    found = {
        "missing": expected.keys() - present,
        "not of this model": present - expected.keys(),
        "of another shape": misshaped,
    }
    if problems := [
        f"{what}: {', '.join(sorted(names))}" for what, names in found.items() if names
    ]:
        raise ValueError(f"{directory}: tensors {'; '.join(problems)}")
