"""Hugging Face checkpoints in and out: safetensors, config.json (see hf_config.py) and tokenizer.

Which tensors there are, their names and their layout is `weights.weight_table`; a tensor that is
missing, left over or of another shape is an error in either direction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.checkpoint_files import (
    INDEX,
    SINGLE,
    TensorFile,
    check_same,
    check_tensors,
    open_tensors,
)
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.export_folder import ExportWriter
from prefixrl_jax.model.export_target import CONFIG
from prefixrl_jax.model.export_texts import FolderExtras, text_files
from prefixrl_jax.model.finite import is_finite, nonfinite
from prefixrl_jax.model.folder_files import plain_file, read_object
from prefixrl_jax.model.gguf import GGUF, open_gguf
from prefixrl_jax.model.hf_config import hf_config, model_config_from_hf
from prefixrl_jax.model.weights import Params, Weight, leaf_of, tree_from, weight_table
from prefixrl_jax.runtime.files import write_json
from prefixrl_jax.runtime.processes import on_primary

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


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

    It holds weights, config.json, generation_config.json, tokenizer, README.md and a list of these
    files, by which a later export knows what it may replace (see export_folder.py). On several
    hosts every process must call this (weights are gathered one layer at a time); the first one
    writes.

    Args:
        params: arrays, sharded or not; each is brought to the host one layer at a time.
        dtype: of the stored weights; None: config.param_dtype.
        max_shard_bytes: a larger model is cut into several safetensors files of at most this size.
        extras: see FolderExtras.

    Raises:
        ValueError: `check_target` refuses the folder, transformers cannot express the model, or a
            weight is NaN or infinite in `dtype`. Nothing is written then.
    """
    fields = hf_config(config, tokenizer, dtype)
    stored = jnp.dtype(fields["dtype"])
    writer = _on_first(lambda: ExportWriter(directory, extras.get("of_run", False)))
    if leaves := nonfinite(params, stored.name):
        raise ValueError(
            f"not exported to {directory}: {', '.join(leaves)} hold values that are NaN or infinite"
            f" in {stored.name}; finite weights are accepted"
        )
    texts = _on_first(lambda: text_files(fields, tokenizer, extras)) or {}
    shards = _shards(config, stored, max_shard_bytes)
    names = {*shards, *texts, *([INDEX] if len(shards) > 1 else [])}
    try:
        _on_first(lambda: writer.begin(names))
        _write_weights(params, shards, stored, writer.staging if writer else None)
        _on_first(lambda: _finish(writer, texts))
    finally:
        if writer:
            writer.discard()


def _on_first(function: Callable[[], Any]) -> Any:
    """Return what a function returns on the first process, and None on the others.

    An exception of the first process is raised on all.
    """
    results: list[Any] = [None]

    def call() -> None:
        results[0] = function()

    on_primary(call)
    return results[0]


def _finish(writer: ExportWriter, texts: dict[str, bytes]) -> None:
    """Write the files of text beside the weights and move all to their places."""
    for name, content in texts.items():
        (writer.staging / name).write_bytes(content)
    # safetensors makes its files for the owner's eyes alone.
    for file in writer.staging.glob("*.safetensors"):
        shutil.copymode(writer.staging / CONFIG, file)
    writer.commit()


def _write_weights(
    params: Params, shards: dict[str, list[_Tensor]], dtype: np.dtype, directory: Path | None
) -> None:
    """Gather the weights and write them; several files get an index.

    Args:
        shards: the tensors that go into each file.
        directory: None: gather only, for the process that writes.
    """
    for name, shard in shards.items():
        values = {}
        for tensor in shard:
            leaf = leaf_of(params, tensor.weight)
            value = _to_host(leaf if tensor.layer is None else leaf[tensor.layer])
            if directory:
                values[tensor.name] = np.ascontiguousarray(tensor.weight.to_hf(value).astype(dtype))
        if directory:
            try:
                # transformers refuses a file without a format.
                save_file(values, directory / name, metadata={"format": "pt"})
            except SafetensorError as error:  # which it makes of an error of the system
                raise OSError(f"{directory / name}: could not be written: {error}") from error
    if directory and len(shards) > 1:
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
        ValueError: a tensor is missing, left over, mis-shaped, of a type that holds no weights, or
            has a value that is NaN or infinite in `dtype`; a file is damaged; or the model is not
            supported.
        FileNotFoundError: a file is not there.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:
        config_json, files = _open(directory, stack)
        config = model_config_from_hf(config_json, param_dtype=dtype, dtype=dtype)
        table = weight_table(config)
        shardings = None if place is None else place(config)
        _check_files(files, config, directory)
        if config.tie_embeddings and HEAD in files:
            check_same(files, HEAD, EMBEDDING, directory)

        def leaf(weight: Weight) -> jax.Array:
            host = np.empty(weight.full_shape(config), jnp.dtype(dtype))
            for tensor in _tensors((weight,), config):
                part = host if tensor.layer is None else host[tensor.layer]
                with np.errstate(over="ignore"):  # is refused on the next line
                    part[...] = tensor.weight.from_hf(files[tensor.name].get_tensor(tensor.name))
                if not is_finite(part):
                    raise ValueError(
                        f"{directory}: tensor {tensor.name} has a value that is NaN or infinite in"
                        f" {dtype}; finite weights are accepted"
                    )
            if shardings is None:
                return jnp.asarray(host)
            # Each process hands over only what its devices hold.
            return jax.make_array_from_callback(
                host.shape, leaf_of(shardings, weight), lambda index: host[index]
            )

        return tree_from(table, leaf), config


def pretrained_config(directory: str | Path, **overrides: Any) -> ModelConfig:
    """Return the configuration of the model that `import_hf` would read from the same path.

    Names and shapes of the tensors are checked against it; no tensor is read.

    Args:
        overrides: fields of ModelConfig.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:
        config_json, files = _open(directory, stack)
        config = model_config_from_hf(config_json, **overrides)
        _check_files(files, config, directory)
        return config


def _open(
    directory: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], Mapping[str, TensorFile | GGUF]]:
    """Return config.json and, for each tensor, the open file that holds it.

    `stack` closes the files.
    """
    if directory.suffix == ".gguf":
        file = open_gguf(directory)
        return file.config_json, dict.fromkeys(file.keys(), file)
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(
            f"{directory}: no config.json; a Hugging Face folder (config.json, safetensors,"
            " tokenizer.json) or a GGUF file is accepted"
        )
    return read_object(plain_file(directory, CONFIG)), open_tensors(directory, stack)


def _check_files(
    files: Mapping[str, TensorFile | GGUF], config: ModelConfig, directory: Path
) -> None:
    """Raise ValueError unless the files hold the tensors of the configuration."""
    expected = {t.name: t.weight.hf_shape for t in _tensors(weight_table(config), config)}
    ignored = {name for name in files if name.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings:
        ignored.add(HEAD)
    check_tensors(files, expected, ignored, directory)
