"""Drawn files: a reader returns what is in them, or raises one sentence, within a few seconds."""

import contextlib
import json
import signal

import pytest
from chat_folder import write_chat_folder
from first_token import PROBLEMS, FirstToken
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefixrl_jax.config import get_config
from prefixrl_jax.corpus.trace_file import lines_fingerprint, read_lines
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.model.tokenizer import fingerprint
from prefixrl_jax.prefixes.cuts import read_cuts
from prefixrl_jax.report.records import estimates, read_run
from prefixrl_jax.report.run_report import headline, ledger, results, step_times
from prefixrl_jax.report.run_report import settings as settings_table
from prefixrl_jax.runtime.memo import Memo
from prefixrl_jax.tasks.countdown import Countdown
from prefixrl_jax.tasks.math import Math, MathSettings
from prefixrl_jax.tasks.sources import fingerprint as problems_fingerprint
from prefixrl_jax.tasks.sources import read_problems
from prefixrl_jax.tasks.water_jugs import WaterJugs

SECONDS = 5  # for one example; the slowest takes a fraction of one
LONGEST_MESSAGE = 1000
FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TOKENIZER = fingerprint(FirstToken.tokenizer)


@contextlib.contextmanager
def time_limit():
    """Raise in the middle of an example that takes longer than SECONDS."""

    def late(*_):
        raise AssertionError(f"an example took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def one_sentence(path):
    """Accept a ValueError or OSError alone, in one line that names the file."""
    with time_limit():
        try:
            yield
        except (ValueError, OSError) as error:
            message = str(error)
            assert str(path) in message and "\n" not in message
            assert len(message) < LONGEST_MESSAGE
            assert not isinstance(error, UnicodeError), message


numbers = st.one_of(
    st.integers(-5, 40),
    st.integers(-(2**70), 2**70),
    st.just(10**400),
    st.floats(),  # NaN and infinities too, which Python's JSON writes
)
texts = st.one_of(
    st.sampled_from(["", "a", "plain", "correct", "train", "before", "1", "é\u2028\x00", "\ud800"]),
    st.text(max_size=8),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def records(draw, sound, fields):
    """Return a sound record with some of its fields replaced, left out or added."""
    record = dict(sound)
    for name in draw(st.lists(st.sampled_from([*fields, *sound]), max_size=3)):
        if draw(st.integers(0, 4)):
            record[name] = draw(values)
        else:
            record.pop(name, None)
    return record


@st.composite
def files(draw, sound, fields=()):
    """Return the bytes of JSON Lines, most of them sound, then damaged in a few places."""
    lines = draw(st.lists(records(sound, fields) | values, max_size=5))
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 30]))
        content = content[:start] + draw(st.binary(max_size=4)) + content[end:]
    return content


QUESTION = {"id": "q", "question": "How many?", "answer": "#### 4", "level": 3}
NUMBERS = {"numbers": [3, 8, 2, 6, 1], "goal": 12}
JUGS = {"capacities": [3, 5], "start": [0, 0], "goal": 4}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A task of each kind of row."""
    folder = write_chat_folder(tmp_path_factory.mktemp("model"))
    section = get_config().task.math.to_dict() | {"kind": "gsm8k", "prompt": "{question}"}
    return {
        "math": (Math(str(folder), MathSettings(**section)), QUESTION),
        "countdown": (Countdown(), NUMBERS),
        "water_jugs": (WaterJugs(), JUGS),
    }


@pytest.mark.parametrize("name", ["math", "countdown", "water_jugs"])
@pytest.mark.parametrize("skip_bad", [False, True])
@FUZZ
@given(data=st.data())
def test_problem_rows(tasks, tmp_path, name, skip_bad, data):
    task, sound = tasks[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data.draw(files(sound, ["id"])))
    with one_sentence(path):
        skipped = [] if skip_bad else None
        problems = [p for p, _ in read_problems(task, str(path), skipped=skipped)]
        assert len({p.id for p in problems}) == len(problems)
        problems_fingerprint({"train": problems})
        assert all(task.render(problem) for problem in problems)


@FUZZ
@given(
    content=files(
        {"problem": "a", "trace": "a b", "flops": 1e9},
        ["token_ids", "tokenizer", "problem_id"],
    )
    | files({"problem": "a", "token_ids": [4, 5], "tokenizer": TOKENIZER})
)
@example(b'{"problem": "a", "trace": "a", "flops": 1' + b"0" * 400 + b"}")
def test_traces(tmp_path, content):
    path = tmp_path / "traces.jsonl"
    path.write_bytes(content)
    with one_sentence(path):
        lines = read_lines(str(path), FirstToken())
        lines_fingerprint(lines)
        assert all(line.token_ids[-1] in FirstToken.stop_ids for line in lines)
        json.dumps(sum(line.flops for line in lines), allow_nan=False)


PREFIX = {
    "problem": "a",
    "cut": 0,
    "fraction": 0.5,
    "hinted": False,
    "prompt": "",
    "prefix": "",
    "token_ids": [4, 5],
}


@FUZZ
@given(content=files(PREFIX))
def test_prefixes(tmp_path, content):
    path = tmp_path / "prefixes.jsonl"
    path.write_bytes(content)
    with one_sentence(path):
        for prompt in read_cuts({p.id: p for p in PROBLEMS}, path):
            assert prompt.context(FirstToken()) and 0 <= prompt.fraction <= 1


METRICS = {"step": 1, "loss": 0.5, "flops/total": 1e9, "eval/train/avg@1": 0.5, "reward/plain": 0.1}
SAMPLE = {
    "step": 1,
    "kind": "plain",
    "verdict": "correct",
    "problem": "p",
    "continuation": "c",
    "reward": 1.0,
}


@FUZZ
@given(metrics=files(METRICS), samples=files(SAMPLE, ["set", "prefix", "truncated"]))
def test_metrics_and_samples(tmp_path, metrics, samples):
    (tmp_path / "metrics.jsonl").write_bytes(metrics)
    (tmp_path / "samples").mkdir(exist_ok=True)
    (tmp_path / "samples" / "train-00001.jsonl").write_bytes(samples)
    with time_limit():  # nothing in these files is an error
        run = read_run(tmp_path)
        step_times(run.rows)
        estimates(run, "train", 1.0)


SUMMARY = {
    "plain_pass_at_1": {"train": {"before": 0.1, "after": 0.5}},
    "plain_pass_at_1_interval": {"train": {"before": [0.0, 0.2], "after": [0.4, 0.6]}},
    "pass_at_k": {"train": {"before": {"1": 0.1}, "after": {"1": 0.5, "8": 0.9}}},
    "success_by_prefix_fraction": {"before": {"0.5": 0.1}, "after": {"0.5": 0.4}},
    "flops": {"paper": {"select": 1.0, "total": 3.0}, "actual": {"total": 2.0}},
    "hard_set": {"train": 3, "heldout": 2},
    "seconds": {"base": 1.0},
}


@FUZZ
@given(
    summary=records(SUMMARY, []).map(lambda record: json.dumps(record).encode()) | files(SUMMARY),
    config=records({"train": {"steps": 3}}, []).map(lambda record: json.dumps(record).encode()),
)
def test_summary_and_configuration(tmp_path, summary, config):
    (tmp_path / "summary.json").write_bytes(summary)
    (tmp_path / "config.json").write_bytes(config)
    with one_sentence(tmp_path):
        run = read_run(tmp_path)
        for name in ("train", "heldout"):
            estimates(run, name, 1.0)
        headline(run), results(run), ledger(run), settings_table(run.config)


@FUZZ
@given(records(Trace("a", 1, [1], [4, 0], [-1.0, -1.0], "stop", 2, 1e9).to_record(), ["extra"]))
def test_records_of_traces(record):
    with time_limit():
        try:
            trace = Trace.from_record(record)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert Trace.from_record(trace.to_record()) == trace


@FUZZ
@given(content=st.binary(max_size=60) | files({"entries": {"a": {"key": "k", "value": 1}}}))
def test_a_memo_that_is_not_ours_is_forgotten(tmp_path, content):
    (tmp_path / "memo.json").write_bytes(content)
    assert Memo(tmp_path / "memo.json").get("a", "k") is None
