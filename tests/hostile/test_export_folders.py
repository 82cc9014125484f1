"""Exports lose nobody's files: into which folders they go, what they replace, and what a kill at
any moment leaves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import words
from tiny_models import TINY, random_params

from prefixrl_jax.api import LM
from prefixrl_jax.model import export_folder
from prefixrl_jax.model.export_folder import STAGING, check_target
from prefixrl_jax.model.export_target import MANIFEST
from prefixrl_jax.model.hf import export_hf, import_hf
from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.runtime.mesh import make_mesh

ONE_LAYER = dataclasses.replace(TINY, num_layers=1)
PARAMS = random_params(ONE_LAYER)
TOKENIZER = word_tokenizer(words(33))
RUN = {"task": {}, "model": {}, "sampling": {}, "train": {}}  # sections of a run's config.json


def export(directory: Path, card: str = "", **arguments) -> None:
    """Exports a model of one layer."""
    export_hf(PARAMS, ONE_LAYER, TOKENIZER, directory, card=card, **arguments)


def contents(directory: Path) -> dict[str, str]:
    """Every file and link below a folder, with what it holds."""
    return {
        str(path.relative_to(directory)): (
            os.readlink(path)
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """An export, to be copied."""
    directory = tmp_path_factory.mktemp("exported") / "out"
    export(directory, "first")
    return directory


@pytest.fixture
def out(exported, tmp_path) -> Path:
    """An earlier export with a file of the user's beside."""
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    return tmp_path / "out"


# Folders that are refused


def a_file(path):
    path.write_text("mine")


def a_link(path):
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def a_dangling_link(path):
    path.symlink_to("nowhere")


def a_link_to_a_file(path):
    a_file(path.parent / "file")
    path.symlink_to("file")


def a_file_above(path):
    a_file(path.parent / "x")


def holding(name: str, content: str = "mine"):
    def make(path):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_text(content)

    make.__name__ = f"holding {name}"
    return make


def holding_a_link(path):
    path.mkdir()
    (path / "config.json").symlink_to("/etc/hostname")


def holding_a_folder(path):
    (path / "model.safetensors").mkdir(parents=True)
    (path / "model.safetensors" / "mine").write_text("mine")


def a_work_directory(path):
    holding("config.json", json.dumps(RUN))(path)


def a_work_directory_without_configuration(path):
    holding("stages/corpus.json", "{}")(path)


def above_a_work_directory(path):
    holding("config.json", json.dumps(RUN))(path / "run")


def foreign_leftover(path):
    holding(f"{STAGING}/thesis.tex")(path)


def leftover_with_a_foreign_file(path):
    manifest = {"program": "prefixrl_jax.export", "files": {"config.json": []}}
    holding(f"{STAGING}/{MANIFEST}", json.dumps(manifest))(path)
    (path / STAGING / "thesis.tex").write_text("mine")


def a_linked_leftover(path):
    path.mkdir()
    (path.parent / "elsewhere").mkdir()
    (path / STAGING).symlink_to("../elsewhere")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_file, "out: a file; a folder or a name that is not taken is accepted"),
        (a_link, "out: a symbolic link to elsewhere; the folder itself is accepted"),
        (a_dangling_link, "out: a symbolic link to nowhere"),
        (a_link_to_a_file, "out: a symbolic link to file"),
        (holding("README.md"), "README.md would be replaced, which no export"),
        (holding("config.json"), "config.json would be replaced"),
        (holding("tokenizer.json"), "tokenizer.json would be replaced"),
        (holding("model-00001-of-00002.safetensors"), "00002.safetensors would be replaced"),
        (holding("model.safetensors.index.json"), "index.json would be replaced"),
        (holding("adapter_config.json"), "adapter_config.json would be replaced"),
        (holding_a_link, "config.json would be replaced"),
        (holding_a_folder, "model.safetensors would be replaced"),
        (holding(MANIFEST), f"{MANIFEST}: not the list of files of an earlier export"),
        (holding(MANIFEST, "{}"), f"{MANIFEST}: not the list of files"),
        (holding(MANIFEST, '{"files": []}'), f"{MANIFEST}: not the list of files"),
        (a_work_directory, "out: belongs to the run in .*out; a folder outside of it"),
        (a_work_directory_without_configuration, "out: belongs to the run in"),
        (above_a_work_directory, "out: holds the run run; a folder without runs"),
        (foreign_leftover, f"{STAGING}: thesis.tex was not left by an export"),
        (leftover_with_a_foreign_file, f"{STAGING}: thesis.tex was not left by an export"),
        (a_linked_leftover, f"{STAGING}: it was not left by an export"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_ours_is_refused_and_left_as_it_is(make, message, tmp_path):
    make(tmp_path / "out")
    before = contents(tmp_path)
    for refusing in (check_target, export):
        with pytest.raises(ValueError, match=message):
            refusing(tmp_path / "out")
        assert contents(tmp_path) == before


@pytest.mark.parametrize("inside", ["out", "base", "corpus/out", "checkpoints", "hf/out", "stages"])
def test_folders_in_a_work_directory_are_refused(inside, tmp_path):
    a_work_directory(tmp_path / "run")
    (tmp_path / "run" / inside).mkdir(parents=True)
    for path in (tmp_path / "run" / inside, tmp_path / "run" / inside / "new"):
        with pytest.raises(ValueError, match=r"belongs to the run in .*run; a folder outside"):
            export(path)
    # by way of a link too
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(ValueError, match="belongs to the run"):
        export(tmp_path / "link" / inside)
    assert list(contents(tmp_path / "run")) == ["config.json"]


def test_a_file_in_the_path_and_a_folder_without_permission_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"file is in the way, which is not a folder"):
        check_target(tmp_path / "file" / "out")
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="closed is not writable"):
            check_target(tmp_path / "closed" / "out")


# Folders that are written to


def test_files_of_others_stay_and_an_earlier_export_is_replaced_whole(out):
    export(out, "second", max_shard_bytes=9000)
    assert (out / "notes.txt").read_text() == "mine"
    assert "second" in (out / "README.md").read_text()
    assert not (out / "model.safetensors").exists()  # it would be read in place of the shards
    export(out, "third")
    assert not list(out.glob("model-*")) and not (out / "model.safetensors.index.json").exists()
    loaded, _ = import_hf(out)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, loaded, PARAMS))
    manifest = json.loads((out / MANIFEST).read_text())["files"]
    assert {*manifest, MANIFEST, "notes.txt"} == {path.name for path in out.iterdir()}


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
@pytest.mark.parametrize("change", ["longer", "same size", "link"])
def test_a_file_that_was_changed_since_is_not_replaced(name, change, out):
    file = out / name
    data = file.read_bytes()
    if change == "link":
        file.rename(out / "kept")
        file.symlink_to("kept")
    else:
        file.write_bytes(data + b" " if change == "longer" else data[:-1] + b"\0")
    before = contents(out)
    with pytest.raises(ValueError, match=f"{name} would be replaced, .*changed since"):
        export(out, "second")
    assert contents(out) == before


def test_a_file_that_appears_or_changes_during_the_export_is_not_replaced(out, monkeypatch):
    begin = export_folder.ExportWriter.begin

    def interfere(writer, names):
        begin(writer, names)
        (out / "README.md").write_text("mine")

    monkeypatch.setattr(export_folder.ExportWriter, "begin", interfere)
    with pytest.raises(ValueError, match=r"README\.md changed while the export was prepared"):
        export(out, "second")
    assert (out / "README.md").read_text() == "mine"
    (out / "README.md").unlink()
    for path in out.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"README\.md would be replaced"):
        export(out)
    assert [path.name for path in out.iterdir()] == ["README.md"]


def test_the_manifest_of_a_stranger_cannot_name_files_outside(out, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    manifest = json.loads((out / MANIFEST).read_text())
    for name in ("../victim", str(victim), "a/../../victim", "..", "", ".", "x\0y", "a/b/c"):
        manifest["files"][name] = [{"bytes": 4, "sha256": digest}]
    for odd in (None, 5, "x", {}, [None], [{"bytes": "4"}]):
        manifest["files"]["notes.txt"] = odd
        (out / MANIFEST).write_text(json.dumps(manifest))
        export(shutil.copytree(out, tmp_path / f"copy{odd!s}"), "second")
    assert victim.read_text() == "mine"


def test_save_pretrained_writes_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "notebook.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    lm = LM(PARAMS, ONE_LAYER, TOKENIZER, make_mesh(), (2,))
    for _ in range(2):
        lm.save_pretrained(".")
    assert {"notebook.ipynb", "config.json", MANIFEST} <= {p.name for p in tmp_path.iterdir()}
    assert import_hf(".")[1].num_layers == 1


def test_a_template_in_a_folder_of_its_own_is_replaced_too(tmp_path):
    tokenizer = word_tokenizer(words(33))
    tokenizer.chat_template = {"default": "a", "tools": "b"}
    export_hf(PARAMS, ONE_LAYER, tokenizer, tmp_path / "out")
    (template,) = (tmp_path / "out").rglob("tools.jinja")
    assert template.parent != tmp_path / "out"
    export(tmp_path / "out")
    assert not template.parent.exists()


@pytest.mark.parametrize("without_manifest", [False, True])
def test_the_export_of_a_run_replaces_its_own_earlier_one(without_manifest, exported, tmp_path):
    a_work_directory(tmp_path / "run")
    hf = shutil.copytree(exported, tmp_path / "run/hf")
    if without_manifest:  # of version 0.1.0
        (hf / MANIFEST).unlink()
    (hf / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="belongs to the run"):
        export(hf, "of another model")
    export(hf, "second", of_run=True)
    assert "second" in (hf / "README.md").read_text() and (hf / MANIFEST).exists()
    assert (hf / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="belongs to the run"):
        check_target(hf)


def test_without_a_manifest_only_an_export_of_a_run_is_recognised(exported, tmp_path):
    a_work_directory(tmp_path / "run")
    for directory in (tmp_path / "run/hf", tmp_path / "out"):
        shutil.copytree(exported, directory)
        (directory / MANIFEST).unlink()
    (tmp_path / "run/hf/README.md").write_text("# A model of mine")
    for directory in (tmp_path / "run/hf", tmp_path / "out"):
        with pytest.raises(ValueError, match=r"README\.md, config\.json.* would be replaced"):
            check_target(directory, of_run=True)


# Weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_exported(value, out):
    broken = jax.tree.map(lambda x: x, PARAMS)
    kernel = broken["layers"]["mlp"]["up"]["kernel"]
    broken["layers"]["mlp"]["up"]["kernel"] = kernel.at[0, 3, 5].set(value)
    before = contents(out)
    with pytest.raises(ValueError, match=r"not exported to .*out: layers\.mlp\.up\.kernel hold"):
        export_hf(broken, ONE_LAYER, TOKENIZER, out)
    assert contents(out) == before


def test_weights_too_large_for_the_stored_precision_are_not_exported(tmp_path):
    large = jax.tree.map(lambda x: x, PARAMS)
    large["final_norm"]["scale"] = large["final_norm"]["scale"].at[0].set(1e5)
    with pytest.raises(ValueError, match=r"final_norm\.scale hold .*infinite in float16"):
        export_hf(large, ONE_LAYER, TOKENIZER, tmp_path / "out", dtype="float16")
    export_hf(large, ONE_LAYER, TOKENIZER, tmp_path / "out", dtype="bfloat16")


# Kills and full disks


class Killed(BaseException):
    """Stands for the end of the process: no handler may tidy up after it."""


CALLS = ("replace", "unlink", "mkdir", "rmdir", "open")


def call_log(monkeypatch, log: list[str], fatal: int | None, error: BaseException) -> None:
    """Counts the calls that change the file system; the one numbered `fatal` and all after raise.

    A killed process does nothing any more: not even what its handlers would do.
    """
    for name in CALLS:
        original = getattr(os, name)

        def call(*args, _name=name, _original=original, **kwargs):
            log.append(f"{_name} {args[0]}")
            is_late = fatal is not None and len(log) > fatal
            if is_late and (isinstance(error, Killed) or len(log) == fatal + 1):
                raise error
            return _original(*args, **kwargs)

        monkeypatch.setattr(os, name, call)


def visible(files: dict[str, str]) -> dict[str, str]:
    """What a loader may read."""
    return {
        name: content
        for name, content in files.items()
        if name != MANIFEST and not name.startswith(STAGING)
    }


def test_a_kill_at_any_moment_leaves_the_old_export_or_the_new_one(out, tmp_path, monkeypatch):
    def attempt(directory: Path, fatal: int | None, error: BaseException) -> list[str]:
        log: list[str] = []
        with monkeypatch.context() as patch:
            # what has nothing to do with the folder
            patch.setattr("prefixrl_jax.model.hf.text_files", lambda *_: texts)
            call_log(patch, log, fatal, error)
            try:
                export(directory, "second", max_shard_bytes=9000)
            except (Killed, OSError):
                assert fatal is not None
        return log

    export(tmp_path / "new", "second", max_shard_bytes=9000)
    texts = {
        path.name: path.read_bytes()
        for path in (tmp_path / "new").iterdir()
        if path.suffix != ".safetensors"
        and path.name not in (MANIFEST, "model.safetensors.index.json")
    }
    old, new = contents(out), contents(tmp_path / "new") | {"notes.txt": contents(out)["notes.txt"]}
    calls = attempt(shutil.copytree(out, tmp_path / "counted"), None, Killed())
    assert len(calls) > 20
    outcomes = []
    for fatal in range(len(calls)):
        for error in (Killed(), OSError(28, "No space left on device")):
            directory = shutil.copytree(out, tmp_path / f"{fatal}{type(error).__name__}")
            attempt(directory, fatal, error)
            left = contents(directory)
            assert left["notes.txt"] == old["notes.txt"]
            if "config.json" in left:  # then it is one of the two, whole
                assert visible(left) in (visible(old), visible(new)), (fatal, calls[fatal])
            outcomes.append(visible(left))
            attempt(directory, None, Killed())
            assert contents(directory) == new, (fatal, calls[fatal])
            shutil.rmtree(directory)
    assert visible(old) in outcomes and visible(new) in outcomes


def test_two_exports_to_one_folder_do_not_mix(tmp_path, monkeypatch):
    finish = export_folder.ExportWriter.commit

    def meanwhile(writer):
        with pytest.raises(ValueError, match="another process is writing an export there"):
            export_folder.ExportWriter(tmp_path / "out")
        finish(writer)

    monkeypatch.setattr(export_folder.ExportWriter, "commit", meanwhile)
    export(tmp_path / "out")
    assert import_hf(tmp_path / "out")[1].num_layers == 1
