"""What a batch of rollouts is reduced to: a summary of each group, and metrics of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from prefixrl_jax.sampling.job import Sample
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.training.rollout import Rollouts


class GroupSummary(TypedDict):
    """What metrics and schedules need of a group, as JSON values; `n` rollouts of the policy.

    Attributes:
        problem: id.
        prefix: tokens of the prefix, 0 for the plain problem.
        fraction: share of the trace that the prefix is.
        verdicts: n names of verdicts.
        rewards: n rewards.
        solved: mean reward.
        lengths: n lengths in tokens.
        clipped: n times whether the length limit cut a rollout.
        logprob: sum over all sampled tokens.
        strategies: mean features of plain rollouts, by name.
    """

    problem: str
    prefix: int
    fraction: float
    verdicts: list[str]
    rewards: list[float]
    solved: float
    lengths: list[int]
    clipped: list[bool]
    logprob: float
    strategies: dict[str, float]


def summarise_groups(rollouts: Rollouts, task: Task) -> list[GroupSummary]:
    """Return what metrics and schedules need of each group, as JSON values.

    A few numbers a rollout, so that processes can exchange them. A trace among the rollouts is
    left out: it says nothing about the policy.
    """
    return [_summary(rollouts, i, task) for i in range(len(rollouts.prompts))]


def _summary(rollouts: Rollouts, i: int, task: Task) -> GroupSummary:
    prompt = rollouts.prompts[i]
    on_policy = np.flatnonzero(~rollouts.off_policy[i])
    samples = [rollouts.samples[i][j] for j in on_policy]
    verdicts = [rollouts.verdicts[i][j] for j in on_policy]
    rewards = [v.reward for v in verdicts]
    return {
        "problem": prompt.problem.id,
        "prefix": len(prompt.prefix),
        "fraction": prompt.fraction,
        "verdicts": [v.value for v in verdicts],
        "rewards": rewards,
        "solved": float(np.mean(rewards)),
        "lengths": [len(s.token_ids) for s in samples],
        "clipped": [s.finish_reason == "length" for s in samples],
        "logprob": float(sum(s.logprobs.sum(dtype=np.float64) for s in samples)),
        "strategies": {} if prompt.prefix else _mean_strategies(task, prompt, samples),
    }


def _mean_strategies(task: Task, prompt: Prompt, samples: list[Sample]) -> dict[str, float]:
    features = [task.strategies(prompt.problem, s.token_ids.tolist()) for s in samples]
    return {name: float(np.mean([f[name] for f in features])) for name in features[0]}


def rollout_metrics(groups: Sequence[GroupSummary]) -> dict[str, float]:
    """Return rewards, lengths, group and prefix statistics of a batch.

    Args:
        groups: `summarise_groups` of all processes.
    """
    metrics = _reward_metrics(groups) | _length_metrics(groups) | _prefix_metrics(groups)
    verdicts = [verdict for group in groups for verdict in group["verdicts"]]
    for name in ("timeout", "error", "unparsed"):
        metrics[f"verify/{name}_rate"] = verdicts.count(name) / len(verdicts)
    return {name: float(value) for name, value in metrics.items()}


def _reward_metrics(groups: Sequence[GroupSummary]) -> dict[str, Any]:
    solved = np.array([group["solved"] for group in groups])
    prefixed = np.array([group["prefix"] > 0 for group in groups])
    rewards = [reward for group in groups for reward in group["rewards"]]
    metrics = {
        "reward/mean": np.mean(rewards),
        "reward/plain": _mean_or_nan(solved[~prefixed]),
        "reward/prefixed": _mean_or_nan(solved[prefixed]),
        "reward/frac_zero_std": ((solved == 0) | (solved == 1)).mean(),
        "groups/all_zero": (solved == 0).mean(),
        "groups/all_one": (solved == 1).mean(),
        "groups/mixed": ((solved > 0) & (solved < 1)).mean(),
    }
    if plain := [group["strategies"] for group in groups if group["strategies"]]:
        metrics |= {f"strategy/{name}": np.mean([s[name] for s in plain]) for name in plain[0]}
    return metrics


def _length_metrics(groups: Sequence[GroupSummary]) -> dict[str, Any]:
    lengths = [length for group in groups for length in group["lengths"]]
    clipped = [cut for group in groups for cut in group["clipped"]]
    return {
        # Nats a token: the mean of -log p over sampled tokens is an unbiased estimate of it.
        "entropy": -sum(group["logprob"] for group in groups) / sum(lengths),
        "completions/mean_length": np.mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": np.mean(clipped),
    }


def _prefix_metrics(groups: Sequence[GroupSummary]) -> dict[str, Any]:
    prefixed = [group for group in groups if group["prefix"] > 0]
    metrics: dict[str, Any] = {}
    if prefixed:
        columns = {
            "fraction": np.array([group["fraction"] for group in prefixed]),
            "length": np.array([group["prefix"] for group in prefixed]),
        }
        for name, values in columns.items():
            metrics[f"prefix/{name}_mean"] = values.mean()
            metrics[f"prefix/{name}_p10"] = np.quantile(values, 0.1)
            metrics[f"prefix/{name}_p90"] = np.quantile(values, 0.9)
    return metrics


def _mean_or_nan(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
