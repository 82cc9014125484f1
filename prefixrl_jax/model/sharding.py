"""Where each weight lives on the mesh: one table of rules for training, one for decoding.

Weights are cut over fsdp and tensor for training. For decoding they are cut over tensor alone,
since gathering them for every token would cost more than holding them.
"""

from __future__ import annotations

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params, tree_from, weight_table

# Logical axis of a weight (`weights.Weight.axes`) -> mesh axis; None: not cut.
RULES = {
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
    """A NamedSharding for every weight under the "train" or "decode" rules; an axis that does not
    divide stays whole.
    """
    table = RULES[rules]

    def leaf(w):
        spec = [table.get(axis) if axis else None for axis in w.full_axes()]
        shape = w.full_shape(config)
        return NamedSharding(
            mesh,
            Spec(
                *(
                    a if a and n % mesh.shape[a] == 0 else None
                    for a, n in zip(spec, shape, strict=True)
                )
            ),
        )

    return tree_from(weight_table(config), leaf)
