"""One mesh of (data, fsdp, tensor) and how batches lie on it.

A single CPU device is a 1x1x1 mesh: there is no other code path. Batches are spread over data and
fsdp together; where weights lie is in `model/sharding.py`.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # what the first axis of a batch is spread over


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """Build the mesh of all devices.

    Args:
        data, fsdp, tensor: sizes of the axes; one may be -1 and takes all remaining devices.
        devices: by default all devices.

    Raises:
        ValueError: when the sizes do not multiply to the number of devices, or the processes
            cannot each hold rows of their own.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, n in sizes.items() if n == -1]
    taken = math.prod(n for n in sizes.values() if n != -1)
    fits = taken >= 1 and len(devices) % taken == 0 and (free or taken == len(devices))
    if len(free) > 1 or not fits:
        raise ValueError(
            f"{' x '.join(f'mesh.{axis}' for axis in AXES)}={tuple(sizes.values())} does not"
            f" fill {len(devices)} device(s): the sizes must multiply to that number, and at most"
            " one may be -1"
        )
    for name in free:
        sizes[name] = len(devices) // taken
    batch = sizes["data"] * sizes["fsdp"]
    processes = jax.process_count()
    if batch % processes:
        raise ValueError(
            f"mesh.data x mesh.fsdp = {batch}: must be a multiple of the {processes} processes,"
            " each of which holds rows of its own; mesh.tensor cannot reach over several"
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays [P, ...]: contexts spread over data and fsdp."""
    return NamedSharding(mesh, Spec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds in full."""
    return NamedSharding(mesh, Spec())


def constrain_batch(x: jax.Array, axis: int = 0, heads: int | None = None) -> jax.Array:
    """Constrain an array to its batch sharding: `axis` over data and fsdp, `heads` over tensor.

    The mesh is the one in use. `axis` is the axis of contexts or rows, `heads` that of attention
    heads, if there is one; the heads are not sharded if tensor does not divide their number.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec: list = [None] * x.ndim
    spec[axis] = BATCH
    if heads is not None and x.shape[heads] % mesh.shape["tensor"] == 0:
        spec[heads] = "tensor"
    return jax.lax.with_sharding_constraint(x, Spec(*spec))


def constrain_table(x: jax.Array) -> jax.Array:
    """Constrain an embedding table [V, d] to be sharded over tensor alone during look-ups.

    If the table is also cut over d, the partitioner makes activations cut over d, replicates them,
    and cuts them again.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    vocabulary = "tensor" if x.shape[0] % mesh.shape["tensor"] == 0 else None
    return jax.lax.with_sharding_constraint(x, Spec(vocabulary, None))


def batch_divisor(mesh: Mesh) -> int:
    """Return the number of equal blocks a batch is spread over; P must be a multiple of it."""
    return math.prod(mesh.shape[a] for a in BATCH)


def to_global(mesh: Mesh, tree):
    """Assemble global arrays [P, ...] from the rows that each process holds.

    `tree` has this process's rows as numpy arrays [P of this process, ...].
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def to_local(x: jax.Array) -> np.ndarray:
    """Return the rows of a batch-sharded array that this process holds.

    They are in order and without duplicates.
    """
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = {s.index[0].start or 0: s for s in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])
