"""A complete corpus on disk: corpus/summary.json and the TFDS dataset of its traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.attempts import attempts_in_log, first_traces
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.corpus.traces import Damaged, Trace, read_dataset, write_dataset
from prefixrl_jax.flops import Costs
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.runtime.console import say
from prefixrl_jax.runtime.files import read_object, set_aside, write_json
from prefixrl_jax.tasks.task import Problem, Task

# Fingerprints of what made the corpus, in the log's header and in summary.json.
HEADER = ("model", "tokenizer")
# The fields of summary.json that `load_corpus` needs, and their types.
SUMMARY_FIELDS = {"model": str, "tokenizer": str, "solved": int}


def save_corpus(directory: Path, traces: list[Trace], summary: Mapping[str, Any]) -> None:
    """Write the dataset (unless there is no trace) and summary.json."""
    if traces:
        header = {name: summary[name] for name in HEADER}
        write_dataset(traces, directory / "dataset", {"statistics": summary, **header})
    write_json(directory / "summary.json", summary)


def load_corpus(
    directory: Path, problems: Mapping[str, Problem], task: Task, cost: Costs
) -> list[Trace]:
    """Read the traces of a complete corpus.

    If the dataset is damaged it is set aside, the traces are read from the log, and the dataset is
    written anew.

    Raises:
        ValueError: summary.json is damaged, the token ids are another tokenizer's, or a trace is in
            neither place.
        OSError: a file cannot be read.
    """
    summary = _read_summary(directory / "summary.json")
    tokenizer = tokenizers.fingerprint(task.tokenizer)
    if tokenizer != summary["tokenizer"]:
        raise ValueError(
            f"{directory}: the traces are token ids of tokenizer {summary['tokenizer']}, this run's"
            f" is {tokenizer}; a trace can be cut only by the tokenizer it was made with"
        )
    if not summary["solved"]:
        return []
    dataset = directory / "dataset"
    log_path = directory / "log"
    try:
        traces = read_dataset(dataset)
        _check_traces(dataset, traces, summary, problems)
        return traces
    except (FileNotFoundError, Damaged) as error:
        aside = f", the damaged one is now {set_aside(dataset)}" if dataset.exists() else ""
        say(f"{error}; the traces are read from {log_path}, and the dataset is written anew{aside}")
    with Log(log_path, {name: summary[name] for name in HEADER}) as log:
        attempts = attempts_in_log(log.records, "collect", list(problems.values()), task)
        traces = first_traces(attempts, cost)
    try:
        _check_traces(log_path, traces, summary, problems)
    except Damaged as error:
        raise ValueError(
            f"{directory}: {summary['solved']} problems were solved, the log still knows"
            f" {len(traces)} traces ({'; '.join(log.dropped) or error}); to sample again what was"
            " lost, remove corpus.json and prefixes.json from the stages folder"
        ) from error
    save_corpus(directory, traces, summary)
    return traces


def _read_summary(path: Path) -> dict[str, Any]:
    """Return the corpus's summary; raises ValueError, with what to do, if a field is not right."""
    try:
        summary = read_object(path)
        for field, kind in SUMMARY_FIELDS.items():
            if type(summary.get(field)) is not kind:
                raise ValueError(
                    f"{path}: field {field!r} is missing or no {kind.__name__}, as a corpus has it"
                )
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{error}; remove corpus.json from the stages folder, and the corpus's files are made"
            " anew from its log"
        ) from error
    return summary


def _check_traces(
    place: Path, traces: list[Trace], summary: Mapping[str, Any], problems: Mapping[str, Problem]
) -> None:
    """Raise Damaged unless these are the traces that the corpus was made with."""
    names = [trace.problem_id for trace in traces]
    if len(names) != summary["solved"]:
        raise Damaged(f"{place}: {len(names)} traces are in it, {summary['solved']} are expected")
    if len(set(names)) < len(names) or not set(names) <= problems.keys():
        raise Damaged(f"{place}: traces in it are not of the run's hard problems, one each")
