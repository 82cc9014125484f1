"""The stages of a run: their order, the fields they read, and the files they leave.

Every stage has a fingerprint: the configuration fields that it and the stages before it read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.config import flatten

# In the order in which they run.
STAGES = (
    "base",
    "corpus",
    "prefixes",
    "sft",
    "train",
    "baseline",
    "evaluate",
    "export",
    "report",
)
# What the arms of a comparison have in common.
SHARED_STAGES = ("base", "corpus", "baseline")
# The stages that a stage builds on directly; it depends on their fields too.
AFTER: dict[str, tuple[str, ...]] = {
    "base": (),
    "corpus": ("base",),
    "prefixes": ("corpus",),
    "sft": ("corpus",),
    "train": ("prefixes", "sft"),
    "baseline": ("corpus",),
    "evaluate": ("train", "baseline"),
    "export": ("evaluate",),
    "report": ("export",),
}
# Sections, or single fields, that a stage reads itself.
READS: dict[str, tuple[str, ...]] = {
    "base": ("seed", "task", "model", "base"),
    "corpus": (
        "data",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.top_k",
        "sampling.max_new_tokens",
        "select",
        "collect",
    ),
    "baseline": (
        "eval.samples",
        "eval.temperature",
        "eval.heldout_part",
        "eval.k",
        "eval.fractions",
        "eval.fraction_samples",
    ),
    "prefixes": ("prefix.cuts", "prefix.band", "prefix.content", "prefix.place"),
    "sft": ("sft", "train.seed"),
    "train": ("prefix", "train"),
    "evaluate": (),
    "export": (),
    "report": (),
}
# The corpus reads these too when traces are imported: a trace must fit the context buckets with the
# longest prefix that is cut from it.
READS_OF_IMPORT = ("prefix.band", "eval.fractions", "sampling.context_buckets")
# Fields that change how much is done, or how it is computed, but not what: no difference.
NOT_COMPARED = (
    "train.steps",
    "train.flops_budget",
    "train.micro_batches",
    "train.logprob_chunk",
    "train.max_logp_diff",
    "train.min_entropy",
    "model.remat",
    "model.unroll_layers",
    "eval.every",
    "eval.every_samples",
)
# Where a stage keeps what it has done so far: once there is something, its fields are settled.
KEPT: dict[str, tuple[str, ...]] = {
    "base": ("base/checkpoints",),
    "corpus": ("corpus/log", "corpus/log.jsonl"),
    "sft": ("sft/checkpoints",),
    "train": ("checkpoints",),
}
# Files that later stages read, by the stage that writes them; a folder stands for all its files.
READ_BACK: dict[str, tuple[str, ...]] = {
    "corpus": ("corpus/summary.json", "corpus/wrong.json", "corpus/problems.json"),
    "prefixes": ("prefixes/prefixes.jsonl",),
    "report": ("summary.json",),  # of an arm, by the comparison
}
# The same, of stages that have it only if there is something to write.
READ_BACK_IF_ANY: dict[str, tuple[str, ...]] = {"corpus": ("corpus/dataset",)}
# What a user takes away.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "export": ("hf",),
    "report": ("report.html", "figures"),
}
# What cannot be made again, and is only missed in reports.
METRICS: dict[str, tuple[str, ...]] = {
    "base": ("base/metrics.jsonl",),
    "sft": ("sft/metrics.jsonl",),
    "train": ("metrics.jsonl",),
}
# What the files that a stage reads hold, as a person is told.
FILES = {
    "base": "model.path (configuration, tokenizer and stop ids of the model)",
    "corpus": "data (content of the problems)",
}
TRACES_FILE = "collect.traces_path (content of the traces)"


def name_of_difference(name: str, then: Any, now: Any) -> str:
    """Return the name of what differs between two values of a field, as a person is told.

    The content of the traces is a second word behind that of the problems.
    """
    words_then, words_now = str(then).split(), str(now).split()
    same_problems = words_then[:1] == words_now[:1] and words_then[1:2] != words_now[1:2]
    return TRACES_FILE if name == FILES["corpus"] and same_problems else name


def with_inputs(stage: str) -> set[str]:
    """Return the stage and all stages it builds on."""
    return {stage}.union(*map(with_inputs, AFTER[stage]))


def fields_of(config: ConfigDict, stage: str) -> dict[str, Any]:
    """Return the fields that a stage and its inputs depend on, by dotted name."""
    stages = with_inputs(stage)
    reads = [name for s in stages for name in READS[s]]
    if "corpus" in stages and config.collect.traces_path:
        reads += READS_OF_IMPORT
    unread = _unread(config, stage)
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in unread and any(name == r or name.startswith(r + ".") for r in reads)
    }


def _unread(config: ConfigDict, stage: str) -> set[str]:
    """Fields in the sections a stage reads that the configuration switches off."""
    other_tasks = [task for task in config.task if task not in ("name", config.task.name)]
    unread = {f"task.{task}.{name}" for task in other_tasks for name in config.task[task]}
    if not config.sft.enabled:
        unread |= {f"sft.{name}" for name in config.sft if name != "enabled"}
        if stage == "sft":
            unread.add("train.seed")
    anneals = config.prefix.schedule in ("reverse", "cosine")
    if config.train.schedule == "constant" and not anneals:
        unread.add("train.schedule_steps")
    return unread


def compared(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """The fields of two fingerprints that must agree, in order."""
    names = {*now, *then} - set(NOT_COMPARED)
    if now.get("collect.traces_path") != then.get("collect.traces_path"):
        # One of them imports no traces, so that these stand on one side alone.
        names -= {name for name in READS_OF_IMPORT if (name in now) != (name in then)}
    return sorted(names)
