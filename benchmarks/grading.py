r"""`python -m benchmarks.grading math500.jsonl gsm8k_test.jsonl ...`: what the graders say of gold
answers, and how fast.

Each row's answer, as a response that boxes it, is graded against itself (all should be correct) and
against the answer of the next row that is written otherwise (none should be, but where two writings
mean the same: those pairs are listed, to be judged). Rows whose answer is a worked solution (`####
72`) are graded as they stand. The exact layer is timed apart from computer algebra. Last, answers
that would hang or flood a naive grader, each followed by ordinary ones: none may last beyond the
timeout, and none of the ordinary ones may be lost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from prefixrl_jax.tasks.grading.answers import final_answer, normalise, same
from prefixrl_jax.tasks.grading.grader import Grader
from prefixrl_jax.tasks.task import Verdict

Pair = tuple[str, str]  # gold answer, response

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
ORDINARY = (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}")  # equal, by computer algebra alone


def pairs(path: Path) -> tuple[list[Pair], list[Pair]]:
    """(answers against themselves, answers against another row's)."""
    rows = [
        json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()
    ]
    written = [str(row["answer"]) for row in rows]
    golds = [final_answer(text) or text if "####" in text else text for text in written]
    responses = [text if "####" in text else f"so it is \\boxed{{{text}}}" for text in written]
    crossed = []
    for i, gold in enumerate(golds):
        others = (j % len(golds) for j in range(i + 1, i + len(golds)))
        other = next((j for j in others if normalise(golds[j]) != normalise(gold)), None)
        if other is not None:
            crossed.append((gold, responses[other]))
    return list(zip(golds, responses, strict=True)), crossed


def report(path: Path, grader: Grader) -> None:
    """Prints what became of one file's pairs."""
    own, crossed = pairs(path)
    started = time.perf_counter()
    exact = sum(
        same(gold, final_answer(response) or "") is not None for gold, response in own + crossed
    )
    rate = len(own + crossed) / (time.perf_counter() - started)
    print(
        f"{path.name}: {len(own)} answers; the exact layer decides {exact / len(own + crossed):.1%}"
        f" of the pairs, {rate:,.0f}/s"
    )
    for name, cases in (("themselves", own), ("another row's", crossed)):
        started = time.perf_counter()
        futures = [grader.submit(gold, response) for gold, response in cases]
        verdicts = [future.result() for future in futures]
        seconds = time.perf_counter() - started
        counts = Counter(verdict.value for verdict in verdicts)
        right = counts[Verdict.CORRECT.value] / len(cases)
        print(
            f"  against {name:14} {right:8.3%} correct  {dict(counts)} "
            f" {len(cases) / seconds:,.0f}/s",
            flush=True,
        )
        for (gold, response), verdict in zip(cases, verdicts, strict=True):
            if (verdict is Verdict.CORRECT) == (cases is crossed):
                print(
                    f"    {verdict.value}: {gold[:60]!r} and"
                    f" {(final_answer(response) or response)[:60]!r}"
                )


def survive(grader: Grader) -> None:
    """Prints what became of the pathological answers, and of the ordinary ones between them."""
    cases = [case for answer in PATHOLOGICAL for case in [("3", answer), *[ORDINARY] * 9]]
    started = time.perf_counter()
    futures = [grader.submit(gold, f"so it is \\boxed{{{response}}}") for gold, response in cases]
    verdicts = [future.result() for future in futures]
    seconds = time.perf_counter() - started
    odd, right = (
        Counter(v.value for v in verdicts[::10]),
        sum(v is Verdict.CORRECT for v in verdicts),
    )
    print(
        f"{len(PATHOLOGICAL)} pathological answers: {dict(odd)}; {right} of the"
        f" {len(cases) - len(PATHOLOGICAL)} ordinary ones beside them are correct;"
        f" {len(cases) / seconds:,.1f}/s"
    )


def main() -> None:
    """One block a file."""
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
