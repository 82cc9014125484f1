"""PrefixRL's batches: on-policy rollouts that continue frozen prefixes, beside rollouts of the plain problems.

Paper, section 3: the objective is the expected 0/1 reward over the prefixed problems plus that over the plain problems. A group
is the n rollouts of one (problem, prefix); its baseline is its own mean.
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prefixrl_jax import mesh as meshes
from prefixrl_jax.files import write_text
from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Group
from prefixrl_jax.model.weights import Params
from prefixrl_jax.prefixes import ContextStream
from prefixrl_jax.processes import joined, local_slice, primary
from prefixrl_jax.rl.advantage import advantages
from prefixrl_jax.rl.loss import informative
from prefixrl_jax.rollout import Prompt, Rollouts, as_group, sample_and_grade
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.train import Batch


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """The source of RL: contexts of the step -> rollouts by the current parameters -> a batch of graded groups."""

    engine: Engine
    decode_shardings: Params
    task: Task
    contexts: ContextStream
    group: int
    advantage: str
    sampling: Sampling
    seed: int
    mask_truncated: bool
    samples_directory: Path
    samples_every: int

    def __call__(self, params: Params, step: int, ledger: Ledger) -> Batch:
        """The batch of `step`. Rollouts are a pure function of (parameters, seed, step)."""
        started = time.monotonic()
        prompts = local_slice(self.contexts.at(step))
        decode_params = jax.device_put(params, self.decode_shardings)
        stream = stream_key(self.seed, "rollouts", step)
        rollouts = sample_and_grade(
            self.engine, decode_params, self.task, prompts, self.group, self.sampling, stream, ledger, ("prefill", "decode")
        )
        group = as_group(self.task, rollouts, self.engine.buckets, self.sampling.max_new_tokens, self.mask_truncated)
        if self.samples_every and (step % self.samples_every == 0) and primary():
            rows = readable_samples(self.task, rollouts, step + 1, per_kind=4)
            write_samples(self.samples_directory / f"train-{step + 1:05d}.jsonl", rows)

        charge = partial(self._charge, rollouts, group)
        everyone = joined(summaries(rollouts))
        metrics = rollout_metrics(everyone) | {"time/sample": time.monotonic() - started}
        named = ", ".join(sorted({p.problem.id for p in prompts})[:8])
        description, tokens = f"of step {step + 1} (problems {named}, ...)", sum(sum(g["lengths"]) for g in everyone)
        return Batch(meshes.to_global(self.engine.mesh, group), description, tokens, metrics, charge)

    def _charge(self, rollouts: Rollouts, group: Group, ledger: Ledger, update: dict[str, float]) -> None:
        """Books one update on these rollouts (this process's part of the batch)."""
        trained = np.asarray(informative(advantages(rollouts.rewards, self.advantage)))
        for context, row, is_trained in zip(group.context.lengths.tolist(), rollouts.samples, trained, strict=True):
            lengths = [len(s.token_ids) for s in row]
            ledger.add_training(self.engine.cost, "train", context, lengths, bool(is_trained))
        # What the device was given: every position of the groups computed, padding included.
        positions = group.context.tokens.shape[-1] + group.tokens[0].size
        computed = update["groups/computed"] / jax.process_count() * positions
        ledger.add("hardware", "train", self.engine.cost.trained_positions(computed))


def summaries(rollouts: Rollouts) -> list[dict[str, Any]]:
    """What the metrics need of each group, as JSON values; few numbers a rollout, so that processes can share them."""
    return [
        {
            "prefix": len(prompt.prefix), "fraction": prompt.fraction, "verdicts": [v.value for v in verdicts],
            "rewards": [v.reward for v in verdicts], "lengths": [len(s.token_ids) for s in samples],
            "clipped": [s.finish_reason == "length" for s in samples],
            "logprob": float(sum(s.logprobs.sum(dtype=np.float64) for s in samples)),
        }
        for prompt, samples, verdicts in zip(rollouts.prompts, rollouts.samples, rollouts.verdicts, strict=True)
    ]  # fmt: skip


def rollout_metrics(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Rewards, groups, lengths and prefix statistics of a batch, from the `summaries` of all its groups."""
    rewards, lengths, clipped = (np.array([g[k] for g in groups]) for k in ("rewards", "lengths", "clipped"))
    sizes, fractions = (np.array([g[k] for g in groups]) for k in ("prefix", "fraction"))
    verdicts, prefixed, solved = [v for g in groups for v in g["verdicts"]], sizes > 0, rewards.mean(axis=1)
    out = {
        # Nats a token: the mean of -log p over sampled tokens is an unbiased estimate of it.
        "entropy": -sum(g["logprob"] for g in groups) / lengths.sum(),
        "reward/mean": rewards.mean(), "reward/plain": _mean(rewards[~prefixed]), "reward/prefixed": _mean(rewards[prefixed]),
        "reward/frac_zero_std": ((solved == 0) | (solved == 1)).mean(),
        "groups/all_zero": (solved == 0).mean(), "groups/all_one": (solved == 1).mean(),
        "groups/mixed": ((solved > 0) & (solved < 1)).mean(),
        "completions/mean_length": lengths.mean(), "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": clipped.mean(),
    }  # fmt: skip
    for name in ("timeout", "error", "unparsed"):
        out[f"verify/{name}_rate"] = verdicts.count(name) / len(verdicts)
    if prefixed.any():
        for name, values in (("fraction", fractions[prefixed]), ("length", sizes[prefixed])):
            out |= {f"prefix/{name}_mean": values.mean(), f"prefix/{name}_p10": np.quantile(values, 0.1),
                    f"prefix/{name}_p90": np.quantile(values, 0.9)}  # fmt: skip
    return {k: float(v) for k, v in out.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def readable_samples(task: Task, rollouts: Rollouts, step: int, per_kind: int, set_name: str = "train") -> list[dict[str, Any]]:
    """Rows a person can read: of each kind (plain, prefixed) the first sample of the first contexts."""
    rows = []
    for kind in ("plain", "prefixed"):
        chosen = [i for i, p in enumerate(rollouts.prompts) if bool(p.prefix) == (kind == "prefixed")][:per_kind]
        rows += [_sample_row(task, rollouts, i, kind, step, set_name) for i in chosen]
    return rows


def write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line; a file that a repeated step has written before is replaced."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _sample_row(task: Task, rollouts: Rollouts, i: int, kind: str, step: int, set_name: str) -> dict[str, Any]:
    prompt: Prompt = rollouts.prompts[i]
    sample, verdict = rollouts.samples[i][0], rollouts.verdicts[i][0]
    return {
        "step": step, "set": set_name, "kind": kind, "problem": task.text(task.render(prompt.problem)),
        "prefix": task.text(prompt.prefix) if prompt.prefix else "", "continuation": task.text(sample.token_ids.tolist()),
        "verdict": verdict.value, "reward": verdict.reward, "truncated": sample.finish_reason == "length",
    }  # fmt: skip
