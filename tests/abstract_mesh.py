"""A mesh of any size without its devices."""

import jax

from prefixrl_jax.runtime import mesh as meshes


def abstract_mesh(data, fsdp, tensor):
    """A mesh of any size on a machine of one device: enough to work out shardings."""
    return jax.sharding.AbstractMesh(
        (data, fsdp, tensor), meshes.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
