"""A complete corpus on disk: corpus/summary.json and the TFDS dataset of its traces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.attempts import attempts_in_log, first_traces
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.corpus.traces import Damaged, Trace, read_dataset, write_dataset
from prefixrl_jax.flops import Costs
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.runtime.console import say
from prefixrl_jax.runtime.files import write_json
from prefixrl_jax.tasks.task import Problem, Task

# Fingerprints of what made the corpus, in the log's header and in summary.json.
HEADER = ("model", "tokenizer")


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

    If the dataset is damaged they are read from the log, and the dataset is written anew.

    Raises ValueError when the token ids are another tokenizer's, or when a trace is in neither
    place.
    """
    summary = json.loads((directory / "summary.json").read_text())
    tokenizer = tokenizers.fingerprint(task.tokenizer)
    if tokenizer != summary["tokenizer"]:
        raise ValueError(
            f"{directory}: the traces are token ids of tokenizer {summary['tokenizer']}, this run's"
            f" is {tokenizer}; a trace can be cut only by the tokenizer it was made with"
        )
    if not summary["solved"]:
        return []
    try:
        return read_dataset(directory / "dataset")
    except (FileNotFoundError, Damaged) as error:
        say(
            f"{error}; the traces are read from {directory / 'log.jsonl'}, and the dataset is"
            " written anew"
        )
    with Log(directory / "log.jsonl", {name: summary[name] for name in HEADER}) as log:
        attempts = attempts_in_log(log.records, "collect", list(problems.values()), task)
        traces = first_traces(attempts, cost)
    if len(traces) != summary["solved"]:
        raise ValueError(
            f"{directory}: {summary['solved']} problems were solved, the log still knows"
            f" {len(traces)} traces ({'; '.join(log.dropped) or 'records are missing'}); to sample"
            " again what was lost, remove corpus.json and prefixes.json from the stages folder"
        )
    save_corpus(directory, traces, summary)
    return traces
