"""The tensors of a Hugging Face folder, read from files that a stranger may have written.

Tensors come from safetensors files of the folder alone (nothing that could hold code is opened),
and everything that is wrong with a file is a ValueError of one sentence that names it.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from prefixrl_jax.model.fields import shown
from prefixrl_jax.model.folder_files import plain_file, read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = f"accepted are {SINGLE}, or the files that {INDEX} lists"
# Safetensors' names of the types that a weight may have.
DTYPES = ("F16", "BF16", "F32", "F64")


class Tensors(Protocol):
    """An open file of tensors, a safetensors or a GGUF file."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""

    def dtype(self, name: str) -> str:
        """Return the type of one tensor as safetensors names it."""

    def get_tensor(self, name: str) -> np.ndarray:
        """Return the values of one tensor."""


class TensorFile:
    """An open safetensors file: tensors by name, without SafetensorError.

    Raises ValueError naming the file if it is damaged. The library checks the header (its length,
    and that the tensors fill the file without a gap) when it opens the file.
    """

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._path = path
        try:
            self._file = stack.enter_context(safe_open(path, framework="numpy"))
            self._names = dict.fromkeys(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from error

    def keys(self) -> Set[str]:
        """Return the names of the tensors."""
        return self._names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the type of one tensor as safetensors names it."""
        return str(self._file.get_slice(name).get_dtype())

    def get_tensor(self, name: str) -> np.ndarray:
        """Return the values of one tensor."""
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path}: tensor {name} is not readable ({error})") from error


def open_tensors(directory: Path, stack: contextlib.ExitStack) -> dict[str, TensorFile]:
    """Return, for each tensor of a folder, the open file that holds it.

    Raises ValueError for an index or a file that is not as it should be, FileNotFoundError for a
    file that is not there.

    Args:
        stack: closes the files.
    """
    weight_map = _read_weight_map(directory)
    if weight_map is None:
        file = TensorFile(plain_file(directory, SINGLE, WEIGHTS), stack)
        return dict.fromkeys(file.keys(), file)
    opened = {
        name: TensorFile(plain_file(directory, name, WEIGHTS), stack)
        for name in sorted(set(weight_map.values()))
    }
    contents = {name: file.keys() for name, file in opened.items()}
    for tensor, name in weight_map.items():
        if tensor not in contents[name]:
            raise ValueError(
                f"{directory / INDEX}: weight_map says that {shown(tensor)} is in {name}, which"
                " holds no such tensor"
            )
    for name, tensors in contents.items():
        for tensor in tensors:
            if weight_map.get(tensor) != name:
                raise ValueError(
                    f"{directory / INDEX}: {name} holds {shown(tensor)}, which weight_map puts into"
                    f" {shown(weight_map.get(tensor))}; each tensor is accepted in one file, which"
                    " weight_map names"
                )
    return {tensor: opened[name] for tensor, name in weight_map.items()}


def check_tensors(
    files: Mapping[str, Tensors],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Set[str],
    directory: Path,
) -> None:
    """Raise ValueError naming tensors that are missing, left over, or of another shape or type.

    Args:
        files: the open file that holds each tensor.
        expected: the shape of every tensor of the model.
        ignored: tensors that may be there and are not read.
        directory: the name of the model in the message.
    """
    present = files.keys() - ignored
    misshaped = set()
    mistyped = set()
    for name in present & expected.keys():
        shape = files[name].shape(name)
        if shape != expected[name]:
            misshaped.add(f"{name} {shape} where the configuration asks for {expected[name]}")
        dtype = files[name].dtype(name)
        if dtype not in DTYPES:
            mistyped.add(f"{name} {dtype} where {', '.join(DTYPES)} are accepted")
    problems = {
        "missing": expected.keys() - present,
        "not of this model": present - expected.keys(),
        "of another shape": misshaped,
        "of another type": mistyped,
    }
    sentences = [f"{kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if sentences:
        raise ValueError(f"{directory}: tensors {'; '.join(sentences)}")


def _listed(names: Set[str]) -> str:
    """Return names in alphabetical order, the first twenty of them."""
    first = heapq.nsmallest(20, names)
    rest = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    # A name may hold control characters, which must not reach a terminal.
    printable = (name if name.isprintable() else repr(name) for name in first)
    return ", ".join(name[:200] for name in printable) + rest


def check_same(files: Mapping[str, Tensors], head: str, embedding: str, directory: Path) -> None:
    """Raise ValueError if the output head differs from the embedding that it is tied to."""
    if not np.array_equal(files[head].get_tensor(head), files[embedding].get_tensor(embedding)):
        raise ValueError(
            f"{directory}: {head} differs from {embedding}, yet config.json says"
            " tie_word_embeddings=true"
        )


def _read_weight_map(directory: Path) -> dict[str, str] | None:
    """Return the file name of each tensor by the folder's index; None if it has no index."""
    path = directory / INDEX
    if not os.path.lexists(path):
        return None
    weight_map = read_object(plain_file(directory, INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{path}: weight_map={shown(weight_map)}; an object that maps names of tensors to names"
            " of files is accepted"
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_safetensors_name(name):
            raise ValueError(
                f"{path}: weight_map puts {shown(tensor)} into {shown(name)}; the name of a"
                " .safetensors file in the same folder is accepted"
            )
    return weight_map


def _is_safetensors_name(name: str) -> bool:
    # A name with a lone surrogate or a control character is not printable.
    plain = name.isprintable() and not set(name) & {"/", "\\", ":"}
    return plain and name.endswith(".safetensors") and len(os.fsencode(name)) <= 255
