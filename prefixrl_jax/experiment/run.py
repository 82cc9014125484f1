"""The story of a run: base -> corpus (select, collect) -> prefixes -> sft -> train -> evaluate ->
export -> report.

Every stage writes what it made into the work directory and is reused when it is complete; an
interrupted one goes on where it was. `Experiment.run` tells the order; each method below is one
stage.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from prefixrl_jax.corpus import collect as corpus
from prefixrl_jax.corpus.collect import Attempts
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.experiment.build import needs_corpus
from prefixrl_jax.experiment.rl_source import Materials, on_policy
from prefixrl_jax.experiment.stages import NAMES
from prefixrl_jax.experiment.summary import summary
from prefixrl_jax.experiment.workdir import Workbench
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.weights import Params, init_params, params_fingerprint
from prefixrl_jax.prefixes import cuts as prefixes
from prefixrl_jax.runtime.files import write_json
from prefixrl_jax.runtime.metrics import say
from prefixrl_jax.runtime.processes import on_primary, primary
from prefixrl_jax.tasks.task import Problem
from prefixrl_jax.training.health import Gates
from prefixrl_jax.training.loop import progress_note
from prefixrl_jax.training.supervised import base_texts, trace_texts


class Experiment(Workbench):
    """A run in a work directory."""

    def run(self, last: str = NAMES[-1]) -> Path:
        """Runs the stages in order, up to and including `last`; returns the work directory."""
        if last not in NAMES:
            raise ValueError(f"--stage={last!r}: one of {', '.join(NAMES)}")
        return self.run_stages(NAMES[: NAMES.index(last) + 1])

    def run_stages(self, names: Sequence[str]) -> Path:
        """Runs just these stages; what they build on must be there.

        Those done before are taken as they are.
        """
        on_primary(write_json, self.workdir / "config.json", self.config.to_dict())
        self._tell_left_out()
        with jax.set_mesh(self.s.mesh):
            for name in names:
                if moved := on_primary(self.stages.moved, name):
                    say(
                        f"{name} was begun elsewhere ({moved}): it goes on, but its last bits may"
                        " be others"
                    )
                result = on_primary(self.stages.begin, name)
                if result is None:
                    result = self._do(name)
                self._enter(name, result)
        return self.workdir

    def _enter(self, name: str, result: dict[str, Any]) -> None:
        """Takes over a finished stage's bill."""
        if name == "base" and self.previous:
            self.ledger = Ledger(self.previous.stages.result("train")["ledger"])
        elif "ledger" in result:
            self.ledger = Ledger(result["ledger"])
        for accounting, phases in result.get("spent", {}).items():
            for phase, flops in phases.items():
                self.ledger.state[accounting][phase] += flops
        if name == "corpus" and self.shared != self.workdir and not needs_corpus(self.config):
            # an arm that shares a corpus it does not use
            self.ledger = self.ledger.without("collect")

    def _tell_left_out(self) -> None:
        """Says which rows were malformed and which held-out problems are trained on; all of them
        stand in left_out.json.
        """
        found = {
            "malformed rows": self.sets.skipped,
            "held-out problems that are trained on": self.sets.overlap,
        }
        for what, sentences in found.items():
            if sentences:
                say(
                    f"data: {len(sentences)} {what} left out; all are in"
                    f" {self.workdir}/left_out.json, the first: {sentences[0]}"
                )
        if any(found.values()):
            on_primary(write_json, self.workdir / "left_out.json", found)

    def _do(self, name: str) -> dict[str, Any]:
        """One stage from where it is to its end; returns its result, which is then on record."""
        started = time.monotonic()
        try:
            result = getattr(self, name)()
        except BaseException:
            if primary():
                # a full disk loses these seconds; the first error is the one to tell
                with contextlib.suppress(OSError):
                    self.stages.add_seconds(name, time.monotonic() - started)
            raise
        seconds = time.monotonic() - started
        on_primary(self.stages.finish, name, result, seconds)
        say(f"{name} done in {seconds:.0f} s" + (f": {result['line']}" if "line" in result else ""))
        return result

    # Stages

    def base(self) -> dict[str, Any]:
        """Trains the base model on the task's text, unless a pretrained one is given, which is read
        where it lies.
        """
        c, s = self.config, self.s
        if c.model.path:
            line = f"{s.model.family} from {c.model.path}"
            return {"ledger": self.ledger.state, "line": line, "model": self._model_fingerprint()}
        params = init_params(s.model, c.seed, param_shardings(s.model, s.mesh, "train"))
        texts = base_texts(s.task, c.base.batch, c.seed)
        last = self._fit_text("base", texts, c.base.steps, self.shared / "base", params)
        return {
            "ledger": self.ledger.state,
            "line": f"loss {last.get('loss', float('nan')):.3f} per token",
        }

    def corpus(self) -> dict[str, Any]:
        """Screens the candidates, then samples the hard problems until their first correct
        trace.
        """
        c, directory = self.config, self.corpus_directory
        params = self._params("start")
        header = {
            "model": params_fingerprint(params),
            "tokenizer": tokenizers.fingerprint(self.s.task.tokenizer),
        }
        params = self._decode_params(params)
        with SharedLog(directory / "log.jsonl", header) as log:
            for line in log.dropped:
                say(f"corpus: {line}")
            hard = self._select(params, log)
            collected = self._collect(hard["train"], params, log)
        traces = corpus.first_traces(collected, self.s.cost)
        inherited = len(self.previous.traces()) if self.previous else 0
        summary = (
            header
            | corpus.summarise(
                collected, None if c.collect.traces_path else c.collect.cap, inherited
            )
            | {
                "candidates": {k: len(v) for k, v in self.candidates.items()},
                "hard": {k: len(v) for k, v in hard.items()},
                "k": c.select.samples,
                "strategies": corpus.strategies(
                    traces, {p.id: p for p in hard["train"]}, self.s.task
                ),
                "collect_flops": self.ledger.state["paper"]["collect"],
            }
        )
        on_primary(corpus.save, directory, traces, summary)
        earlier = self.previous.wrong() if self.previous else {}
        on_primary(
            write_json, directory / "wrong.json", earlier | corpus.wrong_responses(collected)
        )
        on_primary(write_json, directory / "problems.json", corpus.statistics(collected))
        line = (
            f"{summary['solved']} of {summary['problems']} hard problems solved in"
            f" {summary['samples']} samples"
        )
        return {
            "ledger": self.ledger.state,
            "summary": summary,
            "line": line,
            "hard": {k: [p.id for p in v] for k, v in hard.items()},
        }

    def _select(self, params: Params, log: SharedLog) -> dict[str, list[Problem]]:
        """The hard problems of both sets; those of the first round stay."""
        if self.previous:
            return {name: list(self.previous.hard(name).values()) for name in self.candidates}
        c, hard = self.config.select, {}
        for name, wanted in (("train", c.train_problems), ("heldout", c.heldout_problems)):
            screened = self._attempts(
                "select", list(self.candidates[name].values()), c.samples, params, log
            )
            hard[name] = corpus.hard_set(screened, tuple(c.band), wanted)
        if not hard["train"]:
            raise ValueError(
                f"select.band={tuple(c.band)}: none of {len(self.candidates['train'])} candidates"
                f" has a pass rate inside it after {c.samples} samples; widen it or change the"
                " problems"
            )
        return hard

    def _collect(self, hard: list[Problem], params: Params, log: SharedLog) -> dict[str, Attempts]:
        """Traces from a file; or sampled, in a later round for the problems that have none yet."""
        if self.config.collect.traces_path and not self.previous:
            return self._import_traces(hard, log)
        known = (
            corpus.inherit(self.previous.traces(), hard, self.s.task, log) if self.previous else {}
        )
        open_ = [p for p in hard if p.id not in known]
        return known | self._attempts("collect", open_, self.config.collect.cap, params, log)

    def baseline(self) -> dict[str, Any]:
        """The base model's plain pass@k and its success by prefix fraction."""
        return self._measure("before", "base")

    def prefixes(self) -> dict[str, Any]:
        """Draws the cuts, once, and freezes them in a file."""
        p, hard = self.config.prefix, self.hard("train")
        place, unrelated = p.place == "user", p.content == "unrelated"
        cuts = prefixes.draw_cuts(
            self.s.task,
            hard,
            self._pairs(),
            p.cuts,
            tuple(p.band),
            self.config.seed,
            hinted=place,
            unrelated=unrelated,
        )
        on_primary(
            prefixes.write_cuts, self.s.task, cuts, self.workdir / "prefixes" / "prefixes.jsonl"
        )
        counts = {
            "contexts": len(cuts.prompts),
            "redrawn": cuts.redrawn,
            "dropped_leaks": cuts.dropped,
        }
        return counts | {
            "line": (
                f"{len(cuts.prompts)} prefixes, {cuts.redrawn} cuts drawn again, {cuts.dropped}"
                " given up"
            )
        }

    def sft(self) -> dict[str, Any]:
        """Supervised fine-tuning on the traces; its FLOPs count as training."""
        c = self.config.sft
        if not c.enabled:
            return {"ledger": self.ledger.state, "line": "none"}
        if not (steps := self._sft_steps()):
            raise ValueError(
                "sft.enabled: the corpus has no trace to train on (raise collect.cap, or choose"
                " easier problems)"
            )
        texts = trace_texts(self.traces(), c.batch, self.config.train.seed)
        how: dict[str, Any] = {
            "phase": "train",
            "evaluate_every": steps,
            "evaluate": partial(self._short_evaluation, "sft during"),
        }
        last = self._fit_text(
            "sft", texts, steps, self.workdir / "sft", self._params("start"), **how
        )
        return {
            "ledger": self.ledger.state,
            "line": f"{c.epochs} epochs, loss {last.get('loss', float('nan')):.3f} per token",
        }

    def train(self) -> dict[str, Any]:
        """On-policy rollouts from prefixes and from plain problems, as the method says."""
        c, s = self.config, self.s
        if not c.train.steps:
            return {
                "ledger": self.ledger.state,
                "last": {},
                "line": "no step of reinforcement learning",
            }
        materials = Materials(
            self.hard("train"),
            self.traces(),
            self._pairs(),
            self.workdir / "prefixes" / "prefixes.jsonl",
            partial(self._params, "base"),
            self._decode_shardings(),
        )
        source = on_policy(s, materials, self.workdir / "samples", self.stream("rollouts"))
        budget = c.train.flops_budget
        last = self._fit(
            "train",
            source,
            s.loss,
            c.train.advantage,
            self.workdir,
            self._params("sft"),
            c.train.micro_batches,
            c.train.steps,
            s.schedule_steps,
            updates_per_batch=c.train.updates_per_batch,
            save_every=c.checkpoint.every,
            keep=c.checkpoint.keep,
            evaluate_every=c.eval.every,
            evaluate=partial(self._short_evaluation, "during"),
            note=progress_note,
            stop=lambda ledger: 0 < budget <= ledger.total(),
            memory=self._memory(),
            # Trained at another context than they were sampled from, log-probs differ for a reason.
            gates=Gates(0.0 if c.train.at_plain else c.train.max_logp_diff, c.train.min_entropy),
            omit=("sampler_trainer/",) if c.train.at_plain else (),
        )
        line = progress_note(last) if last else "no step"
        return {"ledger": self.ledger.state, "last": last, "line": line, "memory": self.memory}

    def evaluate(self) -> dict[str, Any]:
        """The trained model beside the base model: plain pass@k on both hard sets, and success by
        prefix fraction.
        """
        before = self.stages.result("baseline")
        trained = self.config.train.steps or self.config.sft.enabled
        after = self._measure("after", "train") if trained else before
        plain = {
            name: {"before": x, "after": after["plain"][name]}
            for name, x in before["plain"].items()
        }
        line = (
            f"plain pass@1 of the hard set {plain['train']['before']['avg@1']:.2%} ->"
            f" {plain['train']['after']['avg@1']:.2%}"
        )
        fractions = {"before": before["by_fraction"], "after": after["by_fraction"]}
        return {
            "plain": plain,
            "by_fraction": fractions,
            "spent": after["spent"] if trained else {},
            "line": line,
        }

    def export(self) -> dict[str, Any]:
        """The trained model as a Hugging Face folder."""
        after = self.stages.result("evaluate")["plain"]
        card = "\n".join(
            f"- plain pass@1, {name} hard set: {x['before']['avg@1']:.4f} ->"
            f" {x['after']['avg@1']:.4f}"
            for name, x in after.items()
        )
        directory, generation = self.workdir / "hf", self.s.generation_config()
        export_hf(
            self._params("train"),
            self.s.model,
            self.s.task.tokenizer,
            directory,
            generation=generation,
            card=card,
        )
        return {"line": f"{self.s.model.family} in {directory}"}

    def report(self) -> dict[str, Any]:
        """summary.json and report.html."""
        # here: importing matplotlib takes half a second
        from prefixrl_jax.report.run_report import write_report

        on_primary(
            write_json,
            self.workdir / "summary.json",
            summary(self.s, self.stages, self.ledger, self.sets),
        )
        return {"line": on_primary(lambda: str(write_report(self.workdir)))}
