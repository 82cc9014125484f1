"""The tasks by name. A task of your own is added here."""

from __future__ import annotations

from typing import Any

from prefixrl_jax.tasks.gsm8k import GSM8K
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.tasks.water_jugs import WaterJugs

TASKS = {"water_jugs": WaterJugs, "gsm8k": GSM8K}


def make_task(name: str, fields: dict[str, Any]) -> Task:
    """The task called `name`, built with its section of the configuration. Raises ValueError listing the known names."""
    if name not in TASKS:
        raise ValueError(f"task.name={name!r}: known tasks are {', '.join(sorted(TASKS))}")
    return TASKS[name](**fields)
