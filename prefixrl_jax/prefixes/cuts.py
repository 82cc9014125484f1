"""Prefixes: cuts of correct traces, drawn once and frozen.

Paper, section 3: three cuts a trace, each uniform in 40-80 % of its tokens, used as token ids of
the trace itself (decoding and re-encoding text would move the cut).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.runtime.files import write_text
from prefixrl_jax.sampling.noise import words
from prefixrl_jax.tasks.task import Problem, Task
from prefixrl_jax.training.rollout import Prompt

MAX_REDRAWS = 10


def fraction_cut(length: int, fraction: float) -> int:
    """Tokens in the first `fraction` of a trace of `length` tokens: floor(fraction · length)."""
    return int(np.floor(fraction * length + 1e-9))  # 0.6 * 35 is 20.999...


def cut_before(
    task: Task, problem: Problem, trace: Sequence[int], fraction: float
) -> tuple[int, ...]:
    """The longest prefix of at most this fraction of a trace that does not give the answer away;
    may be empty.
    """
    length = fraction_cut(len(trace), fraction)
    while length and task.leaks(problem, trace[:length]):
        length -= 1
    return tuple(trace[:length])


@dataclasses.dataclass(frozen=True)
class Cuts:
    """All frozen prefixes, and what the leak guard did: cuts drawn again, and cuts given up."""

    prompts: list[Prompt]
    redrawn: int
    dropped: int


CONTENTS = ("own", "unrelated", "wrong")
PLACES = ("assistant", "user")


def sources(
    traces: Sequence[Trace], content: str, wrong: dict[str, list[int]], seed: int
) -> list[tuple[str, list[int]]]:
    """(problem id, token ids to cut) of every trace, by what prefixes are to hold.

    own: the problem's trace. unrelated: the trace of another problem, each of one other (paper's
    control). wrong: a wrong response to the problem (wrong: token ids by problem id); problems
    without one are left out. Raises ValueError when there is nothing to cut.
    """
    if content not in CONTENTS:
        raise ValueError(f"prefix.content={content!r}: one of {', '.join(CONTENTS)}")
    if content == "wrong":
        pairs = [(t.problem_id, wrong[t.problem_id]) for t in traces if t.problem_id in wrong]
    elif content == "unrelated":
        if len(traces) == 1:
            raise ValueError(
                "prefix.content='unrelated': there is one trace only, and no other to take prefixes"
                " from"
            )
        # Along one random circle through all: nobody is his own neighbour.
        order = (
            np.random.default_rng([seed, *words("unrelated").tolist()])
            .permutation(len(traces))
            .tolist()
        )
        other = {a: b for a, b in zip(order, [*order[1:], *order[:1]])}
        pairs = [(t.problem_id, traces[other[i]].token_ids) for i, t in enumerate(traces)]
    else:
        pairs = [(t.problem_id, t.token_ids) for t in traces]
    if traces and not pairs:
        raise ValueError(
            f"prefix.content={content!r}: none of the {len(traces)} problems with a trace has a"
            " wrong response"
        )
    return pairs


def draw_cuts(
    task: Task,
    problems: dict[str, Problem],
    pairs: Sequence[tuple[str, list[int]]],
    count: int,
    band: tuple[float, float],
    seed: int,
    hinted: bool = False,
    unrelated: bool = False,
) -> Cuts:
    """`count` cuts of every trace, given as `sources` gives them, uniform in `band` (fractions of
    its tokens).

    A cut whose prefix gives the answer away is drawn again, at most MAX_REDRAWS times, then
    dropped; so is, with `unrelated`, one that could by chance begin an answer to this problem too,
    and would be no control. A cut depends on (seed, problem id, cut number) alone. Raises
    ValueError for a band outside (0, 1) or empty.
    """
    low, high = band
    if not 0 < low <= high < 1:
        raise ValueError(
            f"prefix.band=({low}, {high}): fractions with 0 < low <= high < 1 are expected"
        )
    prompts, redrawn, dropped = [], 0, 0
    for problem_id, trace in pairs:
        problem = problems[problem_id]
        for cut in range(count):
            rng = np.random.default_rng([seed, cut, *words(f"prefix {problem.id}").tolist()])
            for draw in range(1 + MAX_REDRAWS):
                redrawn += draw > 0
                fraction = float(rng.uniform(low, high))
                prefix = tuple(trace[: fraction_cut(len(trace), fraction)])
                related = unrelated and task.could_begin(problem, prefix)
                if prefix and not task.leaks(problem, prefix) and not related:
                    prompts.append(Prompt(problem, prefix, cut, fraction, hinted))
                    break
            else:
                dropped += 1
    return Cuts(prompts, redrawn, dropped)


def write_cuts(task: Task, cuts: Cuts, path: Path) -> None:
    """One readable JSON object a prefix, written whole or not at all."""
    rows = [
        {
            "problem": p.problem.id,
            "cut": p.cut,
            "fraction": p.fraction,
            "hinted": p.hinted,
            "prompt": task.text(task.render(p.problem)),
            "prefix": task.text(p.prefix),
            "token_ids": list(p.prefix),
        }
        for p in cuts.prompts
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_cuts(problems: dict[str, Problem], path: Path) -> list[Prompt]:
    """The prefixes of `write_cuts`; raises ValueError for one of a problem that is not there."""
    prompts = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8").rstrip("\n").split("\n") if path.stat().st_size else [],
        start=1,
    ):
        row = json.loads(line)
        if row["problem"] not in problems:
            raise ValueError(
                f"{path}, line {number}: problem {row['problem']!r} is not in the hard set this run"
                " trains on"
            )
        prompts.append(
            Prompt(
                problems[row["problem"]],
                tuple(row["token_ids"]),
                row["cut"],
                row["fraction"],
                row.get("hinted", False),
            )
        )
    return prompts
