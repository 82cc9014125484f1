"""`python -m prefixrl_jax.theory --out=DIR [--seeds=9] [--max_horizon=64]`: writes theory.json and
theory.png.

It prints the same as tables and takes seconds. A bad flag, or a folder that cannot be written, ends
with one line and status 2.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags

from prefixrl_jax.runtime.files import write_json
from prefixrl_jax.theory import hidden_string, objective
from prefixrl_jax.theory.hidden_string import (
    BOTH,
    CAP,
    FIT_FROM,
    HORIZONS,
    PLAIN,
    PREFIX,
    SERIES,
    STEP_SIZE,
    Fit,
)

MOST_SEEDS = 99
OUT = flags.DEFINE_string(
    "out", None, "The folder for theory.json and theory.png; made if need be.", required=True
)
SEEDS = flags.DEFINE_integer(
    "seeds", 9, "Runs of each method at each horizon.", lower_bound=1, upper_bound=MOST_SEEDS
)
MAX_HORIZON = flags.DEFINE_integer(
    "max_horizon",
    HORIZONS[-1],
    "Steps of the longest hidden string.",
    lower_bound=HORIZONS[0],
    upper_bound=HORIZONS[-1],
)

COUNTED = {
    PREFIX: (
        "rollouts of PrefixRL-NPG, each of them the continuation of a prefix; the trace is given"
        " and costs nothing"
    ),
    BOTH: "the same and 2^H, the expected number of uniform samples until the first correct trace",
    PLAIN: (
        "rollouts of plain NPG from the start; a run stopped at the cap is null and counts as"
        " longer than any other"
    ),
}
SOLVED_MEANS = (
    "samples, all of its last iteration included, when the uniform mixture of the policies that"
    " drew them has probability 1/2 or more of the string, without a prefix; last_iterate: when the"
    " newest policy alone has more than 1/2"
)
TITLES = {PREFIX: "PrefixRL-NPG", BOTH: "+ finding the trace", PLAIN: "plain NPG"}
MODELS = {
    "polynomial": "log2(samples) = intercept + slope·log2(H)",
    "exponential": "log2(samples) = intercept + slope·H",
}


def run(argv: list[str]) -> None:
    """Measures, checks, prints and writes what the flags ask for."""
    out, horizons = Path(OUT.value), [h for h in HORIZONS if h <= MAX_HORIZON.value]
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = list(_measured(horizons))
        fits = {
            name: hidden_string.fits(horizons, [row[name] and row[name]["median"] for row in rows])
            for name in SERIES
        }
        _print_fits(fits)
        theorem = {name: objective.check(case) for name, case in objective.CASES.items()}
        _print_theorem(theorem)
        _write(out, rows, fits, theorem)
    except OSError as error:
        _leave(
            f"--out={OUT.value}: {error.strerror}; a folder that can be made and written is"
            " accepted"
        )


def _measured(horizons: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Prints the rows of `hidden_string.measure` as they come."""
    print(
        f"median samples until solved, of {SEEDS.value} runs\n   H  PrefixRL-NPG  + finding the"
        " trace  plain NPG"
    )
    for row in hidden_string.measure(horizons, SEEDS.value):
        cells = [_cell(row[name]) for name in (PREFIX, BOTH, PLAIN)]
        print(f"{row['horizon']:>4}  {cells[0]:>12}  {cells[1]:>19}  {cells[2]:>9}", flush=True)
        yield row


def _cell(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not run"
    median = measured["median"]
    return f"> {CAP:.3g}" if median is None else f"{median:,}" if median < 1e8 else f"{median:.3g}"


def _print_fits(fits: Mapping[str, Mapping[str, Fit] | None]) -> None:
    print(f"\nfits from H = {FIT_FROM} on        H^b: b        R2    2^(cH): c        R2")
    for name, title in TITLES.items():
        if fit := fits[name]:
            cells = [f"{fit[m].slope:>6.2f} ± {fit[m].stderr:.2f}  {fit[m].r2:.4f}" for m in MODELS]
            print(f"{title:<22}" + "  ".join(cells))
        else:
            print(f"{title:<22} too few horizons")


def _print_theorem(theorem: Mapping[str, Mapping[str, Any]]) -> None:
    print("\nTheorem 3.2                     must hold  instances  maximisers  violations")
    for name, found in theorem.items():
        print(
            f"{name:<32}{'yes' if found['must_hold'] else 'no':>9}{found['instances']:>11}"
            f"{found['maximisers']:>12}{found['violations']:>12}"
        )


def _write(
    out: Path,
    rows: list[dict[str, Any]],
    fits: Mapping[str, Mapping[str, Fit] | None],
    theorem: Mapping[str, Any],
) -> None:
    from prefixrl_jax.report.plotting import png
    from prefixrl_jax.theory.figure import growth

    slopes = {
        name: {model: dataclasses.asdict(fit[model]) for model in MODELS} if fit else None
        for name, fit in fits.items()
    }
    proposition = {
        "counted": COUNTED,
        "solved": SOLVED_MEANS,
        "samples_an_iteration": "2·H",
        "step_size": STEP_SIZE,
        "cap": CAP,
        "seeds": SEEDS.value,
        "horizons": rows,
        "fits": {"from_horizon": FIT_FROM, "models": MODELS, **slopes},
    }
    write_json(out / "theory.json", {"proposition_3_4": proposition, "theorem_3_2": theorem})
    picture = png(lambda theme: growth(rows, fits, CAP, theme))
    assert picture is not None
    (out / "theory.png").write_bytes(picture)
    print(f"\n{out / 'theory.json'}\n{out / 'theory.png'}")


def _leave(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; an unknown or impossible one ends with one line that names it, its value
    and what is accepted.
    """
    try:
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise flags.Error(f"unexpected arguments {rest[1:]}")
        return rest
    except flags.Error as error:
        ranges = (
            f"--seeds of 1 to {MOST_SEEDS} and --max_horizon of {HORIZONS[0]} to {HORIZONS[-1]}"
        )
        _leave(f"{error}; accepted are --out=FOLDER, {ranges}")


if __name__ == "__main__":
    app.run(run, flags_parser=parse)
