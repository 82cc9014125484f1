"""Proposition 3.4: the hidden-string MDP, PrefixRL-NPG (Algorithm 1) and plain NPG on it, and how
their samples grow.

The MDP: at each of H steps one of two actions, and reward 1 at the end if they spell an unknown
string, else 0. The base policy is uniform. PrefixRL-NPG is given the one correct trace, which is
the string, to cut prefixes from; plain NPG has the same iterations, step size and samples an
iteration, and begins every rollout at the start.

A *sample* is one rollout with its reward. Finding the trace by rejection sampling takes 2^H samples
on average; the theory regards them as spent before, and here they are reported apart and added. A
method has *solved* a horizon after the first iteration at which the uniform mixture of the policies
that drew its samples, Algorithm 1's output, spells the string with probability 1/2 or more,
computed exactly. Plain NPG is stopped unsolved (censored) at a cap on samples.

A policy is its table of log-probabilities, float64 [H, 2], at the H states that are prefixes of the
string. Nothing is lost: from any other state the reward is 0 whatever is done, so Q and each
Monte-Carlo estimate of it are exactly 0 there, mirror descent multiplies both actions by exp(0),
the policy stays uniform, and what it does there changes no reward.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

HORIZONS = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 32, 48, 64)
# constant: the step behind Theorem 3.3's rate depends on the number of iterations, which is what is
# measured
STEP_SIZE = 1.0
CAP = 2**24  # samples of one run
SOLVED = 0.5
BLOCK = 2**16  # rollouts drawn at once, at most; many more than those of an iteration
FIT_FROM = 8  # below, the samples of a few iterations outweigh the 2^H until the first success
PREFIX, BOTH, PLAIN = SERIES = ("prefixrl", "prefixrl_with_rejection", "plain")


class Rollouts(NamedTuple):
    """Monte-Carlo estimates of Q at states of the string.

    rollout int [M]: which rollout made the estimate; step int [M]: actions before the state; action
    int [M]; reward bool [M].
    """

    rollout: np.ndarray
    step: np.ndarray
    action: np.ndarray
    reward: np.ndarray


Sampler = Callable[[np.random.Generator, np.ndarray, np.ndarray, int], Rollouts]


def prefix_rollouts(
    rng: np.random.Generator, log_policy: np.ndarray, string: np.ndarray, count: int
) -> Rollouts:
    """Algorithm 1's samples: a prefix of random length, a next action half-and-half, and the
    policy's continuation.

    string: int [H], which is also the trace. Lengths are uniform over 0..H-1; the next action is
    the policy's or uniform, by a fair coin. M = count.
    """
    each, step = np.arange(count), rng.integers(len(string), size=count)
    actions = (rng.random((count, len(string))) < np.exp(log_policy[:, 1])).astype(np.int64)
    uniform = rng.integers(2, size=count)
    actions[each, step] = np.where(rng.random(count) < 0.5, uniform, actions[each, step])
    given = np.arange(len(string)) < step[:, None]
    return Rollouts(each, step, actions[each, step], ((actions == string) | given).all(axis=1))


def plain_rollouts(
    rng: np.random.Generator, log_policy: np.ndarray, string: np.ndarray, count: int
) -> Rollouts:
    """Plain NPG's samples: whole rollouts, and an estimate at every state of the string (int [H])
    that each has visited.

    A rollout that has left the string is not drawn to its end: its reward is 0.
    """
    on, visits = np.arange(count), []
    for step, probability in enumerate(np.exp(log_policy[:, 1])):
        action = (rng.random(len(on)) < probability).astype(np.int64)
        visits.append((on, np.full(len(on), step), action))
        on = on[action == string[step]]
    rollout, steps, actions = map(np.concatenate, zip(*visits, strict=True))
    reward = np.zeros(count, bool)
    reward[on] = True
    return Rollouts(rollout, steps, actions, reward[rollout])


SAMPLERS: dict[str, Sampler] = {PREFIX: prefix_rollouts, PLAIN: plain_rollouts}


def critic(rollouts: Rollouts, horizon: int) -> np.ndarray:
    """Least-squares fit of Q over all tables, float64 [H, 2]: the mean reward of each pair, 0 for a
    pair without samples.
    """
    pair = 2 * rollouts.step + rollouts.action
    counts = np.bincount(pair, minlength=2 * horizon)
    sums = np.bincount(pair, weights=rollouts.reward, minlength=2 * horizon)
    return (sums / np.maximum(counts, 1)).reshape(horizon, 2)


def mirror_descent(
    log_policy: np.ndarray, q: np.ndarray, step_size: float = STEP_SIZE
) -> np.ndarray:
    """π(a|s)·exp(η·Q(s, a)), normalised over a: log-probabilities float64 [H, 2] from
    log-probabilities and Q [H, 2].
    """
    moved = log_policy + step_size * q
    return moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)


def success(log_policy: np.ndarray, string: np.ndarray) -> float:
    """Probability that the policy alone, without a prefix, spells the string (int [H]): exact."""
    return float(np.exp(log_policy[np.arange(len(string)), string].sum()))


class Solved(NamedTuple):
    """Samples until solved, None if not within the cap: by the mixture so far, and by the newest
    policy alone.
    """

    mixture: int | None
    last: int | None


def npg(rng: np.random.Generator, sampler: Sampler, string: np.ndarray, cap: int) -> Solved:
    """Natural policy gradient from the uniform policy, 2H samples an iteration: one for each pair
    of state and action.

    Two things save time and change no result. An iteration without a reward has a critic of 0
    everywhere and leaves the policy as it is, so several are drawn at once while rewards are rare,
    and what comes after the first reward's iteration is dropped unseen. And only right actions are
    ever rewarded, so success never falls: once its bounds from below, today's, and from above, 1,
    agree on the iteration at which the mixture is good enough, the rest need not be drawn.
    """
    horizon, count = len(string), 2 * len(string)
    policy = np.full((horizon, 2), -np.log(2.0))
    now, total, iteration, block, last = success(policy, string), 0.0, 0, 1, None
    while block := min(block, cap // count - iteration):
        batch = sampler(rng, policy, string, block * count)
        at = batch.rollout // count
        used = int(at[batch.reward].min(initial=block - 1)) + 1
        iteration, total = iteration + used, total + used * now
        if total >= SOLVED * iteration:
            return Solved(iteration * count, last)
        policy = mirror_descent(
            policy, critic(Rollouts(*(x[at == used - 1] for x in batch)), horizon)
        )
        now = success(policy, string)
        block = 1 if batch.reward.any() else min(2 * block, BLOCK // count)
        if now > SOLVED:
            last, block, missing = last or iteration * count, 1, SOLVED * iteration - total
            soonest, latest = math.ceil(missing / (1 - SOLVED)), math.ceil(missing / (now - SOLVED))
            if soonest == latest:
                samples = (iteration + soonest) * count
                return Solved(samples if samples <= cap else None, last)
    return Solved(None, last)


def _spread(runs: Sequence[Solved]) -> dict[str, Any]:
    # A censored run needs more than the cap, so the median is known as long as most runs are
    # solved.
    samples = np.sort([np.inf if run.mixture is None else run.mixture for run in runs])
    low, median, high = (
        int(x) if np.isfinite(x) else None for x in (samples[0], np.median(samples), samples[-1])
    )
    return {
        "median": median,
        "lowest": low,
        "highest": high,
        "censored": int(np.isinf(samples).sum()),
        "samples": [run.mixture for run in runs],
        "samples_last_iterate": [run.last for run in runs],
    }


def measure(horizons: Sequence[int], seeds: int, cap: int = CAP) -> Iterator[dict[str, Any]]:
    """A row for each horizon; plain NPG is not run (None) beyond the first horizon at which it has
    no median below the cap.
    """

    def runs(name: str, horizon: int) -> dict[str, Any]:
        generators = [
            np.random.default_rng([seed, horizon, SERIES.index(name)]) for seed in range(seeds)
        ]
        return _spread(
            [npg(rng, SAMPLERS[name], rng.integers(2, size=horizon), cap) for rng in generators]
        )

    plain_goes_on = True
    for horizon in horizons:
        prefix, plain = runs(PREFIX, horizon), runs(PLAIN, horizon) if plain_goes_on else None
        plain_goes_on = plain is not None and plain["median"] is not None
        known = prefix["median"] is not None
        both = {
            "median": prefix["median"] + 2**horizon if known else None,
            "rejection_sampling_expected": 2**horizon,
        }
        yield {"horizon": horizon, PREFIX: prefix, BOTH: both, PLAIN: plain}


@dataclasses.dataclass(frozen=True)
class Fit:
    """log2(samples) = intercept + slope·x by least squares; rms: of the residuals, in doublings."""

    slope: float
    intercept: float
    stderr: float
    r2: float
    rms: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Fit:
        """x, y: float [n], n >= 3."""
        slope, intercept = np.polyfit(x, y, 1)
        squares = np.sum((y - intercept - slope * x) ** 2)
        stderr = np.sqrt(squares / (len(x) - 2) / np.sum((x - x.mean()) ** 2))
        r2 = 1 - squares / np.sum((y - y.mean()) ** 2)
        return cls(*map(float, (slope, intercept, stderr, r2, np.sqrt(squares / len(x)))))


def fits(horizons: Sequence[int], samples: Sequence[int | None]) -> dict[str, Fit] | None:
    """Both growths fitted to horizons from FIT_FROM on: polynomial (x = log2 H, slope its degree),
    exponential (x = H).

    Samples that are None are left out; with fewer than three others there is no fit.
    """
    known = [
        (h, s) for h, s in zip(horizons, samples, strict=True) if s is not None and h >= FIT_FROM
    ]
    if len(known) < 3:
        return None
    x, y = np.array([h for h, _ in known], float), np.log2([float(s) for _, s in known])
    return {"polynomial": Fit.of(np.log2(x), y), "exponential": Fit.of(x, y)}
