"""The corpus stage: select the hard problems, then collect a correct trace of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefixrl_jax.corpus import attempts as corpus_attempts
from prefixrl_jax.corpus.attempts import Attempts
from prefixrl_jax.corpus.collect import RejectionSampler, inherit_traces
from prefixrl_jax.corpus.import_traces import import_traces
from prefixrl_jax.corpus.saved import save_corpus
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.flops import Ledger, format_flops
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.runtime.console import Progress, say
from prefixrl_jax.runtime.files import write_json
from prefixrl_jax.runtime.fingerprint import tree_fingerprint
from prefixrl_jax.runtime.processes import on_primary
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.tasks.task import Problem, Task


def make_corpus(workdir: Workdir, ledger: Ledger) -> dict[str, Any]:
    """Screen the candidates, then sample the hard problems until their first correct trace."""
    config, settings = workdir.config, workdir.settings
    params = workdir.start_params()
    header = {
        "model": tree_fingerprint(params),
        "tokenizer": tokenizers.fingerprint(settings.task.tokenizer),
    }
    with SharedLog(workdir.corpus_path / "log", header) as log:
        for sentence in log.dropped:
            say(f"corpus: {sentence}")
        sampler = RejectionSampler(
            settings.engine,
            workdir.for_decoding(params),
            settings.task,
            settings.sampling,
            log,
            _announcement(settings.task),
        )
        stage = _CorpusStage(workdir, sampler, ledger)
        hard = stage.select()
        attempts = stage.collect(hard["train"])

    traces = corpus_attempts.first_traces(attempts, settings.cost)
    cap = None if config.collect.traces_path else config.collect.cap
    inherited = len(workdir.previous.traces()) if workdir.previous else 0
    by_id = {p.id: p for p in hard["train"]}
    summary = header | corpus_attempts.summarise(attempts, cap, inherited)
    summary |= {
        "candidates": {name: len(problems) for name, problems in workdir.candidates.items()},
        "hard": {name: len(problems) for name, problems in hard.items()},
        "k": config.select.samples,
        "strategies": corpus_attempts.mean_strategies(traces, by_id, settings.task),
        "collect_flops": ledger.state["paper"]["collect"],
    }
    wrong = workdir.previous.wrong_responses() if workdir.previous else {}
    wrong |= corpus_attempts.wrong_responses(attempts)
    directory = workdir.corpus_path
    on_primary(save_corpus, directory, traces, summary)
    on_primary(write_json, directory / "wrong.json", wrong)
    on_primary(write_json, directory / "problems.json", corpus_attempts.statistics(attempts))
    return {
        "ledger": ledger.state,
        "summary": summary,
        "line": (
            f"{summary['solved']} of {summary['problems']} hard problems solved in"
            f" {summary['samples']} samples"
        ),
        "hard": {name: [p.id for p in problems] for name, problems in hard.items()},
    }


def _announcement(task: Task):
    """Says the first solved problem of a stage in words, so that a reader sees what is sampled."""

    def announce(stage: str, problem: Problem, token_ids: list[int]) -> None:
        say(f"{stage}: first solved, {task.text(task.render(problem))} {task.text(token_ids)}")

    return announce


class _CorpusStage:
    """Both halves of the stage, over one sampler and one bill."""

    def __init__(self, workdir: Workdir, sampler: RejectionSampler, ledger: Ledger):
        self._workdir = workdir
        self._sampler = sampler
        self._ledger = ledger
        self._config = workdir.config

    def select(self) -> dict[str, list[Problem]]:
        """Return the hard problems of both sets; those of the first round stay."""
        if previous := self._workdir.previous:
            return {name: list(previous.hard(name).values()) for name in self._workdir.candidates}
        select, candidates = self._config.select, self._workdir.candidates
        wanted = {"train": select.train_problems, "heldout": select.heldout_problems}
        hard = {}
        for name, count in wanted.items():
            problems = list(candidates[name].values())
            if not select.samples:  # all candidates count as hard, and only these are rendered
                hard[name] = problems[:count]
                continue
            screened = self._sample("select", problems, select.samples, f"select {name}")
            hard[name] = corpus_attempts.hard_set(screened, tuple(select.band), count)
        if not hard["train"]:
            raise ValueError(
                f"select.band={tuple(select.band)}: none of {len(candidates['train'])} candidates"
                f" has a pass rate inside it after {select.samples} samples; widen it or change the"
                " problems"
            )
        return hard

    def collect(self, hard: list[Problem]) -> dict[str, Attempts]:
        """Return attempts at the hard problems, by id.

        The traces come from a file if one is named; in a later round only problems without a trace
        are sampled.
        """
        previous = self._workdir.previous
        if self._config.collect.traces_path and not previous:
            return self._import(hard)
        inherited: dict[str, Attempts] = {}
        if previous:
            task = self._workdir.settings.task
            log = self._sampler.log
            inherited = inherit_traces(previous.traces(), hard, task, log)
        unsolved = [p for p in hard if p.id not in inherited]
        return inherited | self._sample("collect", unsolved, self._config.collect.cap, "collect")

    def _sample(
        self, stage: str, problems: list[Problem], limit: int, label: str
    ) -> dict[str, Attempts]:
        stream = stream_key(self._config.seed, self._workdir.noise_name(stage))
        with Progress(label, limit * len(problems)) as progress:

            def show(attempts: dict[str, Attempts]) -> None:
                samples = sum(len(a.verdicts) for a in attempts.values())
                solved = sum(a.successes > 0 for a in attempts.values())
                flops = format_flops(self._ledger.total())
                note = f"{solved} of {len(attempts)} problems solved  {flops}"
                progress.update(samples, note)

            return self._sampler.run(stage, problems, limit, stream, self._ledger, show)

    def _import(self, hard: list[Problem]) -> dict[str, Attempts]:
        """Take traces from a file; what it says they have cost is in the total."""
        workdir, config = self._workdir, self._config
        task = workdir.settings.task
        prompt = max(len(task.render(p)) for p in hard)
        room = max(config.sampling.context_buckets) - prompt
        longest = int(room / workdir.longest_fraction)
        rejected = workdir.corpus_path / "rejected.jsonl"
        attempts, flops = import_traces(
            workdir.trace_file.lines, hard, task, longest, self._sampler.log, rejected
        )
        for accounting in ("paper", "actual", "hardware"):
            self._ledger.add(accounting, "collect", flops)
        if count := on_primary(_count_lines, rejected):
            say(
                f"corpus: {count} lines of {config.collect.traces_path} are not used;"
                f" {rejected} says why"
            )
        return attempts


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
