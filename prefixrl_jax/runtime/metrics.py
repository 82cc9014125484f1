"""Write the metrics of a run to metrics.jsonl and TensorBoard events.

Only process 0 writes. Metrics have the field's usual names: reward/mean, entropy, grad_norm,
flops/total and so on.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import time
from pathlib import Path

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from prefixrl_jax.runtime.console import say
from prefixrl_jax.runtime.files import set_aside, write_text
from prefixrl_jax.runtime.processes import primary


class Metrics:
    """The metrics.jsonl and the TensorBoard events of one loop."""

    def __init__(self, path: Path, events: Path | None, step: int):
        """Open both files; on resume, cut off the lines after the checkpoint's step.

        Args:
            path: of metrics.jsonl.
            events: directory of the TensorBoard events; None to write none.
            step: of the checkpoint from which the run resumes; 0 for a new run.
        """
        self._path = path
        self._file: io.FileIO | None = None
        self._writer: EventsWriter | None = None
        if not primary():
            return
        write_text(path, "".join(_lines_up_to(path, step)))
        # Unbuffered: closing the file must not try again to write a line that failed.
        self._file = path.open("ab", buffering=0)
        if events is not None:
            events.mkdir(parents=True, exist_ok=True)
            # Not tensorboardX's SummaryWriter: on a full disk its thread dies, and the next calls
            # wait for it forever.
            self._writer = EventsWriter(str(events / "events"))
            if step:
                # Makes TensorBoard hide what an interrupted run has written for later steps.
                restart = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(step=step + 1, session_log=restart))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line of JSON and one event; values that are not finite become null.

        Raises:
            OSError: the step could not be written, for example because the disk is full.
        """
        if self._file is None:
            return
        finite = {name: float(v) if math.isfinite(v) else None for name, v in values.items()}
        line = json.dumps({"step": step, **finite}).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):  # an unbuffered write may stop half way
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._write_event(step, finite)
        except OSError as error:
            # The system's error does not name the file.
            message = (
                f"{error.strerror}: step {step} was not written; the lines before it are intact"
            )
            raise OSError(error.errno, message, str(self._path)) from error

    def _write_event(self, step: int, values: dict[str, float | None]) -> None:
        if self._writer is None:
            return
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        summary = Summary(value=scalars)
        self._writer.write_event(Event(step=step, wall_time=time.time(), summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Close both files; every line is on disk already."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            # Closing tries again to write what a failed `write` has left in the buffer. `write`
            # has already reported that failure.
            with contextlib.suppress(OSError):
                self._writer.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Return the lines of a metrics file up to a step.

    A last line that a kill has cut short is dropped. If other lines are damaged or missing, the
    file stays under another name, and the console says so.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = {}
    damaged = 0
    for line in text.split("\n")[:-1]:
        try:
            number = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            number = None
        if isinstance(number, int):
            lines[number] = line + "\n"
        else:
            damaged += 1
    if damaged:
        aside = set_aside(path)
        say(f"{path}: {damaged} lines are damaged and left out; the file as it was is {aside}")
    missing = step - sum(1 <= number <= step for number in lines)
    if missing:
        say(f"{path}: {missing} of {step} steps are missing, in the report's curves too")
    return [line for number, line in sorted(lines.items()) if number <= step]


def host_metrics(tree: dict[str, jax.Array]) -> dict[str, float]:
    """Return replicated device scalars as floats."""
    return {name: float(np.asarray(value)) for name, value in tree.items()}
