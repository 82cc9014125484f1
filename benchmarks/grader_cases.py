"""Our verdicts on the cases that other graders publish, and theirs on ours.

`python -m benchmarks.grader_cases --math_verify CHECKOUT --lm_eval CHECKOUT` reads from checkouts
of math-verify and lm-evaluation-harness

- the cases of math-verify's tests (gold answer, response, expected verdict), without running them,
- the samples of the harness's GSM8K and MATH tasks, each of which states its answer, and the
  corrected answers that it lists for MATH,
- the graders of the harness for MATH and AIME, which compare strings; these functions are run,

and prints every case on which a verdict differs from ours, as file:line, for a person to judge. If
math-verify is installed, its own verdicts on the tables of docs/grading.md are compared too.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prefixrl_jax.tasks.grading.answers import final_answer
from prefixrl_jax.tasks.grading.compare import same
from prefixrl_jax.tasks.grading.precise import Reals

PAGE = Path(__file__).parents[1] / "docs" / "grading.md"
LONGEST = 100  # characters of a text that is printed
REALS = Reals()


class Case(NamedTuple):
    """A pair that somebody has judged."""

    place: str
    gold: str
    response: str
    equal: bool


def stated(text: str) -> str:
    """Return the answer in a text: as ours finds it, else its last mathematics, else all of it."""
    answer = final_answer(text)
    if answer is not None:
        return answer
    pattern = r"\$\$(.+?)\$\$|\$(.+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"
    groups = re.findall(pattern, text, re.DOTALL)
    return next(filter(None, groups[-1])) if groups else text


def judge(gold: str, response: str) -> bool:
    """Return our verdict on a pair."""
    return same(stated(gold), stated(response), REALS) is True


def math_verify_cases(checkout: Path) -> Iterator[Case]:
    """Yield the cases of math-verify's tests that are written out as literals."""
    for path in sorted((checkout / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or len(node.args) != 2:
                continue
            names, table = node.args
            if not isinstance(names, ast.Constant) or not isinstance(table, ast.List):
                continue
            columns = [name.strip() for name in str(names.value).split(",")]
            if columns[:2] != ["gold", "pred"]:
                continue
            verdict = "expected" if "expected" in columns else "result"
            for row in table.elts:
                try:
                    values = dict(zip(columns, ast.literal_eval(row), strict=False))
                except ValueError:
                    continue  # computed by the test
                place = f"{path.name}:{row.lineno}"
                yield Case(place, values["gold"], values["pred"], bool(values[verdict]))


def harness_samples(checkout: Path) -> Iterator[Case]:
    """Yield the worked samples of the harness, and its corrected answers against themselves."""
    import yaml

    path = checkout / "lm_eval/tasks/gsm8k/gsm8k-cot.yaml"
    for number, sample in enumerate(yaml.safe_load(path.read_text())["fewshot_config"]["samples"]):
        answer = re.search(r"The answer is (-?[0-9.,]+)\.", sample["target"])
        if answer:
            yield Case(f"{path.name} sample {number}", answer[1], sample["target"], True)
    path = checkout / "lm_eval/tasks/minerva_math/utils.py"
    for number, sample in enumerate(_function(path, "list_fewshot_samples")()):
        solution = sample["solution"]
        answer = re.search(r"The final answer is (.+?)\. I hope", solution)
        if answer:
            yield Case(f"{path.parent.name} sample {number}", answer[1], solution, True)
    path = checkout / "lm_eval/tasks/score/math/to_be_fixed_questions.json"
    for row in json.loads(path.read_text(encoding="utf-8")):
        response = f"so it is \\boxed{{{row['answer']}}}"
        yield Case(f"{path.name} {row['id']}", row["answer"], response, True)


def harness_graders(checkout: Path) -> dict[str, Callable[[str, str], bool]]:
    """Return the graders of the harness that compare two answers as strings."""
    tasks = checkout / "lm_eval/tasks"
    hendrycks = _function(tasks / "hendrycks_math/utils.py", "is_equiv")
    aime = _function(tasks / "aime/utils.py", "is_equiv")
    normalize = _function(tasks / "minerva_math/utils.py", "normalize_final_answer")
    return {
        "hendrycks_math": lambda gold, answer: bool(hendrycks(gold, answer)),
        "aime": lambda gold, answer: bool(aime(gold, answer)),
        "minerva_math, exact_match without sympy": lambda gold, answer: bool(
            normalize(gold) == normalize(answer)
        ),
    }


def _function(path: Path, name: str) -> Callable[..., Any]:
    """Return a function of a file, run with the file's other functions and constants alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.Assign)]
    for node in kept:
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in node.args.args:
                argument.annotation = None
    kept = [
        node
        for node in kept
        if isinstance(node, ast.FunctionDef) or isinstance(node.value, ast.List | ast.Dict)
    ]
    scope: dict[str, Any] = {"re": re}
    exec(compile(ast.Module(kept, []), str(path), "exec"), scope)
    return scope[name]


def page_cases() -> Iterator[Case]:
    """Yield the rows of the tables of docs/grading.md."""
    lines = PAGE.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[3] in ("yes", "no"):
            yield Case(f"{PAGE.name}:{number}", cells[1], cells[2], cells[3] == "yes")


def installed_math_verify() -> Callable[[str, str], bool] | None:
    """Return math-verify as a grader of two answers, if it is installed."""
    if importlib.util.find_spec("math_verify") is None:
        return None
    from math_verify import parse, verify

    def grade(gold: str, answer: str) -> bool:
        texts = (f"${gold}$", f"${answer}$")
        return bool(verify(*(parse(text) for text in texts)))

    return grade


def report(name: str, cases: list[Case], verdict: Callable[[str, str], bool]) -> None:
    """Print the cases on which a grader says something else than what was judged."""
    different = []
    for case in cases:
        equal = verdict(case.gold, case.response)
        if equal != case.equal:
            different.append((case, equal))
    print(f"\n{name}: {len(cases)} cases, {len(different)} differences", flush=True)
    for case, equal in different:
        texts = [repr(stated(text))[:LONGEST] for text in (case.gold, case.response)]
        words = ["different", "equal"]
        verdicts = f"{words[case.equal]} there, {words[equal]} here"
        print(f"  {case.place}: {verdicts}: {texts[0]}, {texts[1]}")


def main() -> None:
    """Print one list for each source of cases, and one for each other grader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--math_verify", type=Path, help="a checkout of math-verify")
    parser.add_argument("--lm_eval", type=Path, help="a checkout of lm-evaluation-harness")
    options = parser.parse_args()
    page = list(page_cases())
    report("docs/grading.md, graded by ours", page, judge)
    published: list[Case] = []
    if options.math_verify:
        published = list(math_verify_cases(options.math_verify))
        report("math-verify's cases, graded by ours", published, judge)
    if options.lm_eval:
        samples = list(harness_samples(options.lm_eval))
        report("lm-evaluation-harness's samples, graded by ours", samples, judge)
        ours = [
            Case(case.place, stated(case.gold), stated(case.response), judge(*case[1:3]))
            for case in page + published
        ]
        for name, grade in harness_graders(options.lm_eval).items():
            report(f"our verdicts, graded by lm-evaluation-harness's {name}", ours, grade)
    grade_installed = installed_math_verify()
    if grade_installed:
        report("docs/grading.md, graded by math-verify", page, grade_installed)


if __name__ == "__main__":
    main()
