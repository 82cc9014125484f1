"""A complete corpus on disk: corpus/summary.json and the TFDS dataset of its traces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.attempts import attempts_in_log, first_traces
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.corpus.traces import (
    Damaged,
    Trace,
    read_dataset,
    traces_fingerprint,
    write_dataset,
)
from prefixrl_jax.flops import Costs
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.runtime.console import say
from prefixrl_jax.runtime.files import read_object, write_json
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
    directory: Path,
    problems: Mapping[str, Problem],
    task: Task,
    cost: Costs,
    recorded: Mapping[str, Any] | None = None,
) -> list[Trace]:
    """Read the traces of a complete corpus.

    If the dataset is damaged it is set aside, the traces are read from the log, and the dataset is
    written anew.

    Args:
        directory: of the corpus.
        problems: the hard problems by id.
        task: of the run.
        cost: FLOPs a token.
        recorded: the summary in the record of the corpus stage. A summary.json that says anything
            else is set aside and written anew; without a record it is believed.

    Raises:
        ValueError: summary.json is damaged and there is no record, the token ids are another
            tokenizer's, or a trace is in neither place.
        OSError: a file cannot be read.
    """
    summary = _summary(directory / "summary.json", recorded)
    tokenizer = tokenizers.fingerprint(task.tokenizer)
    if tokenizer != summary["tokenizer"]:
        raise ValueError(
            f"{directory}: the traces are token ids of tokenizer {summary['tokenizer']}, this run's"
            f" is {tokenizer}; a trace can be cut only by the tokenizer it was made with"
        )
    if not summary["solved"]:
        return []
    dataset = directory / "dataset"
    try:
        traces = read_dataset(dataset)
        _check_traces(dataset, traces, summary, problems)
        return traces
    except (FileNotFoundError, Damaged) as error:
        say(
            f"{error}; the traces are read from {directory / 'log.jsonl'}, and the dataset is"
            f" written anew{_after_comma(set_aside(dataset))}"
        )
    with Log(directory / "log.jsonl", {name: summary[name] for name in HEADER}) as log:
        attempts = attempts_in_log(log.records, "collect", list(problems.values()), task)
        traces = first_traces(attempts, cost)
    try:
        _check_traces(directory / "log.jsonl", traces, summary, problems)
    except Damaged as error:
        raise ValueError(
            f"{directory}: {summary['solved']} problems were solved, the log still knows"
            f" {len(traces)} traces ({'; '.join(log.dropped) or error}); to sample again what was"
            " lost, remove corpus.json and prefixes.json from the stages folder"
        ) from error
    save_corpus(directory, traces, summary)
    return traces


def _summary(path: Path, recorded: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the corpus's summary: that on record if there is one, else that of the file."""
    try:
        summary = read_object(path)
        for field, kind in SUMMARY_FIELDS.items():
            if not isinstance(summary.get(field), kind) or summary.get(field) is True:
                raise ValueError(
                    f"{path}: field {field!r} is missing or no {kind.__name__}, as a corpus has it"
                )
    except (FileNotFoundError, ValueError) as error:
        if recorded is None:
            raise ValueError(
                f"{error}; to make the corpus's files anew from its log, remove corpus.json from"
                " the stages folder"
            ) from error
        summary, damage = {}, str(error)
    else:
        damage = f"{path}: the file was changed after it was written"
    if recorded is None:
        return summary
    if json.dumps(summary, sort_keys=True) != json.dumps(recorded, sort_keys=True):
        say(f"{damage}; it is written anew from the stage's record{_after_comma(set_aside(path))}")
        write_json(path, recorded)
    return recorded


def _check_traces(
    place: Path, traces: list[Trace], summary: Mapping[str, Any], problems: Mapping[str, Problem]
) -> None:
    """Raise Damaged unless these are the traces that the corpus was made with."""
    names = [trace.problem_id for trace in traces]
    if len(names) != summary["solved"]:
        raise Damaged(f"{place}: {len(names)} traces are in it, {summary['solved']} are expected")
    if len(set(names)) < len(names) or not set(names) <= problems.keys():
        raise Damaged(f"{place}: traces in it are not of the run's hard problems, one each")
    if "traces" in summary and traces_fingerprint(traces) != summary["traces"]:
        raise Damaged(f"{place}: traces in it were changed after they were written")


def set_aside(path: Path) -> Path | None:
    """Give a damaged file or directory another name, and return that; None if nothing is there."""
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def _after_comma(aside: Path | None) -> str:
    return f", the damaged one is now {aside}" if aside else ""
