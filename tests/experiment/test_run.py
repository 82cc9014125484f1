"""The whole pipeline through the command line: run, reuse, a user's own problems, bad input."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import DATA, SMOKE, Command, begun, python, read_lines, stage_result

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]

PLAIN = Command()  # the smoke configuration as it is


def refused(workdir: Path, *flags: str) -> str:
    """Runs a command that is refused before anything is computed; returns the message."""
    done = python(
        "-m", "prefixrl_jax.main", "--config=configs/smoke.py", f"--workdir={workdir}", *flags
    )
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(smoke_run, tmp_path_factory) -> Path:
    """A finished run of ten steps, with checkpoints, that belongs to the tests of this file."""
    return Path(shutil.copytree(smoke_run, tmp_path_factory.mktemp("finished") / "run"))


def test_every_stage_leaves_what_it_promises(finished):
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("train", "heldout"):
        assert set(summary["plain_pass_at_1"][name]) == {"before", "after"}
        assert all(0 <= v <= 1 for v in summary["plain_pass_at_1"][name].values())
    fractions = list(summary["success_by_prefix_fraction"]["after"])
    assert fractions == ["0.0", "0.2", "0.4", "0.6", "0.8"]
    assert summary["corpus"]["solved"] > 0
    corpus = summary["corpus"]
    assert corpus["solved"] + corpus["capped"] == corpus["problems"]
    assert summary["peak_rss_bytes"] > 1e8
    for path in (
        "config.json",
        "report.html",
        "hf/model.safetensors",
        "hf/config.json",
        "prefixes/prefixes.jsonl",
        "corpus/dataset",
    ):
        assert (finished / path).exists(), path
    assert list((finished / "figures").glob("*.png"))
    assert list((finished / "events").iterdir())


def test_flops_add_up_and_context_sharing_saves(finished):
    flops = json.loads((finished / "summary.json").read_text())["flops"]
    counted = ("select", "collect", "prefill", "decode", "score", "train")
    for accounting in ("paper", "actual", "hardware"):
        assert flops[accounting]["total"] == pytest.approx(
            sum(flops[accounting][p] for p in counted)
        )
    assert flops["actual"]["total"] < flops["paper"]["total"]
    assert flops["actual"]["decode"] == flops["paper"]["decode"] <= flops["hardware"]["decode"]
    rows = read_lines(finished / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 11))
    assert rows[-1]["flops/total"] == pytest.approx(flops["paper"]["total"])


def test_sampler_and_trainer_agree_in_every_step(finished):
    rows = read_lines(finished / "metrics.jsonl")
    assert all(r["sampler_trainer/logp_diff_max"] < 1e-4 for r in rows)


@pytest.mark.thorough
def test_sampler_and_trainer_agree_when_compiled_as_for_a_user(tmp_path):
    """The other tests compile without optimisation, which is faster and adds in another order."""
    PLAIN.finish(tmp_path / "run", XLA_FLAGS="")
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert all(r["sampler_trainer/logp_diff_max"] < 1e-4 for r in rows)


def test_prefixes_are_the_traces_own_tokens(finished):
    from prefixrl_jax.corpus.traces import read_dataset

    traces = {t.problem_id: t for t in read_dataset(finished / "corpus" / "dataset")}
    rows = read_lines(finished / "prefixes" / "prefixes.jsonl")
    assert rows
    for row in rows:
        trace = traces[row["problem"]].token_ids
        assert trace[: len(row["token_ids"])] == row["token_ids"]
        assert 0.4 <= row["fraction"] <= 0.8
        assert len(row["token_ids"]) == math.floor(row["fraction"] * len(trace))


@pytest.mark.torch
def test_hugging_face_loads_the_export(finished):
    import jax.numpy as jnp
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefixrl_jax.group import Context
    from prefixrl_jax.model import transformer
    from prefixrl_jax.model.hf import import_hf

    model = AutoModelForCausalLM.from_pretrained(finished / "hf", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "hf")
    params, config = import_hf(finished / "hf")
    ids = tokenizer("<bos> A/5 B/3 A=0 B=0 goal=4 :", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "<bos> A/5 B/3 A=0 B=0 goal=4 :"
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
        greedy = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)[
            0, len(ids) :
        ].tolist()
    context = Context(jnp.array([ids[:1]], jnp.int32), jnp.array([1], jnp.int32))

    kv = transformer.encode_context(params, config, context)
    hidden = transformer.continue_group(params, config, context, kv, jnp.array([[ids + greedy]]))
    logits = np.asarray(transformer.logits(params, config, hidden))[0, 0]
    np.testing.assert_allclose(logits[: len(ids)], expected, atol=1e-4)
    assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == greedy


def test_a_complete_run_is_reused(finished):
    """No stage is done again, and no file of results is written again."""
    names = ("metrics.jsonl", "summary.json", "report.html", "hf/model.safetensors")
    written = [(finished / name).stat().st_mtime_ns for name in names]
    assert "done in" not in SMOKE.finish(finished)
    assert [(finished / name).stat().st_mtime_ns for name in names] == written


def test_another_configuration_is_refused_with_the_fields(finished):
    message = refused(finished, "--config.train.learning_rate=0.5", "--config.prefix.cuts=2")
    assert "train.learning_rate: 0.001 there, 0.5 now" in message
    assert "prefix.cuts: 3 there, 2 now" in message


def test_traces_from_a_file_take_the_place_of_collect(finished, tmp_path):
    """Those that the run found itself, written as text: the same prefixes, at the cost that the
    file declares.
    """
    from prefixrl_jax.corpus.traces import read_dataset
    from prefixrl_jax.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(finished / "hf")
    traces = read_dataset(finished / "corpus" / "dataset")
    text = {t.problem_id: tokenizer.decode(t.token_ids, skip_special_tokens=True) for t in traces}
    rows = [{"problem": name, "trace": trace, "flops": 1e6} for name, trace in text.items()]
    rows.append({"problem": "?", "trace": "A=1"})
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = PLAIN.finish(
        begun(finished, tmp_path / "run"),
        f"--config.collect.traces_path={tmp_path}/traces.jsonl",
        "--stage=train",
    )
    assert f"1 lines of {tmp_path}/traces.jsonl are not used" in output
    assert (tmp_path / "run/prefixes/prefixes.jsonl").read_text() == (
        finished / "prefixes/prefixes.jsonl"
    ).read_text()
    brought = read_dataset(tmp_path / "run" / "corpus" / "dataset")
    assert [(t.problem_id, t.token_ids, t.source) for t in brought] == [
        (t.problem_id, t.token_ids, "foreign") for t in traces
    ]
    ledger = stage_result(tmp_path / "run", "corpus")["ledger"]
    assert ledger["paper"]["collect"] == 1e6 * len(traces) and ledger["paper"]["select"] > 0
    PLAIN.finish(
        begun(finished, tmp_path / "other"),
        f"--config.collect.traces_path={finished}/corpus/dataset",
        "--stage=corpus",
    )
    ledgers = [stage_result(run, "corpus")["ledger"] for run in (finished, tmp_path / "other")]
    # what the file does not say its dataset does
    assert ledgers[0]["paper"] == pytest.approx(ledgers[1]["paper"])


def test_a_model_is_evaluated_alone(finished, tmp_path):
    """No screening, no corpus, no step: pass@k of the base model on every problem, with a
    report.
    """
    flags = (
        "--config.select.samples=0",
        "--config.collect.cap=0",
        "--config.train.steps=0",
        "--config.select.train_problems=99",
    )
    PLAIN.finish(begun(finished, tmp_path / "run"), *flags)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    plain = summary["plain_pass_at_1"]["train"]
    assert (
        plain["before"] == plain["after"]
        and summary["hard_set"]["train"] == summary["hard_set"]["candidates"]["train"] == 16
    )
    assert summary["flops"]["paper"]["total"] == 0 < summary["flops"]["paper"]["eval"]
    assert "16 training" in (tmp_path / "run" / "report.html").read_text()


def test_published_jug_problems_from_a_file(tmp_path):
    """Luchins' and Polya's problems: three jugs of up to 163; an untrained model solves none, and
    every stage says so.
    """
    flags = [
        f"--config.data.path={DATA / 'jugs_published.jsonl'}",
        "--config.task.water_jugs.max_capacity=163",
        "--config.task.water_jugs.jugs=3",
        "--config.base.steps=2",
        "--config.collect.cap=4",
        "--config.select.samples=2",
        "--config.sampling.max_new_tokens=25",
        "--config.sampling.context_buckets=(40,)",
        "--config.prefix.share=0.0",
        "--config.train.steps=1",
    ]
    PLAIN.finish(tmp_path / "run", *flags)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["corpus"]["problems"] > 0
    assert (
        summary["corpus"]["solved"] == 0
        and summary["corpus"]["capped"] == summary["corpus"]["problems"]
    )
    assert summary["plain_pass_at_1"]["train"] == {"before": 0.0, "after": 0.0}
    assert "without a correct trace" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.train.lerning_rate=1.0", ("lerning_rate", "learning_rate")),
        ("--config.train.steps=many", ("train.steps", "many", "int")),
        ("--config.train.batch=7", ("train.micro_batches=2", "train.batch=7")),
        ("--stage=trian", ("trian", "train")),
        ("--config.data.path=no/such.jsonl", ("no/such.jsonl",)),
    ],
)
def test_bad_input_is_refused_by_name(tmp_path, flag, words):
    message = refused(tmp_path / "run", flag)
    assert "Traceback" not in message, message
    for word in words:
        assert word in message, message
    assert not (tmp_path / "run" / "base").exists()
