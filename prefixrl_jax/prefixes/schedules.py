"""Which contexts a step trains on: plain problems, and prefixes whose length a schedule decides.

Whatever a schedule learns from the rollouts is its memory, JSON values that are saved with every
checkpoint: the contexts of a step are a pure function of (seed, step, memory).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from prefixrl_jax.prefixes.cuts import cut_before
from prefixrl_jax.sampling.noise import words
from prefixrl_jax.tasks.task import Problem, Task
from prefixrl_jax.training.rollout import Prompt

Memory = dict[str, Any]


class Schedule(Protocol):
    """Prefixed contexts, step by step."""

    def __len__(self) -> int:
        """How many there are to draw from; 0: none at all."""

    def draw(self, step: int, attempt: int, count: int, memory: Memory) -> list[Prompt]:
        """`count` contexts; attempt > 0 asks for others of the same step.

        Fewer when no problem needs a prefix any more.
        """

    def learn(self, problem: str, fraction: float, success: float, memory: Memory) -> None:
        """Takes in the mean reward of one group: of a prefix of so much of the trace, 0 for the
        plain problem.
        """


def walk(seed: int, name: str, size: int, start: int, count: int) -> list[int]:
    """Places `start` to `start + count` of an endless walk through range(size), shuffled anew every
    epoch.
    """

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch, *words(name).tolist()]).permutation(size)

    epochs = (
        {epoch: order(epoch) for epoch in range(start // size, (start + count - 1) // size + 1)}
        if count
        else {}
    )
    return [int(epochs[place // size][place % size]) for place in range(start, start + count)]


def _stream(name: str, attempt: int) -> str:
    return f"{name} again {attempt}" if attempt else name


@dataclasses.dataclass(frozen=True)
class Band:
    """The paper's: prefixes drawn once and frozen."""

    prompts: Sequence[Prompt]
    seed: int

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, step: int, attempt: int, count: int, memory: Memory) -> list[Prompt]:
        """The next ones of the walk."""
        return [
            self.prompts[i]
            for i in walk(self.seed, _stream("prefixed", attempt), len(self), step * count, count)
        ]

    def learn(self, problem: str, fraction: float, success: float, memory: Memory) -> None:
        """Nothing."""


@dataclasses.dataclass(frozen=True)
class Traces:
    """Traces to cut anywhere: (problem, token ids) pairs, and how a prefix is put in front."""

    task: Task
    pairs: Sequence[tuple[Problem, Sequence[int]]]
    hinted: bool = False

    def prompt(self, i: int, fraction: float) -> Prompt:
        """The context with at most this fraction of trace i; a cut is known by its length."""
        problem, trace = self.pairs[i]
        prefix = cut_before(self.task, problem, trace, fraction)
        return Prompt(problem, prefix, len(prefix), fraction if prefix else 0.0, self.hinted)


@dataclasses.dataclass(frozen=True)
class Annealed:
    """One fraction for all problems, which falls with the step; each prefix is uniform in (spread ·
    fraction, fraction].
    """

    traces: Traces
    fraction: Callable[[int], float]
    seed: int
    spread: float = 1.0

    def __len__(self) -> int:
        return len(self.traces.pairs)

    def draw(self, step: int, attempt: int, count: int, memory: Memory) -> list[Prompt]:
        """The next traces of the walk, cut as the step says."""
        places = walk(self.seed, _stream("prefixed", attempt), len(self), step * count, count)
        rng = np.random.default_rng([self.seed, step, attempt, *words("fractions").tolist()])
        drawn = [
            self.traces.prompt(i, self.fraction(step) * f)
            for i, f in zip(places, rng.uniform(self.spread, 1.0, count))
        ]
        # plain problems take the places of the others
        return [prompt for prompt in drawn if prompt.prefix]

    def learn(self, problem: str, fraction: float, success: float, memory: Memory) -> None:
        """Nothing."""


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """A fraction per problem, moved after every group to hold success near one half (as AdaBack and
    AdaPrefix-GRPO do).

    A problem whose plain form is solved half of the time has no more need of a prefix and is
    dropped.
    """

    traces: Traces
    start: float  # the first fraction, and the largest
    seed: int
    gain: float = 0.4  # how far success 0 or 1 moves the fraction, twice over

    def __len__(self) -> int:
        return len(self.traces.pairs)

    def draw(self, step: int, attempt: int, count: int, memory: Memory) -> list[Prompt]:
        """Traces still in need, in an order of the step's own, repeated when there are fewer than
        `count`.
        """
        open_ = [
            i
            for i, (problem, _) in enumerate(self.traces.pairs)
            if memory.get(problem.id, self.start) is not None
        ]
        if not open_:
            return []
        order = np.random.default_rng(
            [self.seed, step, attempt, *words("prefixed").tolist()]
        ).permutation(len(open_))
        chosen = [open_[order[k % len(order)]] for k in range(count)]
        return [self.traces.prompt(i, self._fraction(i, memory)) for i in chosen]

    def _fraction(self, i: int, memory: Memory) -> float:
        problem, trace = self.traces.pairs[i]
        # one token at least: the plain problem comes besides
        return max(self.propose(problem.id, memory), 1 / len(trace))

    def propose(self, problem: str, memory: Memory) -> float:
        """The fraction to give now."""
        return float(memory.get(problem, self.start))

    def learn(self, problem: str, fraction: float, success: float, memory: Memory) -> None:
        """Shorter after success above one half, longer below; dropped once that holds without a
        prefix.
        """
        if memory.get(problem, self.start) is None:
            return
        if not fraction:
            if success >= 0.5:
                memory[problem] = None
            return
        memory[problem] = min(
            max(self.propose(problem, memory) + self.gain * (0.5 - success), 0.0), self.start
        )


@dataclasses.dataclass(frozen=True)
class ShortestSolvable(Adaptive):
    """The shortest prefix with a success, searched by halving an interval as training goes (after
    BREAD and POPE).

    memory: [low, high] per problem, fractions without and with a success in their group. Once they
    are close the prefix stays, until its group is all right: then the interval opens again below
    it, twice as wide.
    """

    precision: float = 0.05

    def propose(self, problem: str, memory: Memory) -> float:
        """The middle of the interval, or its upper end once it is narrow."""
        low, high = memory.get(problem, (0.0, 2 * self.start))
        return high if high - low <= self.precision else min((low + high) / 2, self.start)

    def learn(self, problem: str, fraction: float, success: float, memory: Memory) -> None:
        """Takes the half in which the shortest solvable prefix lies."""
        known = memory.get(problem, (0.0, 2 * self.start))
        if known is None:
            return
        low, high = known
        if not fraction:
            if success >= 0.5:
                memory[problem] = None
        elif success == 1:
            memory[problem] = [max(2 * low - fraction, 0.0), fraction]
        elif success:
            memory[problem] = [low, fraction]
        elif fraction < high:
            memory[problem] = [fraction, high]
        else:  # what was solvable is so no more
            memory[problem] = [min(fraction, self.start - self.precision), self.start]


SCHEDULES = ("band", "reverse", "cosine", "adaptive", "shortest_solvable")


def make_schedule(
    kind: str, frozen: Sequence[Prompt], traces: Traces, high: float, steps: int, seed: int
) -> Schedule:
    """A schedule by name.

    band: the frozen prefixes (paper, section 3). reverse: from the end of the trace to its start in
    equal steps (R3, arXiv 2402.05808). cosine: annealed to none along half a cosine, lengths
    uniform below it (UFT, arXiv 2505.16984). adaptive,
    shortest_solvable: see the classes. high: the largest fraction; steps: until an annealed prefix
    is gone. Raises ValueError for another name.
    """
    half_cosine = lambda step: high * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))  # noqa: E731
    makers: dict[str, Callable[[], Schedule]] = {
        "band": lambda: Band(frozen, seed),
        "reverse": lambda: Annealed(traces, lambda step: high * max(1 - step / steps, 0.0), seed),
        "cosine": lambda: Annealed(traces, half_cosine, seed, spread=0.0),
        "adaptive": lambda: Adaptive(traces, high, seed),
        "shortest_solvable": lambda: ShortestSolvable(traces, high, seed),
    }
    if kind not in makers:
        raise ValueError(f"prefix.schedule={kind!r}: one of {', '.join(SCHEDULES)}")
    return makers[kind]()


@dataclasses.dataclass(frozen=True)
class ContextStream:
    """The contexts of every step.

    A share `prefixed_share` of every batch (0.75 is the paper's 3:1) comes from the schedule and
    the rest from the plain problems, which also take the places of prefixes that nobody needs any
    more.
    """

    prefixed: Schedule
    plain: Sequence[Prompt]
    prefixed_share: float
    batch: int
    seed: int

    def __post_init__(self):
        if not 0 <= self.prefixed_share <= 1:
            raise ValueError(
                f"prefix.share={self.prefixed_share}: a fraction from 0 (plain RL) to 1 is expected"
            )
        if self.per_step[0] and not len(self.prefixed):
            raise ValueError(
                "no prefix to train on: the corpus has no trace (raise collect.cap, or choose"
                " easier problems)"
            )
        if not self.plain:
            raise ValueError(
                f"prefix.share={self.prefixed_share} asks for plain problems in every batch, and"
                " there is none"
            )

    @property
    def per_step(self) -> tuple[int, int]:
        """(prefixed, plain) contexts in a batch, while there are prefixes."""
        prefixed = round(self.batch * self.prefixed_share)
        return prefixed, self.batch - prefixed

    def at(self, step: int, memory: Memory, attempt: int = 0) -> list[Prompt]:
        """The batch of `step` (from 0), prefixed contexts first.

        attempt > 0 gives other ones, for groups drawn again.
        """
        wanted, plain = self.per_step
        drawn = self.prefixed.draw(step, attempt, wanted, memory) if wanted else []
        drawn += self._plain(_stream("plain", attempt), step * plain, plain)
        drawn += self._plain(_stream("instead", attempt), step * wanted, self.batch - len(drawn))
        return numbered(drawn)

    def _plain(self, name: str, start: int, count: int) -> list[Prompt]:
        return [self.plain[i] for i in walk(self.seed, name, len(self.plain), start, count)]

    def learn(self, groups: Sequence[dict[str, Any]], memory: Memory) -> Memory:
        """The memory after a step, from the summaries of all its groups ("problem", "fraction",
        "solved"): those of one problem, plain or prefixed, count as one.
        """
        alike: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        for group in groups:
            alike.setdefault((group["problem"], group["fraction"] > 0), []).append(group)
        after = dict(memory)
        for (problem, _), members in alike.items():
            fraction, success = (
                float(np.mean([g[key] for g in members])) for key in ("fraction", "solved")
            )
            self.prefixed.learn(problem, fraction, success, after)
        return after


def numbered(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same contexts, those that occur again in the batch told apart: equal names would draw
    equal samples.
    """
    seen: dict[str, int] = {}
    out = []
    for prompt in prompts:
        repeat = seen.get(prompt.name, 0)
        seen[prompt.name] = repeat + 1
        out.append(dataclasses.replace(prompt, repeat=repeat) if repeat else prompt)
    return out
