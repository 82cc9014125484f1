"""A prompt: what is continued, a plain problem or a problem with a prefix of a solution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from prefixrl_jax.tasks.task import Problem, Task


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A problem and, unless it is plain, the prefix (token ids of a trace) that is put in front.

    Attributes:
        problem: the problem.
        prefix: token ids of the beginning of a trace; empty for the plain problem.
        cut: number that tells apart several prefixes of one problem.
        fraction: share of the trace that the prefix is.
        hinted: whether the prefix stands in the user's turn, and so is no part of the response.
        repeat: number that tells apart equal prompts of one batch; equal names draw equal samples.
    """

    problem: Problem
    prefix: tuple[int, ...] = ()
    cut: int = 0
    fraction: float = 0.0
    hinted: bool = False
    repeat: int = 0

    @property
    def name(self) -> str:
        """Identity of the prompt in its batch; with the sample id it fixes the sampling noise."""
        name = f"{self.problem.id}#{self.cut}" if self.prefix else self.problem.id
        return f"{name}~{self.repeat}" if self.repeat else name

    def context(self, task: Task) -> list[int]:
        """Return the token ids that the model continues: the rendered problem, then the prefix."""
        if self.hinted and self.prefix:
            return task.hint(self.problem, self.prefix)
        return [*task.render(self.problem), *self.prefix]

    def response(self, continuation: Sequence[int]) -> list[int]:
        """Return the token ids of the whole response, as the grader sees it."""
        return [*continuation] if self.hinted else [*self.prefix, *continuation]
