"""`python -m tests.reached`, after the tests: prints the coverage they measured and checks it.

The status is 1 if it is too low, or if no test enters some public function.
"""

from __future__ import annotations

import ast
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import coverage

PACKAGE = Path(__file__).parent.parent / "prefixrl_jax"
LOWEST = 95.0  # per cent of the package's lines


def public_functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, set[int]]]:
    """Yields (name, lines of the body) of every function without a leading underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            lines = {line for part in node.body for line in range(part.lineno, part.end_lineno + 1)}
            yield prefix + node.name, lines


def never_entered(measured: coverage.Coverage) -> list[str]:
    """Returns the public functions of the package of which no statement was executed."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        _, statements, _, missing, _ = measured.analysis2(str(path))
        executed = set(statements) - set(missing)
        names += [
            f"{path.relative_to(PACKAGE)}: {name}"
            for name, body in public_functions(ast.parse(path.read_text()))
            if body & set(statements) and not body & executed
        ]
    return names


def main() -> None:
    """Prints the table of the files that are not covered whole, and what is wrong."""
    measured = coverage.Coverage()
    measured.load()
    table = io.StringIO()
    share = measured.report(file=table, show_missing=True, skip_covered=True)
    print(f"coverage: {share:.1f} % of the package's lines")
    faults = []
    if share < LOWEST:
        faults.append(f"{table.getvalue()}less than {LOWEST:.0f} % of the lines")
    if missed := never_entered(measured):
        faults.append("\n  ".join(["public functions that no test enters:", *missed]))
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
