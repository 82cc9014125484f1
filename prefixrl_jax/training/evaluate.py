"""Evaluation: unbiased pass@k on plain problems, and success after a given fraction of a trace."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.weights import Params
from prefixrl_jax.prefixes.cuts import cut_before
from prefixrl_jax.runtime.console import Progress
from prefixrl_jax.runtime.processes import joined, local_slice
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Problem
from prefixrl_jax.training.rollout import Rollouts, RolloutSampler

# Parts of the held-out problems: what is chosen on "validation" is measured on "test".
PARTS = {"all": slice(None), "validation": slice(0, None, 2), "test": slice(1, None, 2)}


def part_of(problems: list[Problem], part: str) -> list[Problem]:
    """Return the problems of one of PARTS."""
    return problems[PARTS[part]]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the unbiased pass@k of one problem: 1 - C(n-c, k) / C(n, k).

    Args:
        samples: n, draws.
        correct: c, successes among them.
        k: draws of which one has to succeed, 1 <= k <= n.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(
            f"pass@{k} needs 1 <= k <= samples and 0 <= correct <= samples (samples={samples},"
            f" correct={correct})"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, resampling problems.

    When all means are 0, or all 1, resampling knows no spread: the Wilson bound for so many
    problems is given instead.

    Args:
        values: float64 [problems], per-problem means in [0, 1].
        seed: of the resampling.
        draws: resamples.
    """
    n = len(values)
    z2 = 1.96**2
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        return (0.0, z2 / (n + z2)) if values[0] == 0 else (n / (n + z2), 1.0)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def accuracy(rewards: np.ndarray, ks: Sequence[int]) -> dict[str, Any]:
    """Return avg@1 with its interval, and pass@k, as JSON values.

    Args:
        rewards: float32 [problems, samples].
        ks: of pass@k; one above the number of samples is left out.
    """
    per_problem = rewards.mean(axis=1, dtype=np.float64)
    samples = rewards.shape[1]
    correct = rewards.sum(axis=1).astype(int)
    return {
        "avg@1": float(per_problem.mean()),
        "interval": list(bootstrap_interval(per_problem)),
        "problems": len(rewards),
        "samples": samples,
        "solved_at_least_once": int((correct > 0).sum()),
        "pass@k": {
            str(k): float(np.mean([pass_at_k(samples, c, k) for c in correct]))
            for k in ks
            if k <= samples
        },
    }


@dataclasses.dataclass
class Evaluator:
    """Measures one model with fresh samples.

    The noise is of the stream (seed, "eval NAME", step), which no other stage uses.

    Attributes:
        sampler: draws and grades; its phases are ("eval", "eval").
        params: the model, placed by the "decode" rules.
        ledger: is charged.
        seed: of the noise.
        step: of training, from 1; 0 before and after it.
        progress: is told how many samples are finished, if there is one.
    """

    sampler: RolloutSampler
    params: Params
    ledger: Ledger
    seed: int
    step: int = 0
    progress: Progress | None = None
    _finished: int = 0

    def rollouts(self, prompts: list[Prompt], samples: int, name: str) -> Rollouts:
        """Return this process's part of `samples` fresh samples of each prompt."""
        mine = local_slice(prompts)
        engine = self.sampler.engine.wide(samples)
        rollouts = dataclasses.replace(self.sampler, engine=engine).sample(
            self.params,
            mine,
            samples,
            stream_key(self.seed, f"eval {name}", self.step),
            self.ledger,
            on_chunk=self._show,
        )
        self._finished += len(mine) * samples
        return rollouts

    def _show(self, finished: int) -> None:
        if self.progress is not None:  # the other processes have about as many
            done = (self._finished + finished) * jax.process_count()
            self.progress.update(done)

    def plain(
        self, problems: list[Problem], samples: int, ks: Sequence[int], name: str
    ) -> tuple[dict[str, Any], Rollouts]:
        """Measure accuracy without a prefix.

        Returns:
            `accuracy` over all processes, and this process's part of the rollouts.
        """
        rollouts = self.rollouts([Prompt(problem) for problem in problems], samples, name)
        return accuracy(np.array(joined(rollouts.rewards.tolist())), ks), rollouts

    def by_fraction(
        self,
        problems: dict[str, Problem],
        traces: list[Trace],
        fractions: Sequence[float],
        samples: int,
        name: str,
    ) -> tuple[dict[str, float | None], Rollouts | None]:
        """Measure success after the first floor(f · length) tokens of each trace.

        A prefix that gives the answer away is shortened until it does not.

        Returns:
            Mean success by fraction (None without traces), and this process's part of the last
            fraction's rollouts.
        """
        success: dict[str, float | None] = {}
        rollouts = None
        for index, fraction in enumerate(fractions):
            success[str(float(fraction))] = None
            prompts = []
            for trace in traces:
                problem = problems[trace.problem_id]
                prefix = cut_before(self.sampler.task, problem, trace.token_ids, fraction)
                prompts.append(Prompt(problem, prefix, index, fraction))
            if prompts:
                rollouts = self.rollouts(prompts, samples, f"{name} fraction {fraction}")
                rewards = joined(rollouts.rewards.tolist())
                success[str(float(fraction))] = float(np.mean(rewards))
        return success, rollouts
