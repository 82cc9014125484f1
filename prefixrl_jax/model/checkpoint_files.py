"""The files of a Hugging Face folder, read as files that a stranger may have written.

JSON files are bounded in size, tensors come from safetensors files of the folder alone (nothing
that could hold code is opened), and everything that is wrong with a file is a ValueError of one
sentence that names it.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import stat
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from prefixrl_jax.model.fields import shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Of a JSON file. The largest index files of public models have a few megabytes.
MAX_JSON_BYTES = 64 * 2**20
# Safetensors' names of the types that a weight may have.
DTYPES = ("F16", "BF16", "F32", "F64")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises ValueError for a file that is too large, not UTF-8, not JSON, or holds another value.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {size} bytes; at most {MAX_JSON_BYTES} are accepted")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (nested too deeply)") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer without end
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is accepted, not {shown(content)}")
    return content


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
            self._names = list(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from error

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return self._names

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
        file = TensorFile(_plain_file(directory, SINGLE), stack)
        return dict.fromkeys(file.keys(), file)
    opened = {
        name: TensorFile(_plain_file(directory, name), stack)
        for name in sorted(set(weight_map.values()))
    }
    contents = {name: set(file.keys()) for name, file in opened.items()}
    tensors = {tensor: opened[name] for name in opened for tensor in contents[name]}
    for tensor, name in weight_map.items():
        if tensor not in contents[name]:
            raise ValueError(
                f"{directory / INDEX}: weight_map says that {shown(tensor)} is in {name}, which"
                " holds no such tensor"
            )
        tensors[tensor] = opened[name]
    return tensors


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
    weight_map = read_object(_plain_file(directory, INDEX)).get("weight_map")
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
    plain = not set(name) & {"/", "\\", "\0", ":"}
    return plain and name.endswith(".safetensors") and len(os.fsencode(name)) <= 255


def _plain_file(directory: Path, name: str) -> Path:
    """Return the path of a regular file of the folder.

    A symbolic link may stay in the folder, or lead from a snapshot of the hub's cache to its blobs.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a link to another place, or no regular file.
    """
    path = directory / name
    if not os.path.lexists(path):
        raise FileNotFoundError(
            f"{path}: not found; accepted are {SINGLE}, or the files that {INDEX} lists"
        )
    target = path.resolve()
    folder = directory.resolve()
    accepted = [folder]
    if folder.parent.name == "snapshots":
        accepted.append(folder.parent.parent / "blobs")
    if path.is_symlink() and target.parent not in accepted:
        raise ValueError(f"{path}: a link to {target}; a file inside the folder is accepted")
    if not target.exists() or not stat.S_ISREG(target.stat().st_mode):
        raise ValueError(f"{path}: not a file; a regular file is accepted")
    return path
