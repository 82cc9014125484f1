"""`python -m prefixrl_jax.compare --config=configs/demo.py --workdir=DIR
--methods=prefixrl,rl,sft_rl --seeds=0,1,2 --flops=2e13`

Runs the methods (`methods.py`) one after another, at equal total FLOPs in paper accounting, and
writes one report. Base model, hard set, corpus and the base model's figures are shared and lie in
DIR/shared; every arm, a method with a seed of training, has a folder of its own below DIR/arms. A
method that uses the traces pays for collecting them; all pay for finding the hard problems. Fields
on the command line hold for every arm, but for those that define its method. With --tune each
method's fields are chosen first (`tuning.py`), by runs below DIR/tuning. The same command goes on
after a kill; finished arms are not run again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags
from ml_collections import ConfigDict

from prefixrl_jax import cli
from prefixrl_jax.experiment import tuning

if TYPE_CHECKING:
    from prefixrl_jax.experiment.run import Experiment

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

EVALUATIONS = 12  # at most, on the way of an arm as long as estimated, unless eval.every=0
# times the steps estimated from the corpus's lengths, for an arm whose samples turn out shorter
SLACK = 3


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method with one seed."""

    method: str
    seed: int
    tuned: str = ""  # fields in addition to the method's, as they are written in its name

    def directory(self, workdir: Path) -> Path:
        """Its work directory."""
        if self.seed == tuning.SEED:
            return workdir / "tuning" / f"{self.method}{self.tuned}"
        return workdir / "arms" / self.method / f"seed-{self.seed}"

    def config(self, base: ConfigDict, extent: dict[str, Any]) -> ConfigDict:
        """The experiment's configuration, over it the extent, and over that the method's fields,
        which make the arm.
        """
        from prefixrl_jax.methods import configure

        out = configure(base, "prefixrl", {**extent, "train.seed": self.seed})
        return configure(out, self.method + self.tuned, {})

    def check(self, base: ConfigDict) -> None:
        """Raises ValueError for a method that asks of the shared stages what another configuration
        would have to make.
        """
        from prefixrl_jax.experiment.build import needs_corpus, resolve
        from prefixrl_jax.experiment.stages import EXTENT, SHARED, fields_of

        own = self.config(base, {})
        resolve(own)
        for stage in SHARED:
            shared = fields_of(base, stage)
            for name, value in fields_of(own, stage).items():
                unread = name in EXTENT or (name.startswith("collect.") and not needs_corpus(own))
                if value != shared.get(name) and not unread:
                    raise ValueError(
                        f"--methods: {self.method} sets {name}={value!r}, and the {stage} stage,"
                        f" which all arms share, has {shared.get(name)!r}; make it a comparison of"
                        " its own"
                    )
        if own.rounds != 1:
            raise ValueError(f"rounds={own.rounds}: the arms of a comparison have one round")


def methods_of(text: str) -> list[str]:
    """Methods in a list: commas inside brackets, as in prefix.band=(0.1,0.3), do not part them."""
    return list(dict.fromkeys(method.strip() for method in re.split(r",(?![^(\[]*[)\]])", text)))


def seeds_of(texts: list[str]) -> list[int]:
    """Raises ValueError for a seed that is no whole number, or is given twice."""
    if (
        not texts
        or not all(text.strip().isdigit() for text in texts)
        or len({int(t) for t in texts}) < len(texts)
    ):
        raise ValueError(
            f"--seeds={','.join(texts)}: different whole numbers are expected, e.g. 0,1,2"
        )
    if tuning.SEED in (seeds := [int(text) for text in texts]):
        raise ValueError(
            f"--seeds={','.join(texts)}: {tuning.SEED} is the seed that --tune chooses with"
        )
    return seeds


def compare(workdir: Path) -> None:
    """Runs what is not finished yet, then writes the report."""
    from prefixrl_jax.experiment.run import Experiment
    from prefixrl_jax.experiment.stages import NAMES, SHARED
    from prefixrl_jax.methods import configure
    from prefixrl_jax.report.comparison_report import write_comparison
    from prefixrl_jax.runtime import interrupt
    from prefixrl_jax.runtime.metrics import say
    from prefixrl_jax.runtime.processes import on_primary

    grids = [tuning.Grid.parse(text) for text in TUNE.value]
    part = {"eval.heldout_part": "test"} if grids else {}
    base = configure(cli.CONFIG.value, "prefixrl", part)  # the command line's fields are in it
    methods = methods_of(METHODS.value)
    arms = [Arm(method, seed) for seed in seeds_of(SEEDS.value) for method in methods]
    for arm in arms:
        arm.check(base)  # before any compute
    tuning.check(grids, base, {arm.method: arm.config(base, {}) for arm in arms})
    if REFERENCE.value not in methods and REFERENCE.present:
        raise ValueError(f"--reference={REFERENCE.value}: one of the methods {', '.join(methods)}")
    shared = Experiment(base, workdir / "shared")
    interrupt.listen()
    shared.run_stages(SHARED)
    say(f"corpus: {shared.stages.result('corpus')['summary']['capped_treatment']}")
    if grids and len(shared.hard("heldout")) < 2:
        raise ValueError(
            "--tune: there are no held-out problems to choose with (select.heldout_problems,"
            " data.heldout_path)"
        )
    for arm in arms:
        extent(shared, arm)  # a budget too small for one of them is refused
    found = {method: tune(shared, method, grids) for method in methods}
    for number, arm in enumerate(arms, start=1):
        arm = dataclasses.replace(arm, tuned=found[arm.method][0])
        say(f"{arm.method}{arm.tuned}, seed {arm.seed}: arm {number} of {len(arms)}")
        run_arm(shared, arm, [name for name in NAMES if name != "export"], {})
    directories = {(arm.method, arm.seed): arm.directory(workdir) for arm in arms}
    tuned = [field for _, record in found.values() for field in record]
    on_primary(
        lambda: say(
            write_comparison(
                workdir, directories, shared.workdir, REFERENCE.value, tuned, LEVEL.value
            )
        )
    )


def run_arm(
    shared: Experiment, arm: Arm, stages: Sequence[str], fields: Mapping[str, Any]
) -> Experiment:
    """Runs those stages of an arm that are not finished; fields: in addition to the
    experiment's.
    """
    import jax

    from prefixrl_jax.experiment.run import Experiment

    config = arm.config(shared.config, {**extent(shared, arm), **fields})
    experiment = Experiment(config, arm.directory(shared.workdir.parent), shared.workdir)
    experiment.run_stages(stages)
    # the next arm's shapes are others, and what it has in common is in the cache on disk
    jax.clear_caches()
    return experiment


def tune(
    shared: Experiment, method: str, grids: Sequence[tuning.Grid]
) -> tuple[str, list[dict[str, Any]]]:
    """What to add to the method's name, and a record of how it was chosen."""
    from prefixrl_jax.experiment.stages import NAMES
    from prefixrl_jax.runtime.metrics import say

    # by configuration: a value that a field has anyway is not run again
    measured: dict[str, tuning.Outcome] = {}

    def measure(fields: str) -> tuning.Outcome:
        arm, stages = Arm(method, tuning.SEED, fields), NAMES[: NAMES.index("evaluate") + 1]
        config = arm.config(shared.config, {})
        config.method = method  # not how it is written
        if (known := config.to_json(sort_keys=True)) in measured:
            return measured[known]
        say(f"tuning {method}: {fields}")
        # the choice is by the end
        run = run_arm(shared, arm, stages, {"eval.heldout_part": "validation", "eval.every": 0})
        found = run.stages.result("evaluate")["plain"]["heldout"]["after"]
        measured[known] = tuning.Outcome(
            found["avg@1"], tuple(found["interval"]), run.ledger.total()
        )
        return measured[known]

    own = Arm(method, tuning.SEED).config(shared.config, {})
    return tuning.choose(method, [grid for grid in grids if grid.matters(method, own)], measure)


def extent(shared: Experiment, arm: Arm) -> dict[str, Any]:
    """How long an arm trains: until the budget is spent.

    Its learning rate's schedule is as long as that is likely to take.

    The estimate takes prompts and samples to be as long as in the corpus, and a prefix and its
    continuation as long as a sample. Raises ValueError for a budget that is spent before training
    begins.
    """
    from prefixrl_jax.experiment.build import needs_corpus
    from prefixrl_jax.runtime.metrics import human_flops

    if not (budget := FLOPS.value):
        return {}
    config = arm.config(shared.config, {})
    cost, t = shared.s.cost, config.train
    spent = shared.ledger if needs_corpus(config) else shared.ledger.without("collect")
    traces = shared.traces()
    epoch = cost.tokens(sum(len(x.context_ids) + len(x.token_ids) for x in traces), train=True)
    total = spent.total() + config.sft.enabled * config.sft.epochs * epoch
    if total >= budget:
        raise ValueError(
            f"--flops={budget:g}: {arm.method} has spent {human_flops(total)} before its first step"
            " of reinforcement learning, on hard problems, traces and fine-tuning on them; more is"
            " needed"
        )
    seen = json.loads((shared.workdir / "corpus" / "problems.json").read_text()).values()
    samples = sum(x["samples"] for x in seen)
    response = (
        sum(x["tokens"] for x in seen) / samples if samples else config.sampling.max_new_tokens
    )
    hard = shared.hard("train").values()
    tokens = sum(len(shared.s.task.render(p)) for p in hard) / len(hard) + response
    step = (
        t.batch
        * t.group
        * (cost.tokens(tokens) + t.updates_per_batch * cost.tokens(tokens, train=True))
    )
    steps = max(round((budget - total) / step), 1)
    return {
        "train.flops_budget": budget,
        "train.schedule_steps": steps,
        "train.steps": SLACK * steps,
        "eval.every": config.eval.every and math.ceil(steps / EVALUATIONS),
    }


def run(argv: list[str]) -> None:
    """Runs the comparison the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected arguments {argv[1:]}; methods are set as --methods=prefixrl,rl"
        )
    cli.guarded(compare)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(run, flags_parser=cli.parse)
