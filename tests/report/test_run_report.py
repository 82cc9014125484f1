"""The page of a run: figures, numbers, escaped text, and the names of what is missing."""

from __future__ import annotations

import base64
import html.parser
import json
import math
import pathlib
import re
import struct
import subprocess
import sys
import zlib

import pytest
from synthetic import make_run, summary

from prefixrl_jax import report
from prefixrl_jax.report.plotting import series
from prefixrl_jax.report.records import read_run
from prefixrl_jax.report.run_report import headline, write_report

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


class Page(html.parser.HTMLParser):
    """A page's visible text, and the attributes that load something; asserts that tags close."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.loads: list[str] = []
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
    return workdir, Page(write_report(workdir))


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
    run = read_run(make_run(tmp_path))
    assert (
        headline(run).replace("\u00a0", " ")
        == "In 200 steps and 1.20 TFLOP (paper accounting, corpus included), plain accuracy on the"
        " 128 training problems rose from 0.12 % to 60.0 %; on the 64 held-out problems it rose"
        " from 0.2 % to 41.0 %."
    )
    run.summary["plain_pass_at_1_interval"]["train"]["before"] = [0.0, 0.56]
    run.summary["plain_pass_at_1"]["heldout"]["after"] = 0.0005
    run.summary["plain_pass_at_1_interval"]["heldout"]["after"] = [0.0, 0.0009]
    text = headline(run)
    assert "the intervals overlap" in text and "fell" in text and "rose" not in text
    del run.summary["plain_pass_at_1_interval"]
    assert headline(run).count("intervals not recorded") == 2
    run.summary["plain_pass_at_1"] = {"train": {"before": 0.1, "after": None}}
    assert "nothing can be said" in headline(run)


def test_samples_are_escaped_marked_and_cut(whole):
    page = whole[1]
    assert (
        "<script>alert('x')</script> 3 < 4 & \u2407 \\ud83d" in page.text
        and "&lt;script&gt;" in page.source
    )
    assert page.source.count('class="text prefix">fill 5; pour 5 3;<') == 4
    assert page.source.count("✓ correct") == 4 and page.source.count("✗ unparsed") == 1
    assert page.source.count("cut at the length limit</span>") == 1
    assert "[11,000 more characters]" in page.text


def test_one_step_run(tmp_path):
    page = Page(write_report(make_run(tmp_path, steps=1)))
    assert "In 1 step and" in page.text and "Not drawn" not in page.text
    for name in FIGURES:
        assert decode_png((tmp_path / "figures" / f"{name}.png").read_bytes())[0] > 800


def test_missing_files_are_named_and_stale_figures_removed(tmp_path):
    make_run(tmp_path)
    write_report(tmp_path)
    for path in [
        tmp_path / "config.json",
        tmp_path / "summary.json",
        *(tmp_path / "samples").iterdir(),
    ]:
        path.unlink()
    page = Page(write_report(tmp_path))
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
        write_report(tmp_path)


def test_summary_alone_draws_what_it_can(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    page = Page(write_report(tmp_path))
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
    page = Page(write_report(tmp_path))
    for words in (
        "grad_norm is not a finite number at 2 of 10 steps.",
        "entropy is not a finite number at 1 of 10 steps.",
        "metrics.jsonl, line 13 is not a JSON object",
        "lines without a step, left out: 1.",
        "lines replaced by a later one of the same step: 1.",
    ):
        assert words in page.text, words
    run = read_run(tmp_path)
    assert [row["step"] for row in run.rows] == list(range(1, 11)) and run.rows[0][
        "entropy"
    ] == 0.123
    assert len(series(run.rows, "step", "grad_norm")[0]) == 8


def emptied(tree, value):
    """`tree` with every leaf that is not a mapping replaced by `value`."""
    return {k: emptied(v, value) if isinstance(v, dict) else value for k, v in tree.items()}


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_summary_of_nothing_but_none_or_nan(tmp_path, value):
    (tmp_path / "summary.json").write_text(json.dumps(emptied(summary(), value)))
    page = Page(write_report(tmp_path))
    assert "nothing can be said" in page.text and page.text.count("Not drawn") == len(FIGURES)
    assert {cell for row in page.table("flops")[1:] for cell in row[1:]} == {"–"}
    (tmp_path / "summary.json").write_text(json.dumps(dict.fromkeys(summary(), None)))
    assert "summary.json has no FLOPs." in Page(write_report(tmp_path)).text


def test_no_module_of_the_reports_needs_jax():
    names = [path.stem for path in pathlib.Path(report.__file__).parent.glob("*.py")]
    assert "run_report" in names and "comparison_report" in names
    heavy = ("jax", "torch", "matplotlib.pyplot")
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(f"prefixrl_jax.report.{{name}}")
sys.exit(" ".join(name for name in {heavy} if sys.modules.get(name)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
