"""Run an experiment: base model, corpus, prefixes, training, evaluation, export, report.

    python -m prefixrl_jax.main --config=configs/demo.py --workdir=DIR [--config.FIELD=VALUE ...]

What is complete in the work directory is reused; an interrupted run goes on where it was. All
fields are named and explained in prefixrl_jax/config.py.
"""

from __future__ import annotations

from prefixrl_jax.runtime import startup

if __name__ == "__main__":  # before the imports, which take seconds
    startup.begin(startup.RESUMABLE)

from pathlib import Path

from absl import flags

from prefixrl_jax.experiment import command

STAGE = flags.DEFINE_string(
    "stage",
    "report",
    "Stop after it: base, corpus, prefixes, sft, train, baseline, evaluate, export, report.",
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would be done, its sizes and its cost, and stop."
)


def run(workdir: Path) -> None:
    """Run the experiment in `workdir`, or say what it would do."""
    from prefixrl_jax.experiment.dry_run import describe
    from prefixrl_jax.experiment.run import run_rounds
    from prefixrl_jax.experiment.stages import STAGES
    from prefixrl_jax.experiment.workdir import Workdir
    from prefixrl_jax.methods import configure
    from prefixrl_jax.runtime import interrupt
    from prefixrl_jax.runtime.console import say

    config = configure(
        command.CONFIG.value, command.CONFIG.value.get("method"), command.given_fields()
    )
    if STAGE.value not in STAGES:
        raise ValueError(f"--stage={STAGE.value!r}: one of {', '.join(STAGES)}")
    if DRY_RUN.value:
        say(describe(Workdir(config, workdir)))
        return
    command.keep_compilations(workdir)
    first = Workdir(config, workdir)  # is checked before anything is written
    command.refuse_other_kind(workdir, command.COMPARISON, "a comparison")
    interrupt.listen()
    with command.owning(workdir):
        run_rounds(first, STAGE.value)


def main() -> None:
    """Start the command."""
    command.start(run, str(__doc__))


if __name__ == "__main__":
    main()
