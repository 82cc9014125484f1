"""The story of a run: base -> corpus (select, collect) -> prefixes -> sft -> train -> measurements.

`Run` tells the order; below it each stage is one function of (work directory, ledger), which
returns its result as JSON values: "line" is for the reader, "ledger" the bill so far or "spent"
what to add to it, the rest is for later stages. A stage writes what it made into the work directory
and is reused when it is complete; an interrupted one goes on where it was.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from prefixrl_jax.experiment.checks import needs_corpus
from prefixrl_jax.experiment.corpus_stage import make_corpus
from prefixrl_jax.experiment.fit import Fit, fit_text
from prefixrl_jax.experiment.measure import evaluate, measure_base, short_evaluation
from prefixrl_jax.experiment.rl_source import on_policy
from prefixrl_jax.experiment.stages import STAGES
from prefixrl_jax.experiment.summary import summary
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.export_folder import check_target
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.weights import init_params
from prefixrl_jax.prefixes.cuts import CutSettings, draw_cuts, write_cuts
from prefixrl_jax.rl.step import UpdateSettings
from prefixrl_jax.runtime import interrupt
from prefixrl_jax.runtime.console import heartbeat, say
from prefixrl_jax.runtime.files import write_json
from prefixrl_jax.runtime.fingerprint import tree_fingerprint
from prefixrl_jax.runtime.processes import on_primary, primary
from prefixrl_jax.training.health import HealthCheck
from prefixrl_jax.training.loop import Evaluation, LoopState, Saving, progress_note
from prefixrl_jax.training.supervised import base_texts, trace_texts


class Run:
    """The stages of a run, in order, over one work directory and one bill."""

    def __init__(self, workdir: Workdir):
        self.workdir = workdir
        self.ledger = Ledger()

    def run(self, last: str = STAGES[-1]) -> None:
        """Run the stages in order, up to and including `last`."""
        self.run_stages(STAGES[: STAGES.index(last) + 1])

    def run_stages(self, names: Sequence[str]) -> None:
        """Run just these stages; what they build on must be there. Complete ones are reused."""
        workdir = self.workdir
        on_primary(workdir.records.check)  # again, now that no other process writes here
        on_primary(write_json, workdir.path / "config.json", workdir.config.to_dict())
        if "export" in names and not on_primary(workdir.records.is_complete, "export"):
            on_primary(check_target, workdir.path / "hf", True)  # now, not after hours of training
        on_primary(workdir.remember_checks)
        _tell_left_out(workdir)
        with jax.set_mesh(workdir.settings.mesh):
            for name in names:
                if interrupt.received():
                    raise interrupt.Interrupted
                if moved := on_primary(workdir.records.moved, name):
                    say(
                        f"{name} was begun elsewhere ({moved}): it goes on, but its last bits may"
                        " be others"
                    )
                result = on_primary(workdir.records.begin, name)
                if result is None:
                    result = self._run_stage(name)
                else:
                    say(f"{name} is complete" + _after_colon(result))
                self._take_over(name, result)

    def _run_stage(self, name: str) -> dict[str, Any]:
        """Run one stage from where it is to its end, and put its result on record."""
        records = self.workdir.records
        started = time.monotonic()
        try:
            with heartbeat(name):
                result = STAGE_FUNCTIONS[name](self.workdir, self.ledger)
        except ValueError:
            if primary():
                records.withdraw(name)
            raise
        except BaseException:
            if primary():
                # A full disk loses these seconds; the first error is the one to tell.
                with contextlib.suppress(OSError):
                    records.add_seconds(name, time.monotonic() - started)
            raise
        seconds = time.monotonic() - started
        on_primary(records.finish, name, result, seconds)
        say(f"{name} done in {seconds:.0f} s" + _after_colon(result))
        return result

    def _take_over(self, name: str, result: dict[str, Any]) -> None:
        """Take over the bill of a finished stage."""
        workdir = self.workdir
        if name == "base" and workdir.previous:
            self.ledger = Ledger(workdir.previous.records.result("train")["ledger"])
        elif "ledger" in result:
            self.ledger = Ledger(result["ledger"])
        for accounting, phases in result.get("spent", {}).items():
            for phase, flops in phases.items():
                self.ledger.add(accounting, phase, flops)
        shares_corpus = workdir.shared != workdir.path
        if name == "corpus" and shares_corpus and not needs_corpus(workdir.config):
            # The arm of a comparison does not pay for a corpus it does not use.
            self.ledger = self.ledger.without("collect")


def _after_colon(result: dict[str, Any]) -> str:
    return f": {result['line']}" if "line" in result else ""


def run_rounds(first: Workdir, last: str = STAGES[-1]) -> None:
    """Run an experiment with all its rounds, each up to and including the stage `last`.

    Every later round samples the unsolved problems with the policy it goes on from.
    """
    config, workdir = first.config, first
    Run(workdir).run(last)
    trains = STAGES.index(last) >= STAGES.index("train")
    for number in range(2, config.rounds + 1 if trains else 2):
        say(f"round {number} of {config.rounds}")
        workdir = Workdir(config, first.path / f"round-{number}", previous=workdir)
        Run(workdir).run(last)


def _tell_left_out(workdir: Workdir) -> None:
    """Say which rows are not used; all of them stand in left_out.json."""
    left_out = {
        "malformed rows": workdir.sets.skipped,
        "held-out problems that are trained on": workdir.sets.overlap,
    }
    path = workdir.path / "left_out.json"
    for kind, sentences in left_out.items():
        if sentences:
            say(
                f"data: {len(sentences)} {kind} left out; all are in {path}, the first:"
                f" {sentences[0]}"
            )
    if any(left_out.values()):
        on_primary(write_json, path, left_out)


# The stages.


def train_base(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Train the base model on the task's text; a pretrained one is read where it lies."""
    config, settings = workdir.config, workdir.settings
    if config.model.path:
        return {
            "ledger": ledger.state,
            "line": f"{settings.model.family} from {config.model.path}",
            "model": tree_fingerprint(workdir.base_params()),
        }
    params = init_params(settings.model, config.seed, settings.shardings("train"))
    texts = base_texts(settings.task, config.base.batch, config.seed)
    directory = workdir.shared / "base"
    fitted = fit_text(
        settings,
        "base",
        texts,
        config.base.steps,
        directory,
        params,
        ledger,
        identity=on_primary(workdir.records.identity, "base"),
    )
    return {
        "ledger": fitted.ledger.state,
        "line": _loss_line(fitted.metrics),
        "params": _ending(fitted),
    }


def _ending(fitted: LoopState) -> dict[str, Any]:
    """Which parameters a loop ended with."""
    return {"step": fitted.step, "checksum": tree_fingerprint(fitted.state.params)}


def draw_prefixes(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Draw the cuts of the traces, once, and freeze them in a file."""
    prefix = workdir.config.prefix
    task = workdir.settings.task
    settings = CutSettings(
        count=prefix.cuts,
        band=tuple(prefix.band),
        seed=workdir.config.seed,
        hinted=prefix.place == "user",
        unrelated=prefix.content == "unrelated",
    )
    cuts = draw_cuts(task, workdir.hard("train"), workdir.cut_sources(), settings)
    on_primary(write_cuts, task, cuts, workdir.prefixes_path)
    return {
        "contexts": len(cuts.prompts),
        "redrawn": cuts.redrawn,
        "dropped_leaks": cuts.dropped,
        "line": (
            f"{len(cuts.prompts)} prefixes, {cuts.redrawn} cuts drawn again, {cuts.dropped} given"
            " up"
        ),
    }


def fine_tune(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Fine-tune on the traces, if the method does; its FLOPs count as training."""
    sft = workdir.config.sft
    steps = workdir.sft_steps()
    if not sft.enabled:
        return {"ledger": ledger.state, "line": "none"}
    if not steps:
        raise ValueError(
            "sft.enabled: the corpus has no trace to train on (raise collect.cap, or choose easier"
            " problems)"
        )
    fitted = fit_text(
        workdir.settings,
        "sft",
        trace_texts(workdir.traces(), sft.batch, workdir.config.train.seed),
        steps,
        workdir.path / "sft",
        workdir.start_params(),
        ledger,
        evaluation=Evaluation(steps, short_evaluation(workdir, "sft during")),
        identity=on_primary(workdir.records.identity, "sft"),
    )
    line = f"{sft.epochs} epochs, {_loss_line(fitted.metrics)}"
    return {"ledger": fitted.ledger.state, "line": line, "params": _ending(fitted)}


def _loss_line(metrics: dict[str, float]) -> str:
    return f"loss {metrics.get('loss', float('nan')):.3f} per token"


def train_policy(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Reinforcement learning: on-policy rollouts from prefixes and from plain problems."""
    config = workdir.config
    train = workdir.config.train
    settings = workdir.settings
    if not train.steps:
        return {"ledger": ledger.state, "last": {}, "line": "no step of reinforcement learning"}
    fit = Fit(
        section="train",
        directory=workdir.path,
        steps=train.steps,
        schedule_steps=settings.schedule_steps,
        update=UpdateSettings(settings.loss, train.advantage, train.micro_batches),
    )
    # Trained at another context than they were sampled from, log-probs differ for a reason.
    max_logp_diff = 0.0 if train.at_plain else train.max_logp_diff
    trained = fit.run(
        settings,
        on_policy(workdir),
        workdir.sft_params(),
        ledger,
        updates_per_batch=train.updates_per_batch,
        saving=Saving(config.checkpoint.every, config.checkpoint.keep),
        evaluation=Evaluation(config.eval.every, short_evaluation(workdir, "during")),
        stop=partial(_budget_is_spent, train.flops_budget),
        check_health=HealthCheck(max_logp_diff, train.min_entropy),
        omit=("sampler_trainer/",) if train.at_plain else (),
        note=progress_note,
        memory=workdir.source_memory(),
        identity=on_primary(workdir.records.identity, "train"),
    )
    return {
        "ledger": trained.ledger.state,
        "last": trained.metrics,
        "line": progress_note(trained.metrics) if trained.metrics else "no step",
        "memory": trained.memory,
        "params": _ending(trained),
    }


def _budget_is_spent(budget: float, ledger: Ledger) -> bool:
    return 0 < budget <= ledger.total()


def export(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Export the trained model as a Hugging Face folder."""
    settings = workdir.settings
    directory = workdir.path / "hf"
    plain = workdir.records.result("evaluate")["plain"]
    lines = [
        f"- plain pass@1, {name} hard set: {accuracy['before']['avg@1']:.4f} ->"
        f" {accuracy['after']['avg@1']:.4f}"
        for name, accuracy in plain.items()
    ]
    export_hf(
        workdir.trained_params(),
        settings.model,
        settings.task.tokenizer,
        directory,
        generation=settings.generation_config(),
        card="\n".join(lines),
        of_run=True,
    )
    return {"line": f"{settings.model.family} in {directory}"}


def report(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Write summary.json, report.html and the figures."""
    # Imported here: matplotlib takes half a second.
    from prefixrl_jax.report.run_report import write_report

    values = summary(workdir.settings, workdir.records, ledger, workdir.sets)
    on_primary(write_json, workdir.path / "summary.json", values)
    return {"line": on_primary(lambda: str(write_report(workdir.path)))}


STAGE_FUNCTIONS: dict[str, Callable[[Workdir, Ledger], dict[str, Any]]] = {
    "base": train_base,
    "corpus": make_corpus,
    "prefixes": draw_prefixes,
    "sft": fine_tune,
    "train": train_policy,
    "baseline": measure_base,
    "evaluate": evaluate,
    "export": export,
    "report": report,
}
