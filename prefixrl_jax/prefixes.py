"""Prefixes: cuts of correct traces, drawn once and frozen, and the stream of contexts that training draws from them.

Paper, section 3: three cuts a trace, each uniform in 40-80 % of its tokens, used as token ids of the trace itself (decoding and
re-encoding text would move the cut), mixed 3:1 with the plain problems.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prefixrl_jax.files import write_text
from prefixrl_jax.rollout import Prompt
from prefixrl_jax.sampling.noise import words
from prefixrl_jax.tasks.task import Problem, Task
from prefixrl_jax.traces import Trace

MAX_REDRAWS = 10


def fraction_cut(length: int, fraction: float) -> int:
    """Tokens in the first `fraction` of a trace of `length` tokens: floor(fraction · length)."""
    return int(np.floor(fraction * length + 1e-9))  # 0.6 * 35 is 20.999...


@dataclasses.dataclass(frozen=True)
class Cuts:
    """All frozen prefixes, and what the leak guard did: cuts drawn again, and cuts given up."""

    prompts: list[Prompt]
    redrawn: int
    dropped: int


def draw_cuts(task: Task, problems: dict[str, Problem], traces: Sequence[Trace], count: int, band: tuple[float, float],
              seed: int) -> Cuts:  # fmt: skip
    """`count` cuts of every trace, uniform in `band` (fractions of its tokens).

    A cut whose prefix gives the answer away is drawn again, at most MAX_REDRAWS times, then dropped. A cut depends on (seed,
    problem id, cut number) alone. Raises ValueError for a band outside (0, 1) or empty.
    """
    low, high = band
    if not 0 < low <= high < 1:
        raise ValueError(f"prefix.band=({low}, {high}): fractions with 0 < low <= high < 1 are expected")
    prompts, redrawn, dropped = [], 0, 0
    for trace in traces:
        problem = problems[trace.problem_id]
        for cut in range(count):
            rng = np.random.default_rng([seed, cut, *words(f"prefix {problem.id}").tolist()])
            for draw in range(1 + MAX_REDRAWS):
                redrawn += draw > 0
                fraction = float(rng.uniform(low, high))
                prefix = tuple(trace.token_ids[: fraction_cut(len(trace.token_ids), fraction)])
                if prefix and not task.leaks(problem, prefix):
                    prompts.append(Prompt(problem, prefix, cut, fraction))
                    break
            else:
                dropped += 1
    return Cuts(prompts, redrawn, dropped)


def write_cuts(task: Task, cuts: Cuts, path: Path) -> None:
    """One readable JSON object a prefix, written whole or not at all."""
    rows = [
        {"problem": p.problem.id, "cut": p.cut, "fraction": p.fraction, "prompt": task.text(task.render(p.problem)),
         "prefix": task.text(p.prefix), "token_ids": list(p.prefix)}
        for p in cuts.prompts
    ]  # fmt: skip
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_cuts(problems: dict[str, Problem], path: Path) -> list[Prompt]:
    """The prefixes of `write_cuts`; raises ValueError for one of a problem that is not there."""
    prompts = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8").rstrip("\n").split("\n") if path.stat().st_size else [], start=1
    ):
        row = json.loads(line)
        if row["problem"] not in problems:
            raise ValueError(f"{path}, line {number}: problem {row['problem']!r} is not in the hard set this run trains on")
        prompts.append(Prompt(problems[row["problem"]], tuple(row["token_ids"]), row["cut"], row["fraction"]))
    return prompts


@dataclasses.dataclass(frozen=True)
class ContextStream:
    """The contexts of every step, a pure function of (seed, step): the data cursor is the step itself.

    A share `prefixed_share` of every batch (0.75 is the paper's 3:1) comes from the frozen prefixes and the rest from the
    plain problems, each walked in its own order, shuffled anew every epoch.
    """

    prefixed: list[Prompt]
    plain: list[Prompt]
    prefixed_share: float
    batch: int
    seed: int

    def __post_init__(self):
        if not 0 <= self.prefixed_share <= 1:
            raise ValueError(f"prefix.share={self.prefixed_share}: a fraction from 0 (plain RL) to 1 is expected")
        if self.per_step[0] and not self.prefixed:
            raise ValueError("no prefix to train on: the corpus has no trace (raise collect.cap, or choose easier problems)")

        if self.per_step[1] and not self.plain:
            raise ValueError(f"prefix.share={self.prefixed_share} asks for plain problems in every batch, and there is none")

    @property
    def per_step(self) -> tuple[int, int]:
        """(prefixed, plain) contexts in a batch."""
        prefixed = round(self.batch * self.prefixed_share)
        return prefixed, self.batch - prefixed

    def at(self, step: int) -> list[Prompt]:
        """The batch of `step` (from 0), prefixed contexts first."""
        prefixed, plain = self.per_step
        return self._draw(self.prefixed, prefixed, step, "prefixed") + self._draw(self.plain, plain, step, "plain")

    def _draw(self, prompts: list[Prompt], count: int, step: int, name: str) -> list[Prompt]:
        drawn = []
        for position in range(step * count, (step + 1) * count):
            epoch, i = divmod(position, len(prompts))
            drawn.append(prompts[self._order(name, epoch, len(prompts))[i]])
        return drawn

    def _order(self, name: str, epoch: int, size: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, *words(name).tolist()]).permutation(size)
