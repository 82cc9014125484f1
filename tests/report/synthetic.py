"""Work directories made by hand: a whole run, and the arms of a comparison."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

CORPUS = 4.0e11  # FLOPs, of a run
HOSTILE = "<script>alert('x')</script> 3 < 4 & \x07 \ud83d"


def metrics_row(step: int, steps: int, noise: random.Random) -> dict:
    """A step of a run that learns: accuracy follows a logistic curve."""
    skill = 0.62 / (1 + math.exp(-(step - 0.55 * steps) / (0.09 * steps)))
    zero, one = 0.75 * math.exp(-2 * step / steps), 0.45 * skill
    length, gap = 60 - 15 * skill + noise.gauss(0, 2), 2e-6 * math.exp(noise.gauss(0, 0.3))
    row = {
        "step": step,
        "reward/mean": 0.3 + skill / 2,
        "reward/plain": min(1.0, max(0.0, skill + noise.gauss(0, 0.05))),
        "groups/all_zero": zero,
        "groups/all_one": one,
        "groups/mixed": 1 - zero - one,
        "completions/mean_length": length,
        "completions/min_length": length / 3,
        "completions/max_length": min(128, 2.2 * length),
        "completions/clipped_ratio": 0.3 * zero,
        "entropy": 0.9 - 0.6 * skill,
        "grad_norm": 0.4 + abs(noise.gauss(0, 0.2)),
        "sampler_trainer/logp_diff_max": gap,
        "sampler_trainer/logp_diff_mean": gap / 30,
        "flops/total": CORPUS + 8e11 * step / steps,
        "time/sample": 0.9,
        "time/grade": 0.01,
        "time/train": 0.45,
        "perf/tokens_per_second": 5000.0 + step,
    }
    if step % max(1, steps // 8) == 0:
        for name, share in (("train", 1.0), ("heldout", 0.7)):
            value = share * skill
            row |= {
                f"eval/{name}/avg@1": value,
                f"eval/{name}/avg@1_low": 0.8 * value,
                f"eval/{name}/avg@1_high": value + 0.03,
            }
    return row


def summary() -> dict:
    """The summary.json of that run."""
    phases = {
        "select": 1e11,
        "collect": 3e11,
        "prefill": 1e11,
        "decode": 2e11,
        "score": 0.0,
        "train": 5e11,
    }
    outside = {"base": 9e11, "eval": 7e10}
    curve = {"1": 0.001, "4": 0.004, "16": 0.016}
    return {
        "plain_pass_at_1": {
            "train": {"before": 0.00125, "after": 0.6},
            "heldout": {"before": 0.002, "after": 0.41},
        },
        "plain_pass_at_1_interval": {
            "train": {"before": [0.0005, 0.003], "after": [0.55, 0.64]},
            "heldout": {"before": [0.001, 0.004], "after": [0.37, 0.45]},
        },
        "pass_at_k": {
            name: {"before": curve, "after": {"1": 0.6 * f, "4": 0.8 * f, "16": 0.9 * f}}
            for name, f in (("train", 1), ("heldout", 0.7))
        },
        "success_by_prefix_fraction": {
            "before": {"0.0": 0.001, "0.2": 0.01, "0.4": 0.08, "0.6": 0.3, "0.8": 0.6},
            "after": {"0.0": 0.6, "0.2": 0.65, "0.4": 0.72, "0.6": 0.83, "0.8": 0.95},
        },
        "flops": {
            "paper": {**phases, **outside, "total": 1.2e12},
            "actual": {**{k: v / 2 for k, v in phases.items()}, **outside, "total": 6e11},
            "hardware": {**{k: v * 0.7 for k, v in phases.items()}, **outside, "total": 8.4e11},
        },
        "seconds": {"base": 75.0, "select": 12.34, "corpus": 200.0, "train": 7265.0, "report": 0.0},
        "peak_rss_bytes": 1_234_000_000,
        "corpus": {
            "problems": 128,
            "solved": 117,
            "capped": 11,
            "samples": 45_678,
            "samples_per_solved": 212.5,
            "capped_treatment": "They were left in the training set without a prefix.",
        },
        "hard_set": {
            "candidates": {"train": 1500, "heldout": 500},
            "train": 128,
            "heldout": 64,
            "k": 16,
        },
        "prefixes": {"contexts": 351, "dropped_leaks": 3, "redrawn": 14},
        "model": {"parameters": 826_112, "family": "qwen2"},
        "task": "water_jugs",
        "versions": {"jax": "0.10.2", "python": "3.11.9"},
    }


def sample(step: int, kind: str, verdict: str, text: str) -> dict:
    """A line of a samples file."""
    return {
        "step": step,
        "set": "train",
        "kind": kind,
        "problem": "Jugs of 3, 5 and 8 litres; measure 4.",
        "prefix": "fill 5; pour 5 3;" if kind == "prefixed" else "",
        "continuation": text,
        "verdict": verdict,
        "reward": float(verdict == "correct"),
        "truncated": verdict == "unparsed",
    }


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(workdir: Path, steps: int = 200) -> Path:
    """Write the records of a whole run of `steps` steps; return its directory."""
    noise = random.Random(0)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(
        json.dumps({"train": {"steps": steps, "rate": 1e-3}, "method": "prefix_rl"})
    )
    (workdir / "summary.json").write_text(json.dumps(summary()))
    write_jsonl(
        workdir / "metrics.jsonl", [metrics_row(step, steps, noise) for step in range(1, steps + 1)]
    )
    write_jsonl(workdir / "samples/before.jsonl", [sample(0, "plain", "wrong", HOSTILE)])
    middle = [
        sample(s, k, v, f"{k} {v} {s}")
        for s in (3, 90, 170)
        for k in ("plain", "prefixed")
        for v in ("wrong", "correct")
    ]
    write_jsonl(workdir / "samples/train.jsonl", middle)
    write_jsonl(
        workdir / "samples/after.jsonl",
        [
            sample(steps, "plain", "correct", "fill 5; pour 5 3; done"),
            sample(steps, "prefixed", "unparsed", "fill " * 3000),
        ],
    )
    return workdir


# Of an arm: FLOPs of the corpus, and training steps.
ARM_CORPUS = 2e11
ARM_STEPS = 20


def make_arm(
    directory: Path, slope: float, corpus: float = ARM_CORPUS, tuned: bool = False
) -> Path:
    """Write the records of an arm; return its directory.

    Its plain accuracy rises by `slope` a step from 0, which it has at the cost of the corpus; a
    step costs 1e11 FLOPs, half of it in the actual accounting. `tuned`: it began with fine-tuning.
    """
    rows = []
    for step in range(1, ARM_STEPS + 1):
        row = {
            "step": step,
            "flops/total": corpus + step * 1e11,
            "flops/actual_total": corpus / 2 + step * 5e10,
            "reward/plain": slope * step,
            "reward/prefixed": 0.5,
            "groups/all_zero": 0.5,
            "groups/mixed": 0.25,
            "groups/all_one": 0.25,
            "grad_norm": 1.0 + step % 2,
            "entropy": 0.4,
            "completions/mean_length": 30.0,
            "problems/unlocked": 2.0 * step,
            "strategy/pour": 0.6,
        }
        if not step % 5:
            row |= {f"eval/{name}/avg@1": slope * step for name in ("train", "heldout")}
        rows.append(row)
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = {"before": 0.0, "after": slope * ARM_STEPS}
    half = corpus / 2
    summary = {
        "plain_pass_at_1": {"train": last, "heldout": last},
        "pass_at_k": {
            name: {"after": {"1": slope, "8": 3 * slope}} for name in ("train", "heldout")
        },
        "success_by_prefix_fraction": {
            "before": {"0.0": 0.0, "0.5": 0.2},
            "after": {"0.0": slope * ARM_STEPS, "0.5": 0.9},
        },
        "flops": {
            "paper": {"select": half, "collect": half, "total": corpus + ARM_STEPS * 1e11},
            "actual": {"select": half / 2, "collect": half / 2, "total": half + ARM_STEPS * 5e10},
        },
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "config.json").write_text("{}")
    if tuned:
        (directory / "sft").mkdir()
        row = {
            "step": 1,
            "flops/total": corpus + 5e10,
            "flops/actual_total": half + 2.5e10,
            "eval/train/avg@1": 0.01,
            "eval/heldout/avg@1": 0.01,
        }
        (directory / "sft" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return directory


def make_arms(directory: Path) -> dict[tuple[str, int], Path]:
    """One method rises twice as fast as the other, each with three seeds that differ a little."""
    slopes = {"prefixrl": 0.02, "sft_rl": 0.01}
    return {
        (name, seed): make_arm(
            directory / name / str(seed), slope * (1 + 0.1 * (seed - 1)), tuned=name == "sft_rl"
        )
        for name, slope in slopes.items()
        for seed in range(3)
    }
