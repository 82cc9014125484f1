"""Tuning of a comparison's methods, all with the same grid and so the same effort.

`--tune=train.learning_rate=2e-4,5e-4,1e-3` trains every method once with each value, with a seed of
its own, and takes the value with the highest plain accuracy on the validation half of the held-out
problems (every second one). The comparison's own seeds and the other half, which its figures are
of, have no part in the choice. Several fields are tuned one after another, the choice of each kept
for the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.experiment.stages import NOT_COMPARED, SHARED_STAGES, fields_of
from prefixrl_jax.methods import preset

SEED = 1000  # of the runs that choose


@dataclasses.dataclass(frozen=True)
class Grid:
    """A field, and the values to try as they are written in a method's name."""

    field: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Parse "train.learning_rate=2e-4,5e-4".

        Raises ValueError for anything else, and for a field or value that does not fit.
        """
        field, equals, values = text.partition("=")
        grid = cls(field.strip(), tuple(value.strip() for value in values.split(",")))
        if not equals or len(grid.values) < 2 or len(set(grid.values)) < len(grid.values):
            raise ValueError(
                f"--tune={text}: a field and two or more values are expected, e.g."
                " train.learning_rate=2e-4,5e-4"
            )
        for value in grid.values:
            preset(grid.suffix(value)[1:])
        return grid

    def suffix(self, value: str) -> str:
        """Return what a value adds to a method's name."""
        return f"+{self.field}={value}"

    def matters(self, method: str, config: ConfigDict) -> bool:
        """Return whether a method reads the field and does not fix it itself.

        config: the method's configuration.
        """
        if self.field.startswith(("train.", "prefix.")) and not config.train.steps:
            return False
        if self.field.startswith("prefix.") and not config.prefix.share:
            return False
        return self.field in fields_of(config, "evaluate") and self.field not in preset(method)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run with one value came to.

    Attributes:
        accuracy: plain, of the validation half.
        interval: 95 %, over problems.
        flops: in all, paper accounting.
    """

    accuracy: float
    interval: tuple[float, float]
    flops: float


def check_grids(grids: Sequence[Grid], base: ConfigDict, methods: Mapping[str, ConfigDict]) -> None:
    """Raise ValueError for a field that cannot be tuned.

    That is one that is the same for all methods, that none of them reads, or that is given twice.
    """
    shared = {name for stage in SHARED_STAGES for name in fields_of(base, stage)}
    for number, grid in enumerate(grids):
        if grid.field in [earlier.field for earlier in grids[:number]]:
            raise ValueError(f"--tune={grid.field}: given twice; name all its values at once")
        if grid.field in shared or grid.field in NOT_COMPARED:
            raise ValueError(
                f"--tune={grid.field}: the base model, the hard set, the corpus, the evaluation and"
                " the budget are the same for all methods; tune what comes after, such as"
                " train.learning_rate"
            )
        if not any(grid.matters(method, config) for method, config in methods.items()):
            raise ValueError(
                f"--tune={grid.field}: none of the methods {', '.join(methods)} leaves it open and"
                " reads it"
            )


def choose(
    method: str, grids: Sequence[Grid], measure: Callable[[str], Outcome]
) -> tuple[str, list[dict[str, Any]]]:
    """Choose a method's fields one after another; of equal values the first wins.

    Args:
        method: the method's name.
        grids: fields and values.
        measure: the outcome of a run of the method with a suffix to its name.

    Returns:
        What to add to the method's name, and a record of each field: {"method", "field", "chosen",
        "tried": [{"value", "accuracy", "interval", "flops"}]}.
    """
    suffix = ""
    record = []
    for grid in grids:
        tried = [
            {"value": value, **dataclasses.asdict(measure(suffix + grid.suffix(value)))}
            for value in grid.values
        ]
        best = max(tried, key=lambda outcome: outcome["accuracy"])["value"]
        record.append({"method": method, "field": grid.field, "chosen": best, "tried": tried})
        suffix += grid.suffix(best)
    return suffix, record
