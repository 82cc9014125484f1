"""The report: every figure is drawn and embedded, numbers read as written by hand, text is escaped,
what is missing is named.
"""

from __future__ import annotations

import base64
import html.parser
import itertools
import json
import math
import pathlib
import random
import re
import struct
import subprocess
import sys
import zlib

import pytest

from prefixrl_jax.report import format as wording
from prefixrl_jax.report import run_figures as figures
from prefixrl_jax.report import run_report as report

FIGURES = (
    "accuracy",
    "groups",
    "prefix_fraction",
    "pass_at_k",
    "lengths",
    "dynamics",
    "logprob_gap",
)
VOID = {"meta", "img", "source", "link", "br", "hr", "input"}
CORPUS = 4.0e11
HOSTILE = "<script>alert('x')</script> 3 < 4 & \x07 \ud83d"


def metrics_row(step: int, steps: int, noise: random.Random) -> dict:
    """A step of a run that learns: accuracy follows a logistic curve."""
    skill = 0.62 / (1 + math.exp(-(step - 0.55 * steps) / (0.09 * steps)))
    zero, one = 0.75 * math.exp(-2 * step / steps), 0.45 * skill
    length, gap = 60 - 15 * skill + noise.gauss(0, 2), 2e-6 * math.exp(noise.gauss(0, 0.3))
    row = {
        "step": step,
        "reward/mean": 0.3 + skill / 2,
        "reward/plain": min(1.0, max(0.0, skill + noise.gauss(0, 0.05))),
        "groups/all_zero": zero,
        "groups/all_one": one,
        "groups/mixed": 1 - zero - one,
        "completions/mean_length": length,
        "completions/min_length": length / 3,
        "completions/max_length": min(128, 2.2 * length),
        "completions/clipped_ratio": 0.3 * zero,
        "entropy": 0.9 - 0.6 * skill,
        "grad_norm": 0.4 + abs(noise.gauss(0, 0.2)),
        "sampler_trainer/logp_diff_max": gap,
        "sampler_trainer/logp_diff_mean": gap / 30,
        "flops/total": CORPUS + 8e11 * step / steps,
        "time/sample": 0.9,
        "time/grade": 0.01,
        "time/train": 0.45,
        "perf/tokens_per_second": 5000.0 + step,
    }
    if step % max(1, steps // 8) == 0:
        for name, share in (("train", 1.0), ("heldout", 0.7)):
            value = share * skill
            row |= {
                f"eval/{name}/avg@1": value,
                f"eval/{name}/avg@1_low": 0.8 * value,
                f"eval/{name}/avg@1_high": value + 0.03,
            }
    return row


def summary() -> dict:
    phases = {
        "select": 1e11,
        "collect": 3e11,
        "prefill": 1e11,
        "decode": 2e11,
        "score": 0.0,
        "train": 5e11,
    }
    outside = {"base": 9e11, "eval": 7e10}
    curve = {"1": 0.001, "4": 0.004, "16": 0.016}
    return {
        "plain_pass_at_1": {
            "train": {"before": 0.00125, "after": 0.6},
            "heldout": {"before": 0.002, "after": 0.41},
        },
        "plain_pass_at_1_interval": {
            "train": {"before": [0.0005, 0.003], "after": [0.55, 0.64]},
            "heldout": {"before": [0.001, 0.004], "after": [0.37, 0.45]},
        },
        "pass_at_k": {
            name: {"before": curve, "after": {"1": 0.6 * f, "4": 0.8 * f, "16": 0.9 * f}}
            for name, f in (("train", 1), ("heldout", 0.7))
        },
        "success_by_prefix_fraction": {
            "before": {"0.0": 0.001, "0.2": 0.01, "0.4": 0.08, "0.6": 0.3, "0.8": 0.6},
            "after": {"0.0": 0.6, "0.2": 0.65, "0.4": 0.72, "0.6": 0.83, "0.8": 0.95},
        },
        "flops": {
            "paper": {**phases, **outside, "total": 1.2e12},
            "actual": {**{k: v / 2 for k, v in phases.items()}, **outside, "total": 6e11},
            "hardware": {**{k: v * 0.7 for k, v in phases.items()}, **outside, "total": 8.4e11},
        },
        "seconds": {"base": 75.0, "select": 12.34, "corpus": 200.0, "train": 7265.0, "report": 0.0},
        "peak_rss_bytes": 1_234_000_000,
        "corpus": {
            "problems": 128,
            "solved": 117,
            "capped": 11,
            "samples": 45_678,
            "samples_per_solved": 212.5,
            "capped_treatment": "They were left in the training set without a prefix.",
        },
        "hard_set": {
            "candidates": {"train": 1500, "heldout": 500},
            "train": 128,
            "heldout": 64,
            "k": 16,
        },
        "prefixes": {"contexts": 351, "dropped_leaks": 3, "redrawn": 14},
        "model": {"parameters": 826_112, "family": "qwen2"},
        "task": "water_jugs",
        "versions": {"jax": "0.10.2", "python": "3.11.9"},
    }


def sample(step: int, kind: str, verdict: str, text: str) -> dict:
    return {
        "step": step,
        "set": "train",
        "kind": kind,
        "problem": "Jugs of 3, 5 and 8 litres; measure 4.",
        "prefix": "fill 5; pour 5 3;" if kind == "prefixed" else "",
        "continuation": text,
        "verdict": verdict,
        "reward": float(verdict == "correct"),
        "truncated": verdict == "unparsed",
    }


def write_jsonl(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(workdir: pathlib.Path, steps: int = 200) -> pathlib.Path:
    """A whole synthetic run of `steps` steps."""
    noise = random.Random(0)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(
        json.dumps({"train": {"steps": steps, "rate": 1e-3}, "method": "prefix_rl"})
    )
    (workdir / "summary.json").write_text(json.dumps(summary()))
    write_jsonl(
        workdir / "metrics.jsonl", [metrics_row(step, steps, noise) for step in range(1, steps + 1)]
    )
    write_jsonl(workdir / "samples/before.jsonl", [sample(0, "plain", "wrong", HOSTILE)])
    middle = [
        sample(s, k, v, f"{k} {v} {s}")
        for s in (3, 90, 170)
        for k in ("plain", "prefixed")
        for v in ("wrong", "correct")
    ]
    write_jsonl(workdir / "samples/train.jsonl", middle)
    write_jsonl(
        workdir / "samples/after.jsonl",
        [
            sample(steps, "plain", "correct", "fill 5; pour 5 3; done"),
            sample(steps, "prefixed", "unparsed", "fill " * 3000),
        ],
    )
    return workdir


class Page(html.parser.HTMLParser):
    """Collects the visible text, the attributes that load something, and whether every tag is
    closed in order.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.source, self.open, self.tags, self.words, self.loads = (
            path.read_text(encoding="utf-8"),
            [],
            set(),
            [],
            [],
        )
        self.feed(self.source)
        self.close()
        assert self.open == [], f"left open: {self.open}"
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [
            value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def table(self, name: str) -> list[list[str]]:
        """The cells of the table with this id, row by row."""
        body = re.search(rf'<table id="{name}">(.*?)</table>', self.source, re.S).group(1)
        cells = [
            re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
            for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S)
        ]
        return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def decode_png(data: bytes) -> tuple[int, int, bytes]:
    """(width, height, raw scan lines) of a PNG, its chunk checksums verified."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    return width, height, zlib.decompress(chunks[b"IDAT"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[pathlib.Path, Page]:
    workdir = make_run(tmp_path_factory.mktemp("run"))
    return workdir, Page(report.write_report(workdir))


def test_every_figure_is_a_png_of_sensible_size_and_is_embedded(whole):
    workdir, page = whole
    assert {p.stem for p in (workdir / "figures").iterdir()} == set(FIGURES)
    embedded = {base64.b64decode(url.split(",", 1)[1]) for url in page.loads}
    assert len(embedded) == 2 * len(FIGURES)  # light and dark
    for name in FIGURES:
        data = (workdir / "figures" / f"{name}.png").read_bytes()
        width, height, lines = decode_png(data)
        assert 800 <= width <= 2000 and 400 <= height <= 1200 and 5_000 < len(data) < 300_000
        assert len(set(lines)) > 50, f"{name} is blank"
        assert data in embedded


def test_page_stands_alone(whole):
    page = whole[1]
    assert page.loads and all(url.startswith("data:image/png;base64,") for url in page.loads)
    assert "script" not in page.tags and "link" not in page.tags
    assert "url(" not in page.source and "@import" not in page.source
    assert not re.search(r"https?://", page.source)


def test_numbers_are_shown(whole):
    page = whole[1]
    assert page.table("results")[1:] == [
        ["training problems", "pass@1", "0.12 % 0.05 % to 0.3 %", "60.0 % 55.0 % to 64.0 %"],
        ["training problems", "pass@16", "1.6 %", "90.0 %"],
        ["held-out problems", "pass@1", "0.2 % 0.1 % to 0.4 %", "41.0 % 37.0 % to 45.0 %"],
        ["held-out problems", "pass@16", "1.6 %", "63.0 %"],
    ]
    flops = {row[0]: row[1:] for row in page.table("flops")[1:]}
    assert flops["collect"] == ["300 GFLOP", "150 GFLOP", "210 GFLOP", "25.0 %"]
    assert flops["score"] == ["0 FLOP", "0 FLOP", "0 FLOP", "0.0 %"]
    assert flops["total"] == ["1.20 TFLOP", "600 GFLOP", "840 GFLOP", "100.0 %"]
    assert flops["base (outside the total)"] == ["900 GFLOP"] * 3 + ["–"]
    assert flops["eval (outside the total)"] == ["70.0 GFLOP"] * 3 + ["–"]
    stages = {
        "base": "1 min 15 s",
        "select": "12.3 s",
        "corpus": "3 min 20 s",
        "train": "2 h 1 min",
        "report": "not timed",
    }
    assert dict(page.table("seconds")[1:]) == stages
    assert ["sample", "900 ms", "3 min 0 s"] in page.table("steps")
    for words in (
        "Peak memory of the process: 1.23 GB.",
        "Median speed of a training step: 5,100 tokens a second.",
        "117 gave a correct trace and 11 gave none",
        "45,678 samples were begun, 212.5 for",
        "They were left in the training set without a prefix.",
        "128 training and 64 held-out problems, selected from 1,500 and 500 candidates",
        "14 cuts were redrawn",
        "3 were dropped",
        "qwen2, 826 k parameters",
        "method prefix_rl",
        "train.rate 0.001",
        "jax 0.10.2",
    ):
        assert words.replace(" ", "") in re.sub(r"\s", "", page.text), words


def test_headline_claims_only_what_the_intervals_allow(tmp_path):
    run = report.read_run(make_run(tmp_path))
    assert (
        report.headline(run).replace("\u00a0", " ")
        == "In 200 steps and 1.20 TFLOP (paper accounting, corpus included), plain accuracy on the"
        " 128 training problems rose from 0.12 % to 60.0 %; on the 64 held-out problems it rose"
        " from 0.2 % to 41.0 %."
    )
    run.summary["plain_pass_at_1_interval"]["train"]["before"] = [0.0, 0.56]
    run.summary["plain_pass_at_1"]["heldout"]["after"] = 0.0005
    run.summary["plain_pass_at_1_interval"]["heldout"]["after"] = [0.0, 0.0009]
    text = report.headline(run)
    assert "the intervals overlap" in text and "fell" in text and "rose" not in text
    del run.summary["plain_pass_at_1_interval"]
    assert report.headline(run).count("intervals not recorded") == 2
    run.summary["plain_pass_at_1"] = {"train": {"before": 0.1, "after": None}}
    assert "nothing can be said" in report.headline(run)


def test_samples_show_first_and_last_of_each_sort_escaped(whole):
    page = whole[1]
    run = report.read_run(whole[0])
    assert [(r["kind"], r["verdict"], r["when"]) for r in run.samples] == [
        ("plain", "wrong", "before training"),
        ("plain", "correct", "step 3"),
        ("plain", "wrong", "step 170"),
        ("plain", "correct", "after training"),
        ("prefixed", "wrong", "step 3"),
        ("prefixed", "correct", "step 3"),
        ("prefixed", "correct", "step 170"),
        ("prefixed", "unparsed", "after training"),
    ]
    assert (
        "<script>alert('x')</script> 3 < 4 & \u2407 ?" in page.text
        and "&lt;script&gt;" in page.source
    )
    assert page.source.count('class="text prefix">fill 5; pour 5 3;<') == 4
    assert page.source.count("✓ correct") == 4 and page.source.count("✗ unparsed") == 1
    assert page.source.count("cut at the length limit</span>") == 1
    assert "[11,000 more characters]" in page.text


def test_one_step_run(tmp_path):
    page = Page(report.write_report(make_run(tmp_path, steps=1)))
    assert "In 1 step and" in page.text and "Not drawn" not in page.text
    for name in FIGURES:
        assert decode_png((tmp_path / "figures" / f"{name}.png").read_bytes())[0] > 800


def test_missing_files_are_named_and_stale_figures_removed(tmp_path):
    make_run(tmp_path)
    report.write_report(tmp_path)
    for path in [
        tmp_path / "config.json",
        tmp_path / "summary.json",
        *(tmp_path / "samples").iterdir(),
    ]:
        path.unlink()
    page = Page(report.write_report(tmp_path))
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == {
        "accuracy",
        "groups",
        "lengths",
        "dynamics",
        "logprob_gap",
    }
    for words in (
        "config.json is missing.",
        "summary.json is missing.",
        "samples: there are none.",
        "summary.json has no FLOPs.",
        "Not drawn: summary.json has no pass_at_k.",
        "Not drawn: summary.json has no success_by_prefix_fraction.",
        "Peak memory of the process: not recorded.",
        "nothing can be said about what training did",
        "summary.json has no versions.",
    ):
        assert words in page.text, words
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"nothing to report.*metrics\.jsonl"):
        report.write_report(tmp_path)


def test_summary_alone_draws_what_it_can(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    page = Page(report.write_report(tmp_path))
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == {
        "accuracy",
        "prefix_fraction",
        "pass_at_k",
    }
    assert "metrics.jsonl is missing." in page.text and "an unrecorded number of steps" in page.text


def test_nan_cut_lines_and_repeats_are_told(tmp_path):
    make_run(tmp_path, steps=10)
    path = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["grad_norm"], rows[4]["grad_norm"], rows[5]["entropy"] = math.nan, math.inf, None
    rows.append({**rows[0], "entropy": 0.123})
    rows.append({"entropy": 1.0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 11, "entr')
    page = Page(report.write_report(tmp_path))
    for words in (
        "grad_norm is not a finite number at 2 of 10 steps.",
        "entropy is not a finite number at 1 of 10 steps.",
        "metrics.jsonl, line 13 is not a JSON object",
        "lines without a step, left out: 1.",
        "lines replaced by a later one of the same step: 1.",
    ):
        assert words in page.text, words
    run = report.read_run(tmp_path)
    assert [row["step"] for row in run.rows] == list(range(1, 11)) and run.rows[0][
        "entropy"
    ] == 0.123
    assert len(figures.series(run.rows, "step", "grad_norm")[0]) == 8


def emptied(tree, value):
    """`tree` with every leaf that is not a mapping replaced by `value`."""
    return {k: emptied(v, value) if isinstance(v, dict) else value for k, v in tree.items()}


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_summary_of_nothing_but_none_or_nan(tmp_path, value):
    (tmp_path / "summary.json").write_text(json.dumps(emptied(summary(), value)))
    page = Page(report.write_report(tmp_path))
    assert "nothing can be said" in page.text and page.text.count("Not drawn") == len(FIGURES)
    assert {cell for row in page.table("flops")[1:] for cell in row[1:]} == {"–"}
    (tmp_path / "summary.json").write_text(json.dumps(dict.fromkeys(summary(), None)))
    assert "summary.json has no FLOPs." in Page(report.write_report(tmp_path)).text


def test_contradictions_are_told(tmp_path):
    make_run(tmp_path)
    assert report.read_run(tmp_path).notes == []
    wrong = summary()
    wrong["flops"]["paper"]["total"] = 1.3e12
    (tmp_path / "summary.json").write_text(json.dumps(wrong))
    notes = " ".join(report.read_run(tmp_path).notes).replace("\u00a0", " ")
    assert "the paper total is 1.30 TFLOP but its parts add up to 1.20 TFLOP" in notes
    assert "metrics.jsonl has 1.20 TFLOP spent, summary.json has a total of 1.30 TFLOP" in notes


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not valid JSON"), ("[1]", "expected a JSON object, found list")]
)
def test_a_broken_summary_is_an_error_that_names_the_file(tmp_path, text, words):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=rf"summary\.json: {words}"):
        report.write_report(tmp_path)


def test_accuracy_goes_from_before_training_to_after_it(tmp_path):
    """The evaluation after the last step takes the place of the short one at it; the others stay
    between.
    """
    run = report.read_run(make_run(tmp_path))
    points = report.estimates(run, "train", CORPUS)
    assert points[0] == figures.Estimate(CORPUS, 0.00125, 0.0005, 0.003)
    assert points[-1] == figures.Estimate(CORPUS + 8e11, 0.6, 0.55, 0.64)
    assert len(points) == 9 and all(a.x < b.x for a, b in itertools.pairwise(points))
    run.rows.clear()
    assert report.estimates(run, "train", CORPUS) == points[:1]


def test_accuracy_axis_starts_at_zero_and_shades_the_corpus():
    evals = {"train": [figures.Estimate(4e11, 0.0), figures.Estimate(1.2e12, 0.6, 0.5, 0.7)]}
    figure = figures.accuracy(([5e11, 1.2e12], [0.0, 0.55]), evals, 4e11, figures.LIGHT)
    (ax,) = figure.axes
    assert ax.get_xlim()[0] == 0 and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] >= 0.7
    assert "TFLOP" in ax.get_xlabel() and [t.get_text() for t in ax.texts] == ["corpus\n0.4 TFLOP"]
    assert max(
        x for x, _ in ax.patches[0].get_extents().transformed(ax.transData.inverted()).get_points()
    ) == pytest.approx(0.4)
    (bar,) = [c for c in ax.containers if c.get_label() == "training problems"]
    assert bar[2][0].get_segments()[1][:, 1] == pytest.approx([0.5, 0.7])


def test_the_same_data_give_the_same_picture():
    rows = [{"step": step, "entropy": 1.0 / step} for step in range(1, 5)]
    first, again = (figures.png(lambda theme: figures.dynamics(rows, theme)) for _ in range(2))
    other = figures.png(lambda theme: figures.dynamics(rows[:3], theme))
    assert first == again and first != other
    assert (
        figures.png(lambda theme: figures.dynamics([{"step": 1, "entropy": math.nan}], theme))
        is None
    )


def test_log_axis_says_what_it_cannot_show():
    rows = [
        {"step": i, "sampler_trainer/logp_diff_max": v}
        for i, v in enumerate((0.0, 1e-6, 2e-6, math.nan), start=1)
    ]
    (ax,) = figures.logprob_gap(rows, figures.LIGHT).axes
    assert ax.get_yscale() == "log" and "(no gap at all at 1 of 3 steps)" in ax.get_title()
    assert list(ax.lines[0].get_ydata()) == [1e-6, 2e-6]
    (ax,) = figures.logprob_gap(rows[:1], figures.LIGHT).axes
    assert ax.get_yscale() == "linear"


def test_numbers_as_people_read_them():
    plain = {
        wording.amount(1.2e12, "FLOP"): "1.20 TFLOP",
        wording.amount(999.96e9, "FLOP"): "1.00 TFLOP",
        wording.amount(0, "FLOP"): "0 FLOP",
        wording.amount(99.96e6, "B"): "100 MB",
        wording.amount(12.34e20, "FLOP"): "1.23 ZFLOP",
        wording.amount(math.nan, "FLOP"): "–",
        wording.seconds(0.0123): "12.3 ms",
        wording.seconds(59.96): "1 min 0 s",
        wording.seconds(200): "3 min 20 s",
        wording.seconds(7199): "2 h 0 min",
        wording.seconds(90_000): "1 d 1 h",
        wording.seconds(None): "–",
        wording.percent(1.0): "100.0 %",
        wording.percent(0.00042): "0.042 %",
        wording.percent(0): "0.0 %",
        wording.percent(True): "–",
        wording.interval([0.1, None]): "–",
        wording.interval(None): "–",
        wording.count(12345): "12,345",
        wording.number(3.14159): "3.142",
    }
    assert {got.replace("\u00a0", " "): want for got, want in plain.items()} == {
        want: want for want in plain.values()
    }


def test_report_needs_no_jax():
    code = (
        "import sys, prefixrl_jax.report; sys.exit(any(sys.modules.get(m) for m in ('jax', 'torch',"
        " 'matplotlib.pyplot')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
