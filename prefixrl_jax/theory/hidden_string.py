"""Proposition 3.4: how the samples of PrefixRL-NPG and of plain NPG grow on the hidden-string MDP.

The MDP: at each of H steps there are two actions, and the reward at the end is 1 if they spell an
unknown string, else 0. The base policy is uniform. PrefixRL-NPG (Algorithm 1) is given the one
correct trace, which is the string, and cuts prefixes from it. Plain NPG has the same iterations,
step size and samples an iteration, and begins every rollout at the start.

A *sample* is one rollout with its reward. Finding the trace by rejection sampling takes 2^H samples
on average; the theory regards them as spent before, and here they are reported apart and added. A
method has *solved* a horizon after the first iteration at which the uniform mixture of the policies
that drew its samples, which is Algorithm 1's output, spells the string with probability 1/2 or
more, computed exactly. A run that reaches a cap on samples is stopped unsolved (censored).

A policy is a table of log-probabilities, float64 [H, 2], for the H states that are prefixes of the
string. No other state matters: from there the reward is 0 whatever is done, so Q and every
Monte-Carlo estimate of it are exactly 0, mirror descent multiplies both actions by exp(0), and the
policy stays uniform.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

HORIZONS = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 32, 48, 64)
# Constant, since the step size behind Theorem 3.3's rate depends on the number of iterations,
# which is what is measured.
STEP_SIZE = 1.0
CAP = 2**24  # samples of one run
SOLVED = 0.5  # probability of the string
BLOCK = 2**16  # rollouts drawn at once, at most; many more than those of an iteration
FIT_FROM = 8  # below, the samples of a few iterations outweigh the 2^H until the first success
PREFIX, BOTH, PLAIN = SERIES = ("prefixrl", "prefixrl_with_rejection", "plain")


class Rollouts(NamedTuple):
    """Monte-Carlo estimates of Q at states of the string, M of them.

    Attributes:
        rollout: int [M], the rollout that made the estimate.
        step: int [M], how many actions come before the state.
        action: int [M].
        reward: bool [M].
    """

    rollout: np.ndarray
    step: np.ndarray
    action: np.ndarray
    reward: np.ndarray


# (rng, log-policy [H, 2], string int [H], number of rollouts) -> their estimates.
Sampler = Callable[[np.random.Generator, np.ndarray, np.ndarray, int], Rollouts]


def prefix_rollouts(
    rng: np.random.Generator, log_policy: np.ndarray, string: np.ndarray, count: int
) -> Rollouts:
    """Draw Algorithm 1's samples: a prefix of random length and a continuation.

    The lengths are uniform over 0..H-1. The first action of the continuation is the policy's or
    uniform, by a fair coin, and the only one that gives an estimate; the others are the policy's.

    Args:
        rng: Source of randomness.
        log_policy: float64 [H, 2].
        string: int [H], which is also the trace.
        count: Number of rollouts, and of estimates.
    """
    rollout = np.arange(count)
    step = rng.integers(len(string), size=count)
    actions = (rng.random((count, len(string))) < np.exp(log_policy[:, 1])).astype(np.int64)
    uniform = rng.integers(2, size=count)
    actions[rollout, step] = np.where(rng.random(count) < 0.5, uniform, actions[rollout, step])
    in_prefix = np.arange(len(string)) < step[:, None]
    reward = ((actions == string) | in_prefix).all(axis=1)
    return Rollouts(rollout, step, actions[rollout, step], reward)


def plain_rollouts(
    rng: np.random.Generator, log_policy: np.ndarray, string: np.ndarray, count: int
) -> Rollouts:
    """Draw plain NPG's samples: whole rollouts, with an estimate at each state of the string.

    A rollout that has left the string is not drawn to its end, since its reward is 0.

    Args:
        rng: Source of randomness.
        log_policy: float64 [H, 2].
        string: int [H].
        count: Number of rollouts.
    """
    on_string = np.arange(count)
    visits = []
    for step, probability in enumerate(np.exp(log_policy[:, 1])):
        action = (rng.random(len(on_string)) < probability).astype(np.int64)
        visits.append((on_string, np.full(len(on_string), step), action))
        on_string = on_string[action == string[step]]
    rollout, steps, actions = map(np.concatenate, zip(*visits, strict=True))
    reward = np.zeros(count, bool)
    reward[on_string] = True
    return Rollouts(rollout, steps, actions, reward[rollout])


SAMPLERS: dict[str, Sampler] = {PREFIX: prefix_rollouts, PLAIN: plain_rollouts}


def critic(rollouts: Rollouts, horizon: int) -> np.ndarray:
    """Return the least-squares fit of Q over all tables, float64 [H, 2].

    That is the mean reward of each pair of state and action, and 0 for a pair without samples.
    """
    pair = 2 * rollouts.step + rollouts.action
    counts = np.bincount(pair, minlength=2 * horizon)
    sums = np.bincount(pair, weights=rollouts.reward, minlength=2 * horizon)
    return (sums / np.maximum(counts, 1)).reshape(horizon, 2)


def mirror_descent(
    log_policy: np.ndarray, q: np.ndarray, step_size: float = STEP_SIZE
) -> np.ndarray:
    """Return log(π(a|s)·exp(η·Q(s, a))) normalised over a, float64 [H, 2] as both arguments."""
    moved = log_policy + step_size * q
    return moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)


def success(log_policy: np.ndarray, string: np.ndarray) -> float:
    """Return the exact probability that the policy spells the string (int [H]) unaided."""
    return float(np.exp(log_policy[np.arange(len(string)), string].sum()))


class Solved(NamedTuple):
    """Samples until solved, None if that was not within the cap.

    Attributes:
        mixture: Until the mixture of the policies so far has solved it.
        last: Until the newest policy alone has more than probability 1/2.
    """

    mixture: int | None
    last: int | None


def npg(rng: np.random.Generator, sampler: Sampler, string: np.ndarray, cap: int) -> Solved:
    """Run natural policy gradient from the uniform policy until it is solved or at the cap.

    An iteration has 2H samples, one for each pair of state and action. Two things save time and
    change no result:

    - An iteration without a reward has a critic of 0 everywhere and leaves the policy as it is. So
      several are drawn at once while rewards are rare, and what comes after the iteration of the
      first reward is dropped unseen.
    - Only correct actions are ever rewarded, so success never falls. Once its bounds, today's from
      below and 1 from above, agree on the iteration at which the mixture has solved the horizon,
      the rest need not be drawn.
    """
    horizon = len(string)
    count = 2 * horizon
    log_policy = np.full((horizon, 2), -np.log(2.0))
    newest = success(log_policy, string)
    total = 0.0  # sum over iterations of the success of the policy that drew them
    iterations = 0
    block = 1  # iterations drawn at once
    last = None
    while block := min(block, cap // count - iterations):
        batch = sampler(rng, log_policy, string, block * count)
        iteration = batch.rollout // count
        used = int(iteration[batch.reward].min(initial=block - 1)) + 1
        iterations += used
        total += used * newest
        if total >= SOLVED * iterations:
            return Solved(iterations * count, last)
        final = Rollouts(*(column[iteration == used - 1] for column in batch))
        log_policy = mirror_descent(log_policy, critic(final, horizon))
        newest = success(log_policy, string)
        block = 1 if batch.reward.any() else min(2 * block, BLOCK // count)
        if newest > SOLVED:
            last = last or iterations * count
            block = 1
            missing = SOLVED * iterations - total
            soonest = math.ceil(missing / (1 - SOLVED))
            latest = math.ceil(missing / (newest - SOLVED))
            if soonest == latest:
                samples = (iterations + soonest) * count
                return Solved(samples if samples <= cap else None, last)
    return Solved(None, last)


def measure(horizons: Sequence[int], seeds: int, cap: int = CAP) -> Iterator[dict[str, Any]]:
    """Yield for each horizon the samples of `seeds` runs of each method.

    Plain NPG is not run (None) beyond the first horizon at which it has no median below the cap.
    """
    plain_is_run = True
    for horizon in horizons:
        prefix = _summary(_runs(PREFIX, horizon, seeds, cap))
        plain = _summary(_runs(PLAIN, horizon, seeds, cap)) if plain_is_run else None
        plain_is_run = plain is not None and plain["median"] is not None
        rejection = 2**horizon
        both: dict[str, int | None] = {"median": None, "rejection_sampling_expected": rejection}
        if prefix["median"] is not None:
            both["median"] = prefix["median"] + rejection
        yield {"horizon": horizon, PREFIX: prefix, BOTH: both, PLAIN: plain}


def _runs(name: str, horizon: int, seeds: int, cap: int) -> list[Solved]:
    runs = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, horizon, SERIES.index(name)])
        string = rng.integers(2, size=horizon)
        runs.append(npg(rng, SAMPLERS[name], string, cap))
    return runs


def _summary(runs: Sequence[Solved]) -> dict[str, Any]:
    # A censored run needs more than the cap, whose place infinity takes: the median is known as
    # long as most runs are solved.
    samples = np.sort([np.inf if run.mixture is None else run.mixture for run in runs])
    return {
        "median": _whole(np.median(samples)),
        "lowest": _whole(samples[0]),
        "highest": _whole(samples[-1]),
        "censored": int(np.isinf(samples).sum()),
        "samples": [run.mixture for run in runs],
        "samples_last_iterate": [run.last for run in runs],
    }


def _whole(samples: float) -> int | None:
    return int(samples) if np.isfinite(samples) else None


@dataclasses.dataclass(frozen=True)
class Fit:
    """A least-squares fit log2(samples) = intercept + slope·x.

    Attributes:
        slope: Doublings for each unit of x.
        intercept: Doublings.
        stderr: Standard error of the slope.
        r2: Coefficient of determination.
        rms: Root mean square of the residuals, in doublings.
    """

    slope: float
    intercept: float
    stderr: float
    r2: float
    rms: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Fit:
        """Fit y to x, float [n] both, n >= 3."""
        slope, intercept = np.polyfit(x, y, 1)
        squares = np.sum((y - intercept - slope * x) ** 2)
        stderr = np.sqrt(squares / (len(x) - 2) / np.sum((x - x.mean()) ** 2))
        r2 = 1 - squares / np.sum((y - y.mean()) ** 2)
        rms = np.sqrt(squares / len(x))
        return cls(float(slope), float(intercept), float(stderr), float(r2), float(rms))


def fits(horizons: Sequence[int], samples: Sequence[int | None]) -> dict[str, Fit] | None:
    """Fit both kinds of growth to the samples of horizons from FIT_FROM on.

    "polynomial" has x = log2(H) and its degree as slope, "exponential" x = H. Samples that are None
    are left out; with fewer than three others there is no fit.
    """
    points = [
        (horizon, count)
        for horizon, count in zip(horizons, samples, strict=True)
        if count is not None and horizon >= FIT_FROM
    ]
    if len(points) < 3:
        return None
    x = np.array([horizon for horizon, _ in points], float)
    y = np.log2([float(count) for _, count in points])
    return {"polynomial": Fit.of(np.log2(x), y), "exponential": Fit.of(x, y)}
