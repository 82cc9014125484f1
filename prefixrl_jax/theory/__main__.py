"""`python -m prefixrl_jax.theory --out=DIR [--seeds=9] [--max_horizon=64]`.

Measures Proposition 3.4 and checks Theorem 3.2, prints the results as tables and writes theory.json
and theory.png. It takes seconds. A bad flag, or a folder that cannot be written, ends with one line
and status 2.
"""

from __future__ import annotations

from prefixrl_jax.runtime import startup

if __name__ == "__main__":  # before the imports, which take seconds
    startup.begin(startup.UNFINISHED)

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from prefixrl_jax import cli
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
    "out", None, "The folder for theory.json and theory.png; made if need be."
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

Fits = Mapping[str, Mapping[str, Fit] | None]  # by series, None where there are too few points

# theory.json explains itself in these words.
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
MODELS = {
    "polynomial": "log2(samples) = intercept + slope·log2(H)",
    "exponential": "log2(samples) = intercept + slope·H",
}
TITLES = {PREFIX: "PrefixRL-NPG", BOTH: "+ finding the trace", PLAIN: "plain NPG"}


def write_theory(out: Path, horizons: Sequence[int], seeds: int) -> None:
    """Measure, check and print everything, and write theory.json and theory.png into `out`.

    Raises:
        OSError: `out` cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)  # before the work, which would be lost
    rows = list(_print_rows(hidden_string.measure(horizons, seeds), seeds))
    fits = {
        name: hidden_string.fits(horizons, [row[name] and row[name]["median"] for row in rows])
        for name in SERIES
    }
    _print_fits(fits)
    theorem = {name: objective.check(case) for name, case in objective.CASES.items()}
    _print_theorem(theorem)
    proposition = {
        "counted": COUNTED,
        "solved": SOLVED_MEANS,
        "samples_an_iteration": "2·H",
        "step_size": STEP_SIZE,
        "cap": CAP,
        "seeds": seeds,
        "horizons": rows,
        "fits": {"from_horizon": FIT_FROM, "models": MODELS, **_fits_as_json(fits)},
    }
    write_json(out / "theory.json", {"proposition_3_4": proposition, "theorem_3_2": theorem})
    (out / "theory.png").write_bytes(_picture(rows, fits))
    print(f"\n{out / 'theory.json'}\n{out / 'theory.png'}")


def _print_rows(rows: Iterator[dict[str, Any]], seeds: int) -> Iterator[dict[str, Any]]:
    """Print the rows of the table as they are measured, and pass them on."""
    print(f"median samples until solved, of {seeds} runs")
    print("   H  PrefixRL-NPG  + finding the trace  plain NPG")
    for row in rows:
        prefix, both, plain = (_cell(row[name]) for name in (PREFIX, BOTH, PLAIN))
        print(f"{row['horizon']:>4}  {prefix:>12}  {both:>19}  {plain:>9}", flush=True)
        yield row


def _cell(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not run"
    median = measured["median"]
    if median is None:
        return f"> {CAP:.3g}"
    return f"{median:,}" if median < 1e8 else f"{median:.3g}"


def _print_fits(fits: Fits) -> None:
    print(f"\nfits from H = {FIT_FROM} on        H^b: b        R2    2^(cH): c        R2")
    for name, title in TITLES.items():
        if fit := fits[name]:
            cells = [f"{fit[m].slope:>6.2f} ± {fit[m].stderr:.2f}  {fit[m].r2:.4f}" for m in MODELS]
            print(f"{title:<22}" + "  ".join(cells))
        else:
            print(f"{title:<22} too few horizons")


def _print_theorem(theorem: Mapping[str, Mapping[str, Any]]) -> None:
    print("\nTheorem 3.2                     must hold  instances  maximisers  violations")
    for name, case in theorem.items():
        must_hold = "yes" if case["must_hold"] else "no"
        print(
            f"{name:<32}{must_hold:>9}{case['instances']:>11}"
            f"{case['maximisers']:>12}{case['violations']:>12}"
        )


def _fits_as_json(fits: Fits) -> dict[str, Any]:
    return {
        name: {model: dataclasses.asdict(fit[model]) for model in MODELS} if fit else None
        for name, fit in fits.items()
    }


def _picture(rows: Sequence[Mapping[str, Any]], fits: Fits) -> bytes:
    # matplotlib is slow to import, and a bad flag is refused without it.
    from prefixrl_jax.report.plotting import png
    from prefixrl_jax.theory.figure import growth

    picture = png(lambda theme: growth(rows, fits, CAP, theme))
    assert picture is not None  # `growth` draws whatever it is given
    return picture


def command() -> None:
    """Do what the flags ask for; raise ValueError if the folder cannot be made or written."""
    horizons = [horizon for horizon in HORIZONS if horizon <= MAX_HORIZON.value]
    try:
        write_theory(Path(str(OUT.value)), horizons, SEEDS.value)
    except OSError as error:
        raise ValueError(
            f"--out={OUT.value}: {error.strerror}; a folder that can be made and written is"
            " accepted"
        ) from error


if __name__ == "__main__":
    cli.start(command, str(__doc__), required=("out",))
