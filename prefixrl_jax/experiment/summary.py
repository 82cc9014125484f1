"""summary.json: every figure of a finished run, from what its stages left on record."""

from __future__ import annotations

import importlib.metadata
import resource
from typing import Any

from prefixrl_jax.experiment.build import Settings
from prefixrl_jax.experiment.stages import NAMES, Stages
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.weights import count_params
from prefixrl_jax.tasks.sources import Sets


def summary(settings: Settings, stages: Stages, ledger: Ledger, sets: Sets) -> dict[str, Any]:
    """JSON values; the stages up to evaluate must be complete."""
    results = {name: (stages.record(name) or {}).get("result", {}) for name in NAMES}
    plain = results["evaluate"]["plain"]

    def pick(key: str) -> dict[str, dict[str, Any]]:
        return {name: {when: x[key] for when, x in times.items()} for name, times in plain.items()}

    found = results["corpus"]["summary"]
    flops = ledger.summary()
    return {
        "plain_pass_at_1": pick("avg@1"),
        "plain_pass_at_1_interval": pick("interval"),
        "pass_at_k": pick("pass@k"),
        "success_by_prefix_fraction": results["evaluate"]["by_fraction"],
        "flops": flops,
        "seconds": {name: stages.seconds(name) for name in NAMES},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "left_out": {"malformed": len(sets.skipped), "overlap": len(sets.overlap)},
        "corpus": found,
        "hard_set": {**found["hard"], "candidates": found["candidates"], "k": found["k"]},
        "prefixes": {k: v for k, v in results["prefixes"].items() if k != "line"},
        "model": {
            "parameters": count_params(settings.model)["total"],
            "family": settings.model.family,
        },
        "task": settings.config.task.name,
        "versions": {
            p: importlib.metadata.version(p)
            for p in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
        },
    }
