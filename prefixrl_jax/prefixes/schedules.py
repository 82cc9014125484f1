"""Schedules: how long the prefixes of a step are, by name (`prefix.schedule`).

    band                the paper's: prefixes drawn once and frozen (section 3)
    reverse             from the end of the trace to its start in equal steps (R3, arXiv 2402.05808)
    cosine              annealed to none along half a cosine (UFT, arXiv 2505.16984)
    adaptive            a length per problem that holds success near one half (AdaBack, 2506.18110;
                        AdaPrefix-GRPO, 2607.07674)
    shortest_solvable   the shortest prefix with a success (BREAD, 2506.17211; POPE, 2601.18779)

What a schedule learns from rollouts is its memory, JSON values that are saved with every
checkpoint: the contexts of a step are a pure function of (seed, step, memory).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from prefixrl_jax.prefixes.cuts import cut_before
from prefixrl_jax.sampling.noise import walk, words
from prefixrl_jax.seeds import generator
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Problem, Task

ScheduleMemory = dict[str, Any]  # by problem id


class Schedule(Protocol):
    """Draws prefixed contexts, step by step."""

    def __len__(self) -> int:
        """Return how many traces or prefixes there are to draw from; 0: none at all."""

    def draw(self, step: int, attempt: int, count: int, memory: ScheduleMemory) -> list[Prompt]:
        """Return `count` contexts of a step; fewer when no problem needs a prefix any more.

        attempt > 0 asks for other contexts of the same step.
        """

    def learn(self, problem: str, fraction: float, success: float, memory: ScheduleMemory) -> None:
        """Take in the mean reward of a group; `memory` is changed in place.

        fraction: share of the trace that was given, 0 for the plain problem.
        """


def attempt_name(name: str, attempt: int) -> str:
    """Return the name of a walk; each attempt at a step has one of its own."""
    return f"{name} again {attempt}" if attempt else name


@dataclasses.dataclass(frozen=True)
class Band:
    """The paper's schedule: prefixes drawn once, uniform in a band, and frozen."""

    prompts: Sequence[Prompt]
    seed: int

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, step: int, attempt: int, count: int, memory: ScheduleMemory) -> list[Prompt]:
        """Return the next prefixes of a walk through all of them."""
        name = attempt_name("prefixed", attempt)
        places = walk(self.seed, name, len(self), step * count, count)
        return [self.prompts[i] for i in places]

    def learn(self, problem: str, fraction: float, success: float, memory: ScheduleMemory) -> None:
        """Ignore the group: these prefixes do not change."""


@dataclasses.dataclass(frozen=True)
class TraceCutter:
    """Cuts traces anywhere.

    Attributes:
        task: guards against prefixes that give the answer away.
        pairs: (problem, token ids of its trace).
        hinted: whether prefixes go into the user's turn.
    """

    task: Task
    pairs: Sequence[tuple[Problem, Sequence[int]]]
    hinted: bool = False

    def prompt(self, i: int, fraction: float) -> Prompt:
        """Return the context with at most this fraction of trace i, numbered by its length."""
        problem, trace = self.pairs[i]
        prefix = cut_before(self.task, problem, trace, fraction)
        return Prompt(problem, prefix, len(prefix), fraction if prefix else 0.0, self.hinted)


@dataclasses.dataclass(frozen=True)
class Annealed:
    """One fraction for all problems, which falls with the step.

    Attributes:
        traces: to cut.
        fraction: of a step, the largest one.
        seed: of the order and of the lengths.
        spread: each prefix is uniform in (spread · fraction, fraction].
    """

    traces: TraceCutter
    fraction: Callable[[int], float]
    seed: int
    spread: float = 1.0

    def __len__(self) -> int:
        return len(self.traces.pairs)

    def draw(self, step: int, attempt: int, count: int, memory: ScheduleMemory) -> list[Prompt]:
        """Return the next traces of a walk, cut as the step says, but for those cut to nothing."""
        name = attempt_name("prefixed", attempt)
        places = walk(self.seed, name, len(self), step * count, count)
        rng = generator(self.seed, step, attempt, *words("fractions").tolist())
        scales = rng.uniform(self.spread, 1.0, count)
        largest = self.fraction(step)
        prompts = [self.traces.prompt(i, largest * scale) for i, scale in zip(places, scales)]
        return [prompt for prompt in prompts if prompt.prefix]

    def learn(self, problem: str, fraction: float, success: float, memory: ScheduleMemory) -> None:
        """Ignore the group: the fraction depends on the step alone."""


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """A fraction per problem, moved after every group to hold success near one half.

    A problem whose plain form is solved half of the time needs no prefix any more: it is dropped,
    and its memory is None. Otherwise the memory is the fraction.

    Attributes:
        traces: to cut.
        start: the first fraction, and the largest.
        seed: of the order.
        gain: success 0 lengthens, success 1 shortens the fraction by half of this.
    """

    traces: TraceCutter
    start: float
    seed: int
    gain: float = 0.4

    def __len__(self) -> int:
        return len(self.traces.pairs)

    def draw(self, step: int, attempt: int, count: int, memory: ScheduleMemory) -> list[Prompt]:
        """Return traces still needed, shuffled for this step, repeated if fewer than `count`."""
        needed = [
            i
            for i, (problem, _) in enumerate(self.traces.pairs)
            if memory.get(problem.id, self.start) is not None
        ]
        if not needed:
            return []
        rng = generator(self.seed, step, attempt, *words("prefixed").tolist())
        order = rng.permutation(len(needed))
        chosen = [needed[order[k % len(order)]] for k in range(count)]
        return [self.traces.prompt(i, self._fraction(i, memory)) for i in chosen]

    def _fraction(self, i: int, memory: ScheduleMemory) -> float:
        problem, trace = self.traces.pairs[i]
        # One token at least: the plain problem is in the batch besides.
        return max(self.propose(problem.id, memory), 1 / len(trace))

    def propose(self, problem: str, memory: ScheduleMemory) -> float:
        """Return the fraction to give next."""
        return float(memory.get(problem, self.start))

    def learn(self, problem: str, fraction: float, success: float, memory: ScheduleMemory) -> None:
        """Shorten the prefix after success above one half, lengthen it below."""
        if memory.get(problem, self.start) is None:
            return
        if not fraction:
            if success >= 0.5:
                memory[problem] = None
            return
        moved = self.propose(problem, memory) + self.gain * (0.5 - success)
        memory[problem] = min(max(moved, 0.0), self.start)


@dataclasses.dataclass(frozen=True)
class ShortestSolvable(Adaptive):
    """The shortest prefix with a success, searched by halving an interval as training goes.

    The memory of a problem is [low, high]: fractions without and with a success in their group.
    Once they are close the prefix stays, until its group is all right: then the interval opens
    again below it, twice as wide.
    """

    precision: float = 0.05

    def propose(self, problem: str, memory: ScheduleMemory) -> float:
        """Return the middle of the interval, or its upper end once it is narrow."""
        low, high = memory.get(problem, (0.0, 2 * self.start))
        return high if high - low <= self.precision else min((low + high) / 2, self.start)

    def learn(self, problem: str, fraction: float, success: float, memory: ScheduleMemory) -> None:
        """Keep the half of the interval in which the shortest solvable prefix lies."""
        interval = memory.get(problem, (0.0, 2 * self.start))
        if interval is None:
            return
        low, high = interval
        if not fraction:
            if success >= 0.5:
                memory[problem] = None
        elif success == 1:
            memory[problem] = [max(2 * low - fraction, 0.0), fraction]
        elif success:
            memory[problem] = [low, fraction]
        elif fraction < high:
            memory[problem] = [fraction, high]
        else:  # a length that was solvable is so no more
            memory[problem] = [min(fraction, self.start - self.precision), self.start]


SCHEDULES = ("band", "reverse", "cosine", "adaptive", "shortest_solvable")


@dataclasses.dataclass(frozen=True)
class ScheduleSettings:
    """Settings of all schedules.

    Attributes:
        kind: one of SCHEDULES.
        high: the largest fraction of a trace.
        steps: of training, until an annealed prefix is gone.
        seed: of training.
    """

    kind: str
    high: float
    steps: int
    seed: int

    def __post_init__(self):
        if self.kind not in SCHEDULES:
            raise ValueError(f"prefix.schedule={self.kind!r}: one of {', '.join(SCHEDULES)}")


def make_schedule(
    settings: ScheduleSettings, frozen: Sequence[Prompt], traces: TraceCutter
) -> Schedule:
    """Return the schedule: over the frozen prefixes for "band", over the traces for the others."""
    high, steps, seed = settings.high, settings.steps, settings.seed

    def linear(step: int) -> float:
        return high * max(1 - step / steps, 0.0)

    def half_cosine(step: int) -> float:
        return high * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))

    match settings.kind:
        case "band":
            return Band(frozen, seed)
        case "reverse":
            return Annealed(traces, linear, seed)
        case "cosine":
            return Annealed(traces, half_cosine, seed, spread=0.0)
        case "adaptive":
            return Adaptive(traces, high, seed)
        case _:
            return ShortestSolvable(traces, high, seed)
