"""Traces brought in a file: what becomes of each line, and a run that trains on them."""

import json

import pytest
from test_collect import HEADER, PROBLEMS, Aside, FirstToken

from prefixrl_jax.corpus.attempts import first_traces
from prefixrl_jax.corpus.import_traces import import_traces, lines_fingerprint, read_lines
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.traces import Trace, write_dataset
from prefixrl_jax.flops import costs
from prefixrl_jax.model.tokenizer import fingerprint
from prefixrl_jax.tasks.task import Problem

# <pad> <bos> <eos> <unk> a b are 0 to 5; 0 and 1 end a response
TOKENIZER = fingerprint(FirstToken.tokenizer)


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def bring(tmp_path, *rows, task=None, longest=9, problems=PROBLEMS):
    """(traces, reasons by line, declared FLOPs) of a file with these rows."""
    task = task or FirstToken(limit=5)  # a response that begins with "a" is right, with "b" wrong
    lines = read_lines(write(tmp_path / "traces.jsonl", *rows), task)
    with SharedLog(tmp_path / "log.jsonl", HEADER) as log:
        found, flops = import_traces(
            lines, list(problems), task, longest, log, tmp_path / "rejected.jsonl"
        )
    listed = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    return (
        first_traces(found, costs(1000, 1, 4, 8)),
        {entry["line"]: entry["reason"] for entry in listed},
        flops,
    )


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
    traces, reasons, flops = bring(tmp_path, *ROWS, task=make_task(5))
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


def test_what_the_log_knows_is_not_graded_again(tmp_path):
    first = bring(tmp_path, *ROWS)
    task = FirstToken(5)
    task.grade = None  # a call would fail
    assert bring(tmp_path, *ROWS, task=task) == first


def test_a_problem_may_be_named_by_its_question(tmp_path):
    problems = [Problem("q-1", {"question": "How many?"})]
    traces, reasons, _ = bring(
        tmp_path, {"problem": " How many?\n", "trace": "a"}, problems=problems
    )
    assert [t.problem_id for t in traces] == ["q-1"] and reasons == {}


def test_the_corpus_of_another_run_is_taken_by_its_ids(tmp_path):
    fields = [
        ("a", 7, [1], [4, 5, 0], [-0.1, -0.2, -0.3], "stop", 8, 2e9),
        ("zz", 1, [1], [4, 0], [-1.0, -1.0], "stop", 2, 1e9),
    ]
    mine = [Trace(*values) for values in fields]
    write_dataset(mine, tmp_path / "dataset", {"tokenizer": TOKENIZER, "model": "another"})
    task = FirstToken(limit=5)
    lines = read_lines(str(tmp_path / "dataset"), task)
    with SharedLog(tmp_path / "log.jsonl", HEADER) as log:
        found, flops = import_traces(
            lines, list(PROBLEMS), task, 9, log, tmp_path / "rejected.jsonl"
        )
    (trace,) = first_traces(found, costs(1000, 1, 4, 8))
    assert (trace.problem_id, trace.token_ids, trace.source, trace.flops, flops) == (
        "a",
        [4, 5, 0],
        "imported",
        2e9,
        2e9,
    )
    assert "id or question 'zz'" in (tmp_path / "rejected.jsonl").read_text()
    write_dataset(
        mine,
        tmp_path / "run",
        {"tokenizer": TOKENIZER, "statistics": {"collect_flops": 8e9, "solved": 2}},
    )
    # the failures are paid for as well
    assert [line.flops for line in read_lines(str(tmp_path / "run"), task)] == [4e9, 4e9]
    write_dataset(mine, tmp_path / "other", {"tokenizer": "0123456789abcdef", "model": "another"})
    with pytest.raises(
        ValueError,
        match=rf"are of tokenizer 0123456789abcdef, and those of this run of {TOKENIZER}",
    ):
        read_lines(str(tmp_path / "other"), task)


def test_ids_of_another_tokenizer_are_not_taken(tmp_path):
    traces, _, _ = bring(
        tmp_path,
        {"problem": "a", "trace": "a b", "token_ids": [99, 98], "tokenizer": "0123456789abcdef"},
    )
    assert traces[0].token_ids == [4, 5, 0] and traces[0].source == "foreign"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "a"}, "line 2: field 'trace' is missing"),
        ({"trace": "a"}, "line 2: field 'problem' is missing"),
        ({"problem": "a", "trace": " "}, "field 'trace'"),
        ('{"problem": ', "line 2: "),
        ("[1]", "a JSON object is expected"),
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
    with pytest.raises(ValueError, match=message):
        read_lines(
            write(tmp_path / "traces.jsonl", {"problem": "a", "trace": "a"}, row), FirstToken()
        )


def test_a_file_without_traces_or_no_file_is_named(tmp_path):
    for name, message in (("empty.jsonl", "no trace in it"), ("absent.jsonl", "no such file")):
        (tmp_path / "empty.jsonl").write_text("\n")
        with pytest.raises(ValueError, match=rf"collect\.traces_path='.*{name}': {message}"):
            read_lines(str(tmp_path / name), FirstToken())


def test_another_file_is_another_corpus(tmp_path):
    prints = {
        lines_fingerprint(read_lines(write(tmp_path / "t.jsonl", *rows), FirstToken()))
        for rows in (ROWS, ROWS[:3], ROWS[::-1])
    }
    assert len(prints) == 3
