"""PrefixRL in JAX.

`load` and `grade` are for notebooks; a run is `python -m prefixrl_jax.main --config=...`.
"""

from __future__ import annotations

import importlib
from typing import Any

# The module of each public name. It is imported when the name is first used, so that what needs no
# JAX (graders and their workers) starts without it.
_MODULES = {
    "load": "api",
    "LM": "api",
    "Completion": "api",
    "grade": "tasks.grading.grader",
    "Verdict": "tasks.task",
}
__all__ = ["LM", "Completion", "Verdict", "grade", "load"]


def __getattr__(name: str) -> Any:
    """Import the module of a public name and return the name's value."""
    if name not in _MODULES:
        raise AttributeError(
            f"module 'prefixrl_jax' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(f"prefixrl_jax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
