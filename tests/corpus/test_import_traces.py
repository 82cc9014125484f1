"""Traces imported from a file or a dataset: which lines are taken, and why others are not."""

import json

import pytest
from first_token import COST, HEADER, PROBLEMS, Aside, FirstToken

from prefixrl_jax.corpus.attempts import first_traces
from prefixrl_jax.corpus.import_traces import import_traces
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.trace_file import lines_fingerprint, read_lines
from prefixrl_jax.corpus.traces import Trace, write_dataset
from prefixrl_jax.model.tokenizer import fingerprint
from prefixrl_jax.tasks.task import Problem

# Token ids 0 to 5 are <pad> <bos> <eos> <unk> a b; 0 and 1 end a response.
TOKENIZER = fingerprint(FirstToken.tokenizer)


def write(path, *rows):
    """Write a file of these lines, JSON values or text as it is; return its path."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def import_rows(tmp_path, *rows, task=None, problems=PROBLEMS):
    """Import a file of these rows; return the traces, the reasons by line, the declared FLOPs."""
    task = task or FirstToken(limit=5)  # "a" is token 4, which is correct; "b" is wrong
    path = write(tmp_path / "traces.jsonl", *rows)
    traces, flops = import_path(path, tmp_path, task, problems)
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    return traces, {entry["line"]: entry["reason"] for entry in rejected}, flops


def import_path(path, tmp_path, task, problems=PROBLEMS):
    """Import a file or a dataset; return the traces and the declared FLOPs."""
    lines = read_lines(path, task)
    rejected = tmp_path / "rejected.jsonl"
    with SharedLog(tmp_path / "log", HEADER) as log:
        attempts, flops = import_traces(lines, list(problems), task, 9, log, rejected)
    return first_traces(attempts, COST), flops


ROWS = [
    {"problem": "a", "trace": "b a"},
    {"problem": "a", "trace": "a b", "flops": 2e9},
    {"problem": "a", "trace": "a a a"},
    {"problem": "bb", "token_ids": [4, 5, 0], "tokenizer": TOKENIZER, "flops": 1e9},
    {"problem": "zz", "trace": "a", "flops": 5e9},
    {"problem": "ccc", "trace": "a a a a a a a a a"},
    {"problem": "d", "trace": "b"},
]


@pytest.mark.parametrize("make_task", [FirstToken, Aside])
def test_each_problem_gets_its_first_correct_line_and_every_other_is_listed(tmp_path, make_task):
    traces, reasons, flops = import_rows(tmp_path, *ROWS, task=make_task(5))
    kept = {
        t.problem_id: (t.sample_id, t.token_ids, t.source, t.flops, t.samples, t.logprobs)
        for t in traces
    }
    assert kept == {
        "a": (2, [4, 5, 0], "foreign", 2e9, 0, []),
        "bb": (4, [4, 5, 0], "imported", 1e9, 0, []),
    }
    assert reasons == {
        1: "graded wrong",
        3: "line 2 is a correct trace of the same problem",
        7: "graded wrong",
        5: "no problem of the hard set has the id or question 'zz'",
        6: "10 tokens; sampling.context_buckets leave room for 9",
    }
    assert flops == 3e9  # of the lines of problems that are trained on
    assert all(t.context_ids == FirstToken().render(Problem(t.problem_id, {})) for t in traces)


def test_lines_in_the_log_are_not_graded_again(tmp_path):
    first = import_rows(tmp_path, *ROWS)
    task = FirstToken(5)
    task.grade = None  # a call would fail
    assert import_rows(tmp_path, *ROWS, task=task) == first


def test_a_problem_may_be_named_by_its_question(tmp_path):
    problems = [Problem("q-1", {"question": "How many?"})]
    row = {"problem": " How many?\n", "trace": "a"}
    traces, reasons, _ = import_rows(tmp_path, row, problems=problems)
    assert [t.problem_id for t in traces] == ["q-1"]
    assert reasons == {}


OTHER_RUN = [
    Trace("a", 7, [1], [4, 5, 0], [-0.1, -0.2, -0.3], "stop", 8, 2e9),
    Trace("zz", 1, [1], [4, 0], [-1.0, -1.0], "stop", 2, 1e9),
]


def test_the_corpus_of_another_run_is_taken_by_its_ids(tmp_path):
    write_dataset(OTHER_RUN, tmp_path / "dataset", {"tokenizer": TOKENIZER, "model": "another"})
    (trace,), flops = import_path(str(tmp_path / "dataset"), tmp_path, FirstToken(limit=5))
    assert trace.problem_id == "a"
    assert trace.token_ids == [4, 5, 0]
    assert trace.source == "imported"
    assert trace.flops == 2e9
    assert flops == 2e9
    assert "id or question 'zz'" in (tmp_path / "rejected.jsonl").read_text()


def test_the_traces_of_another_run_pay_for_its_failures_too(tmp_path):
    statistics = {"collect_flops": 8e9, "solved": 2}
    metadata = {"tokenizer": TOKENIZER, "statistics": statistics}
    write_dataset(OTHER_RUN, tmp_path / "dataset", metadata)
    lines = read_lines(str(tmp_path / "dataset"), FirstToken())
    assert [line.flops for line in lines] == [4e9, 4e9]


def test_the_corpus_of_another_tokenizer_is_refused(tmp_path):
    metadata = {"tokenizer": "0123456789abcdef", "model": "another"}
    write_dataset(OTHER_RUN, tmp_path / "dataset", metadata)
    message = rf"are of tokenizer 0123456789abcdef, and those of this run of {TOKENIZER}"
    with pytest.raises(ValueError, match=message):
        read_lines(str(tmp_path / "dataset"), FirstToken())


def test_ids_of_another_tokenizer_are_not_taken(tmp_path):
    other_ids = {"token_ids": [99, 98], "tokenizer": "0123456789abcdef"}
    traces, _, _ = import_rows(tmp_path, {"problem": "a", "trace": "a b", **other_ids})
    assert traces[0].token_ids == [4, 5, 0]
    assert traces[0].source == "foreign"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "a"}, "line 2: field 'trace' is missing"),
        ({"trace": "a"}, "line 2: field 'problem' is missing"),
        ({"problem": "a", "trace": " "}, "field 'trace'"),
        ('{"problem": ', "line 2: "),
        ("[1]", "expected a JSON object, found list"),
        ({"problem": "a", "trace": "a", "flops": -1}, "field 'flops' is -1; a number, at least 0"),
        (
            {"problem": "a", "token_ids": [], "tokenizer": TOKENIZER},
            r"field 'token_ids': ids from 0 to 5",
        ),
        (
            {"problem": "a", "token_ids": [6], "tokenizer": TOKENIZER},
            r"field 'token_ids': ids from 0 to 5",
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path, row, message):
    path = write(tmp_path / "traces.jsonl", {"problem": "a", "trace": "a"}, row)
    with pytest.raises(ValueError, match=message):
        read_lines(path, FirstToken())


@pytest.mark.parametrize(
    ("name", "message"), [("empty.jsonl", "no trace in it"), ("absent.jsonl", "no such file")]
)
def test_a_file_without_traces_or_no_file_is_named(tmp_path, name, message):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=rf"collect\.traces_path='.*{name}': {message}"):
        read_lines(str(tmp_path / name), FirstToken())


def test_another_file_is_another_corpus(tmp_path):
    fingerprints = {
        lines_fingerprint(read_lines(write(tmp_path / "t.jsonl", *rows), FirstToken()))
        for rows in (ROWS, ROWS[:3], ROWS[::-1])
    }
    assert len(fingerprints) == 3
