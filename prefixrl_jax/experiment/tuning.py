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

from prefixrl_jax.experiment.stages import EXTENT, SHARED, fields_of
from prefixrl_jax.methods import preset

SEED = 1000  # of the runs that choose


@dataclasses.dataclass(frozen=True)
class Grid:
    """A field, and the values to try as they are written in a method's name."""

    field: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Of "train.learning_rate=2e-4,5e-4".

        Raises ValueError for anything else, and for a field or value that does not fit.
        """
        field, found, values = text.partition("=")
        grid = cls(field.strip(), tuple(value.strip() for value in values.split(",")))
        if not found or len(grid.values) < 2 or len(set(grid.values)) < len(grid.values):
            raise ValueError(
                f"--tune={text}: a field and two or more values are expected, e.g."
                " train.learning_rate=2e-4,5e-4"
            )
        for value in grid.values:
            preset(grid.suffix(value)[1:])
        return grid

    def suffix(self, value: str) -> str:
        """What to add to a method's name for a value."""
        return f"+{self.field}={value}"

    def matters(self, method: str, config: ConfigDict) -> bool:
        """Whether the method, whose configuration this is, reads the field and does not fix it
        itself.
        """
        trains = config.train.steps or not self.field.startswith(("train.", "prefix."))
        cuts = config.prefix.share or not self.field.startswith("prefix.")
        return bool(
            trains
            and cuts
            and self.field in fields_of(config, "evaluate")
            and self.field not in preset(method)
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run with one value came to."""

    accuracy: float  # plain, of the validation half
    interval: tuple[float, float]  # 95 %, over problems
    flops: float  # in all, paper accounting


def check(grids: Sequence[Grid], base: ConfigDict, methods: Mapping[str, ConfigDict]) -> None:
    """Raises ValueError for a field that is not a method's to choose, that none of the methods
    reads, or that is given twice.
    """
    for number, grid in enumerate(grids):
        if grid.field in [earlier.field for earlier in grids[:number]]:
            raise ValueError(f"--tune={grid.field}: given twice; name all its values at once")
        if any(grid.field in fields_of(base, stage) for stage in SHARED) or grid.field in EXTENT:
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
    """What to add to the method's name, and a record of each field tuned: {"method", "field",
    "chosen", "tried": [{"value", "accuracy", "interval", "flops"}]}. measure(suffix): of a run of
    the method with a suffix. Of equal values the first wins.
    """
    suffix, record = "", []
    for grid in grids:
        tried = [
            {"value": value, **dataclasses.asdict(measure(suffix + grid.suffix(value)))}
            for value in grid.values
        ]
        best = max(tried, key=lambda x: x["accuracy"])["value"]
        record.append({"method": method, "field": grid.field, "chosen": best, "tried": tried})
        suffix += grid.suffix(best)
    return suffix, record
