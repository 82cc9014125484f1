"""Trace files that a program must not choke on, and files of a run that are not what it wrote."""

import json
import shutil

import pytest
from first_token import PROBLEMS, FirstToken

from prefixrl_jax.corpus.trace_file import LARGEST_COST, TraceFile, read_lines
from prefixrl_jax.corpus.traces import Trace, write_dataset
from prefixrl_jax.experiment.stages import FILES, TRACES_FILE, name_of_difference
from prefixrl_jax.model.tokenizer import fingerprint
from prefixrl_jax.prefixes.cuts import Cuts, read_cuts, write_cuts
from prefixrl_jax.report.records import read_run
from prefixrl_jax.runtime.memo import Memo
from prefixrl_jax.tasks.prompt import Prompt

TOKENIZER = fingerprint(FirstToken.tokenizer)
GOOD = b'{"problem": "a", "trace": "a b"}'
IDS = b'{"problem": "a", "tokenizer": "%s", "token_ids": ' % TOKENIZER.encode()

REFUSED = {
    "a byte of Latin-1": (b'{"problem": "a", "trace": "caf\xe9"}', "0xe9 at byte 31 is not UTF-8"),
    "half a surrogate pair": (b'{"problem": "a", "trace": "\\ud800"}', r"escape \ud800 is half"),
    "100,000 brackets": (b"[" * 100_000, "nested too deeply"),
    "half an object": (GOOD[:-1], "not valid JSON"),
    "a text": (b'"a"', "expected a JSON object, found str"),
    "a problem that is a number": (b'{"problem": 7, "trace": "a"}', "field 'problem' is missing"),
    "a trace that is a list": (b'{"problem": "a", "trace": ["a"]}', "field 'trace' is missing"),
    "a cost of NaN": (GOOD[:-1] + b', "flops": NaN}', "field 'flops' is NaN; a number, at least 0"),
    "a cost beyond float": (GOOD[:-1] + b', "flops": 1e999}', "field 'flops' is 1e999"),
    "a whole cost beyond float": (
        GOOD[:-1] + b', "flops": 1%s}' % (b"0" * 400),
        "field 'flops' is",
    ),
    "a cost whose sums overflow": (GOOD[:-1] + b', "flops": 1e308}', "field 'flops' is 1e+308"),
    "a negative cost": (GOOD[:-1] + b', "flops": -1e-9}', "field 'flops' is -1e-09"),
    "a cost that is true": (GOOD[:-1] + b', "flops": true}', "field 'flops' is True"),
    "a cost of null": (GOOD[:-1] + b', "flops": null}', "field 'flops' is None"),
    "an id that is true": (IDS + b"[true]}", "field 'token_ids': ids from 0 to 5"),
    "an id with a fraction": (IDS + b"[4.0]}", "field 'token_ids': ids from 0 to 5"),
    "an id below 0": (IDS + b"[-1]}", "field 'token_ids': ids from 0 to 5"),
    "an id beyond 64 bits": (IDS + b"[%d]}" % 2**65, "field 'token_ids': ids from 0 to 5"),
    "ids that are a text": (IDS + b'"45"}', "field 'token_ids': ids from 0 to 5"),
    "ids in an object": (IDS + b'{"4": 5}}', "field 'token_ids': ids from 0 to 5"),
}


@pytest.mark.parametrize(("line", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_trace_is_named(tmp_path, line, words):
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", line, GOOD]))
    with pytest.raises(ValueError) as refused:
        read_lines(str(path), FirstToken())
    message = str(refused.value)
    assert message.startswith(f"{path}, line 3: ") and words in message
    assert "\n" not in message and len(message) < 700


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\r\n")
    assert [line.token_ids for line in read_lines(str(path), FirstToken())] == [[4, 5, 0]] * 2


def test_the_largest_cost_is_taken(tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_bytes(GOOD[:-1] + b', "flops": %d}' % int(LARGEST_COST))
    assert read_lines(str(path), FirstToken())[0].flops == pytest.approx(LARGEST_COST)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("", "the file is empty"),
        ("[]", "expected a JSON object, found list"),
        ("{", "not valid JSON"),
        ('{"tokenizer": ["x"]}', "are of tokenizer"),
        ('{"tokenizer": "T", "statistics": {"collect_flops": 1, "solved": 0}}', "solved=0"),
        (
            '{"tokenizer": "T", "statistics": {"collect_flops": NaN, "solved": 1}}',
            "collect_flops=nan",
        ),
        ('{"tokenizer": "T", "statistics": {"collect_flops": 1}}', "solved=None"),
    ],
)
def test_the_metadata_of_another_corpus_are_checked(tmp_path, metadata, words):
    traces = [Trace("a", 1, [1], [4, 0], [-1.0, -1.0], "stop", 2, 1e9)]
    write_dataset(traces, tmp_path / "dataset", {"tokenizer": TOKENIZER})
    text = metadata.replace('"T"', f'"{TOKENIZER}"')
    (tmp_path / "dataset" / "metadata.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        read_lines(str(tmp_path / "dataset"), FirstToken())
    assert words in str(refused.value) and str(tmp_path / "dataset") in str(refused.value)


def test_a_dataset_whose_shard_is_cut_is_named(tmp_path):
    traces = [Trace("a", i, [1], [4, 0], [-1.0, -1.0], "stop", 2, 1e9) for i in range(9)]
    write_dataset(traces, tmp_path / "dataset", {"tokenizer": TOKENIZER})
    (shard,) = (tmp_path / "dataset").glob("*array_record*")
    shard.write_bytes(shard.read_bytes()[:-99])
    with pytest.raises(ValueError, match=r"collect\.traces_path='.*dataset'"):
        read_lines(str(tmp_path / "dataset"), FirstToken())


# A changed file is never taken for the one that was remembered.


def write_many(path, count=1500, last="a b"):
    rows = [{"problem": "a", "trace": f"a {'b ' * (i % 7)}"} for i in range(count - 1)]
    rows.append({"problem": "a", "trace": last})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def unread(monkeypatch):
    """Count how often a file of traces is read."""
    from prefixrl_jax.corpus import trace_file

    calls = []
    read = trace_file.read_lines
    monkeypatch.setattr(trace_file, "read_lines", lambda *a: calls.append(a) or read(*a))
    return calls


def test_traces_that_were_checked_are_not_read_again(tmp_path, unread):
    path = write_many(tmp_path / "traces.jsonl")
    memo = Memo(tmp_path / "memo.json")
    first = TraceFile(path, FirstToken(), memo).fingerprint
    memo.save()
    again = TraceFile(path, FirstToken(), Memo(tmp_path / "memo.json"))
    assert again.fingerprint == first and len(unread) == 1
    assert len(again.lines) == 1500 and len(unread) == 2
    shutil.copy(path, tmp_path / "copy.jsonl")  # the content counts, not the name or the time
    copy = TraceFile(str(tmp_path / "copy.jsonl"), FirstToken(), Memo(tmp_path / "memo.json"))
    assert copy.fingerprint == first and len(unread) == 2


@pytest.mark.parametrize("change", ["content", "memo", "tokenizer", "stop ids"])
def test_what_changed_is_read_again(tmp_path, unread, change):
    path = write_many(tmp_path / "traces.jsonl")
    memo = Memo(tmp_path / "memo.json")
    first = TraceFile(path, FirstToken(), memo).fingerprint
    memo.save()
    task = FirstToken()
    if change == "content":
        write_many(tmp_path / "traces.jsonl", last="b a")  # of the same size
    elif change == "memo":
        text = (tmp_path / "memo.json").read_text(encoding="utf-8")
        (tmp_path / "memo.json").write_text(text.replace(first, "0" * 16), encoding="utf-8")
    elif change == "tokenizer":
        task.tokenizer = type(task).tokenizer.__class__(
            tokenizer_object=type(task).tokenizer.backend_tokenizer, eos_token="b"
        )
    else:
        task.stop_ids = (1, 0)
    second = TraceFile(path, task, Memo(tmp_path / "memo.json")).fingerprint
    assert len(unread) == 2
    assert (second == first) == (change in ("memo", "tokenizer"))


def test_a_file_that_changes_while_the_run_goes_on_is_refused(tmp_path):
    path = write_many(tmp_path / "traces.jsonl")
    memo = Memo()
    first = TraceFile(path, FirstToken(), memo).fingerprint
    later = TraceFile(path, FirstToken(), memo)
    assert later.fingerprint == first
    write_many(tmp_path / "traces.jsonl", last="b a")
    with pytest.raises(ValueError, match=r"collect\.traces_path='.*': the file was changed while"):
        _ = later.lines


# prefixes.jsonl


class Words(FirstToken):
    """A task whose text is its ids."""

    def text(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture
def prefixes(tmp_path):
    """Return a file of three prefixes, and the problems by id."""
    path = tmp_path / "prefixes.jsonl"
    prompts = [Prompt(PROBLEMS[0], (4, 5, 4)[: i + 1], i, 0.5) for i in range(3)]
    write_cuts(Words(), Cuts(prompts, 0, 0), path)
    return path, {p.id: p for p in PROBLEMS}


# Whole lines that are missing, and other ids, only the stage's record can tell.
DAMAGES = {
    "cut in a line": lambda b: b[:-9],
    "a line twice": lambda b: b + b[: b.index(b"\n") + 1],
    "another run's": lambda b: b.replace(b'"a"', b'"zz"'),
    "not text": lambda b: b"\x80\x81" + b,
    "an id that is text": lambda b: b.replace(b"[4, 5]", b'["4", 5]'),
    "an id that is true": lambda b: b.replace(b"[4, 5]", b"[true, 5]"),
    "no ids": lambda b: b.replace(b"[4, 5]", b"[]"),
    "no fraction": lambda b: b.replace(b'"fraction"', b'"part"'),
    "a fraction of NaN": lambda b: b.replace(b"0.5", b"NaN"),
    "a cut of true": lambda b: b.replace(b'"cut": 1', b'"cut": true'),
    "a hint of 1": lambda b: b.replace(b'"hinted": false', b'"hinted": 1'),
    "a list": lambda b: b"[1]\n" + b,
    "brackets": lambda b: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_prefixes_that_are_none_are_named(prefixes, damage):
    path, problems = prefixes
    assert len(read_cuts(problems, path)) == 3
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as refused:
        read_cuts(problems, path)
    message = str(refused.value)
    assert message.startswith(f"{path}, line ") and "remove stages/prefixes.json" in message
    assert "\n" not in message and len(message) < 600


def test_prefixes_that_are_gone_are_named(prefixes):
    path, problems = prefixes
    path.unlink()
    with pytest.raises(ValueError, match=r"prefixes\.jsonl: the file is missing; remove stages"):
        read_cuts(problems, path)


# What reports read


RECORDS = {
    "empty": b"",
    "cut": b'{"flops": {"paper": ',
    "not text": b"\xff\xfe\x00",
    "brackets": b"[" * 100_000,
    "objects": b'{"a":' * 900 + b"1" + b"}" * 900,
    "a list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("content", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("name", ["summary.json", "config.json"])
def test_a_damaged_record_is_named_with_what_to_do(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    try:
        read_run(tmp_path)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{tmp_path / name}: ") and "start the run again" in message
        assert "\n" not in message and len(message) < 500
    else:
        assert content.startswith(b'{"a":')  # read, on a Python that nests deeper


METRICS = {
    "empty": (b"", "holds no training step"),
    "cut": (b'{"step": 1, "loss": 2}\n{"step": 2, "lo', "line 2 is not a JSON object"),
    "not text": (b'{"step": 1}\n\xe9\xff\n{"step": 2}\n', "line 2 is not a JSON object"),
    "brackets": (b'{"step": 1}\n' + b"[" * 100_000, "line 2 is not a JSON object"),
    "lines lost": (b'{"step": 1}\n{"step": 5}\n{"step": 7}\n', "2 to 4, 6"),
    "first lines lost": (b'{"step": 3}\n', "1 to 2"),
    "a step of NaN": (b'{"step": NaN}\n', "lines without a step"),
    "a step of a list": (b'{"step": [1]}\n', "lines without a step"),
    "a step beyond float": (b'{"step": 1%s}\n' % (b"0" * 400), "lines without a step"),
    "a loss beyond float": (b'{"step": 1, "loss": 1%s}\n' % (b"0" * 400), "loss is not a finite"),
}


@pytest.mark.parametrize(("content", "words"), METRICS.values(), ids=METRICS)
def test_odd_lines_of_metrics_are_told(tmp_path, content, words):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert any(words in note for note in read_run(tmp_path).notes)


def test_of_many_bad_lines_the_first_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + b"x\n" * 5000)
    notes = read_run(tmp_path).notes
    assert "metrics.jsonl, line 2 is not a JSON object and was left out." in notes
    assert "metrics.jsonl: 4,990 more lines are not JSON objects." in notes
    assert len(notes) < 20


PARTS = ["flops", "pass_at_k", "plain_pass_at_1", "success_by_prefix_fraction", "seconds", "model"]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("value", [1, "x", [1], {"train": 1}, {"train": {"before": {"k": 1}}}])
def test_a_part_of_the_summary_in_another_form_is_left_out(tmp_path, name, value):
    from prefixrl_jax.report.run_report import write_report

    (tmp_path / "summary.json").write_text(json.dumps({name: value}), encoding="utf-8")
    run = read_run(tmp_path)
    if name in run.summary:
        assert run.summary[name] == value
    else:
        assert f"summary.json: {name} is not of the form that a run writes; left out." in run.notes
    if name == "pass_at_k":  # the pictures are slow, and one part stands for all
        write_report(tmp_path)


def test_odd_samples_are_left_out(tmp_path):
    rows = [b'{"kind": ["plain"]}', b'{"kind": "plain", "verdict": {}, "step": "x"}', b"7", b'{"a']
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "train-00001.jsonl").write_bytes(b"\n".join(rows))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    run = read_run(tmp_path)
    assert len(run.samples) == 1
    assert sum("train-00001.jsonl" in note for note in run.notes) == 3


def test_a_changed_file_of_traces_is_told_from_changed_problems():
    name = FILES["corpus"]
    assert name_of_difference(name, "p1 t1", "p1 t2") == TRACES_FILE
    assert name_of_difference(name, "p1 t1", "p2 t2") == name
    assert name_of_difference(name, "p1", "p2") == name
    assert name_of_difference(name, "p1 round 2, after 5", "p1 round 2, after 6") == name
    assert name_of_difference("seed", 1, 2) == "seed"
