"""Which stages of a run are complete, and whether they belong to the configuration at hand.

Every stage has a fingerprint: the configuration fields that it and the stages before it read. A
complete stage of the same fingerprint is reused; one of another fingerprint is refused, the
differing fields named, since silently mixing them would make the results of no configuration at
all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.config import flatten, get_config
from prefixrl_jax.runtime.files import write_json

NAMES = ("base", "corpus", "prefixes", "sft", "train", "baseline", "evaluate", "export", "report")
SHARED = ("base", "corpus", "baseline")  # what the arms of a comparison have in common
_SAMPLING = ("sampling.temperature", "sampling.top_p", "sampling.top_k", "sampling.max_new_tokens")
# Stages whose fields a stage has beside its own, and theirs in turn.
AFTER = {
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
# Sections (or single fields) that each stage reads itself.
READS = {
    "base": ("seed", "task", "model", "base"),
    "corpus": ("data", *_SAMPLING, "select", "collect"),
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
# Fields that change how much is done, or how it is computed, but not what: another value is no
# difference.
EXTENT = (
    "train.steps",
    "train.flops_budget",
    "train.micro_batches",
    "train.logprob_chunk",
    "model.remat",
    "model.unroll_layers",
    "eval.every",
    "eval.every_samples",
    "train.max_logp_diff",
    "train.min_entropy",
)


# What a stage's files hold, as a person is told.
FILES = {
    "base": "task (content of the base text's file)",
    "corpus": "data (content of the problems)",
}


class WorkdirMismatch(ValueError):
    """The work directory holds a stage of another configuration."""


def inputs(stage: str) -> set[str]:
    """The stage itself and all that come before it."""
    return {stage}.union(*map(inputs, AFTER[stage]))


def fields_of(config: ConfigDict, stage: str) -> dict[str, Any]:
    """The fields that a stage and its inputs depend on."""
    reads = [name for s in inputs(stage) for name in READS[s]]
    own_task = f"task.{config.task.name}."
    flat = flatten(config)
    unread = _unread(config, stage)
    return {
        k: v
        for k, v in flat.items()
        if any(k == r or k.startswith(r + ".") for r in reads)
        and (not k.startswith("task.") or k == "task.name" or k.startswith(own_task))
        and k not in unread
    }


def _unread(config: ConfigDict, stage: str) -> set[str]:
    """Fields of sections that the configuration switches off."""
    unread: set[str] = set()
    if not config.sft.enabled:
        unread |= {f"sft.{name}" for name in config.sft if name != "enabled"} | (
            {"train.seed"} if stage == "sft" else set()
        )
    if config.train.schedule == "constant" and config.prefix.schedule not in ("reverse", "cosine"):
        unread.add("train.schedule_steps")
    return unread


_DEFAULTS = flatten(get_config())


class Stages:
    """The record of stages in a work directory: stages/NAME.json with fields, result and whether it
    is complete.
    """

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        files: dict[str, str] | None = None,
        machine: dict[str, Any] | None = None,
        shared: Path | None = None,
        of_shared: Sequence[str] = SHARED,
    ):
        """files: a fingerprint, by the first stage that reads them, of the files that a
        configuration only names.
        machine: what the last bits of a result depend on (versions, devices), as JSON values.
        shared: another work directory, in which the stages `of_shared` are complete and are only
        read.
        """
        self._directory, self._machine = workdir / "stages", machine or {}
        self._shared = shared / "stages" if shared else None
        self._of_shared = tuple(of_shared) if shared else ()
        self._fields = {stage: fields_of(config, stage) for stage in NAMES}
        for first, digest in (files or {}).items():
            for stage in (s for s in NAMES if digest and first in inputs(s)):
                self._fields[stage][FILES[first]] = digest

    def _path(self, stage: str) -> Path:
        return (
            self._shared if self._shared and stage in self._of_shared else self._directory
        ) / f"{stage}.json"

    def record(self, stage: str) -> dict[str, Any] | None:
        """What is on record of a stage, or None."""
        path = self._path(stage)
        if not path.exists():
            return None
        record = json.loads(path.read_text())
        # A field that the version of then did not have had what is its default now.
        absent = {
            k: v
            for k, v in _DEFAULTS.items()
            if k in self._fields[stage] and k not in record["fields"]
        }
        return record | {"fields": absent | record["fields"]}

    def result(self, stage: str) -> dict[str, Any]:
        """What a complete stage returned; raises ValueError if it is not complete."""
        record = self.record(stage)
        if record is None or "result" not in record:
            raise ValueError(f"{self._path(stage)}: the {stage} stage is not complete")
        return record["result"]

    def check(self) -> None:
        """Raises WorkdirMismatch when any stage on record has other fields than the configuration
        gives it.
        """
        differing: dict[str, tuple[str, Any, Any]] = {}
        for stage in NAMES:
            if stage in self._of_shared or (record := self.record(stage)) is None:
                continue
            now, then = self._fields[stage], record["fields"]
            for k in sorted({*now, *then}):
                if k not in EXTENT and now.get(k) != then.get(k):
                    differing.setdefault(k, (stage, then.get(k), now.get(k)))
        if differing:
            lines = [
                f"  {k}: {then!r} there, {now!r} now (stage {stage})"
                for k, (stage, then, now) in differing.items()
            ]
            head = f"the work directory {self._directory.parent} is of another configuration:"
            raise WorkdirMismatch(
                "\n".join([head, *lines, "Use another --workdir, or set these fields back."])
            )

    def begin(self, stage: str) -> dict[str, Any] | None:
        """The result of a complete stage; otherwise notes that it has begun and returns None."""
        record, fields = self.record(stage), self._fields[stage]
        if stage in self._of_shared:
            return self.result(stage)
        if record is not None and record["complete"] and record["fields"] == fields:
            return record["result"]
        self._write(stage, {"complete": False, "fields": fields, "seconds": self.seconds(stage)})
        return None

    def _write(self, stage: str, record: dict[str, Any]) -> None:
        write_json(self._path(stage), record | {"machine": self._machine})

    def moved(self, stage: str) -> str:
        """How the machine differs from the one an unfinished stage was last worked on, for a person
        to read; or "".
        """
        record = self.record(stage)
        if record is None or record["complete"]:
            return ""
        then = record.get("machine", {})
        names = [
            name for name in {**then, **self._machine} if then.get(name) != self._machine.get(name)
        ]
        return ", ".join(
            f"{name} {then.get(name)} before, {self._machine.get(name)} now" for name in names
        )

    def finish(self, stage: str, result: dict[str, Any], seconds: float) -> None:
        """Marks a stage complete, with its (JSON) result; seconds are added to those of interrupted
        attempts.
        """
        fields = self._fields[stage]
        self._write(
            stage,
            {
                "complete": True,
                "fields": fields,
                "result": result,
                "seconds": self.seconds(stage) + seconds,
            },
        )

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Books time spent on a stage that was interrupted."""
        record = self.record(stage) or {"complete": False, "fields": self._fields[stage]}
        self._write(stage, record | {"seconds": self.seconds(stage) + seconds})

    def seconds(self, stage: str) -> float:
        """Wall time spent on a stage so far."""
        record = self.record(stage)
        return float(record.get("seconds", 0.0)) if record else 0.0
