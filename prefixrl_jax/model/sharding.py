"""Where each weight lives on the mesh: one table of rules for training, one for decoding.

Weights are cut over fsdp and tensor for training. For decoding they are cut over tensor alone,
since gathering them for every token would cost more than holding them.
"""

from __future__ import annotations

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params, Weight, tree_from, weight_table

# The mesh axis that a logical axis of weights (`weights.Weight.axes`) is cut over; None: not cut.
RULES: dict[str, dict[str, str | None]] = {
    "train": {
        "embed": "fsdp",
        "vocab": "tensor",
        "heads": "tensor",
        "kv_heads": "tensor",
        "mlp": "tensor",
    },
    "decode": {
        "embed": None,
        "vocab": "tensor",
        "heads": "tensor",
        "kv_heads": "tensor",
        "mlp": "tensor",
    },
}


def param_shardings(config: ModelConfig, mesh: Mesh, rules: str) -> Params:
    """Return the NamedSharding of every weight, in a tree like the parameters.

    A dimension that the size of its mesh axis does not divide is not sharded.

    Args:
        config: configuration of the model.
        mesh: a mesh with the axes of `runtime.mesh`.
        rules: "train" or "decode".
    """
    mesh_axes = RULES[rules]

    def cut(logical_axis: str | None, size: int) -> str | None:
        axis = mesh_axes[logical_axis] if logical_axis else None
        return axis if axis and size % mesh.shape[axis] == 0 else None

    def sharding(w: Weight) -> NamedSharding:
        dimensions = zip(w.full_axes(), w.full_shape(config), strict=True)
        return NamedSharding(mesh, Spec(*(cut(axis, size) for axis, size in dimensions)))

    return tree_from(weight_table(config), sharding)
