"""Keys and values of every layer, and the one way to write a column of them.

Layouts are head-major, keys [N, K, D, U] transposed and values [N, K, U, D] not, so that the two
products of attention are plain batched matmuls. N counts contexts (P) or rows (P·G), K key heads,
D the head's size, U columns: positions of a context, or places in the cache of a row.

The letters are the same in `attention`, `transformer` and `sampling.sampler`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from prefixrl_jax.group import Array
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.runtime.mesh import constrain_batch


class LayerKV(NamedTuple):
    """Keys [N, K, D, U] and values [N, K, U, D] of one layer, in the compute dtype."""

    keys: jax.Array
    values: jax.Array


def head_major(k: jax.Array, v: jax.Array) -> LayerKV:
    """Bring keys and values, both [N, U, K, D] as projected, into the layout of `LayerKV`."""
    return LayerKV(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2))


@flax.struct.dataclass
class KVCache:
    """Keys and values of all layers, stacked where layers are scanned and apart where they are not.

    layers: one LayerKV whose arrays have a leading axis of layers, or a tuple with a LayerKV for
        each layer. Apart, because an unrolled loop then updates the buffer of each layer in place.
    """

    layers: LayerKV | tuple[LayerKV, ...]

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, columns: int) -> KVCache:
        """Return a cache of zeros with `rows` rows of `columns` columns."""
        keys = (rows, config.num_kv_heads, config.head_dim, columns)
        values = (rows, config.num_kv_heads, columns, config.head_dim)
        dtype = config.compute_dtype

        def zeros(*leading: int) -> LayerKV:
            return LayerKV(
                jnp.zeros((*leading, *keys), dtype), jnp.zeros((*leading, *values), dtype)
            )

        if config.unroll_layers:
            return cls(tuple(zeros() for _ in range(config.num_layers)))
        return cls(zeros(config.num_layers))

    @property
    def stacked(self) -> bool:
        """Whether the layers are stacked in one array."""
        return isinstance(self.layers, LayerKV)

    @property
    def row_axis(self) -> int:
        """The axis of contexts or rows in every array; the axis of heads is the next one."""
        return 1 if self.stacked else 0

    def layer(self, i: int | jax.Array) -> LayerKV:
        """Return the keys and values of layer i, which may be traced if the layers are stacked."""
        if isinstance(self.layers, LayerKV):
            return LayerKV(self.layers.keys[i], self.layers.values[i])
        return self.layers[i]

    def write(self, i: int | jax.Array, column: jax.Array, k: jax.Array, v: jax.Array) -> KVCache:
        """Return the cache with new keys and values written at one column of layer i.

        k and v are [N, K, D], `column` is int32 []. The column is the same for every row, so this
        is one update of a slice, which XLA does in place when the old cache is not used again.
        """
        k, v = k[..., None], v[..., None, :]
        if isinstance(self.layers, LayerKV):
            keys = jax.lax.dynamic_update_slice(self.layers.keys, k[None], (i, 0, 0, 0, column))
            values = jax.lax.dynamic_update_slice(self.layers.values, v[None], (i, 0, 0, column, 0))
            return KVCache(LayerKV(keys, values))
        keys, values = self.layers[i]
        keys = jax.lax.dynamic_update_slice_in_dim(keys, k, column, axis=3)
        values = jax.lax.dynamic_update_slice_in_dim(values, v, column, axis=2)
        return KVCache((*self.layers[:i], LayerKV(keys, values), *self.layers[i + 1 :]))

    def spread(self) -> KVCache:
        """Shard the cache: rows over the batch axes of the mesh, heads over its tensor axis.

        If the tensor axis does not divide the number of heads, the heads are not sharded.
        """
        place = partial(constrain_batch, axis=self.row_axis, heads=self.row_axis + 1)
        return jax.tree.map(place, self)


class MaskedKV(NamedTuple):
    """A cache and the mask of the columns that the present token may attend to."""

    kv: KVCache
    mask: Array  # bool: [P, S] of contexts, [P, G, U] of rows
