"""summary.json: every figure of a finished run, from what its stages left on record."""

from __future__ import annotations

import importlib.metadata
import resource
from typing import Any

from prefixrl_jax.experiment.build import Settings
from prefixrl_jax.experiment.records import StageRecords
from prefixrl_jax.experiment.stages import STAGES
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.weights import count_params
from prefixrl_jax.tasks.sources import Sets

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def summary(
    settings: Settings, records: StageRecords, ledger: Ledger, sets: Sets
) -> dict[str, Any]:
    """Return the figures as JSON values; the stages up to evaluate must be complete."""
    results = {name: (records.record(name) or {}).get("result", {}) for name in STAGES}
    plain = results["evaluate"]["plain"]
    corpus = results["corpus"]["summary"]

    def before_and_after(key: str) -> dict[str, dict[str, Any]]:
        return {
            name: {when: accuracy[key] for when, accuracy in measured.items()}
            for name, measured in plain.items()
        }

    return {
        "plain_pass_at_1": before_and_after("avg@1"),
        "plain_pass_at_1_interval": before_and_after("interval"),
        "pass_at_k": before_and_after("pass@k"),
        "success_by_prefix_fraction": results["evaluate"]["by_fraction"],
        "flops": ledger.summary(),
        "seconds": {name: records.seconds(name) for name in STAGES},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "left_out": {"malformed": len(sets.skipped), "overlap": len(sets.overlap)},
        "corpus": corpus,
        "hard_set": {**corpus["hard"], "candidates": corpus["candidates"], "k": corpus["k"]},
        "prefixes": {k: v for k, v in results["prefixes"].items() if k != "line"},
        "model": {
            "parameters": count_params(settings.model)["total"],
            "family": settings.model.family,
        },
        "task": settings.config.task.name,
        "steps": (records.params("train") or {"step": 0})["step"],
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
