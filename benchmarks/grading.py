r"""`python -m benchmarks.grading math500.jsonl ...`: how the graders judge gold answers.

Each row's answer, as a response that boxes it, is graded against itself (all should be correct) and
against the answer of the next row that is written otherwise (none should be, except where two
writings mean the same: those pairs are listed, to be judged). A row whose answer is a worked
solution (`#### 72`) is graded as it stands. The exact layer is timed apart from computer algebra.

Last come answers that would hang or flood a naive grader, each followed by ordinary ones: none may
last beyond the timeout, and none of the ordinary ones may be lost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefixrl_jax.tasks.grading.answers import final_answer, normalise, same
from prefixrl_jax.tasks.grading.grader import Grader
from prefixrl_jax.tasks.task import Verdict

PATHOLOGICAL = (
    "3^{400000000}",
    "9^{9^{9^{9}}}",
    "(10^{10})!",
    "1e400000000",
    "(" * 5000 + "1" + ")" * 5000,
    "\\frac{" * 2000,
    "\\sum_{k=1}^{10^{12}} k^{k}",
    "x^{100000}(1+x)^{100000}",
    "\\int_0^{\\infty} e^{e^{e^{x}}} dx",
    "\\sqrt{" * 800 + "2" + "}" * 800,
)
ORDINARY_AFTER_EACH = 9


class Pair(NamedTuple):
    """A gold answer and a response to be graded against it."""

    gold: str
    response: str


# Equal, by computer algebra alone.
ORDINARY = Pair(r"\frac{1}{\sqrt{2}}", r"so it is \boxed{\frac{\sqrt{2}}{2}}")


def pairs(path: Path) -> tuple[list[Pair], list[Pair]]:
    """Return a file's answers against themselves, and against another row's."""
    lines = path.read_text(encoding="utf-8").split("\n")
    written = [str(json.loads(line)["answer"]) for line in lines if line.strip()]
    golds = [final_answer(text) or text if "####" in text else text for text in written]
    responses = [text if "####" in text else f"so it is \\boxed{{{text}}}" for text in written]
    crossed = []
    for i, gold in enumerate(golds):
        others = (j % len(golds) for j in range(i + 1, i + len(golds)))
        other = next((j for j in others if normalise(golds[j]) != normalise(gold)), None)
        if other is not None:
            crossed.append(Pair(gold, responses[other]))
    return list(map(Pair, golds, responses)), crossed


def grade(grader: Grader, cases: Sequence[Pair]) -> tuple[list[Verdict], float]:
    """Return the verdicts on all pairs, and the seconds that they took."""
    started = time.perf_counter()
    futures = [grader.submit(case.gold, case.response) for case in cases]
    verdicts = [future.result() for future in futures]
    return verdicts, time.perf_counter() - started


def report(path: Path, grader: Grader) -> None:
    """Print how one file's pairs are judged."""
    themselves, crossed = pairs(path)
    everything = themselves + crossed
    started = time.perf_counter()
    decided = sum(
        same(case.gold, final_answer(case.response) or "") is not None for case in everything
    )
    rate = len(everything) / (time.perf_counter() - started)
    print(
        f"{path.name}: {len(themselves)} answers; the exact layer decides"
        f" {decided / len(everything):.1%} of the pairs, {rate:,.0f}/s"
    )
    report_pairs("themselves", themselves, grader, expected_correct=True)
    report_pairs("another row's", crossed, grader, expected_correct=False)


def report_pairs(name: str, cases: Sequence[Pair], grader: Grader, expected_correct: bool) -> None:
    """Print the verdicts on pairs, and each pair whose verdict is not the expected one."""
    verdicts, seconds = grade(grader, cases)
    counts = Counter(verdict.value for verdict in verdicts)
    correct = counts[Verdict.CORRECT.value] / len(cases)
    rate = len(cases) / seconds
    print(f"  against {name:14} {correct:8.3%} correct  {dict(counts)}  {rate:,.0f}/s", flush=True)
    for case, verdict in zip(cases, verdicts, strict=True):
        if (verdict is Verdict.CORRECT) != expected_correct:
            answer = final_answer(case.response) or case.response
            print(f"    {verdict.value}: {case.gold[:60]!r} and {answer[:60]!r}")


def survive(grader: Grader) -> None:
    """Print the verdicts on pathological answers, and on the ordinary ones between them."""
    cases = []
    for answer in PATHOLOGICAL:
        cases.append(Pair("3", f"so it is \\boxed{{{answer}}}"))
        cases.extend([ORDINARY] * ORDINARY_AFTER_EACH)
    verdicts, seconds = grade(grader, cases)
    pathological = Counter(verdict.value for verdict in verdicts[:: 1 + ORDINARY_AFTER_EACH])
    correct = sum(verdict is Verdict.CORRECT for verdict in verdicts)
    print(
        f"{len(PATHOLOGICAL)} pathological answers: {dict(pathological)}; {correct} of the"
        f" {len(cases) - len(PATHOLOGICAL)} ordinary ones beside them are correct;"
        f" {len(cases) / seconds:,.1f}/s"
    )


def main() -> None:
    """Print the verdicts on each file and on the pathological answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=5.0)
    options = parser.parse_args()
    grader = Grader("math", options.workers, options.timeout)
    for path in options.files:
        report(path, grader)
    survive(grader)


if __name__ == "__main__":
    main()
