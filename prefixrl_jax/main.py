"""`python -m prefixrl_jax.main --config=configs/demo.py --workdir=DIR [--config.field=value]`: the
whole pipeline.

See `experiment.py` for what happens; this file only reads the command line.
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from prefixrl_jax import cli

STAGE = flags.DEFINE_string("stage", "report", "Stop after this stage.")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would be done, its sizes and its cost, and stop."
)


def run(argv: list[str]) -> None:
    """Runs the experiment the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected arguments {argv[1:]}; fields are set as --config.train.steps=100"
        )
    cli.guarded(experiment)


def experiment(workdir: Path) -> None:
    """One experiment in `workdir`, or what it would do."""
    from prefixrl_jax.experiment.dry_run import describe
    from prefixrl_jax.experiment.run import Experiment
    from prefixrl_jax.experiment.stages import NAMES
    from prefixrl_jax.methods import configure
    from prefixrl_jax.runtime import interrupt
    from prefixrl_jax.runtime.metrics import say

    found = Experiment(
        configure(cli.CONFIG.value, cli.CONFIG.value.method, cli.given_fields()), workdir
    )
    if DRY_RUN.value:
        say(describe(found))
        return
    interrupt.listen()
    found.run(STAGE.value)
    rounds = found.config.rounds if NAMES.index(STAGE.value) >= NAMES.index("train") else 1
    for number in range(2, rounds + 1):
        say(f"round {number} of {found.config.rounds}")
        found = Experiment(found.config, workdir / f"round-{number}", previous=found)
        found.run(STAGE.value)


def main() -> None:
    """The console entry point."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(run, flags_parser=cli.parse)


if __name__ == "__main__":
    main()
