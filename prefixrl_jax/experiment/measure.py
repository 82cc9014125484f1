"""The stages that measure a model: plain pass@k on the hard sets, success by prefix fraction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime.console import Progress
from prefixrl_jax.runtime.processes import on_primary, share_charges
from prefixrl_jax.tasks.task import Problem
from prefixrl_jax.training.evaluate import Evaluator, part_of
from prefixrl_jax.training.rollout import RolloutSampler
from prefixrl_jax.training.samples import readable_samples, write_samples

SETS = ("train", "heldout")


def measure_base(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Measure the base model's plain pass@k and its success by prefix fraction."""
    return _measure(workdir, "before", workdir.base_params())


def evaluate(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Measure the trained model in the same way, and set it beside the base model."""
    before = workdir.records.result("baseline")
    trained = workdir.config.train.steps or workdir.config.sft.enabled
    after = _measure(workdir, "after", workdir.trained_params()) if trained else before
    plain = {
        name: {"before": accuracy, "after": after["plain"][name]}
        for name, accuracy in before["plain"].items()
    }
    first, last = (plain["train"][when]["avg@1"] for when in ("before", "after"))
    return {
        "plain": plain,
        "by_fraction": {"before": before["by_fraction"], "after": after["by_fraction"]},
        "spent": after["spent"] if trained else {},
        "line": f"plain pass@1 of the hard set {first:.2%} -> {last:.2%}",
    }


def _measure(workdir: Workdir, when: str, params: Params) -> dict[str, Any]:
    """Measure a model in full, from fresh samples, and write readable ones.

    Args:
        workdir: whose hard problems and traces are used.
        when: "before" or "after" training; names the noise and the file of samples.
        params: the model.

    Returns:
        "plain": accuracy by set; "by_fraction": success by fraction; "spent": what it has cost, by
        accounting; "line": for the reader. JSON values.
    """
    settings = workdir.settings
    evaluation = workdir.config.eval
    ledger = Ledger()
    before = Ledger().state
    problems = {name: _evaluated_problems(workdir, name) for name in SETS}
    # Every round is measured with the traces of the first one, as the baseline was.
    traces = workdir.first_round.traces()
    total = evaluation.samples * sum(map(len, problems.values()))
    total += evaluation.fraction_samples * len(evaluation.fractions) * len(traces)
    step = workdir.config.train.steps if when == "after" else 0
    plain: dict[str, Any] = {}
    rows = []
    with Progress("evaluate" if when == "after" else "baseline", total) as progress:
        evaluator = Evaluator(
            _sampler(workdir),
            workdir.for_decoding(params),
            ledger,
            workdir.config.seed,
            progress=progress,
        )
        for name in SETS:
            if problems[name]:
                noise = workdir.noise_name(f"{when} {name}")
                plain[name], rollouts = evaluator.plain(
                    problems[name], evaluation.samples, evaluation.k, noise
                )
                rows += readable_samples(settings.task, rollouts, step, 6, name)
        by_fraction, prefixed = evaluator.by_fraction(
            workdir.hard("train"),
            traces,
            evaluation.fractions,
            evaluation.fraction_samples,
            workdir.noise_name(when),
        )
    if prefixed:
        rows += readable_samples(settings.task, prefixed, step, 6)
    directory = workdir.shared if when == "before" else workdir.path
    on_primary(write_samples, directory / "samples" / f"{when}.jsonl", rows)
    share_charges(ledger, before)
    return {
        "plain": plain,
        "by_fraction": by_fraction,
        "spent": {name: {"eval": phases["eval"]} for name, phases in ledger.state.items()},
        "line": f"plain pass@1 {plain['train']['avg@1']:.2%}",
    }


def short_evaluation(
    workdir: Workdir, when: str
) -> Callable[[Params, int, Ledger], dict[str, float]]:
    """Return the evaluation on the way of a training loop: plain accuracy from few samples.

    when: names the noise.
    """
    samples = workdir.config.eval.every_samples

    def evaluate(params: Params, step: int, ledger: Ledger) -> dict[str, float]:
        before = ledger.copy().state
        evaluator = Evaluator(
            _sampler(workdir),
            workdir.for_decoding(params),
            ledger,
            workdir.config.train.seed,
            step,
        )
        metrics: dict[str, float] = {}
        for name in SETS:
            if problems := _evaluated_problems(workdir, name):
                noise = workdir.noise_name(f"{when} {name}")
                accuracy, _ = evaluator.plain(problems, samples, (1,), noise)
                low, high = accuracy["interval"]
                metrics[f"eval/{name}/avg@1"] = accuracy["avg@1"]
                metrics[f"eval/{name}/avg@1_low"] = low
                metrics[f"eval/{name}/avg@1_high"] = high
        share_charges(ledger, before)
        return metrics

    return evaluate


def _sampler(workdir: Workdir) -> RolloutSampler:
    settings = workdir.settings
    return RolloutSampler(
        settings.engine, settings.task, settings.eval_sampling, phases=("eval", "eval")
    )


def _evaluated_problems(workdir: Workdir, name: str) -> list[Problem]:
    """The hard problems of a set that plain accuracy is measured on."""
    problems = list(workdir.hard(name).values())
    return part_of(problems, workdir.config.eval.heldout_part) if name == "heldout" else problems
