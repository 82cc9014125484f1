"""A work directory is of one configuration, and holds what its records say."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smoke_config import changed

from prefixrl_jax.config import flatten, get_config
from prefixrl_jax.experiment.records import StageRecords, WorkdirMismatch
from prefixrl_jax.experiment.stages import KEPT, NOT_COMPARED, READ_BACK, STAGES, fields_of
from prefixrl_jax.flops import Ledger


def finish_stages(workdir, config, last="train"):
    """Record all stages up to `last` as complete."""
    stages = StageRecords(workdir, config)
    for name in STAGES[: STAGES.index(last) + 1]:
        assert stages.begin(name) is None
        stages.finish(name, {"line": name}, 2.0)


def keep_work(workdir, folder):
    """Make it look as if a stage had made something, in the folder where it keeps it."""
    (workdir / folder).mkdir(parents=True)
    (workdir / folder / "1").touch()


def test_a_complete_stage_is_reused(tmp_path):
    finish_stages(tmp_path, changed())
    stages = StageRecords(tmp_path, changed())
    stages.check()
    for name in ("base", "corpus", "train"):
        assert stages.begin(name) == {"line": name}
    assert stages.begin("evaluate") is None
    assert not stages.record("evaluate")["complete"]


@pytest.mark.parametrize(
    ("fields", "stage", "message"),
    [
        ({"base__steps": 7}, "base", r"base\.steps: 120 there, 7 now"),
        (
            {"select__band": (0.0, 0.5)},
            "corpus",
            r"select\.band: \[0\.0, 1\.0\] there, \[0\.0, 0\.5\] now",
        ),
        ({"prefix__cuts": 5}, "prefixes", r"prefix\.cuts: 3 there, 5 now"),
        ({"train__group": 8}, "train", r"train\.group: 4 there, 8 now"),
    ],
)
def test_a_directory_of_another_configuration_is_refused(tmp_path, fields, stage, message):
    finish_stages(tmp_path, changed(base__steps=120))
    other = changed(**{"base__steps": 120, **fields})
    refusal = rf"{tmp_path} is of another configuration:\n  {message} \(stage {stage}\)"
    with pytest.raises(WorkdirMismatch, match=refusal):
        StageRecords(tmp_path, other).check()


def named_fields(mismatch):
    """Return the fields that a refusal names: one a line, between its first and last line."""
    return [line.split(":")[0].strip() for line in str(mismatch).splitlines()[1:-1]]


def test_all_differing_fields_are_named(tmp_path):
    finish_stages(tmp_path, changed(train__clip_low=0.2))
    other = changed(train__group=8, train__clip_low=0.1, eval__samples=99)
    with pytest.raises(WorkdirMismatch) as mismatch:
        StageRecords(tmp_path, other).check()
    assert named_fields(mismatch.value) == ["train.clip_low", "train.group"]


def test_more_steps_or_another_way_of_computing_is_no_difference(tmp_path):
    finish_stages(tmp_path, changed(), last="evaluate")
    more = changed(
        train__steps=99,
        train__micro_batches=4,
        checkpoint__every=5,
        sampling__rows=16,
        eval__every=1,
    )
    stages = StageRecords(tmp_path, more)
    stages.check()
    assert stages.begin("corpus") == {"line": "corpus"}
    # eval.every concerns the evaluations during training, and the baseline is none of them.
    assert stages.begin("baseline") == {"line": "baseline"}
    # With more steps, training has to go on and its result to be evaluated again.
    assert stages.begin("train") is None
    assert stages.begin("evaluate") is None
    assert stages.seconds("train") == 2.0


def test_an_interrupted_stage_keeps_its_time(tmp_path):
    stages = StageRecords(tmp_path, changed())
    stages.begin("base")
    stages.add_seconds("base", 3.0)
    assert StageRecords(tmp_path, changed()).begin("base") is None
    stages.finish("base", {}, 2.0)
    assert stages.seconds("base") == 5.0
    assert stages.seconds("corpus") == 0.0
    other = changed()
    other.seed = 1
    with pytest.raises(WorkdirMismatch, match="seed: 0 there, 1 now"):
        StageRecords(tmp_path, other).check()


FIELDS = [name for name in flatten(get_config()) if name != "task.name"]


@settings(max_examples=50)
@given(st.sets(st.sampled_from(FIELDS), max_size=4))
def test_a_directory_is_refused_for_exactly_the_fields_that_its_stages_read(
    tmp_path_factory, names
):
    directory = tmp_path_factory.mktemp("run")
    finish_stages(directory, get_config())
    other = get_config()
    for name in names:
        *sections, field = name.split(".")
        parent = other
        for section in sections:
            parent = parent[section]
        with other.ignore_type():
            parent[field] = "another value"
    stages = StageRecords(directory, other)
    differing = {n for n in names if n in fields_of(other, "train") and n not in NOT_COMPARED}
    if not differing:
        stages.check()
    else:
        with pytest.raises(WorkdirMismatch) as mismatch:
            stages.check()
        assert set(named_fields(mismatch.value)) == differing


def test_a_change_of_machine_within_a_stage_is_reported(tmp_path):
    first = {"jax": "1.0", "mesh": "2x2x2"}
    second = {"jax": "1.0", "mesh": "1x1x1"}
    StageRecords(tmp_path, changed(), machine=first).begin("base")
    stages = StageRecords(tmp_path, changed(), machine=second)
    assert stages.moved("base") == "mesh 2x2x2 before, 1x1x1 now"
    assert stages.moved("corpus") == ""
    stages.begin("base")
    assert stages.moved("base") == ""
    stages.finish("base", {}, 1.0)
    # A complete stage is used on any machine.
    assert StageRecords(tmp_path, changed(), machine=first).moved("base") == ""


def test_a_file_that_has_changed_is_refused_from_the_first_stage_that_reads_it(tmp_path):
    finish_stages(tmp_path, changed(), last="base")
    StageRecords(tmp_path, changed(), {"corpus": "b"}).check()
    StageRecords(tmp_path, changed(), {"corpus": "a"}).begin("corpus")
    keep_work(tmp_path, "corpus/log")
    message = "data (content of the problems): 'a' there, 'b' now (stage corpus)"
    with pytest.raises(WorkdirMismatch, match=re.escape(message)):
        StageRecords(tmp_path, changed(), {"corpus": "b"}).check()


def test_another_precision_is_refused_by_name(tmp_path):
    finish_stages(tmp_path, changed())
    with pytest.raises(WorkdirMismatch, match=r"model\.dtype: 'float32' there, 'bfloat16' now"):
        StageRecords(tmp_path, changed(model__dtype="bfloat16")).check()


def test_a_field_that_is_new_in_this_version_had_its_default(tmp_path):
    finish_stages(tmp_path, changed(), last="base")
    path = tmp_path / "stages" / "base.json"
    record = json.loads(path.read_text())
    del record["fields"]["model.remat"], record["fields"]["model.tie_embeddings"]
    del record["checksum"], record["files"], record["inputs"]
    path.write_text(json.dumps(record))
    StageRecords(tmp_path, changed()).check()
    assert StageRecords(tmp_path, changed()).begin("base") == {"line": "base"}
    with pytest.raises(WorkdirMismatch, match=r"model\.tie_embeddings: True there, False now"):
        StageRecords(tmp_path, changed(model__tie_embeddings=False)).check()


# What a stage was made from


def finish(workdir, config, stage, result):
    stages = StageRecords(workdir, config)
    assert stages.begin(stage) is None
    stages.finish(stage, result, 1.0)


def params(step, checksum):
    return {"params": {"step": step, "checksum": checksum}, "ledger": Ledger().state}


@pytest.mark.parametrize("again", [params(90, "a"), params(100, "b")])
def test_a_stage_made_from_other_parameters_is_refused(tmp_path, again):
    finish(tmp_path, changed(), "base", params(100, "a"))
    finish(tmp_path, changed(), "corpus", {})
    StageRecords(tmp_path, changed()).check()
    (tmp_path / "stages" / "base.json").unlink()
    finish(tmp_path, changed(), "base", again)
    words = r"corpus was made from the parameters of base at step 100 \(checksum a\)"
    with pytest.raises(WorkdirMismatch, match=words):
        StageRecords(tmp_path, changed()).check()
    with pytest.raises(WorkdirMismatch, match=words):
        StageRecords(tmp_path, changed()).begin("corpus")


def test_what_was_only_measured_with_other_parameters_is_measured_again(tmp_path):
    finish(tmp_path, changed(), "train", params(3, "a"))
    finish(tmp_path, changed(), "evaluate", {})
    assert StageRecords(tmp_path, changed()).begin("evaluate") == {}
    (tmp_path / "stages" / "train.json").unlink()
    finish(tmp_path, changed(), "train", params(3, "b"))
    stages = StageRecords(tmp_path, changed())
    stages.check()
    assert stages.begin("evaluate") is None


def test_training_cannot_be_taken_back(tmp_path):
    ledger = Ledger()
    ledger.add("paper", "train", 5e9)
    finish(tmp_path, changed(train__steps=8), "train", {**params(8, "a"), "ledger": ledger.state})
    for steps in (8, 9):
        StageRecords(tmp_path, changed(train__steps=steps)).check()
    with pytest.raises(WorkdirMismatch, match=r"train\.steps=7: .* has had 8 steps"):
        StageRecords(tmp_path, changed(train__steps=7)).check()
    StageRecords(tmp_path, changed(train__steps=8, train__flops_budget=6e9)).check()
    with pytest.raises(WorkdirMismatch, match=r"train\.flops_budget=4e\+09: .* has spent"):
        StageRecords(tmp_path, changed(train__steps=8, train__flops_budget=4e9)).check()


@pytest.mark.parametrize("stage", KEPT)
def test_a_stage_that_failed_before_it_had_made_anything_settles_no_field(tmp_path, stage):
    field = {"base": "base__batch", "corpus": "select__samples", "sft": "sft__epochs"}
    now = changed(sft__enabled=True)
    other = changed(sft__enabled=True, **{field.get(stage, "train__group"): 77})
    StageRecords(tmp_path, now).begin(stage)
    StageRecords(tmp_path, other).check()
    keep_work(tmp_path, KEPT[stage][0])
    with pytest.raises(WorkdirMismatch):
        StageRecords(tmp_path, other).check()


@pytest.mark.parametrize("stage", [name for name in STAGES if name not in KEPT])
def test_a_failed_measurement_settles_no_field(tmp_path, stage):
    StageRecords(tmp_path, changed(eval__samples=1)).begin(stage)
    StageRecords(tmp_path, changed(eval__samples=2)).check()


# What it has left


def corpus_files(workdir, word="as written"):
    for name in (*READ_BACK["corpus"], "corpus/dataset/data-0", "corpus/dataset/info.json"):
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} {word}")


def finished_corpus(workdir, result=None):
    stages = StageRecords(workdir, changed())
    assert stages.begin("corpus") is None
    corpus_files(workdir)
    stages.finish("corpus", result or {"solved": 3}, 1.0)
    assert StageRecords(workdir, changed()).begin("corpus") == (result or {"solved": 3})
    return stages


@pytest.mark.parametrize("name", [*READ_BACK["corpus"], "corpus/dataset/data-0"])
@pytest.mark.parametrize("damage", ["one byte", "cut", "empty", "gone"])
def test_a_stage_whose_files_are_not_as_written_is_made_again(tmp_path, capsys, name, damage):
    stages = finished_corpus(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    damaged = {"one byte": b"X" + whole[1:], "cut": whole[:-1], "empty": b""}.get(damage)
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    assert stages.begin("corpus") is None
    assert f"corpus is made again: {path}" in capsys.readouterr().out.replace("\n", "")
    if damaged is not None:  # it is still there, under another name
        folder = "corpus/dataset"
        aside = name.replace(folder, f"{folder}.damaged") if folder in name else f"{name}.damaged"
        assert (tmp_path / aside).read_bytes() == damaged
    corpus_files(tmp_path)
    stages.finish("corpus", {"solved": 3}, 1.0)
    assert stages.begin("corpus") == {"solved": 3}


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("word", "solved"), [("as written", 2), ("otherwise", 3)])
def test_a_stage_that_others_were_made_from_must_come_out_as_it_was(
    tmp_path, after, killed, word, solved
):
    stages = finished_corpus(tmp_path)
    if after:
        stages.begin("train")
        keep_work(tmp_path, "checkpoints")
    (tmp_path / "corpus" / "summary.json").write_text("{}")
    for _ in range(1 + killed):
        assert stages.begin("corpus") is None
    corpus_files(tmp_path, word)
    if not after:
        stages.finish("corpus", {"solved": solved}, 1.0)
        return
    with pytest.raises(WorkdirMismatch, match="came out otherwise; train were made from it"):
        stages.finish("corpus", {"solved": solved}, 1.0)
    assert stages.begin("corpus") is None


@pytest.mark.parametrize("name", ["hf/model.safetensors", "hf"])
def test_a_product_that_is_gone_is_made_again(tmp_path, name):
    stages = StageRecords(tmp_path, changed())
    assert stages.begin("export") is None
    (tmp_path / "hf").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / file).write_text(file)
    stages.finish("export", {}, 1.0)
    assert stages.begin("export") == {}
    (tmp_path / name).rename(tmp_path / "moved")
    assert stages.begin("export") is None


def test_a_product_that_a_user_has_changed_stays(tmp_path, capsys):
    stages = StageRecords(tmp_path, changed())
    stages.begin("export")
    (tmp_path / "hf").mkdir()
    card = tmp_path / "hf" / "README.md"
    card.write_text("a card")
    stages.finish("export", {}, 1.0)
    card.write_text("a better card")
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    assert stages.begin("export") == {}
    assert "it is left as it is" in capsys.readouterr().out
    assert card.read_text() == "a better card"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'{"complete": true}',
        b'{"complete": "yes", "fields": {}}',
        b'{"complete": true, "fields": []}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_record_is_named_with_what_to_do(tmp_path, content):
    finish_stages(tmp_path, changed(), last="corpus")
    path = tmp_path / "stages" / "corpus.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: .* move it away") as refusal:
        StageRecords(tmp_path, changed()).check()
    assert "\n" not in str(refusal.value)


def test_a_record_that_was_changed_is_refused(tmp_path):
    finish_stages(tmp_path, changed(), last="corpus")
    path = tmp_path / "stages" / "corpus.json"
    path.write_text(path.read_text().replace('"seconds": 2.0', '"seconds": 1.0'))
    with pytest.raises(ValueError, match="its checksum is another"):
        StageRecords(tmp_path, changed()).check()
