"""The arms of a comparison: a method with a seed, trained until a budget of FLOPs is spent."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.config import FIELDS
from prefixrl_jax.experiment import tuning
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.experiment.checks import needs_corpus
from prefixrl_jax.experiment.run import Run
from prefixrl_jax.experiment.stages import (
    NOT_COMPARED,
    READS_OF_IMPORT,
    SHARED_STAGES,
    fields_of,
)
from prefixrl_jax.fields import INT32_MAX, Number
from prefixrl_jax.flops import Costs, format_flops
from prefixrl_jax.methods import configure
from prefixrl_jax.runtime.files import read_json

# At most, on the way of an arm that is as long as estimated, unless eval.every=0.
EVALUATIONS = 12
# Times the estimated steps, for an arm whose samples turn out shorter than the corpus's.
SLACK = 3


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method with one seed.

    Attributes:
        method: as written in --methods.
        seed: of training.
        tuned: fields that tuning has chosen, as they are added to the method's name.
    """

    method: str
    seed: int
    tuned: str = ""

    def directory(self, workdir: Path) -> Path:
        """Return the arm's work directory."""
        if self.seed == tuning.SEED:
            return workdir / "tuning" / f"{self.method}{self.tuned}"
        return workdir / "arms" / self.method / f"seed-{self.seed}"

    def config(self, base: ConfigDict, extent: dict[str, Any]) -> ConfigDict:
        """Return the arm's configuration.

        Precedence: the experiment's fields < how long it trains < the method's fields.
        """
        config = configure(base, "prefixrl", {**extent, "train.seed": self.seed})
        return configure(config, self.method + self.tuned, {})

    def check(self, base: ConfigDict) -> None:
        """Raise ValueError for a method that would need other shared stages than there are."""
        config = self.config(base, {})
        resolve(config)
        for stage in SHARED_STAGES:
            shared = fields_of(base, stage)
            for name, value in fields_of(config, stage).items():
                if value != shared.get(name) and not _unread(name, config):
                    raise ValueError(
                        f"--methods: {self.method} sets {name}={value!r}, and the {stage} stage,"
                        f" which all arms share, has {shared.get(name)!r}; make it a comparison of"
                        " its own"
                    )
        if config.rounds != 1:
            raise ValueError(f"rounds={config.rounds}: the arms of a comparison have one round")


def _unread(name: str, config: ConfigDict) -> bool:
    """Whether a field of the shared stages means nothing for an arm."""
    of_corpus = name.startswith("collect.") or name in READS_OF_IMPORT
    return name in NOT_COMPARED or (of_corpus and not needs_corpus(config))


def parse_methods(text: str) -> list[str]:
    """Split --methods; commas inside brackets, as in prefix.band=(0.1,0.3), do not part them."""
    methods = (method.strip() for method in re.split(r",(?![^(\[]*[)\]])", text))
    return list(dict.fromkeys(methods))


def parse_seeds(texts: list[str]) -> list[int]:
    """Parse --seeds; raise ValueError for a seed that is no whole number, or is given twice."""
    written = f"--seeds={','.join(texts)}"
    seeds = [int(text) for text in texts if re.fullmatch(r"\s*[0-9]{1,19}\s*", text)]
    if not texts or len(seeds) < len(texts) or len(set(seeds)) < len(seeds):
        raise ValueError(f"{written}: different whole numbers are expected, e.g. 0,1,2")
    for seed in seeds:
        FIELDS["train.seed"].check("--seeds", seed)
    if tuning.SEED in seeds:
        raise ValueError(f"{written}: {tuning.SEED} is the seed that --tune chooses with")
    return seeds


def check_numbers(budget: float, level: float) -> None:
    """Raise ValueError for --flops or --level that is no number; absl lets NaN through."""
    FIELDS["train.flops_budget"].check("--flops", budget)
    Number(0.0, most=1).check("--level", level)


def budget_fields(shared: Run, arm: Arm, budget: float) -> dict[str, Any]:
    """Return the fields that make an arm train until the budget is spent; none for budget 0.

    The learning rate's schedule is as long as that is likely to take: prompts and samples are
    taken to be as long as in the corpus, a prefix and its continuation as long as a sample.

    Args:
        shared: the finished shared stages.
        arm: the arm.
        budget: total FLOPs, paper accounting.

    Raises:
        ValueError: the budget is spent before training begins, or is no number.
    """
    FIELDS["train.flops_budget"].check("--flops", budget)
    if not budget:
        return {}
    workdir = shared.workdir
    config = arm.config(workdir.config, {})
    cost = workdir.settings.cost
    ledger = shared.ledger if needs_corpus(config) else shared.ledger.without("collect")
    spent = ledger.total()
    if config.sft.enabled:
        tokens = sum(len(t.context_ids) + len(t.token_ids) for t in workdir.traces())
        spent += config.sft.epochs * cost.tokens(tokens, train=True)
    if spent >= budget:
        raise ValueError(
            f"--flops={budget:g}: {arm.method} has spent {format_flops(spent)} before its first"
            " step of reinforcement learning, on hard problems, traces and fine-tuning on them;"
            " more is needed"
        )
    steps = max(round((budget - spent) / _step_flops(shared, config, cost)), 1)
    if SLACK * steps > INT32_MAX:
        raise ValueError(
            f"--flops={budget:g}: {arm.method} would train for {steps:.2g} steps; a smaller budget"
            " is expected"
        )
    return {
        "train.flops_budget": budget,
        "train.schedule_steps": steps,
        "train.steps": SLACK * steps,
        "eval.every": config.eval.every and math.ceil(steps / EVALUATIONS),
    }


def _step_flops(shared: Run, config: ConfigDict, cost: Costs) -> float:
    """Estimated paper FLOPs of one step of RL."""
    workdir, train = shared.workdir, config.train
    statistics = read_json(workdir.corpus_path / "problems.json").values()
    samples = sum(problem["samples"] for problem in statistics)
    response = config.sampling.max_new_tokens
    if samples:
        response = sum(problem["tokens"] for problem in statistics) / samples
    task = workdir.settings.task
    hard = workdir.hard("train").values()
    prompt = sum(len(task.render(p)) for p in hard) / len(hard)
    tokens = prompt + response
    update = train.updates_per_batch * cost.tokens(tokens, train=True)
    return train.batch * train.group * (cost.tokens(tokens) + update)
