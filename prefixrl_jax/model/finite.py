"""Find weights that are NaN or infinite, on devices and on the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prefixrl_jax.model.weights import Params


def finite_leaves(params: Params, dtype: str | None = None) -> Params:
    """Return for every leaf a bool scalar: whether all its entries are finite.

    For use inside jitted functions. Reductions: a sharded model is not gathered.

    Args:
        dtype: finite once cast to it; None: as they are.
    """
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf.astype(dtype or leaf.dtype)).all(), params)


def nonfinite(params: Params, dtype: str | None = None) -> list[str]:
    """Return the names of leaves with a NaN or an infinity, such as "layers.mlp.up.kernel".

    On several hosts every process must call this, and each gets the same names.

    Args:
        params: any tree of arrays, sharded or not.
        dtype: non-finite once cast to it; None: as they are.
    """
    flags = _finite_leaves(params, dtype)
    return [
        ".".join(_key_name(key) for key in path)
        for path, is_finite_leaf in jax.tree_util.tree_leaves_with_path(flags)
        if not bool(is_finite_leaf)
    ]


_finite_leaves = jax.jit(finite_leaves, static_argnums=1)


def _key_name(key: Any) -> str:
    """Return a key of a tree's path as plain text: a dictionary's key or a list's index."""
    return str(getattr(key, "key", getattr(key, "idx", key)))


def is_finite(values: np.ndarray) -> bool:
    """Return whether all entries of an array on the host are finite; a few megabytes at a time."""
    flat = values.reshape(-1)
    return all(
        bool(np.isfinite(flat[start : start + 2**22]).all()) for start in range(0, flat.size, 2**22)
    )
