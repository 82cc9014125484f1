"""Hugging Face checkpoints in and out: safetensors, config.json (see hf_config.py) and tokenizer.

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
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.gguf import GGUF, open_gguf
from prefixrl_jax.model.hf_config import hf_config, model_config_from_hf, special_ids
from prefixrl_jax.model.tokenizer import survives_auto_tokenizer
from prefixrl_jax.model.weights import Params, Weight, leaf_of, tree_from, weight_table
from prefixrl_jax.runtime.files import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CARD_HEADER = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
TOKENIZER_NOTE = (
    "\n## Tokenizer\n\n`AutoTokenizer` replaces this model's tokenizer with its family's own. Load"
    " it with\n`transformers.PreTrainedTokenizerFast.from_pretrained(path)`, which reads"
    " `tokenizer.json` as it is."
)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One tensor of a checkpoint: a weight outside the layers, or a weight of one layer."""

    weight: Weight  # its name is that of the layer
    layer: int | None  # None: outside the layers

    @property
    def name(self) -> str:
        """The name in the checkpoint."""
        return self.weight.hf

    def bytes(self, dtype: np.dtype) -> int:
        """Return the size of the tensor in bytes."""
        return int(np.prod(self.weight.shape)) * dtype.itemsize


def _tensors(table: tuple[Weight, ...], config: ModelConfig) -> Iterator[_Tensor]:
    """Yield every tensor of a checkpoint, in the order of `weight_table`."""
    for weight in table:
        for layer in range(config.num_layers) if weight.stacked else [None]:
            yield _Tensor(dataclasses.replace(weight, hf=weight.hf.format(layer)), layer)


# Export


class FolderExtras(TypedDict, total=False):
    """The parts of an exported folder that describe more than the model.

    Attributes:
        generation: fields of generation_config.json beside the special token ids, which it may
            replace.
        card: Markdown of README.md, below the header that names the library.
    """

    generation: dict[str, Any]
    card: str


def export_hf(
    params: Params,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    directory: str | Path,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 2**30,
    **extras: Unpack[FolderExtras],
) -> None:
    """Write the model as a folder that transformers can load.

    It holds weights, config.json, generation_config.json, tokenizer and README.md. All is written
    beside `directory` and renamed into its place at the end, replacing an earlier export. On
    several hosts every process must call this (weights are gathered one layer at a time); the first
    one writes.

    Args:
        params: arrays, sharded or not; each is brought to the host one layer at a time.
        dtype: of the stored weights; None: config.param_dtype.
        max_shard_bytes: a larger model is cut into several safetensors files of at most this size.
        extras: see FolderExtras.
    """
    directory = Path(directory)
    fields = hf_config(config, tokenizer, dtype)
    staging = directory.with_name(f".{directory.name}.partial")
    writes = jax.process_index() == 0
    if writes:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    _write_weights(params, config, staging, jnp.dtype(fields["dtype"]), max_shard_bytes)
    if writes:
        write_json(staging / "config.json", fields)
        # safetensors makes its files for the owner's eyes alone.
        for file in staging.glob("*.safetensors"):
            shutil.copymode(staging / "config.json", file)
        generation = special_ids(tokenizer) | extras.get("generation", {})
        write_json(staging / "generation_config.json", generation)
        tokenizer.save_pretrained(staging)
        card = [CARD_HEADER, extras.get("card", "")]
        if not survives_auto_tokenizer(staging, tokenizer):
            card.append(TOKENIZER_NOTE)
        (staging / "README.md").write_text("\n".join(filter(None, card)) + "\n")
        _replace(staging, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export_hf")


def _write_weights(
    params: Params, config: ModelConfig, directory: Path, dtype: np.dtype, max_bytes: int
) -> None:
    """Gather the weights and, on the first process, write them.

    Several files get an index.
    """
    writes = jax.process_index() == 0
    shards = _shards(config, dtype, max_bytes)
    for name, shard in shards.items():
        values = {}
        for tensor in shard:
            leaf = leaf_of(params, tensor.weight)
            value = _to_host(leaf if tensor.layer is None else leaf[tensor.layer])
            if writes:
                values[tensor.name] = np.ascontiguousarray(tensor.weight.to_hf(value).astype(dtype))
        if writes:
            # transformers refuses a file without a format.
            save_file(values, directory / name, metadata={"format": "pt"})
    if writes and len(shards) > 1:
        files = {tensor.name: name for name, shard in shards.items() for tensor in shard}
        total = sum(tensor.bytes(dtype) for shard in shards.values() for tensor in shard)
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _shards(config: ModelConfig, dtype: np.dtype, max_bytes: int) -> dict[str, list[_Tensor]]:
    """Return the tensors that go into each file, by file name."""
    shards: list[list[_Tensor]] = [[]]
    bytes_in_shard = 0
    for tensor in _tensors(weight_table(config), config):
        size = tensor.bytes(dtype)
        if shards[-1] and bytes_in_shard + size > max_bytes:
            shards.append([])
            bytes_in_shard = 0
        shards[-1].append(tensor)
        bytes_in_shard += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def _to_host(x: jax.Array) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(jax.device_get(x))


def _replace(staging: Path, directory: Path) -> None:
    """Rename `staging` to `directory`, replacing an earlier folder of that name.

    The earlier folder is moved aside first and removed last.
    """
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    staging.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


# Import


def import_hf(
    directory: str | Path,
    dtype: str = "float32",
    place: Callable[[ModelConfig], Params] | None = None,
) -> tuple[Params, ModelConfig]:
    """Return parameters and configuration of a Hugging Face folder or a GGUF file.

    A folder has safetensors, in one file or several with an index. One leaf at a time is held on
    the host. Rotary buffers are ignored, and so is an output head equal to a tied embedding.

    Args:
        dtype: of the parameters and, in the returned configuration, of storage and computation
            both.
        place: returns the tree of shardings for a configuration, as `mesh.param_shardings` does.
            None: leaves go to the default device.

    Raises:
        ValueError: a tensor is missing, left over or mis-shaped (all are named), or the model is
            not supported.
        FileNotFoundError: a file is not there.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:
        config_json, files = _open(directory, stack)
        config = model_config_from_hf(config_json, param_dtype=dtype, dtype=dtype)
        table = weight_table(config)
        shardings = None if place is None else place(config)
        _check_tensors(files, config, directory)

        def leaf(weight: Weight) -> jax.Array:
            host = np.empty(weight.full_shape(config), jnp.dtype(dtype))
            for tensor in _tensors((weight,), config):
                value = tensor.weight.from_hf(files[tensor.name].get_tensor(tensor.name))
                host[... if tensor.layer is None else tensor.layer] = value
            if shardings is None:
                return jnp.asarray(host)
            # Each process hands over only what its devices hold.
            return jax.make_array_from_callback(
                host.shape, leaf_of(shardings, weight), lambda index: host[index]
            )

        return tree_from(table, leaf), config


def pretrained_config(directory: str | Path, **overrides: Any) -> ModelConfig:
    """Return the configuration of the model that `import_hf` would read from the same path.

    Args:
        overrides: fields of ModelConfig.
    """
    with contextlib.ExitStack() as stack:
        config_json, _ = _open(Path(directory), stack)
        return model_config_from_hf(config_json, **overrides)


def _open(directory: Path, stack: contextlib.ExitStack) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json and, for each tensor, the open file that holds it.

    `stack` closes the files.
    """
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
    files: dict[str, Any] = {}
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name}: not found; accepted are {SINGLE}, or the files that {INDEX}"
                " lists"
            )
        file = stack.enter_context(safe_open(directory / name, framework="numpy"))
        files |= dict.fromkeys(file.keys(), file)
    return config_json, files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def _check_tensors(files: dict[str, Any], config: ModelConfig, directory: Path) -> None:
    """Raise ValueError naming every tensor that is missing, left over or of another shape.

    Args:
        files: the open file that holds each tensor.
    """
    expected = {t.name: t.weight.hf_shape for t in _tensors(weight_table(config), config)}
    present = {name for name in files if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings:
        present -= _redundant_head(files, directory)
    misshaped = set()
    for name in present & expected.keys():
        shape = _shape(files[name], name)
        if shape != expected[name]:
            misshaped.add(f"{name} {shape} where the configuration asks for {expected[name]}")
    problems = {
        "missing": expected.keys() - present,
        "not of this model": present - expected.keys(),
        "of another shape": misshaped,
    }
    sentences = [f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names]
    if sentences:
        raise ValueError(f"{directory}: tensors {'; '.join(sentences)}")


def _redundant_head(files: dict[str, Any], directory: Path) -> set[str]:
    """Return the name of the output head if the files have one that equals the tied embedding."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head not in files or embedding not in files:
        return set()
    if not np.array_equal(files[head].get_tensor(head), files[embedding].get_tensor(embedding)):
        raise ValueError(
            f"{directory}: {head} differs from {embedding}, yet config.json says"
            " tie_word_embeddings=true"
        )
    return {head}


def _shape(file: Any, name: str) -> tuple[int, ...]:
    return file.shape(name) if isinstance(file, GGUF) else tuple(file.get_slice(name).get_shape())
