"""Work directories that were damaged, changed by hand, or are in use: nothing is silently wrong."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from runs import SMOKE, Command, differences, python

from prefixrl_jax.experiment.command import WRITTEN

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]


def run(workdir: Path, *flags: str) -> tuple[int, str]:
    """Runs the smoke configuration; returns the exit status and what was printed."""
    child = SMOKE.start(workdir, *flags)
    output = child.communicate()[0]
    return child.returncode, " ".join(output.split())


def damage(folder: Path) -> dict[Path, bytes]:
    """Cuts every file of a checkpoint's arrays to half; returns what the folder then holds."""
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return content(folder)


def content(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def newest(checkpoints: Path) -> Path:
    return max((p for p in checkpoints.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


@pytest.fixture
def copy(smoke_run, tmp_path) -> Path:
    """A copy of the finished smoke run."""
    return shutil.copytree(smoke_run, tmp_path / "run")


def test_training_does_not_start_from_another_base_than_the_corpus_was_made_with(copy, smoke_run):
    last = newest(copy / "base" / "checkpoints")
    damaged = damage(last)
    shutil.rmtree(copy / "checkpoints")
    for stage in ("train", "evaluate", "export", "report"):
        (copy / "stages" / f"{stage}.json").unlink()
    status, output = run(copy)
    assert status == 2
    assert f"the base stage ended with {last}" in output and "is damaged" in output
    assert "Traceback" not in output
    assert content(last) == damaged
    # What the message advises.
    last.rename(copy / "moved")
    (copy / "stages" / "base.json").unlink()
    status, output = run(copy)
    assert status == 0, output
    assert differences(copy, smoke_run) == []


def test_the_model_of_a_damaged_last_checkpoint_is_not_exported_nor_evaluated(copy, tmp_path):
    damaged = damage(newest(copy / "checkpoints"))
    export = ("-m", "prefixrl_jax.export", f"--workdir={copy}", f"--out={tmp_path / 'out'}")
    done = python(*export)
    assert done.returncode == 2, done.stderr
    assert "is damaged" in done.stderr and "--step=N takes another" in done.stderr
    assert not (tmp_path / "out").exists()
    assert python(*export, "--step=8").returncode == 0
    (copy / "stages" / "evaluate.json").unlink()
    status, output = run(copy)
    assert status == 2 and "the train stage ended with" in output, output
    assert content(newest(copy / "checkpoints")) == damaged


def test_files_are_made_again_from_what_is_sound(copy, smoke_run):
    """Products are removed; files that later stages read are changed."""
    shutil.rmtree(copy / "hf")
    (copy / "report.html").unlink()
    next((copy / "figures").glob("*.png")).unlink()
    prefixes = copy / "prefixes" / "prefixes.jsonl"
    first, *others = prefixes.read_text().splitlines(keepends=True)
    row = json.loads(first)
    row["token_ids"][0] += 1
    prefixes.write_text("".join([json.dumps(row) + "\n", *others[:-1]]))
    summary = copy / "corpus" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "solved": 0}))
    status, output = run(copy)
    assert status == 0, output
    for stage in ("corpus", "prefixes", "export", "report"):
        assert f"{stage} is made again: " in output
    assert "train is complete" in output
    assert differences(copy, smoke_run) == []
    for name in ("report.html", "corpus/summary.json", "prefixes/prefixes.jsonl"):
        assert (copy / name).exists()
    assert json.loads((copy / "corpus" / "summary.json.damaged").read_text())["solved"] == 0
    assert (copy / "prefixes" / "prefixes.jsonl.damaged").exists()
    assert {p.name for p in (copy / "figures").iterdir()} == {
        p.name for p in (smoke_run / "figures").iterdir()
    }


def test_a_run_is_not_asked_for_less_than_it_has_had(copy):
    before = content(copy / "stages")
    status, output = run(copy, "--config.train.steps=9")
    assert status == 2
    assert "train.steps=9: the run in" in output and "has had 10 steps" in output
    assert content(copy / "stages") == before


def test_beside_a_run_no_second_one_writes_and_an_export_changes_nothing(smoke_run, tmp_path):
    workdir = tmp_path / "run"
    first = SMOKE.start(workdir)
    while not list(workdir.glob("checkpoints/[0-9]*/_CHECKPOINT_METADATA")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    status, output = run(workdir)
    assert status == 2
    assert f"is in use by process {first.pid} on" in output and "Traceback" not in output
    out = tmp_path / "out"
    done = python("-m", "prefixrl_jax.export", f"--workdir={workdir}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").exists()
    output = first.communicate()[0]
    assert first.returncode == 0, output
    assert differences(workdir, smoke_run) == []


@pytest.mark.thorough
def test_a_run_that_was_killed_does_not_lock_the_next_one_out(tmp_path):
    first = SMOKE.start(tmp_path / "run")
    while not list((tmp_path / "run").glob("owner/*.json")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.kill()
    first.communicate()
    status, output = run(tmp_path / "run", "--stage=base", "--config.base.steps=2")
    assert status == 0 and f"taken over from process {first.pid}" in output, output


@pytest.mark.thorough
def test_a_failed_measurement_does_not_settle_its_fields(copy):
    """As if it had been killed in the middle: the right value must be accepted afterwards."""
    for stage in ("evaluate", "baseline", "export", "report"):
        (copy / "stages" / f"{stage}.json").unlink()
    command = Command(SMOKE.config, (*SMOKE.flags, "--stage=evaluate"))
    killed = command.start(copy, "--config.eval.samples=3", "--config.eval.k=(1,)")
    while not (copy / "stages" / "baseline.json").exists():
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    status, output = run(copy)
    assert status == 0, output


def test_a_checkpoint_of_another_step_is_not_taken_for_one_of_this(copy):
    checkpoints = copy / "checkpoints"
    (checkpoints / "10").rename(checkpoints / "12")
    status, output = run(copy, "--config.train.steps=12", "--stage=train")
    assert status == 0 and "it is of another step" in output, output
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 12
    assert (checkpoints / "12.damaged").exists()


@pytest.mark.parametrize("flag", ["--config.seed=77", "--config.base.learning_rate=0.1"])
def test_without_its_records_a_run_still_has_the_settings_it_was_made_with(copy, flag):
    shutil.rmtree(copy / "stages")
    status, output = run(copy, "--stage=base", flag)
    assert status == 2 and "made with other settings" in output, output
    status, output = run(copy, "--stage=base")
    assert status == 0, output


def test_a_comparison_and_a_run_do_not_share_a_directory(copy, tmp_path):
    report = (copy / "report.html").read_bytes()
    compare = ("-m", "prefixrl_jax.compare", "--config=configs/smoke.py", "--methods=rl")
    done = python(*compare, f"--workdir={copy}")
    assert done.returncode == 2 and "is the directory of a run" in done.stderr, done.stderr
    assert (copy / "report.html").read_bytes() == report
    copy.rename(tmp_path / "shared")
    status, output = run(tmp_path)
    assert status == 2 and "is the directory of a comparison" in output, output


@pytest.mark.parametrize("folder", ["checkpoints", "samples", "round-2"])
def test_no_run_begins_inside_another(copy, folder):
    status, output = run(copy / folder)
    assert status == 2 and "is inside the work directory of the run" in output, output


def test_rounds_by_one_command(copy):
    status, output = run(copy, "--config.rounds=2")
    assert status == 0 and (copy / "round-2" / "hf" / "config.json").exists(), output


@pytest.mark.parametrize("name", ["run[1]", "run*"])
def test_a_path_that_checkpoints_cannot_be_kept_in_is_refused_at_once(tmp_path, name):
    status, output = run(tmp_path / name)
    assert status == 2 and "checkpoints cannot be kept in a path with" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_a_disk_that_fails_for_a_moment_loses_nothing(copy):
    """The checkpoint is on a mount that is gone, and comes back."""
    last = newest(copy / "checkpoints")
    (copy / "stages" / "evaluate.json").unlink()
    last.rename(copy / "elsewhere")
    status, output = run(copy)
    assert status == 2 and f"no checkpoint of step {last.name}" in output, output
    (copy / "elsewhere").rename(last)
    assert run(copy)[0] == 0


@pytest.mark.parametrize("name", ["config.json", "corpus", "report.html", "hf"])
def test_a_folder_of_someones_own_files_is_no_work_directory(tmp_path, name):
    (tmp_path / "photos.txt").write_text("mine")
    (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    status, output = run(tmp_path)
    assert status == 2 and f"holds {name}, which no run has made" in output, output
    assert content(tmp_path) == before


def test_what_a_run_writes_is_known(smoke_run):
    names = {path.name for path in smoke_run.iterdir()} - {"owner", "stages", "xla_cache"}
    assert names <= set(WRITTEN)


def test_dry_run_writes_nothing(tmp_path):
    status, output = run(tmp_path / "run", "--dry_run")
    assert status == 0, output
    assert not (tmp_path / "run").exists()
