"""Evaluation: unbiased pass@k on plain problems, and success after a given fraction of a trace."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.weights import Params
from prefixrl_jax.prefixes.cuts import cut_before
from prefixrl_jax.runtime.processes import joined, local_slice
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.task import Problem, Task
from prefixrl_jax.training.rollout import Prompt, Rollouts, sample_and_grade

# of the held-out problems
PARTS = {"all": slice(None), "validation": slice(0, None, 2), "test": slice(1, None, 2)}


def part_of(problems: list[Problem], part: str) -> list[Problem]:
    """The problems of one of PARTS: what is chosen on the validation part is measured on the test
    part.
    """
    return problems[PARTS[part]]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one problem from `samples` draws with `correct` successes: 1 - C(n-c, k) /
    C(n, k).
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(
            f"pass@{k} needs 1 <= k <= samples and 0 <= correct <= samples (samples={samples},"
            f" correct={correct})"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling problems: float64 [problems] of per-problem
    means in [0, 1].

    When all means are 0, or all 1, resampling knows no spread: the Wilson bound for so many
    problems is given instead.
    """
    n, z2 = len(values), 1.96**2
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        return (0.0, z2 / (n + z2)) if values[0] == 0 else (n / (n + z2), 1.0)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def accuracy(rewards: np.ndarray, ks: Sequence[int]) -> dict:
    """avg@1 with its interval, and pass@k, of rewards [problems, samples]; a k above the number of
    samples is left out.
    """
    per_problem = rewards.mean(axis=1, dtype=np.float64)
    samples, correct = rewards.shape[1], rewards.sum(axis=1).astype(int)
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


class Evaluator:
    """Evaluates parameters with one engine, task and sampling; FLOPs go under "eval"."""

    def __init__(self, engine: Engine, task: Task, sampling: Sampling, seed: int):
        self._engine, self._task, self._sampling, self._seed = engine, task, sampling, seed

    def rollouts(
        self,
        params: Params,
        prompts: list[Prompt],
        samples: int,
        name: str,
        ledger: Ledger,
        step: int = 0,
    ) -> Rollouts:
        """Fresh samples: the noise is of the stream (seed, "eval NAME", step), which no other stage
        uses.
        """
        stream = stream_key(self._seed, f"eval {name}", step)
        mine, engine = local_slice(prompts), self._engine.wide(samples)
        return sample_and_grade(
            engine,
            params,
            self._task,
            mine,
            samples,
            self._sampling,
            stream,
            ledger,
            ("eval", "eval"),
        )

    def plain(
        self,
        params,
        problems: list[Problem],
        samples: int,
        ks,
        name: str,
        ledger: Ledger,
        step: int = 0,
    ) -> tuple[dict, Rollouts]:
        """Accuracy on plain problems, and this process's part of the rollouts it came from."""
        rollouts = self.rollouts(params, [Prompt(p) for p in problems], samples, name, ledger, step)
        return accuracy(np.array(joined(rollouts.rewards.tolist())), ks), rollouts

    def by_fraction(
        self,
        params,
        problems: dict[str, Problem],
        traces: list[Trace],
        fractions,
        samples: int,
        name: str,
        ledger: Ledger,
    ) -> tuple[dict[str, float | None], Rollouts | None]:
        """Mean success after the first floor(f · length) tokens of each trace, or as many of them
        as do not give the answer away, by fraction (None without traces), and this process's part
        of the last fraction's rollouts.
        """
        out: dict[str, float | None] = {}
        rollouts = None
        for index, fraction in enumerate(fractions):
            known = [(problems[t.problem_id], t.token_ids) for t in traces]
            prompts = [
                Prompt(p, cut_before(self._task, p, ids, fraction), index, fraction)
                for p, ids in known
            ]
            out[str(float(fraction))] = None
            if prompts:
                rollouts = self.rollouts(
                    params, prompts, samples, f"{name} fraction {fraction}", ledger
                )
                out[str(float(fraction))] = float(np.mean(joined(rollouts.rewards.tolist())))
        return out, rollouts
