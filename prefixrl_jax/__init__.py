"""PrefixRL in JAX.

`load` and `grade` are for notebooks; a run is `python -m prefixrl_jax.main --config=...`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "load": "api",
    "LM": "api",
    "Completion": "api",
    "grade": "tasks.grading.grader",
    "Verdict": "tasks.task",
}
__all__ = ["LM", "Completion", "Verdict", "grade", "load"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, then; importing the package alone imports nothing."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'prefixrl_jax' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(f"prefixrl_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
