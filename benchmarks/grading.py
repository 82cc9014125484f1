"""What the graders say of gold answers, and how fast.

`python -m benchmarks.grading math500.jsonl gsm8k_test.jsonl ...` takes files with rows that have an
answer, or a worked solution that ends in `#### 72`.

Each answer, put into a box, is graded as a response to its own row, which should be correct, and to
another row with an answer that is written otherwise, which should be wrong. Pairs with another
verdict are listed for a person to judge: two writings may mean the same. Worked solutions are
graded as they stand. Exact comparison is timed apart from high precision.

Last come answers that would hang or flood a naive grader, each followed by ordinary ones. None may
last beyond the timeout, and none of the ordinary ones may be lost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from prefixrl_jax.tasks.grading.answers import final_answer
from prefixrl_jax.tasks.grading.compare import same
from prefixrl_jax.tasks.grading.grader import Grader
from prefixrl_jax.tasks.grading.tokens import tokenize
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
ORDINARY = (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}")  # equal, by high precision alone


def boxed(answer: str) -> str:
    """Return a response that states an answer."""
    return f"so it is \\boxed{{{answer}}}"


def pairs(path: Path) -> tuple[list[Pair], list[Pair]]:
    """Return the answers of a file against themselves, and against another row's."""
    lines = path.read_text(encoding="utf-8").split("\n")
    golds, responses = [], []
    for line in filter(str.strip, lines):
        answer = str(json.loads(line)["answer"])
        if "####" in answer:
            golds.append(final_answer(answer) or answer)
            responses.append(answer)
        else:
            golds.append(answer)
            responses.append(boxed(answer))
    crossed = []
    for i, gold in enumerate(golds):
        others = (j % len(golds) for j in range(i + 1, i + len(golds)))
        other = next((j for j in others if tokenize(golds[j]) != tokenize(gold)), None)
        if other is not None:
            crossed.append((gold, responses[other]))
    return list(zip(golds, responses, strict=True)), crossed


def grade_all(grader: Grader, cases: list[Pair]) -> tuple[list[Verdict], float]:
    """Return the verdicts on all pairs, and pairs per second."""
    started = time.perf_counter()
    futures = [grader.submit(gold, response) for gold, response in cases]
    verdicts = [future.result() for future in futures]
    return verdicts, len(cases) / (time.perf_counter() - started)


def report(path: Path, grader: Grader) -> None:
    """Print what became of one file's pairs."""
    straight, crossed = pairs(path)
    cases = straight + crossed
    started = time.perf_counter()
    decided = [same(gold, final_answer(response) or "") is not None for gold, response in cases]
    rate = len(cases) / (time.perf_counter() - started)
    print(
        f"{path.name}: {len(straight)} answers; exact comparison decides"
        f" {sum(decided) / len(cases):.1%} of the pairs, {rate:,.0f}/s"
    )
    report_verdicts("themselves", straight, Verdict.CORRECT, grader)
    report_verdicts("another row's", crossed, Verdict.WRONG, grader)


def report_verdicts(name: str, cases: list[Pair], expected: Verdict, grader: Grader) -> None:
    """Print how many pairs are correct, and those that are not as expected."""
    verdicts, rate = grade_all(grader, cases)
    counts = Counter(verdict.value for verdict in verdicts)
    right = counts[Verdict.CORRECT.value] / len(cases)
    print(
        f"  against {name:14} {right:8.3%} correct  {dict(counts)}  {rate:,.0f}/s",
        flush=True,
    )
    for (gold, response), verdict in zip(cases, verdicts, strict=True):
        if (verdict is Verdict.CORRECT) != (expected is Verdict.CORRECT):
            stated = final_answer(response) or response
            print(f"    {verdict.value}: {gold[:60]!r} and {stated[:60]!r}")


def survive(grader: Grader) -> None:
    """Print what became of the pathological answers, and of the ordinary ones between them."""
    gold, answer = ORDINARY
    cases = []
    for pathological in PATHOLOGICAL:
        cases += [("3", boxed(pathological)), *[(gold, boxed(answer))] * 9]
    verdicts, rate = grade_all(grader, cases)
    counts = Counter(verdict.value for verdict in verdicts[::10])
    right = verdicts.count(Verdict.CORRECT)
    print(
        f"{len(PATHOLOGICAL)} pathological answers: {dict(counts)}; {right} of the"
        f" {len(cases) - len(PATHOLOGICAL)} ordinary ones beside them are correct; {rate:,.1f}/s"
    )


def main() -> None:
    """Print one block for each file, and one for the pathological answers."""
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
