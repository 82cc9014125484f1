"""Compare methods at equal total FLOPs and write one report.

    python -m prefixrl_jax.compare --config=configs/demo.py --workdir=DIR
        --methods=prefixrl,rl,sft_rl --seeds=0,1,2 --flops=2e13

Base model, hard set, corpus and the base model's figures are shared and lie in DIR/shared; every
arm, a method with a seed of training, has a folder of its own below DIR/arms. A method that uses
the traces pays for collecting them; all pay for finding the hard problems. Fields on the command
line hold for every arm, but for those that define its method. With --tune each method's fields are
chosen first, by runs below DIR/tuning. The same command goes on after a kill; finished arms are not
run again.
"""

from __future__ import annotations

from prefixrl_jax.runtime import startup

if __name__ == "__main__":  # before the imports, which take seconds
    startup.begin(startup.RESUMABLE)

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from prefixrl_jax.experiment import command

if TYPE_CHECKING:
    from prefixrl_jax.experiment.arms import Arm
    from prefixrl_jax.experiment.run import Run
    from prefixrl_jax.experiment.tuning import Grid

METHODS = flags.DEFINE_string(
    "methods", "prefixrl,rl,sft_rl", "Methods to compare; presets and fields are joined by +."
)
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of training, each a run of every method.")
FLOPS = flags.DEFINE_float(
    "flops",
    0.0,
    "Total FLOPs of every arm, e.g. 2e13; 0: every arm has train.steps.",
    lower_bound=0.0,
)
TUNE = flags.DEFINE_multi_string(
    "tune",
    [],
    "A field and values, the best of which is chosen for each method, e.g."
    " train.learning_rate=2e-4,5e-4.",
)
REFERENCE = flags.DEFINE_string(
    "reference", "sft_rl", "The method that the tables compare the others with."
)
LEVEL = flags.DEFINE_float(
    "level",
    0.0,
    "Plain accuracy, the FLOPs to which are compared, e.g. 0.3; 0: the reference's final one.",
    0.0,
    1.0,
)


def compare(directory: Path) -> None:
    """Run what is not finished yet, then write the report."""
    from prefixrl_jax.experiment.arms import Arm, check_numbers, parse_methods, parse_seeds
    from prefixrl_jax.experiment.run import Run
    from prefixrl_jax.experiment.tuning import Grid, check_grids
    from prefixrl_jax.experiment.workdir import Workdir
    from prefixrl_jax.methods import configure
    from prefixrl_jax.runtime import interrupt

    # Everything is checked before anything is computed.
    check_numbers(FLOPS.value, LEVEL.value)
    command.refuse_other_kind(directory, command.RUN, "a run")
    grids = [Grid.parse(text) for text in TUNE.value]
    part = {"eval.heldout_part": "test"} if grids else {}
    base = configure(command.CONFIG.value, "prefixrl", part)  # with the command line's fields
    methods = parse_methods(METHODS.value)
    arms = [Arm(method, seed) for seed in parse_seeds(SEEDS.value) for method in methods]
    for arm in arms:
        arm.check(base)
    check_grids(grids, base, {arm.method: arm.config(base, {}) for arm in arms})
    if REFERENCE.value not in methods and REFERENCE.present:
        raise ValueError(f"--reference={REFERENCE.value}: one of the methods {', '.join(methods)}")
    shared = Run(Workdir(base, directory / "shared"))

    command.keep_compilations(directory)
    interrupt.listen()
    with command.owning(directory, shared.workdir.path):
        _run(directory, shared, arms, grids)


def _run(directory: Path, shared: Run, arms: Sequence[Arm], grids: Sequence[Grid]) -> None:
    """Run the shared stages, tuning and the arms, and write the report."""
    from prefixrl_jax.experiment.arms import budget_fields
    from prefixrl_jax.experiment.stages import SHARED_STAGES, STAGES
    from prefixrl_jax.report.comparison_report import write_comparison
    from prefixrl_jax.runtime.console import say
    from prefixrl_jax.runtime.processes import on_primary

    shared.run_stages(SHARED_STAGES)
    say(f"corpus: {shared.workdir.records.result('corpus')['summary']['capped_treatment']}")
    if grids and len(shared.workdir.hard("heldout")) < 2:
        raise ValueError(
            "--tune: there are no held-out problems to choose with (select.heldout_problems,"
            " data.heldout_path)"
        )
    for arm in arms:
        budget_fields(shared, arm, FLOPS.value)  # a budget too small for one of them is refused
    methods = dict.fromkeys(arm.method for arm in arms)
    tuned = {method: tune(shared, method, grids) for method in methods}
    stages = [name for name in STAGES if name != "export"]
    for number, arm in enumerate(arms, start=1):
        suffix, _ = tuned[arm.method]
        say(f"{arm.method}{suffix}, seed {arm.seed}: arm {number} of {len(arms)}")
        run_arm(shared, dataclasses.replace(arm, tuned=suffix), stages, {})

    directories = {(arm.method, arm.seed): arm.directory(directory) for arm in arms}
    choices = [choice for _, record in tuned.values() for choice in record]

    def report() -> None:
        workdir = shared.workdir.path
        say(
            write_comparison(directory, directories, workdir, REFERENCE.value, choices, LEVEL.value)
        )

    on_primary(report)


def run_arm(shared: Run, arm: Arm, stages: Sequence[str], fields: Mapping[str, Any]) -> Run:
    """Run those stages of an arm that are not finished.

    fields: of the configuration, in addition to the experiment's.
    """
    import jax

    from prefixrl_jax.experiment.arms import budget_fields
    from prefixrl_jax.experiment.run import Run
    from prefixrl_jax.experiment.workdir import Workdir

    base, directory = shared.workdir.config, shared.workdir.path
    config = arm.config(base, {**budget_fields(shared, arm, FLOPS.value), **fields})
    run = Run(Workdir(config, arm.directory(directory.parent), directory))
    with command.owning(run.workdir.path):
        run.run_stages(stages)
    # The next arm's shapes are others, and what it has in common is in the cache on disk.
    jax.clear_caches()
    return run


def tune(shared: Run, method: str, grids: Sequence[Grid]) -> tuple[str, list[dict[str, Any]]]:
    """Choose a method's fields; return what to add to its name, and a record of the choice."""
    from prefixrl_jax.experiment import tuning
    from prefixrl_jax.experiment.arms import Arm
    from prefixrl_jax.experiment.stages import STAGES
    from prefixrl_jax.runtime.console import say

    base = shared.workdir.config
    stages = STAGES[: STAGES.index("evaluate") + 1]
    # The choice is by the accuracy at the end, so nothing is evaluated on the way.
    fields = {"eval.heldout_part": "validation", "eval.every": 0}
    outcomes: dict[str, tuning.Outcome] = {}

    def measure(suffix: str) -> tuning.Outcome:
        arm = Arm(method, tuning.SEED, suffix)
        config = arm.config(base, {})
        config.method = method  # equal configurations may be written differently
        key = config.to_json(sort_keys=True)
        if key not in outcomes:  # a value that a field has anyway is not run again
            say(f"tuning {method}: {suffix}")
            run = run_arm(shared, arm, stages, fields)
            heldout = run.workdir.records.result("evaluate")["plain"]["heldout"]["after"]
            outcomes[key] = tuning.Outcome(
                heldout["avg@1"], tuple(heldout["interval"]), run.ledger.total()
            )
        return outcomes[key]

    config = Arm(method, tuning.SEED).config(base, {})
    read = [grid for grid in grids if grid.matters(method, config)]
    return tuning.choose(method, read, measure)


if __name__ == "__main__":
    command.start(compare, str(__doc__))
