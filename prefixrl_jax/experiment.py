"""The story of a run: base -> corpus (select, collect) -> prefixes -> train -> evaluate -> export -> report.

Every stage writes what it made into the work directory and is reused when it is complete; an interrupted one goes on where it
was. `Experiment.run` tells the order; each method below is one stage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from prefixrl_jax import corpus, imported, prefixes
from prefixrl_jax import mesh as meshes
from prefixrl_jax.base import BaseText
from prefixrl_jax.checkpoint import Checkpoints
from prefixrl_jax.corpus import Attempts
from prefixrl_jax.evaluate import Evaluator
from prefixrl_jax.files import write_json
from prefixrl_jax.flops import Ledger
from prefixrl_jax.gates import Gates
from prefixrl_jax.metrics import Bar, human_flops, say
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.model.hf import export_hf, import_hf
from prefixrl_jax.model.hub import find_model
from prefixrl_jax.model.weights import Params, init_params, params_fingerprint
from prefixrl_jax.prefixrl import OnPolicy, readable_samples, write_samples
from prefixrl_jax.processes import on_primary, primary, share_charges
from prefixrl_jax.rl.step import TrainState, abstract_state, init_state, make_optimizer, make_train_step
from prefixrl_jax.rollout import Prompt
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.settings import Settings, resolve
from prefixrl_jax.shared_log import SharedLog
from prefixrl_jax.stages import NAMES, Stages
from prefixrl_jax.summary import summary
from prefixrl_jax.tasks.sources import candidates, fingerprint, fitting
from prefixrl_jax.tasks.task import Problem
from prefixrl_jax.traces import Trace
from prefixrl_jax.train import Loop, progress_note


class Experiment:
    """A run in a work directory. Constructing it checks everything; `run` spends compute."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.s: Settings = resolve(config)
        self.ledger = Ledger()
        sampled = config.collect.cap and not config.collect.traces_path
        prefix = int(max(config.prefix.band[1], *config.eval.fractions) * config.sampling.max_new_tokens) if sampled else 0
        found = candidates(self.s.task, config.data, config.seed)
        self.sets = fitting(found, self.s.task, max(config.sampling.context_buckets), prefix, config.data.skip_bad)
        files = {"base": self.s.task.base_source(), "corpus": fingerprint(self.sets.problems)}
        if config.collect.traces_path:
            files["corpus"] += " " + imported.fingerprint(imported.read_traces(config.collect.traces_path, self.s.task))
        self.stages = Stages(workdir, config, files, self._machine())
        self.stages.check()
        self.candidates = {name: {p.id: p for p in problems} for name, problems in self.sets.problems.items()}

    def _machine(self) -> dict[str, Any]:
        """What the bits of a result depend on besides the configuration."""
        return {"jax": jax.__version__, "platform": jax.devices()[0].platform, "processes": jax.process_count(),
                "mesh": "x".join(str(n) for n in self.s.mesh.shape.values())}  # fmt: skip

    def run(self, last: str = NAMES[-1]) -> Path:
        """Runs the stages in order, up to and including `last`; returns the work directory."""
        if last not in NAMES:
            raise ValueError(f"--stage={last!r}: one of {', '.join(NAMES)}")
        on_primary(write_json, self.workdir / "config.json", self.config.to_dict())
        self._tell_left_out()
        with jax.set_mesh(self.s.mesh):
            for name in NAMES[: NAMES.index(last) + 1]:
                if moved := on_primary(self.stages.moved, name):
                    say(f"{name} was begun elsewhere ({moved}): it goes on, but its last bits may be others")
                result = on_primary(self.stages.begin, name)
                if result is None:
                    result = self._do(name)
                if "ledger" in result:
                    self.ledger = Ledger(result["ledger"])
        return self.workdir

    def _tell_left_out(self) -> None:
        """Says which rows were malformed and which held-out problems are trained on; all of them stand in left_out.json."""
        found = {"malformed rows": self.sets.skipped, "held-out problems that are trained on": self.sets.overlap}
        for what, sentences in found.items():
            if sentences:
                say(f"data: {len(sentences)} {what} left out; all are in {self.workdir}/left_out.json, the first: {sentences[0]}")
        if any(found.values()):
            on_primary(write_json, self.workdir / "left_out.json", found)

    def _do(self, name: str) -> dict[str, Any]:
        """One stage from where it is to its end; returns its result, which is then on record."""
        started = time.monotonic()
        try:
            result = getattr(self, name)()
        except BaseException:
            if primary():
                with contextlib.suppress(OSError):  # a full disk loses these seconds; the first error is the one to tell
                    self.stages.add_seconds(name, time.monotonic() - started)
            raise
        seconds = time.monotonic() - started
        on_primary(self.stages.finish, name, result, seconds)
        say(f"{name} done in {seconds:.0f} s" + (f": {result['line']}" if "line" in result else ""))
        return result

    # Stages

    def base(self) -> dict[str, Any]:
        """Trains the base model on the task's text, unless a pretrained one is given, which is read where it lies."""
        c, s = self.config, self.s
        if c.model.path:
            line = f"{s.model.family} from {c.model.path}"
            return {"ledger": self.ledger.state, "line": line, "model": self._model_fingerprint()}
        source = BaseText(s.task, s.mesh, s.cost, c.base.batch, s.sampling.max_new_tokens, s.engine.buckets, c.seed)
        loss = dataclasses.replace(s.loss, kind="reinforce", aggregation="token_mean", temperature=1.0)
        # Nothing is sampled here, and base training is outside the total.
        omit = ("sampler_trainer/", "clip_ratio/", "groups/", "flops/")
        params = init_params(s.model, c.seed, meshes.param_shardings(s.model, s.mesh, "train"))
        last = self._fit("base", source, loss, "none", self.workdir / "base", params, 1, save_every=100, omit=omit)
        return {"ledger": self.ledger.state, "line": f"loss {last.get('loss', float('nan')):.3f} per token"}

    def corpus(self) -> dict[str, Any]:
        """Screens the candidates, then samples the hard problems until their first correct trace."""
        c, directory = self.config, self.workdir / "corpus"
        params = self._decode_params(self._params("base"))
        header = {"model": self._model_fingerprint(), "tokenizer": tokenizers.fingerprint(self.s.task.tokenizer)}
        with SharedLog(directory / "log.jsonl", header) as log:
            for line in log.dropped:
                say(f"corpus: {line}")
            hard = {}
            for name, wanted in (("train", c.select.train_problems), ("heldout", c.select.heldout_problems)):
                screened = self._attempts("select", list(self.candidates[name].values()), c.select.samples, params, log)
                hard[name] = corpus.hard_set(screened, tuple(c.select.band), wanted)
            if not hard["train"]:
                raise ValueError(
                    f"select.band={tuple(c.select.band)}: none of {len(self.candidates['train'])} candidates has a pass rate "
                    f"inside it after {c.select.samples} samples; widen it or change the problems"
                )
            if c.collect.traces_path:
                collected = self._import_traces(hard["train"], log)
            else:
                collected = self._attempts("collect", hard["train"], c.collect.cap, params, log)
        traces = corpus.first_traces(collected, self.s.cost)
        summary = header | corpus.summarise(collected, None if c.collect.traces_path else c.collect.cap) | {
            "candidates": {k: len(v) for k, v in self.candidates.items()}, "hard": {k: len(v) for k, v in hard.items()},
            "k": c.select.samples,
        }  # fmt: skip
        on_primary(corpus.save, directory, traces, summary)
        on_primary(write_json, directory / "problems.json", corpus.statistics(collected))
        line = f"{summary['solved']} of {summary['problems']} hard problems solved in {summary['samples']} samples"
        return {"ledger": self.ledger.state, "summary": summary, "line": line,
                "hard": {k: [p.id for p in v] for k, v in hard.items()}}  # fmt: skip

    def prefixes(self) -> dict[str, Any]:
        """Draws the cuts, once, and freezes them in a file."""
        c = self.config.prefix
        cuts = prefixes.draw_cuts(self.s.task, self._hard("train"), self._traces(), c.cuts, tuple(c.band), self.config.seed)
        on_primary(prefixes.write_cuts, self.s.task, cuts, self.workdir / "prefixes" / "prefixes.jsonl")
        counts = {"contexts": len(cuts.prompts), "redrawn": cuts.redrawn, "dropped_leaks": cuts.dropped}
        return counts | {"line": f"{len(cuts.prompts)} prefixes, {cuts.redrawn} cuts drawn again, {cuts.dropped} given up"}

    def train(self) -> dict[str, Any]:
        """PrefixRL: on-policy rollouts from the frozen prefixes and from the plain problems."""
        c, s = self.config, self.s
        if not c.train.steps:
            return {"ledger": self.ledger.state, "last": {}, "line": "no step; the base model is evaluated"}
        problems = self._hard("train")
        frozen = prefixes.read_cuts(problems, self.workdir / "prefixes" / "prefixes.jsonl")
        contexts = prefixes.ContextStream(
            frozen, [Prompt(p) for p in problems.values()], c.prefix.share, c.train.batch, c.train.seed
        )
        source = OnPolicy(
            engine=s.engine,
            decode_shardings=self._decode_shardings(),
            task=s.task,
            contexts=contexts,
            group=c.train.group,
            advantage=c.train.advantage,
            sampling=s.sampling,
            seed=c.train.seed,
            mask_truncated=c.train.mask_truncated,
            samples_directory=self.workdir / "samples",
            samples_every=c.log.samples_every,
        )
        params = self._params("base")
        budget = c.train.flops_budget
        last = self._fit(
            "train", source, s.loss, c.train.advantage, self.workdir, params, c.train.micro_batches,
            updates_per_batch=c.train.updates_per_batch, save_every=c.checkpoint.every, keep=c.checkpoint.keep,
            evaluate_every=c.eval.every, evaluate=self._short_evaluation, note=progress_note,
            stop=lambda ledger: 0 < budget <= ledger.total(), gates=Gates(c.train.max_logp_diff, c.train.min_entropy),
        )  # fmt: skip
        return {"ledger": self.ledger.state, "last": last, "line": progress_note(last) if last else "no step"}

    def evaluate(self) -> dict[str, Any]:
        """Plain pass@k on both hard sets, and success by prefix fraction: base model and trained model, fresh samples."""
        c, s = self.config, self.s
        evaluator, before = Evaluator(s.engine, s.task, s.eval_sampling(), c.seed), self.ledger.copy().state
        out: dict[str, Any] = {"plain": {}, "by_fraction": {}}
        for when, source in (("before", "base"), ("after", "train")):
            if when == "after" and not c.train.steps:  # nothing was trained: both are the base model
                out["plain"] = {name: x | {when: x["before"]} for name, x in out["plain"].items()}
                out["by_fraction"][when] = out["by_fraction"]["before"]
                continue
            params, step, rows = self._decode_params(self._params(source)), c.train.steps if when == "after" else 0, []
            for name in ("train", "heldout"):
                if problems := list(self._hard(name).values()):
                    found, rollouts = evaluator.plain(params, problems, c.eval.samples, c.eval.k, f"{when} {name}", self.ledger)
                    out["plain"].setdefault(name, {})[when] = found
                    rows += readable_samples(s.task, rollouts, step, 6, name)
            out["by_fraction"][when], prefixed = evaluator.by_fraction(
                params, self._hard("train"), self._traces(), c.eval.fractions, c.eval.fraction_samples, when, self.ledger
            )
            rows += readable_samples(s.task, prefixed, step, 6) if prefixed else []
            on_primary(write_samples, self.workdir / "samples" / f"{when}.jsonl", rows)
        share_charges(self.ledger, before)
        plain = out["plain"]["train"]
        line = f"plain pass@1 of the hard set {plain['before']['avg@1']:.2%} -> {plain['after']['avg@1']:.2%}"
        return out | {"ledger": self.ledger.state, "line": line}

    def export(self) -> dict[str, Any]:
        """The trained model as a Hugging Face folder."""
        after = self.stages.result("evaluate")["plain"]
        card = "\n".join(
            f"- plain pass@1, {name} hard set: {x['before']['avg@1']:.4f} -> {x['after']['avg@1']:.4f}"
            for name, x in after.items()
        )
        directory, generation = self.workdir / "hf", self.s.generation_config()
        export_hf(self._params("train"), self.s.model, self.s.task.tokenizer, directory, generation=generation, card=card)
        return {"line": f"{self.s.model.family} in {directory}"}

    def report(self) -> dict[str, Any]:
        """summary.json and report.html."""
        from prefixrl_jax.report import write_report  # here: importing matplotlib takes half a second

        on_primary(write_json, self.workdir / "summary.json", summary(self.s, self.stages, self.ledger, self.sets))
        return {"line": on_primary(lambda: str(write_report(self.workdir)))}

    # What the stages share

    def _fit(self, section: str, source, loss, advantage: str, directory: Path, params: Params, micro_batches: int, **options):
        """Runs the loop over one section's steps; returns the last step's metrics. The ledger goes on from where it is."""
        optimizer = make_optimizer(self.s.optimizer(section))
        update = make_train_step(self.s.model, optimizer, loss, advantage, micro_batches, self.s.mesh)
        last: dict[str, float] = {}
        loop = Loop(section, update, source, self.config[section].steps, directory, on_step=last.update, **options)
        state = init_state(params, self.s.model, optimizer, self.s.mesh)
        _, self.ledger = loop.run(state, abstract_state(self.s.model, optimizer, self.s.mesh), self.ledger)
        return last

    def _short_evaluation(self, params: Params, step: int, ledger: Ledger) -> dict[str, float]:
        evaluator = Evaluator(self.s.engine, self.s.task, self.s.eval_sampling(), self.config.train.seed)
        out: dict[str, float] = {}
        before = ledger.copy().state
        for name in ("train", "heldout"):
            if problems := list(self._hard(name).values()):
                found, _ = evaluator.plain(
                    self._decode_params(params), problems, self.config.eval.every_samples, (1,), f"during {name}", ledger, step
                )
                low, high = found["interval"]
                out |= {f"eval/{name}/avg@1": found["avg@1"], f"eval/{name}/avg@1_low": low, f"eval/{name}/avg@1_high": high}
        share_charges(ledger, before)
        return out

    def _attempts(self, stage: str, problems: list[Problem], limit: int, params: Params, log: SharedLog) -> dict[str, Attempts]:
        stream = stream_key(self.config.seed, stage)
        with Bar(stage, limit * len(problems)) as bar:

            def show(known: dict[str, Attempts]) -> None:
                drawn, solved = (sum(map(f, known.values())) for f in (lambda a: len(a.verdicts), lambda a: a.successes > 0))
                bar.update(drawn, f"{solved} of {len(known)} problems solved  {human_flops(self.ledger.total())}")

            return corpus.attempt_all(
                stage, self.s.engine, params, self.s.task, problems, limit, self.s.sampling, stream, self.ledger, log, show
            )

    def _import_traces(self, problems: list[Problem], log: SharedLog) -> dict[str, Attempts]:
        """Traces brought in a file, in place of collect; what the file says they have cost is in the total."""
        c = self.config
        prompt = max(len(self.s.task.render(p)) for p in problems)
        longest = int((max(c.sampling.context_buckets) - prompt) / max(c.prefix.band[1], *c.eval.fractions))
        rejected = self.workdir / "corpus" / "rejected.jsonl"
        lines = imported.read_traces(c.collect.traces_path, self.s.task)
        found, flops = imported.import_traces(lines, problems, self.s.task, longest, log, rejected)
        for accounting in ("paper", "actual", "hardware"):
            self.ledger.add(accounting, "collect", flops)
        if count := on_primary(lambda: len(rejected.read_text().splitlines())):
            say(f"corpus: {count} lines of {c.collect.traces_path} are not used; {rejected} says why")
        return found

    def _params(self, source: str) -> Params:
        """The newest parameters of the "base" or the "train" stage."""
        source = source if self.config.train.steps else "base"
        if source == "base" and self.config.model.path:
            return import_hf(find_model(self.config.model.path), self.s.model.param_dtype,
                             lambda model: meshes.param_shardings(model, self.s.mesh, "train"))[0]  # fmt: skip
        optimizer = make_optimizer(self.s.optimizer(source))
        directory = self.workdir / "base" / "checkpoints" if source == "base" else self.workdir / "checkpoints"
        with Checkpoints(directory) as checkpoints:
            found = checkpoints.restore(abstract_state(self.s.model, optimizer, self.s.mesh))
        if found is None:
            raise ValueError(f"no checkpoint in {directory}: the {source} stage has not finished")
        state: TrainState = found[1]
        return state.params

    def _decode_shardings(self) -> Params:
        return meshes.param_shardings(self.s.model, self.s.mesh, "decode")

    def _decode_params(self, params: Params) -> Params:
        return jax.device_put(params, self._decode_shardings())

    def _model_fingerprint(self) -> str:
        return params_fingerprint(self._params("base"))

    def _hard(self, name: str) -> dict[str, Problem]:
        ids = self.stages.result("corpus")["hard"][name]
        return {i: self.candidates[name][i] for i in ids}

    def _traces(self) -> list[Trace]:
        load = partial(corpus.load, self.workdir / "corpus", self._hard("train"), self.s.task, self.s.cost)
        return list(map(Trace.from_record, on_primary(lambda: [trace.to_record() for trace in load()])))
