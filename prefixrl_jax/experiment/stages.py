"""Which stages of a run are complete, and whether they belong to the configuration at hand.

Every stage has a fingerprint: the configuration fields that it and the stages before it read. A
complete stage of the same fingerprint is reused; one of another fingerprint is refused, the
differing fields named, since silently mixing them would make the results of no configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.config import REMOVED_TASKS, flatten, get_config
from prefixrl_jax.runtime.files import write_json

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
# What the files that a stage reads hold, as a person is told.
FILES = {"corpus": "data (content of the problems)"}
ABSENT = "not on record"


class WorkdirMismatch(ValueError):
    """The work directory holds a stage of another configuration."""


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


def _compared(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """The fields of two fingerprints that must agree, in order."""
    names = {*now, *then} - set(NOT_COMPARED)
    if now.get("collect.traces_path") != then.get("collect.traces_path"):
        # One of them imports no traces, so that these stand on one side alone.
        names -= {name for name in READS_OF_IMPORT if (name in now) != (name in then)}
    return sorted(names)


def _recorded_task(record: Mapping[str, Any] | None) -> str | None:
    return None if record is None else record["fields"].get("task.name")


_DEFAULTS = flatten(get_config())


class StageRecords:
    """The records of stages in a work directory: stages/NAME.json.

    A record has the stage's fields, its result, the seconds it took, and whether it is complete.
    """

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        files: Mapping[str, str] | None = None,
        machine: Mapping[str, Any] | None = None,
        shared: Path | None = None,
        shared_stages: Sequence[str] = SHARED_STAGES,
    ):
        """Open the records of `workdir` for a configuration; nothing is written.

        Args:
            workdir: the run's directory.
            config: its configuration.
            files: fingerprints of files that the configuration only names, by the first stage that
                reads them.
            machine: what the last bits of a result depend on (versions, devices), JSON values.
            shared: another work directory, in which `shared_stages` are complete and only read.
            shared_stages: see `shared`.
        """
        self._directory = workdir / "stages"
        self._machine = dict(machine or {})
        self._shared = shared / "stages" if shared else None
        self._shared_stages = tuple(shared_stages) if shared else ()
        self._fields = {stage: fields_of(config, stage) for stage in STAGES}
        for first, digest in (files or {}).items():
            for stage in STAGES:
                if digest and first in with_inputs(stage):
                    self._fields[stage][FILES[first]] = digest

    def _path(self, stage: str) -> Path:
        in_shared = self._shared is not None and stage in self._shared_stages
        directory = self._shared if in_shared else self._directory
        assert directory is not None
        return directory / f"{stage}.json"

    def record(self, stage: str) -> dict[str, Any] | None:
        """Return what is on record of a stage, or None.

        A field that did not exist when the record was written is taken to have had its default.
        """
        path = self._path(stage)
        if not path.exists():
            return None
        record = json.loads(path.read_text())
        defaults = {
            name: value
            for name, value in _DEFAULTS.items()
            if name in self._fields[stage] and name not in READS_OF_IMPORT
        }
        return record | {"fields": defaults | record["fields"]}

    def result(self, stage: str) -> dict[str, Any]:
        """Return the result of a complete stage; raise ValueError if it is not complete."""
        record = self.record(stage)
        if record is None or "result" not in record:
            raise ValueError(f"{self._path(stage)}: the {stage} stage is not complete")
        return record["result"]

    def check(self) -> None:
        """Raise WorkdirMismatch if any stage on record has other fields than it would have now."""
        lines: dict[str, str] = {}
        for stage in STAGES:
            record = None if stage in self._shared_stages else self.record(stage)
            if record is None:
                continue
            now = self._fields[stage]
            then = record["fields"]
            for name in _compared(now, then):
                if now.get(name) != then.get(name):
                    before = repr(then[name]) if name in then else ABSENT
                    after = repr(now[name]) if name in now else ABSENT
                    line = f"  {name}: {before} there, {after} now (stage {stage})"
                    lines.setdefault(name, line)
        if lines:
            if (task := _recorded_task(self.record("base"))) in REMOVED_TASKS:
                raise WorkdirMismatch(
                    f"the work directory {self._directory.parent} is of the task {task!r}, which"
                    " was removed after version 0.1.0; finish it with that version, or use another"
                    " --workdir"
                )
            head = f"the work directory {self._directory.parent} is of another configuration:"
            advice = "Use another --workdir, or set these fields back."
            raise WorkdirMismatch("\n".join([head, *lines.values(), advice]))

    def begin(self, stage: str) -> dict[str, Any] | None:
        """Return the result of a complete stage, or note that it has begun and return None."""
        if stage in self._shared_stages:
            return self.result(stage)
        record = self.record(stage)
        fields = self._fields[stage]
        if record is not None and record["complete"] and record["fields"] == fields:
            return record["result"]
        begun = {"complete": False, "fields": fields, "seconds": self.seconds(stage)}
        self._write(stage, begun)
        return None

    def moved(self, stage: str) -> str:
        """Return how the machine differs from that on which a stage was begun; "" if it does not.

        Only for a stage that is not complete.
        """
        record = self.record(stage)
        if record is None or record["complete"]:
            return ""
        then = record.get("machine", {})
        changed = [
            name for name in {**then, **self._machine} if then.get(name) != self._machine.get(name)
        ]
        return ", ".join(
            f"{name} {then.get(name)} before, {self._machine.get(name)} now" for name in changed
        )

    def finish(self, stage: str, result: dict[str, Any], seconds: float) -> None:
        """Mark a stage complete; seconds are added to those of interrupted attempts.

        result: JSON values.
        """
        finished = {
            "complete": True,
            "fields": self._fields[stage],
            "result": result,
            "seconds": self.seconds(stage) + seconds,
        }
        self._write(stage, finished)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Book the time spent on a stage that was interrupted."""
        record = self.record(stage) or {"complete": False, "fields": self._fields[stage]}
        self._write(stage, record | {"seconds": self.seconds(stage) + seconds})

    def seconds(self, stage: str) -> float:
        """Return the wall time spent on a stage so far."""
        record = self.record(stage)
        return float(record.get("seconds", 0.0)) if record else 0.0

    def _write(self, stage: str, record: dict[str, Any]) -> None:
        write_json(self._path(stage), record | {"machine": self._machine})
