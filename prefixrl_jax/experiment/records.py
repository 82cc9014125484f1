"""Which stages of a run are complete, what they were made from, and what they have left.

A complete stage of the same fingerprint is reused; one of another fingerprint is refused, the
differing fields named, since silently mixing them would make the results of no configuration. So is
one that was made from other parameters than those there are now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.config import REMOVED_TASKS, flatten, get_config
from prefixrl_jax.experiment.products import listing, missing_or_damaged
from prefixrl_jax.experiment.record_file import Record, read_record, write_record
from prefixrl_jax.experiment.stages import (
    FILES,
    KEPT,
    READ_BACK,
    READS_OF_IMPORT,
    SHARED_STAGES,
    STAGES,
    compared,
    fields_of,
    name_of_difference,
    with_inputs,
)
from prefixrl_jax.flops import Ledger, format_flops
from prefixrl_jax.runtime.console import say

ABSENT = "not on record"
_DEFAULTS = flatten(get_config())


class WorkdirMismatch(ValueError):
    """The work directory holds a stage of another configuration, or of other parameters."""


class StageRecords:
    """The records of stages in a work directory: stages/NAME.json.

    A record has whether the stage is complete, its fields, its result, the seconds it took, the
    files it left, the parameters it was made from ("inputs"), the machine, and a checksum of all
    this. Records of version 0.1.0 lack files, inputs and checksum.
    """

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        files: Mapping[str, str] | None = None,
        machine: Mapping[str, Any] | None = None,
        shared: Path | None = None,
        shared_stages: Sequence[str] = SHARED_STAGES,
        inputs: Mapping[str, Any] | None = None,
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
            inputs: step and checksum of other parameters that the stages start from, by name.
        """
        self._workdir = workdir
        self._machine = dict(machine or {})
        self._shared = shared
        self._shared_stages = tuple(shared_stages) if shared else ()
        self._train = config.train
        self._other_inputs = dict(inputs or {})
        self._replaced: dict[str, Record | None] = {}  # what was on record of stages begun since
        self._fields = {stage: fields_of(config, stage) for stage in STAGES}
        for first, digest in (files or {}).items():
            for stage in STAGES:
                if digest and first in with_inputs(stage):
                    self._fields[stage][FILES[first]] = digest

    def _path(self, stage: str) -> Path:
        if stage in self._shared_stages:
            assert self._shared is not None
            return self._shared / "stages" / f"{stage}.json"
        return self._workdir / "stages" / f"{stage}.json"

    def record(self, stage: str) -> Record | None:
        """Return what is on record of a stage, or None.

        A field that did not exist when the record was written is taken to have had its default.

        Raises ValueError for a file that is not such a record, or not as it was written.
        """
        path = self._path(stage)
        if not path.exists():
            return None
        record = read_record(path, stage)
        defaults = {
            name: value
            for name, value in _DEFAULTS.items()
            if name in self._fields[stage] and name not in READS_OF_IMPORT
        }
        if (model := FILES["base"]) in self._fields[stage]:  # not in records of version 0.1.0
            defaults[model] = self._fields[stage][model]
        return record | {"fields": defaults | record["fields"]}

    def result(self, stage: str) -> dict[str, Any]:
        """Return the result of a complete stage; raise ValueError if it is not complete."""
        record = self.record(stage)
        if record is None or "result" not in record:
            raise ValueError(f"{self._path(stage)}: the {stage} stage is not complete")
        return record["result"]

    def is_complete(self, stage: str) -> bool:
        """Return whether a stage is complete with the fields it has now."""
        record = self.record(stage)
        if record is None:
            return False
        return record["complete"] and record["fields"] == self._fields[stage]

    def params(self, stage: str) -> dict[str, Any] | None:
        """Return step and checksum of the parameters that a complete stage ended with.

        None if it is not complete, made none, or its record is one of version 0.1.0.
        """
        record = self.record(stage)
        return (record or {}).get("result", {}).get("params")

    def _inputs(self, stage: str) -> dict[str, Any]:
        """The parameters of the stages that a stage builds on."""
        before = with_inputs(stage) - {stage}
        inputs = self._other_inputs | {name: self.params(name) for name in before}
        return {name: params for name, params in sorted(inputs.items()) if params}

    def identity(self, stage: str) -> str:
        """Return what tells the checkpoints of a stage from those of other settings.

        A hash of the fields that must agree, where they are not at their defaults (so that a field
        of a later version makes no difference), and of the parameters the stage starts from.
        """
        fields = self._fields[stage]
        settled = {
            name: fields[name]
            for name in compared(fields, fields)
            if name not in _DEFAULTS or fields[name] != _DEFAULTS[name]
        }
        text = json.dumps([settled, self._inputs(stage)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _binds(self, stage: str, record: Record) -> bool:
        """Whether the fields of a stage on record are settled: there is something made with them.

        A stage that has failed before that may be begun again with others.
        """
        return record["complete"] or any(
            (self._workdir / name).is_file() or any((self._workdir / name).glob("*"))
            for name in KEPT.get(stage, ())
        )

    def check(self) -> None:
        """Raise WorkdirMismatch if a stage on record belongs to something else.

        That is: it has other fields than it would have now, it was made from other parameters, or
        it has had more steps than it is asked for.
        """
        lines: dict[str, str] = {}
        for stage in STAGES:
            record = None if stage in self._shared_stages else self.record(stage)
            if record is None or not self._binds(stage, record):
                continue
            self._check_inputs(stage, record)
            now = self._fields[stage]
            then = record["fields"]
            for name in compared(now, then):
                if now.get(name) != then.get(name):
                    before = repr(then[name]) if name in then else ABSENT
                    after = repr(now[name]) if name in now else ABSENT
                    shown = name_of_difference(name, then.get(name), now.get(name))
                    line = f"  {shown}: {before} there, {after} now (stage {stage})"
                    lines.setdefault(name, line)
        if lines:
            self._refuse(lines)
        self._check_extent()

    def _refuse(self, lines: Mapping[str, str]) -> None:
        if (task := _recorded_task(self.record("base"))) in REMOVED_TASKS:
            raise WorkdirMismatch(
                f"the work directory {self._workdir} is of the task {task!r}, which was removed"
                " after version 0.1.0; finish it with that version, or use another --workdir"
            )
        head = f"the work directory {self._workdir} is of another configuration:"
        advice = "Use another --workdir, or set these fields back."
        raise WorkdirMismatch("\n".join([head, *lines.values(), advice]))

    def _check_inputs(self, stage: str, record: Record) -> bool:
        """Return whether a stage was made from the parameters there are now.

        Raises WorkdirMismatch if it was not, and cannot simply be done again.
        """
        now = self._inputs(stage)
        for name, then in record.get("inputs", {}).items():
            if name in now and now[name] != then:
                if stage not in KEPT:
                    return False
                raise WorkdirMismatch(
                    f"{self._workdir}: {stage} was made from the parameters of {name}"
                    f" at step {then['step']} (checksum {then['checksum']}), and those there"
                    f" are now are of step {now[name]['step']} (checksum {now[name]['checksum']});"
                    " put the files of then back from a copy, or use another --workdir"
                )
        return True

    def _check_extent(self) -> None:
        """Refuse a run that is asked for less training than it has had."""
        record = None if "train" in self._shared_stages else self.record("train")
        if record is None or "result" not in record:
            return
        result = record["result"]
        done = (result.get("params") or {}).get("step", 0)
        if not done:
            return
        if self._train.steps < done:
            raise WorkdirMismatch(
                f"train.steps={self._train.steps}: the run in {self._workdir} has had {done} steps,"
                f" which cannot be taken back; {done} or more, or another --workdir, are accepted"
            )
        spent, budget = Ledger(result["ledger"]).total(), self._train.flops_budget
        allowed = record["fields"].get("train.flops_budget", 0.0) or float("inf")
        if 0 < budget < min(spent, allowed):
            raise WorkdirMismatch(
                f"train.flops_budget={budget:g}: the run in {self._workdir} has spent"
                f" {format_flops(spent)}, which cannot be taken back; that much or more, or another"
                " --workdir, are accepted"
            )

    def begin(self, stage: str) -> dict[str, Any] | None:
        """Return the result of a complete stage, or note that it has begun and return None.

        A complete stage whose files are missing or damaged is begun again. What is damaged is
        renamed, and what is missing named on the console.
        """
        if stage in self._shared_stages:
            return self.result(stage)
        record = self.record(stage)
        fields = self._fields[stage]
        begun: Record = {"complete": False, "fields": fields, "inputs": self._inputs(stage)}
        if record is not None:
            made_from_these = self._check_inputs(stage, record) or not self._binds(stage, record)
            if self.is_complete(stage) and made_from_these:
                lost = missing_or_damaged(self._workdir, stage, record)
                if not lost:
                    return record["result"]
                say(f"{stage} is made again: {'; '.join(lost)}")
                begun["earlier"] = {key: record.get(key) for key in ("result", "files")}
            elif "earlier" in record and record["fields"] == fields:
                begun["earlier"] = record["earlier"]
        seconds = self.seconds(stage)
        self._replaced[stage] = record
        self._write(stage, begun | {"seconds": seconds})
        return None

    def withdraw(self, stage: str) -> None:
        """Take back that a stage has begun, which was refused: nothing was made with its fields.

        Not of the corpus: what its log holds was sampled with them, and does not say so itself.
        """
        if stage == "corpus":
            return
        replaced = self._replaced.pop(stage, None)
        if replaced is None:
            self._path(stage).unlink(missing_ok=True)
        else:
            self._write(stage, replaced)

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

        Args:
            stage: has been begun.
            result: JSON values.
            seconds: since it was begun, or went on.

        Raises WorkdirMismatch if the stage was made again, is not what it was, and later stages
        were made from that.
        """
        finished = {
            "complete": True,
            "fields": self._fields[stage],
            "inputs": self._inputs(stage),
            "result": result,
            "files": listing(self._workdir, stage),
            "seconds": self.seconds(stage) + seconds,
        }
        if earlier := (self.record(stage) or {}).get("earlier"):
            self._check_same(stage, finished, earlier)
        self._write(stage, finished)

    def _check_same(self, stage: str, record: Record, earlier: Record) -> None:
        """Refuse a stage that did not come out as it was, if something was made from it."""
        after = [
            name
            for name in KEPT
            if stage in with_inputs(name) - {name}
            and (later := self.record(name)) is not None
            and self._binds(name, later)
        ]
        same = _essence(stage, record) == _essence(stage, earlier)
        if after and not same:
            raise WorkdirMismatch(
                f"{self._workdir}: the {stage} stage was made again, since its files were damaged,"
                f" and came out otherwise; {' and '.join(after)} were made from it as it was. Put"
                " its files back from a copy, or use another --workdir"
            )

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Book the time spent on a stage that was interrupted."""
        record = self.record(stage) or {"complete": False, "fields": self._fields[stage]}
        self._write(stage, record | {"seconds": self.seconds(stage) + seconds})

    def seconds(self, stage: str) -> float:
        """Return the wall time spent on a stage so far."""
        record = self.record(stage)
        return float(record.get("seconds", 0.0)) if record else 0.0

    def _write(self, stage: str, record: Record) -> None:
        write_record(self._path(stage), {**record, "machine": self._machine})


def _essence(stage: str, record: Record) -> str:
    """What a stage that is made again must have in common with what it was."""
    result = {key: value for key, value in record["result"].items() if key != "line"}
    files = record.get("files") or {}
    checksums = [files.get(name, {}).get("sha256") for name in READ_BACK.get(stage, ())]
    return json.dumps([result, checksums], sort_keys=True)


def _recorded_task(record: Record | None) -> str | None:
    return None if record is None else record["fields"].get("task.name")
