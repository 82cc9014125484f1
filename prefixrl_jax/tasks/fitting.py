"""Which problems fit the context buckets, once they are rendered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.runtime.memo import Memo, memo_key
from prefixrl_jax.runtime.watch import watched
from prefixrl_jax.tasks.rows import excerpt
from prefixrl_jax.tasks.sources import Sets, fingerprint
from prefixrl_jax.tasks.task import Problem, Task

BATCH = 1000  # problems rendered at a time
PROBES = 16  # problems whose renderings tell whether remembered sizes still hold


def fitting(
    sets: Sets,
    task: Task,
    room: int,
    prefix: int,
    skip_bad: bool,
    used: Mapping[str, int] | None = None,
    memo: Memo | None = None,
) -> Sets:
    """Return the sets without the problems whose prompt is too long to take a prefix.

    Args:
        sets: the problems.
        task: renders them.
        room: tokens that prompt and prefix may have together.
        prefix: tokens of the longest prefix.
        skip_bad: list the problems that are too long as skipped, rather than raise ValueError.
        used: how many problems of a set will be used, its first that fit, by the set's name. Those
            behind them stay in the set and are not rendered. Without it all are.
        memo: knows which problems were too long at an earlier start.

    Raises:
        ValueError: a problem is too long, or no problem to train on is left.
    """
    skipped = list(sets.skipped)
    fitting_problems: dict[str, list[Problem]] = {}
    for name, problems in sets.problems.items():
        wanted = len(problems) if used is None else used[name]
        too_long: set[int] = set()
        for index, size in _too_long(name, problems, task, (room - prefix, wanted), memo):
            sentence = (
                f"problem {excerpt(problems[index].id)} renders to {size} tokens, and a prefix may"
                f" have {prefix}; the largest of sampling.context_buckets is {room}"
            )
            if not skip_bad:
                raise ValueError(sentence)
            skipped.append(sentence)
            too_long.add(index)
        fitting_problems[name] = [p for i, p in enumerate(problems) if i not in too_long]
    if not fitting_problems["train"]:
        raise ValueError(f"no problem is left to train on: {skipped[-1]}")
    return Sets(fitting_problems, skipped, sets.overlap)


def _too_long(
    name: str,
    problems: Sequence[Problem],
    task: Task,
    limits: tuple[int, int],
    memo: Memo | None,
) -> Iterator[tuple[int, int]]:
    """Yield index and size in tokens of the prompts of a set that are too long.

    `limits` are the tokens that a prompt may have, and the number of problems that are to fit: once
    so many do, no other is rendered.
    """
    longest, wanted = limits
    if memo is None or len(problems) <= BATCH:  # a small set is rendered in no time
        yield from _render_until(wanted, longest, name, problems, task)
        return
    # A few renderings stand for everything that a prompt depends on besides its problem.
    probes = [task.render(problem) for problem in problems[:: len(problems) // PROBES]]
    tokenizer = tokenizers.fingerprint(task.tokenizer)
    key = memo_key(fingerprint({name: list(problems)}), tokenizer, probes, limits)
    too_long = memo.get(f"prompts {name}", key)
    if too_long is not None:
        yield from too_long
        return
    too_long = []
    for entry in _render_until(wanted, longest, name, problems, task):
        too_long.append(entry)
        yield entry
    memo.put(f"prompts {name}", key, too_long)


def _render_until(
    wanted: int, longest: int, name: str, problems: Sequence[Problem], task: Task
) -> Iterator[tuple[int, int]]:
    """Render problems until `wanted` of them fit; yield those that do not, as `_too_long`."""
    fit = 0
    sizes = watched(_sizes(problems, task), f"prompts {name}", len(problems))
    for index, size in enumerate(sizes):
        if fit == wanted:
            return
        if size <= longest:
            fit += 1
        else:
            yield index, size


def _sizes(problems: Sequence[Problem], task: Task) -> Iterator[int]:
    """Yield the tokens of each prompt; many are rendered at once by a task that can."""
    render_all = getattr(task, "render_all", None)
    if render_all is None:
        yield from (len(task.render(problem)) for problem in problems)
        return
    for start in range(0, len(problems), BATCH):
        yield from map(len, render_all(problems[start : start + BATCH]))
