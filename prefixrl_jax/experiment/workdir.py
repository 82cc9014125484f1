"""What a work directory holds: problems, corpus, prefixes, parameters, and records of the
stages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from prefixrl_jax.corpus.saved import load_corpus
from prefixrl_jax.corpus.trace_file import TraceFile
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.experiment.build import Settings, resolve
from prefixrl_jax.experiment.records import StageRecords
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.model.hf import import_hf
from prefixrl_jax.model.hub import find_model
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.weights import Params
from prefixrl_jax.prefixes import cuts
from prefixrl_jax.rl.step import abstract_state, make_optimizer
from prefixrl_jax.runtime.checkpoint import Checkpoints, check_path
from prefixrl_jax.runtime.files import read_json
from prefixrl_jax.runtime.fingerprint import tree_fingerprint
from prefixrl_jax.runtime.memo import Memo
from prefixrl_jax.runtime.processes import on_primary
from prefixrl_jax.tasks.fitting import fitting
from prefixrl_jax.tasks.sources import Sets, candidates, fingerprint
from prefixrl_jax.tasks.task import Problem


class Workdir:
    """A configuration and its work directory.

    Constructing it checks everything and spends no compute; it raises ValueError for what does not
    fit, and WorkdirMismatch if the directory is of another configuration.

    Attributes:
        config: the configuration.
        path: the directory.
        settings: what the configuration resolves to.
        sets: the problems that select screens, and what was left out.
        candidates: the same by set ("train", "heldout") and id.
        records: which stages are complete, and their results.
        shared: the directory that holds base, corpus and baseline: `path`, or that of a comparison.
        previous: the finished round before this one, whose base and baseline it uses, whose corpus
            it adds to, and where its policy and its bill go on; None in the first round.
        round: number of the round, from 1.
    """

    def __init__(
        self,
        config: ConfigDict,
        path: Path,
        shared: Path | None = None,
        previous: Workdir | None = None,
    ):
        check_path(path)
        self.config = config
        self.path = path
        self.previous = previous
        self.shared: Path = shared or (previous.shared if previous else path)
        self.round: int = previous.round + 1 if previous else 1
        self.settings: Settings = resolve(config)
        self._memo = Memo(self.shared / "checked.json")
        self.sets: Sets = self._find_problems()
        self.candidates = {
            name: {p.id: p for p in problems} for name, problems in self.sets.problems.items()
        }
        self.records = self._open_records(shared)
        self.records.check()

    def _find_problems(self) -> Sets:
        """The candidates that fit the context buckets with the longest prefix they may get."""
        config = self.config
        task = self.settings.task
        longest_prefix = 0
        if config.collect.cap and not config.collect.traces_path:
            longest_prefix = int(self.longest_fraction * config.sampling.max_new_tokens)
        select = config.select
        used = {"train": select.train_problems, "heldout": select.heldout_problems}
        return fitting(
            candidates(task, config.data, config.seed),
            task,
            max(config.sampling.context_buckets),
            longest_prefix,
            config.data.skip_bad,
            used=None if select.samples else used,  # without screening the first are the hard ones
            memo=self._memo,
        )

    def remember_checks(self) -> None:
        """Keep what the checks of the user's files came to, for the next start."""
        if self.shared == self.path:
            self._memo.save()

    def _open_records(self, shared: Path | None) -> StageRecords:
        problems = fingerprint(self.sets.problems)
        if self.config.collect.traces_path:
            problems += f" {self.trace_file.fingerprint}"
        if self.previous:
            before = self.previous.records.result("train")["line"]
            problems += f" round {self.round}, after {before}"
        files = {"base": self._model_fingerprint(), "corpus": problems}
        if not self.previous:
            return StageRecords(self.path, self.config, files, self._machine(), shared)
        return StageRecords(
            self.path,
            self.config,
            files,
            self._machine(),
            self.shared,
            shared_stages=("base", "baseline"),
            inputs={"the round before": self.previous.records.params("train")},
        )

    def _model_fingerprint(self) -> str:
        """What a pretrained model's folder holds besides weights; "" for a base trained here."""
        if not self.config.model.path:
            return ""
        task, model = self.settings.task, dataclasses.asdict(self.settings.model)
        of_config = ("param_dtype", "dtype", "remat", "unroll_layers")
        # What is off may be new in a later version.
        sizes = {k: v for k, v in model.items() if v and k not in of_config}
        parts = [sizes, tokenizers.fingerprint(task.tokenizer), sorted(task.stop_ids)]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _machine(self) -> dict[str, Any]:
        """What the bits of a result depend on besides the configuration."""
        return {
            "jax": jax.__version__,
            "platform": jax.devices()[0].platform,
            "processes": jax.process_count(),
            "mesh": "x".join(str(n) for n in self.settings.mesh.shape.values()),
        }

    @property
    def longest_fraction(self) -> float:
        """The largest share of a trace that is ever given as a prefix."""
        return max([self.config.prefix.band[1], *self.config.eval.fractions])

    @property
    def first_round(self) -> Workdir:
        """The work directory of the first round."""
        return self.previous.first_round if self.previous else self

    @property
    def corpus_path(self) -> Path:
        """The folder of the corpus; every round has one of its own."""
        return (self.path if self.previous else self.shared) / "corpus"

    @property
    def prefixes_path(self) -> Path:
        """The file of the frozen prefixes."""
        return self.path / "prefixes" / "prefixes.jsonl"

    @cached_property
    def trace_file(self) -> TraceFile:
        """The file that `collect.traces_path` names."""
        return TraceFile(self.config.collect.traces_path, self.settings.task, self._memo)

    def noise_name(self, stage: str) -> str:
        """Return the name of a stage's noise: no two rounds have any in common."""
        return stage if self.round == 1 else f"{stage} of round {self.round}"

    def hard(self, name: str) -> dict[str, Problem]:
        """Return the hard problems of a set ("train", "heldout") by id."""
        ids = self.records.result("corpus")["hard"][name]
        return {i: self.candidates[name][i] for i in ids}

    def traces(self) -> list[Trace]:
        """Return the corpus's correct traces, one a solved problem."""

        def load() -> list[dict[str, Any]]:
            settings = self.settings
            hard = self.hard("train")
            traces = load_corpus(self.corpus_path, hard, settings.task, settings.cost)
            return [trace.to_record() for trace in traces]

        return list(map(Trace.from_record, on_primary(load)))

    def wrong_responses(self) -> dict[str, list[int]]:
        """Return the token ids of a wrong response to each problem that has one on record."""
        return on_primary(lambda: read_json(self.corpus_path / "wrong.json"))

    def cut_sources(self) -> list[cuts.Source]:
        """Return (problem id, token ids) to cut prefixes from, by `prefix.content`."""
        content = self.config.prefix.content
        wrong = self.wrong_responses() if content == "wrong" else {}
        return cuts.sources(self.traces(), content, wrong, self.config.seed)

    def source_memory(self) -> dict[str, Any]:
        """Return what the source of RL remembers when this round's training begins."""
        return self.previous.records.result("train")["memory"] if self.previous else {}

    def sft_steps(self) -> int:
        """Return the steps of supervised fine-tuning: the epochs over the traces, rounded up."""
        sft = self.config.sft
        return math.ceil(sft.epochs * len(self.traces()) / sft.batch) if sft.enabled else 0

    # Parameters, by the stage that made them. A stage with nothing to do passes on those before it.

    def base_params(self) -> Params:
        """Return the pretrained model's parameters, or those of the base stage.

        Raises ValueError if they are not those that the base stage has on record.
        """
        path = self.config.model.path
        if not path:
            return self._checkpointed("base", self.shared / "base")
        mesh = self.settings.mesh
        params, _ = import_hf(
            find_model(path),
            self.settings.model.param_dtype,
            lambda config: param_shardings(config, mesh, "train"),
        )
        recorded = (self.records.record("base") or {}).get("result", {}).get("model")
        if recorded not in (None, now := tree_fingerprint(params)):
            raise ValueError(
                f"model.path={path!r}: its weights (checksum {now}) are not those that the run in"
                f" {self.shared} was begun with (checksum {recorded}); put those back, or use"
                " another --workdir"
            )
        return params

    def start_params(self) -> Params:
        """Return what this round samples its corpus with and trains from."""
        return self.previous.trained_params() if self.previous else self.base_params()

    def sft_params(self) -> Params:
        """Return the parameters after supervised fine-tuning."""
        if self.sft_steps():
            return self._checkpointed("sft", self.path / "sft")
        return self.start_params()

    def trained_params(self) -> Params:
        """Return the parameters after reinforcement learning."""
        if self.config.train.steps:
            return self._checkpointed("train", self.path)
        return self.sft_params()

    def _checkpointed(self, stage: str, directory: Path) -> Params:
        """The parameters that a complete stage ended with."""
        settings = self.settings
        optimizer = make_optimizer(settings.optimizer(stage, 1))  # steps do not change its shape
        abstract = abstract_state(settings.model, optimizer, settings.mesh)
        recorded = self.records.params(stage)
        with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
            if recorded is None:  # of version 0.1.0
                saved = checkpoints.restore(abstract)
                if saved is None:
                    raise ValueError(
                        f"no checkpoint in {directory / 'checkpoints'}: the {stage} stage has not"
                        " finished"
                    )
                return saved[1].params
            step, checksum = recorded["step"], recorded["checksum"]
            folder = directory / "checkpoints" / str(step)
            try:
                saved = checkpoints.restore(abstract, step)
            except ValueError as error:
                raise ValueError(
                    f"the {stage} stage ended with {folder}, and what follows was made from it, but"
                    f" {error}. Put it back from a copy; or move it and stages/{stage}.json away:"
                    " the stage is then made again from the sound checkpoints before, and has to"
                    " end with the same parameters"
                ) from error
        assert saved is not None
        params = saved[1].params
        if tree_fingerprint(params) != checksum:
            raise ValueError(
                f"{folder}: not the parameters that the {stage} stage ended with (checksum"
                f" {checksum}); put them back from a copy, or use another --workdir"
            )
        return params

    def for_decoding(self, params: Params) -> Params:
        """Return the parameters placed as the sampler wants them."""
        return jax.device_put(params, self.settings.shardings("decode"))
