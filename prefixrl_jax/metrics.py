"""What a run tells while it goes: metrics.jsonl, TensorBoard events, a progress line on a terminal, plain lines elsewhere.

Only process 0 writes. Names are the field's: reward/mean, entropy, grad_norm, flops/total and so on.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from prefixrl_jax.files import write_text
from prefixrl_jax.processes import primary


def human_flops(flops: float) -> str:
    """1.23 TFLOP and the like."""
    for scale, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if flops >= scale:
            return f"{flops / scale:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"


def say(message: str) -> None:
    """One line to the reader, from process 0."""
    if primary():
        Console(file=sys.stdout, highlight=False, soft_wrap=True).print(message, markup=False)


class Bar:
    """Progress of one stage: a live bar with ETA on a terminal; elsewhere a plain line per call of `update` with `line=True`."""

    def __init__(self, stage: str, total: int, done: int = 0):
        self._live = sys.stdout.isatty() and primary()
        self._stage, self._total, self._start, self._first = stage, total, time.monotonic(), done
        if self._live:
            columns = (TextColumn("{task.description:>9}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
                       TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
            self._progress = Progress(*columns)
            self._task = self._progress.add_task(stage, total=total, completed=done, note="")
            self._progress.start()

    def update(self, done: int, note: str = "", line: bool = False) -> None:
        """Shows `done` of the total and a note."""
        if self._live:
            self._progress.update(self._task, completed=done, note=note)
        elif line and primary():
            pace = (time.monotonic() - self._start) / max(done - self._first, 1)
            eta = max(self._total - done, 0) * pace
            print(f"{self._stage} {done}/{self._total} eta {eta:.0f}s {note}", flush=True)

    def close(self) -> None:
        """Leaves the bar on the screen."""
        if self._live:
            self._progress.stop()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Metrics:
    """metrics.jsonl and TensorBoard events of one loop. On resume, lines after the checkpoint's step are cut off."""

    def __init__(self, path: Path, events: Path | None, step: int):
        self._file, self._writer = None, None
        if not primary():
            return
        kept = [line for line in _sound_lines(path) if json.loads(line)["step"] <= step]
        write_text(path, "".join(kept))
        self._file = path.open("a")
        if events is not None:
            self._writer = SummaryWriter(str(events), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of finite JSON: a NaN becomes null."""
        if self._file is None:
            return
        clean = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in clean.items():
            if self._writer is not None and value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def _sound_lines(path: Path) -> list[str]:
    """Whole lines of a metrics file; a torn last one is left out."""
    text = path.read_text() if path.exists() else ""
    return [line + "\n" for line in text.split("\n")[:-1]]


def host_metrics(tree: dict[str, jax.Array]) -> dict[str, float]:
    """Replicated device scalars as floats."""
    return {k: float(np.asarray(v)) for k, v in tree.items()}
