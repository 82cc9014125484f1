"""A fingerprint of arrays: the same on every mesh, without gathering anything."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp


def tree_fingerprint(tree: Any) -> str:
    """Return 16 hex digits that identify the values of a pytree of arrays, taken as float32.

    A hash of two sums modulo 2^32 of every leaf's bits, mixed with their positions: reductions, so
    that a sharded model is not gathered, and of integers, so that every mesh gives the same. Enough
    to tell checkpoints apart and to find damage, not to detect tampering.
    """
    return hashlib.sha256(str(jax.tree.map(int, _sums(tree))).encode()).hexdigest()[:16]


@jax.jit
def _sums(tree: Any) -> list[list[jax.Array]]:
    """Return two uint32 sums of every leaf."""
    return [
        [_mixed(leaf, multiplier).sum() for multiplier in (0x85EBCA6B, 0xC2B2AE35)]
        for leaf in jax.tree.leaves(tree)
    ]


def _mixed(leaf: jax.Array, multiplier: int) -> jax.Array:
    """Hash the bits and the place of every entry of a leaf (MurmurHash3's finaliser).

    The result is uint32, of the shape of the leaf.
    """
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    mixed = (bits ^ place) * jnp.uint32(multiplier)
    return (mixed ^ (mixed >> 16)) * jnp.uint32(multiplier)
