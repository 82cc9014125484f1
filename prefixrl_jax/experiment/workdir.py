"""What the stages of a run share: its settings and problems, what earlier stages have made, the
training loop, the evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from prefixrl_jax.corpus import collect as corpus
from prefixrl_jax.corpus import import_traces as imported
from prefixrl_jax.corpus.collect import Attempts
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.experiment.build import Settings, resolve
from prefixrl_jax.experiment.stages import Stages
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.hf import import_hf
from prefixrl_jax.model.hub import find_model
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.weights import Params, params_fingerprint
from prefixrl_jax.prefixes import cuts as prefixes
from prefixrl_jax.rl.step import (
    TrainState,
    abstract_state,
    init_state,
    make_optimizer,
    make_train_step,
)
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime.checkpoint import Checkpoints
from prefixrl_jax.runtime.files import read_json
from prefixrl_jax.runtime.metrics import Bar, human_flops, say
from prefixrl_jax.runtime.processes import on_primary, share_charges
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.tasks.sources import candidates, fingerprint, fitting
from prefixrl_jax.tasks.task import Problem
from prefixrl_jax.training.evaluate import Evaluator, part_of
from prefixrl_jax.training.loop import Loop
from prefixrl_jax.training.on_policy import readable_samples, write_samples
from prefixrl_jax.training.supervised import Pair, Supervised


class Workbench:
    """A configuration and its work directory.

    Constructing it checks everything and spends no compute.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        shared: Path | None = None,
        previous: Workbench | None = None,
    ):
        """shared: the work directory of another experiment whose base, corpus and baseline this one
        uses. previous: the finished round before this one, whose base and baseline it uses, whose
        corpus it adds to, and where its policy and bill go on.
        """
        self.config, self.workdir, self.previous = config, workdir, previous
        self.shared: Path = shared or (previous.shared if previous else workdir)
        self.corpus_directory = (workdir if previous else self.shared) / "corpus"
        self.round: int = previous.round + 1 if previous else 1
        self.s: Settings = resolve(config)
        self.ledger = Ledger()
        sampled = config.collect.cap and not config.collect.traces_path
        prefix = (
            int(max(config.prefix.band[1], *config.eval.fractions) * config.sampling.max_new_tokens)
            if sampled
            else 0
        )
        found = candidates(self.s.task, config.data, config.seed)
        self.sets = fitting(
            found, self.s.task, max(config.sampling.context_buckets), prefix, config.data.skip_bad
        )
        files = {"base": self.s.task.base_source(), "corpus": fingerprint(self.sets.problems)}
        if config.collect.traces_path:
            files["corpus"] += " " + imported.fingerprint(
                imported.read_traces(config.collect.traces_path, self.s.task)
            )
        self.stages: Stages
        if previous:
            files["corpus"] += (
                f" round {self.round}, after {previous.stages.result('train')['line']}"
            )
            self.stages = Stages(
                workdir, config, files, self._machine(), self.shared, ("base", "baseline")
            )
        else:
            self.stages = Stages(workdir, config, files, self._machine(), shared)
        self.stages.check()
        self.candidates = {
            name: {p.id: p for p in problems} for name, problems in self.sets.problems.items()
        }

    def _machine(self) -> dict[str, Any]:
        """What the bits of a result depend on besides the configuration."""
        return {
            "jax": jax.__version__,
            "platform": jax.devices()[0].platform,
            "processes": jax.process_count(),
            "mesh": "x".join(str(n) for n in self.s.mesh.shape.values()),
        }

    def _fit(
        self,
        section: str,
        source,
        loss,
        advantage: str,
        directory: Path,
        params: Params,
        micro_batches: int,
        steps: int,
        schedule_steps: int,
        **options,
    ):
        """Runs the loop over `steps`; returns the last step's metrics.

        The ledger goes on from where it is.
        """
        optimizer = make_optimizer(self.s.optimizer(section, schedule_steps))
        update = make_train_step(
            self.s.model, optimizer, loss, advantage, micro_batches, self.s.mesh
        )
        last: dict[str, float] = {}
        loop = Loop(section, update, source, steps, directory, on_step=last.update, **options)
        state = init_state(params, self.s.model, optimizer, self.s.mesh)
        self.memory = loop.memory
        _, self.ledger = loop.run(
            state, abstract_state(self.s.model, optimizer, self.s.mesh), self.ledger
        )
        return last

    def _fit_text(
        self,
        section: str,
        texts: Callable[[int], list[Pair]],
        steps: int,
        directory: Path,
        params: Params,
        phase: str = "base",
        **options: Any,
    ) -> dict[str, float]:
        """Runs the loop over text; returns the last step's metrics.

        Base training is outside the total of FLOPs.
        """
        s = self.s
        source = Supervised(
            texts, phase, s.mesh, s.cost, s.sampling.max_new_tokens, s.engine.buckets
        )
        loss = LossSettings(temperature=1.0, logprob_chunk=s.loss.logprob_chunk)
        # Nothing is sampled here.
        omit = (
            "sampler_trainer/",
            "clip_ratio/",
            "groups/",
            *(("flops/",) if phase == "base" else ()),
        )
        return self._fit(
            section,
            source,
            loss,
            "none",
            directory,
            params,
            1,
            steps,
            steps,
            save_every=100,
            omit=omit,
            **options,
        )

    def _sft_steps(self) -> int:
        """Steps of supervised fine-tuning: the epochs over the traces, rounded up."""
        c = self.config.sft
        return math.ceil(c.epochs * len(self.traces()) / c.batch) if c.enabled else 0

    def _evaluated(self, name: str) -> list[Problem]:
        """The hard problems of a set that plain accuracy is measured on."""
        problems = list(self.hard(name).values())
        return part_of(problems, self.config.eval.heldout_part) if name == "heldout" else problems

    def _measure(self, when: str, source: str) -> dict[str, Any]:
        """Plain pass@k on both hard sets and success by prefix fraction of one model, from fresh
        samples; what that has cost.
        """
        c, s, ledger = self.config, self.s, Ledger()
        evaluator, before = Evaluator(s.engine, s.task, s.eval_sampling(), c.seed), Ledger().state
        step = c.train.steps if when == "after" else 0
        params, plain, rows = self._decode_params(self._params(source)), {}, []
        for name in ("train", "heldout"):
            if problems := self._evaluated(name):
                found = evaluator.plain(
                    params,
                    problems,
                    c.eval.samples,
                    c.eval.k,
                    self.stream(f"{when} {name}"),
                    ledger,
                )
                plain[name], rollouts = found
                rows += readable_samples(s.task, rollouts, step, 6, name)
        # of the traces that the baseline was measured with
        by_fraction, prefixed = evaluator.by_fraction(
            params,
            self.hard("train"),
            self._first_round().traces(),
            c.eval.fractions,
            c.eval.fraction_samples,
            self.stream(when),
            ledger,
        )
        rows += readable_samples(s.task, prefixed, step, 6) if prefixed else []
        on_primary(
            write_samples,
            (self.shared if when == "before" else self.workdir) / "samples" / f"{when}.jsonl",
            rows,
        )
        share_charges(ledger, before)
        spent = {
            accounting: {"eval": phases["eval"]} for accounting, phases in ledger.state.items()
        }
        return {
            "plain": plain,
            "by_fraction": by_fraction,
            "spent": spent,
            "line": f"plain pass@1 {plain['train']['avg@1']:.2%}",
        }

    def _short_evaluation(
        self, when: str, params: Params, step: int, ledger: Ledger
    ) -> dict[str, float]:
        """Plain accuracy of both sets with few samples; `when` names the noise."""
        evaluator = Evaluator(
            self.s.engine, self.s.task, self.s.eval_sampling(), self.config.train.seed
        )
        out: dict[str, float] = {}
        before = ledger.copy().state
        for name in ("train", "heldout"):
            if problems := self._evaluated(name):
                noise, few = self.stream(f"{when} {name}"), self.config.eval.every_samples
                found, _ = evaluator.plain(
                    self._decode_params(params), problems, few, (1,), noise, ledger, step
                )
                low, high = found["interval"]
                out |= {
                    f"eval/{name}/avg@1": found["avg@1"],
                    f"eval/{name}/avg@1_low": low,
                    f"eval/{name}/avg@1_high": high,
                }
        share_charges(ledger, before)
        return out

    def _attempts(
        self, stage: str, problems: list[Problem], limit: int, params: Params, log: SharedLog
    ) -> dict[str, Attempts]:
        stream = stream_key(self.config.seed, self.stream(stage))
        with Bar(stage, limit * len(problems)) as bar:

            def show(known: dict[str, Attempts]) -> None:
                drawn, solved = (
                    sum(map(f, known.values()))
                    for f in (lambda a: len(a.verdicts), lambda a: a.successes > 0)
                )
                bar.update(
                    drawn,
                    f"{solved} of {len(known)} problems solved  {human_flops(self.ledger.total())}",
                )

            return corpus.attempt_all(
                stage,
                self.s.engine,
                params,
                self.s.task,
                problems,
                limit,
                self.s.sampling,
                stream,
                self.ledger,
                log,
                show,
            )

    def _import_traces(self, problems: list[Problem], log: SharedLog) -> dict[str, Attempts]:
        """Traces brought in a file, in place of collect; what the file says they have cost is in
        the total.
        """
        c = self.config
        prompt = max(len(self.s.task.render(p)) for p in problems)
        longest = int(
            (max(c.sampling.context_buckets) - prompt) / max(c.prefix.band[1], *c.eval.fractions)
        )
        rejected = self.corpus_directory / "rejected.jsonl"
        lines = imported.read_traces(c.collect.traces_path, self.s.task)
        found, flops = imported.import_traces(lines, problems, self.s.task, longest, log, rejected)
        for accounting in ("paper", "actual", "hardware"):
            self.ledger.add(accounting, "collect", flops)
        if count := on_primary(lambda: len(rejected.read_text().splitlines())):
            say(
                f"corpus: {count} lines of {c.collect.traces_path} are not used; {rejected}"
                " says why"
            )
        return found

    def stream(self, stage: str) -> str:
        """The name of a stage's noise: no two rounds have any in common."""
        return stage if self.round == 1 else f"{stage} of round {self.round}"

    def _params(self, source: str) -> Params:
        """The newest parameters of the "base", "sft" or "train" stage, or those a round "start"s
        from; of the stage before where one has nothing to do.
        """
        source = "sft" if source == "train" and not self.config.train.steps else source
        source = "start" if source == "sft" and not self._sft_steps() else source
        if source == "start" and self.previous:
            return self.previous._params("train")
        source = "base" if source == "start" else source
        if source == "base" and self.config.model.path:
            return import_hf(
                find_model(self.config.model.path),
                self.s.model.param_dtype,
                lambda model: param_shardings(model, self.s.mesh, "train"),
            )[0]
        # the state's shape does not depend on the steps
        optimizer = make_optimizer(self.s.optimizer(source, 1))
        places = {"base": self.shared / "base", "sft": self.workdir / "sft", "train": self.workdir}
        directory = places[source] / "checkpoints"
        with Checkpoints(directory) as checkpoints:
            found = checkpoints.restore(abstract_state(self.s.model, optimizer, self.s.mesh))
        if found is None:
            raise ValueError(f"no checkpoint in {directory}: the {source} stage has not finished")
        state: TrainState = found[1]
        return state.params

    def _decode_shardings(self) -> Params:
        return param_shardings(self.s.model, self.s.mesh, "decode")

    def _decode_params(self, params: Params) -> Params:
        return jax.device_put(params, self._decode_shardings())

    def _model_fingerprint(self) -> str:
        return params_fingerprint(self._params("base"))

    def hard(self, name: str) -> dict[str, Problem]:
        """The hard problems of a set ("train", "heldout"), by id."""
        ids = self.stages.result("corpus")["hard"][name]
        return {i: self.candidates[name][i] for i in ids}

    def traces(self) -> list[Trace]:
        """The corpus's correct traces."""
        load = partial(
            corpus.load, self.corpus_directory, self.hard("train"), self.s.task, self.s.cost
        )
        return list(
            map(Trace.from_record, on_primary(lambda: [trace.to_record() for trace in load()]))
        )

    def wrong(self) -> dict[str, list[int]]:
        """Token ids of a wrong response to each problem that has one on record."""
        return on_primary(lambda: read_json(self.corpus_directory / "wrong.json"))

    def _pairs(self) -> list[tuple[str, list[int]]]:
        """(problem id, token ids) to cut prefixes from."""
        content = self.config.prefix.content
        return prefixes.sources(
            self.traces(), content, self.wrong() if content == "wrong" else {}, self.config.seed
        )

    def _memory(self) -> dict[str, Any]:
        """What the source of RL knows when the round begins."""
        return self.previous.stages.result("train")["memory"] if self.previous else {}

    def _first_round(self) -> Workbench:
        return self.previous._first_round() if self.previous else self
