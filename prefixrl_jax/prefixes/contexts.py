"""Which contexts a step trains on: prefixed ones from a schedule, plain problems for the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefixrl_jax.prefixes.schedules import Schedule, ScheduleMemory, attempt_name
from prefixrl_jax.sampling.noise import walk
from prefixrl_jax.tasks.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class ContextStream:
    """The contexts of every step, a pure function of (seed, step, memory of the schedule).

    Plain problems also take the places of prefixes that no problem needs any more.

    Attributes:
        prefixed: the schedule that draws prefixed contexts.
        plain: the plain problems.
        prefixed_share: share of prefixed contexts in a batch; 0.75 is the paper's 3:1.
        batch: contexts a step.
        seed: of the order in which they come.
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
        """(prefixed, plain) contexts in a batch, as long as prefixes are needed."""
        prefixed = round(self.batch * self.prefixed_share)
        return prefixed, self.batch - prefixed

    def at(self, step: int, memory: ScheduleMemory, attempt: int = 0) -> list[Prompt]:
        """Return the batch of `step` (from 0), prefixed contexts first.

        attempt > 0 gives other contexts, for groups that are drawn again.
        """
        prefixed, plain = self.per_step
        prompts = self.prefixed.draw(step, attempt, prefixed, memory) if prefixed else []
        prompts += self._plain(attempt_name("plain", attempt), step * plain, plain)
        missing = self.batch - len(prompts)
        prompts += self._plain(attempt_name("instead", attempt), step * prefixed, missing)
        return number_repeats(prompts)

    def _plain(self, name: str, start: int, count: int) -> list[Prompt]:
        return [self.plain[i] for i in walk(self.seed, name, len(self.plain), start, count)]

    def learn(self, groups: Sequence[Mapping[str, Any]], memory: ScheduleMemory) -> ScheduleMemory:
        """Return the schedule's memory after a step.

        Args:
            groups: summaries of all the step's groups ("problem", "fraction", "solved"); those of
                one problem, plain or prefixed, count as one.
            memory: the schedule's memory before the step.
        """
        by_problem: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
        for group in groups:
            by_problem.setdefault((group["problem"], group["fraction"] > 0), []).append(group)
        after = dict(memory)
        for (problem, _), members in by_problem.items():
            fraction = float(np.mean([group["fraction"] for group in members]))
            success = float(np.mean([group["solved"] for group in members]))
            self.prefixed.learn(problem, fraction, success, after)
        return after


def number_repeats(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Tell apart contexts that occur again in a batch: equal names would draw equal samples."""
    seen: dict[str, int] = {}
    numbered = []
    for prompt in prompts:
        repeat = seen.get(prompt.name, 0)
        seen[prompt.name] = repeat + 1
        numbered.append(dataclasses.replace(prompt, repeat=repeat) if repeat else prompt)
    return numbered
