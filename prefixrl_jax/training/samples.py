"""Samples that a person can read, as JSON lines in the work directory's samples/ folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from prefixrl_jax.runtime.files import write_text
from prefixrl_jax.runtime.processes import primary
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.training.rollout import Rollouts


@dataclasses.dataclass(frozen=True)
class SampleWriter:
    """Writes samples of every `every`-th training step, from process 0; 0: of none."""

    directory: Path
    task: Task
    every: int

    def write(self, rollouts: Rollouts, step: int) -> None:
        """Write samples of `step` (from 0), if it is one of those."""
        if self.every and step % self.every == 0 and primary():
            rows = readable_samples(self.task, rollouts, step + 1, per_kind=4)
            write_samples(self.directory / f"train-{step + 1:05d}.jsonl", rows)


def readable_samples(
    task: Task, rollouts: Rollouts, step: int, per_kind: int, set_name: str = "train"
) -> list[dict[str, Any]]:
    """Return one sample of each of the first `per_kind` plain and prefixed prompts."""
    rows = []
    for kind in ("plain", "prefixed"):
        chosen = [i for i, p in enumerate(rollouts.prompts) if bool(p.prefix) == (kind != "plain")]
        for i in chosen[:per_kind]:
            rows.append({"step": step, "set": set_name, "kind": kind} | _sample(task, rollouts, i))
    return rows


def write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line; a file that a repeated step wrote before is replaced."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _sample(task: Task, rollouts: Rollouts, i: int) -> dict[str, Any]:
    prompt = rollouts.prompts[i]
    sample = rollouts.samples[i][-1]  # the last one: the first may be a trace
    verdict = rollouts.verdicts[i][-1]
    return {
        "problem": task.text(task.render(prompt.problem)),
        "prefix": task.text(prompt.prefix) if prompt.prefix else "",
        "hinted": prompt.hinted,
        "continuation": task.text(sample.token_ids.tolist()),
        "verdict": verdict.value,
        "reward": verdict.reward,
        "truncated": sample.finish_reason == "length",
    }
