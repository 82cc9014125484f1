"""The tasks by name. A task of your own is added here."""

from __future__ import annotations

from typing import Any

from prefixrl_jax.tasks.arithmetic import Arithmetic
from prefixrl_jax.tasks.countdown import Countdown
from prefixrl_jax.tasks.errand import Errand
from prefixrl_jax.tasks.gsm8k import GSM8K
from prefixrl_jax.tasks.math import Math
from prefixrl_jax.tasks.sorting import Sorting
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.tasks.water_jugs import WaterJugs

TASKS = {
    "water_jugs": WaterJugs,
    "countdown": Countdown,
    "errand": Errand,
    "gsm8k": GSM8K,
    "arithmetic": Arithmetic,
    "sorting": Sorting,
    "math": Math,
}
# tasks that speak the tokenizer of a pretrained model
PRETRAINED = ("arithmetic", "sorting", "math")


def make_task(name: str, fields: dict[str, Any], model_path: str = "") -> Task:
    """The task called `name`, built with its section of the configuration, for the pretrained model
    at `model_path` if any.

    Raises ValueError listing the known names.
    """
    if name not in TASKS:
        raise ValueError(f"task.name={name!r}: known tasks are {', '.join(sorted(TASKS))}")
    if model_path and name not in PRETRAINED:
        raise ValueError(
            f"model.path={model_path!r} with task.name={name!r}, which brings a tokenizer of its"
            f" own; tasks for pretrained models: {', '.join(sorted(PRETRAINED))}"
        )
    return TASKS[name](**fields, **({"model_path": model_path} if name in PRETRAINED else {}))
