"""Metrics of a run on disk: metrics.jsonl and TensorBoard events.

Only process 0 writes. Names are the field's: reward/mean, entropy, grad_norm, flops/total and so
on.
"""

from __future__ import annotations

import contextlib
import errno
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

from prefixrl_jax.runtime.files import write_text
from prefixrl_jax.runtime.processes import primary


class Metrics:
    """metrics.jsonl and TensorBoard events of one loop.

    On resume, lines after the checkpoint's step are cut off.
    """

    def __init__(self, path: Path, events: Path | None, step: int):
        self._path, self._file, self._writer = path, None, None
        if not primary():
            return
        kept = [line for line in _sound_lines(path) if json.loads(line)["step"] <= step]
        write_text(path, "".join(kept))
        self._file = path.open("ab", buffering=0)  # nothing is left to be written when it is closed
        if events is not None:
            events.mkdir(parents=True, exist_ok=True)
            # Not tensorboardX's SummaryWriter: on a full disk its thread dies, and the next calls
            # wait for it forever.
            self._writer = EventsWriter(str(events / "events"))
            if step:  # TensorBoard then hides what an interrupted run has written of later steps
                self._writer.write_event(
                    Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
                )

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of finite JSON: a NaN becomes null."""
        if self._file is None:
            return
        clean = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        line = json.dumps({"step": step, **clean}).encode() + b"\n"
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in clean.items()
            if value is not None
        ]
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._writer is not None:
                self._writer.write_event(
                    Event(step=step, wall_time=time.time(), summary=Summary(value=scalars))
                )
                self._writer.flush()
        except OSError as error:  # which does not know its file
            message = (
                f"{error.strerror}: step {step} was not written; the lines before it are intact"
            )
            raise OSError(error.errno, message, str(self._path)) from error

    def close(self) -> None:
        """Closes both; every line has been written before."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            # what a failed write has left in its buffer, and `write` has told
            with contextlib.suppress(OSError):
                self._writer.close()


def _sound_lines(path: Path) -> list[str]:
    """Whole lines of a metrics file; a torn last one is left out."""
    text = path.read_text() if path.exists() else ""
    return [line + "\n" for line in text.split("\n")[:-1]]


def host_metrics(tree: dict[str, jax.Array]) -> dict[str, float]:
    """Replicated device scalars as floats."""
    return {k: float(np.asarray(v)) for k, v in tree.items()}
