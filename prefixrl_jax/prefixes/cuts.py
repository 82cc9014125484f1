"""Prefixes: cuts of correct traces, drawn once and frozen.

Paper, section 3: three cuts a trace, each uniform in 40-80 % of its tokens, used as token ids of
the trace itself (decoding and re-encoding text would move the cut).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.runtime.files import read_json_lines, write_text
from prefixrl_jax.sampling.noise import words
from prefixrl_jax.seeds import generator
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Problem, Task

MAX_REDRAWS = 10
CONTENTS = ("own", "unrelated", "wrong")
PLACES = ("assistant", "user")

# What to do when prefixes.jsonl is not what was written.
REMEDY = "remove stages/prefixes.json from the work directory, and the same prefixes are drawn anew"

# (problem id, token ids to cut prefixes of that problem from)
Source = tuple[str, list[int]]


def fraction_cut(length: int, fraction: float) -> int:
    """Return how many tokens the first `fraction` of a trace has: floor(fraction · length)."""
    return int(np.floor(fraction * length + 1e-9))  # 0.6 * 35 is 20.999...


def cut_before(
    task: Task, problem: Problem, trace: Sequence[int], fraction: float
) -> tuple[int, ...]:
    """Return the longest prefix of at most this fraction that does not give the answer away.

    It may be empty.
    """
    length = fraction_cut(len(trace), fraction)
    while length and task.leaks(problem, trace[:length]):
        length -= 1
    return tuple(trace[:length])


def sources(
    traces: Sequence[Trace], content: str, wrong: Mapping[str, list[int]], seed: int
) -> list[Source]:
    """Return what to cut for every trace, by what prefixes are to hold (`prefix.content`).

    Args:
        traces: one a problem.
        content: "own": the problem's trace. "unrelated": the trace of one other problem (the
            paper's control). "wrong": a wrong response to the problem; problems without one are
            left out.
        wrong: token ids of a wrong response by problem id.
        seed: of the assignment of unrelated traces.

    Raises:
        ValueError: unknown content, or nothing to cut.
    """
    match content:
        case "own":
            pairs = [(t.problem_id, t.token_ids) for t in traces]
        case "unrelated":
            pairs = _unrelated(traces, seed)
        case "wrong":
            pairs = [(t.problem_id, wrong[t.problem_id]) for t in traces if t.problem_id in wrong]
        case _:
            raise ValueError(f"prefix.content={content!r}: one of {', '.join(CONTENTS)}")
    if traces and not pairs:
        raise ValueError(
            f"prefix.content={content!r}: none of the {len(traces)} problems with a trace has a"
            " wrong response"
        )
    return pairs


def _unrelated(traces: Sequence[Trace], seed: int) -> list[Source]:
    """Give every problem the trace of its neighbour on one random circle through all of them."""
    if len(traces) == 1:
        raise ValueError(
            "prefix.content='unrelated': there is one trace only, and no other to take prefixes"
            " from"
        )
    rng = generator(seed, *words("unrelated").tolist())
    circle = rng.permutation(len(traces)).tolist()
    neighbour = dict(zip(circle, [*circle[1:], *circle[:1]]))
    return [(t.problem_id, traces[neighbour[i]].token_ids) for i, t in enumerate(traces)]


@dataclasses.dataclass(frozen=True)
class CutSettings:
    """How cuts are drawn.

    Attributes:
        count: cuts a trace.
        band: (low, high), fractions of a trace's tokens between which a cut is uniform.
        seed: with problem id and cut number it decides a cut.
        hinted: whether prefixes go into the user's turn.
        unrelated: whether the traces are of other problems, so that a prefix that could begin an
            answer to this one by chance is no control.
    """

    count: int
    band: tuple[float, float]
    seed: int
    hinted: bool = False
    unrelated: bool = False

    def __post_init__(self):
        low, high = self.band
        if not 0 < low <= high < 1:
            raise ValueError(
                f"prefix.band=({low}, {high}): fractions with 0 < low <= high < 1 are expected"
            )


@dataclasses.dataclass(frozen=True)
class Cuts:
    """All frozen prefixes, and what the guard against leaked answers did.

    Attributes:
        prompts: problems with their prefixes.
        redrawn: cuts that were drawn again.
        dropped: cuts that were given up after MAX_REDRAWS.
    """

    prompts: list[Prompt]
    redrawn: int
    dropped: int


def draw_cuts(
    task: Task, problems: Mapping[str, Problem], pairs: Sequence[Source], settings: CutSettings
) -> Cuts:
    """Cut every trace `settings.count` times.

    A cut whose prefix gives the answer away (or is no control, see `CutSettings.unrelated`) is
    drawn again, at most MAX_REDRAWS times, then dropped.
    """
    prompts = []
    redrawn = 0
    dropped = 0
    for problem_id, trace in pairs:
        for cut in range(settings.count):
            prompt, redraws = _draw(task, problems[problem_id], trace, cut, settings)
            redrawn += redraws
            if prompt is None:
                dropped += 1
            else:
                prompts.append(prompt)
    return Cuts(prompts, redrawn, dropped)


def _draw(
    task: Task, problem: Problem, trace: list[int], cut: int, settings: CutSettings
) -> tuple[Prompt | None, int]:
    """Draw one cut; return it, or None, and how often it was drawn again."""
    rng = generator(settings.seed, cut, *words(f"prefix {problem.id}").tolist())
    for redraws in range(1 + MAX_REDRAWS):
        fraction = float(rng.uniform(*settings.band))
        prefix = tuple(trace[: fraction_cut(len(trace), fraction)])
        related = settings.unrelated and task.could_begin(problem, prefix)
        if prefix and not task.leaks(problem, prefix) and not related:
            return Prompt(problem, prefix, cut, fraction, settings.hinted), redraws
    return None, MAX_REDRAWS


def write_cuts(task: Task, cuts: Cuts, path: Path) -> None:
    """Write one readable JSON object a prefix; the file appears whole or not at all."""
    rows = [
        {
            "problem": prompt.problem.id,
            "cut": prompt.cut,
            "fraction": prompt.fraction,
            "hinted": prompt.hinted,
            "prompt": task.text(task.render(prompt.problem)),
            "prefix": task.text(prompt.prefix),
            "token_ids": list(prompt.prefix),
        }
        for prompt in cuts.prompts
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_cuts(problems: Mapping[str, Problem], path: Path) -> list[Prompt]:
    """Read the prefixes of `write_cuts`.

    Raises:
        ValueError: the file is missing, or a line is no prefix of one of `problems`, the hard
            problems by id; the message names file and line, and says what to do.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path}: the file is missing; {REMEDY}")
    prompts: dict[str, Prompt] = {}
    for number, row in read_json_lines(path):
        try:
            if isinstance(row, ValueError):
                raise row
            prompt = _prompt(row, problems)
            if prompt.name in prompts:
                raise ValueError(
                    f"cut {prompt.cut} of problem {prompt.problem.id!r} is there twice"
                )
            prompts[prompt.name] = prompt
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; {REMEDY}") from error
    return list(prompts.values())


def _prompt(row: Any, problems: Mapping[str, Problem]) -> Prompt:
    """Return the prompt of a line; raises ValueError naming the field that is missing or wrong."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    row = {"hinted": False, **row}  # older files lack the field
    for field, (accepts, accepted) in FIELDS.items():
        if field not in row:
            raise ValueError(f"field {field!r} is missing")
        if not accepts(row[field]):
            raise ValueError(f"field {field!r} is {str(row[field])[:80]!r}; {accepted} is expected")
    if row["problem"] not in problems:
        raise ValueError(
            f"problem {row['problem'][:80]!r} is not in the hard set this run trains on"
        )
    return Prompt(
        problem=problems[row["problem"]],
        prefix=tuple(row["token_ids"]),
        cut=row["cut"],
        fraction=row["fraction"],
        hinted=row["hinted"],
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_count, value))


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 1


# The fields of a line that are read back: a check of the value, and what would be accepted.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "problem": (lambda value: isinstance(value, str), "a problem's id"),
    "token_ids": (_are_ids, "a list of token ids, at least one,"),
    "cut": (_is_count, "a whole number from 0 on"),
    "fraction": (_is_fraction, "a number from 0 to 1"),
    "hinted": (lambda value: isinstance(value, bool), "true or false"),
}
