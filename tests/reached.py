"""`python -m tests.reached`, after the tests: prints their coverage, and fails for a public
function that none of them enters.
"""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import coverage

PACKAGE = Path(__file__).parent.parent / "prefixrl_jax"


def public_functions(tree: ast.Module, prefix: str = ""):
    """(name, lines of the body) of every function and method without a leading underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield (
                prefix + node.name,
                {line for s in node.body for line in range(s.lineno, s.end_lineno + 1)},
            )


def main() -> None:
    measured = coverage.Coverage()
    measured.load()
    missed = []
    for path in sorted(PACKAGE.rglob("*.py")):
        _, statements, _, absent, _ = measured.analysis2(str(path))
        entered = set(statements) - set(absent)
        missed += [
            f"{path.relative_to(PACKAGE)}: {name}"
            for name, body in public_functions(ast.parse(path.read_text()))
            if body & set(statements) and not body & entered
        ]
    print(f"coverage: {measured.report(file=io.StringIO()):.1f} % of the package's lines")
    sys.exit("public functions that no test enters:\n  " + "\n  ".join(missed) if missed else 0)


if __name__ == "__main__":
    main()
