"""The tasks by name. A task of your own is added here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefixrl_jax.config import REMOVED_TASKS
from prefixrl_jax.tasks.arithmetic import Arithmetic
from prefixrl_jax.tasks.countdown import Countdown
from prefixrl_jax.tasks.math import Math, MathSettings
from prefixrl_jax.tasks.sorting import Sorting
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.tasks.water_jugs import WaterJugs


def _math(model_path: str, **fields: Any) -> Math:
    return Math(model_path, MathSettings(**fields))


# Built with the fields of the task's section in the configuration.
TASKS: dict[str, Callable[..., Task]] = {
    "water_jugs": WaterJugs,
    "countdown": Countdown,
    "arithmetic": Arithmetic,
    "sorting": Sorting,
    "math": _math,
}
# Tasks that use the tokenizer of a pretrained model; they are given its path too.
PRETRAINED = ("arithmetic", "sorting", "math")


def make_task(name: str, fields: dict[str, Any], model_path: str = "") -> Task:
    """Build the task of a given name.

    Args:
        name: name of the task.
        fields: the task's section of the configuration.
        model_path: the pretrained model, for the tasks that have one.

    Raises:
        ValueError: there is no such task, or no longer; it brings its own tokenizer, and a model is
            named; or a field cannot be used.
    """
    if name not in TASKS:
        removed = "removed after version 0.1.0; " if name in REMOVED_TASKS else ""
        names = ", ".join(sorted(TASKS))
        raise ValueError(f"task.name={name!r}: {removed}known tasks are {names}")
    if name in PRETRAINED:
        return TASKS[name](model_path=model_path, **fields)
    if model_path:
        raise ValueError(
            f"model.path={model_path!r} with task.name={name!r}, which brings a tokenizer of its"
            f" own; tasks for pretrained models: {', '.join(sorted(PRETRAINED))}"
        )
    return TASKS[name](**fields)
