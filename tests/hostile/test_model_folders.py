"""Model folders from the internet: whatever is in them, they are read, or refused in one sentence,
in bounded time and memory, and nothing of them is executed.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import resource
import shutil
import struct
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from chat_folder import byte_tokenizer
from families import VOCAB, configuration, tensors, words
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from prefixrl_jax.model.chat_template import ChatTemplate
from prefixrl_jax.model.checkpoint_files import INDEX, SINGLE
from prefixrl_jax.model.folder_files import read_object
from prefixrl_jax.model.gguf import GGUF
from prefixrl_jax.model.gguf_layout import check_layout
from prefixrl_jax.model.hf import import_hf, pretrained_config
from prefixrl_jax.model.hf_config import eos_ids, model_config_from_hf
from prefixrl_jax.model.hub import find_model, stop_ids, tokenizer_of
from prefixrl_jax.model.templates import render, render_chat
from prefixrl_jax.model.text_growth import check_growth
from prefixrl_jax.model.tokenizer import word_tokenizer

FAMILY = "llama_tied"
CONFIG = json.loads(configuration(FAMILY).to_json_string())
SECONDS = 5.0  # that any refusal may take
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A model folder as it should be."""
    directory = tmp_path_factory.mktemp("whole")
    save_file(tensors(FAMILY), directory / SINGLE)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(autouse=True)
def bounded():
    """Fails what takes long or makes the process much larger."""
    start, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_000_000  # KiB
    assert time.monotonic() - start < 60


def refusal(action, *arguments) -> str:
    """The message with which something is refused: one line, soon, and never a traceback."""
    start = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        action(*arguments)
    assert time.monotonic() - start < SECONDS
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message and len(message) < 6000, message
    return message


# config.json


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": None}, "rope_theta=None: a number from 1 to 1e\\+12"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4'"),
        ({"rope_theta": [1e4]}, r"rope_theta=\[10000.0\]"),
        ({"rope_theta": True}, "rope_theta=True"),
        ({"rope_theta": 0}, "rope_theta=0"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
        ({"rope_theta": 10**400}, "rope_theta=1000"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps=-1e-05"),
        *[
            ({name: odd}, f"{name}=.*: a number from ")
            for name, values in {
                "rope_theta": (1e-300, 0.5, 1e30, 1e300),
                "rms_norm_eps": (0, 1e-300, 2, 1e300),
            }.items()
            for odd in values
        ],
        *[
            ({"max_position_embeddings": odd}, "max_position_embeddings=.*: an integer from 1")
            for odd in ("many", -1, 0, 2.5, True, [4], 2**31)
        ],
        *[
            ({"rope_scaling": LLAMA3 | {name: odd}}, f"{name}=.*: a number from 0.001")
            for name in ("factor", "low_freq_factor", "high_freq_factor")
            for odd in (1e-300, 1e300)
        ],
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false': true or false"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings=None"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1"),
        ({"attention_bias": "false"}, "attention_bias='false'"),
        ({"mlp_bias": "false"}, "mlp_bias='false' is not supported"),
        ({"use_sliding_window": "no"}, "use_sliding_window='no'"),
        (
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": "2"},
            "max_window_layers='2': an integer",
        ),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: an integer from 1 to 2000"),
        ({"num_hidden_layers": 2000}, "tensors missing: model.layers.10.input.* and [0-9]+ more"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_hidden_layers": -2}, "num_hidden_layers=-2"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers=2.0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers='2'"),
        ({"num_hidden_layers": [2]}, r"num_hidden_layers=\[2\]"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
        ({"hidden_size": {}}, "hidden_size={}"),
        ({"vocab_size": 2**40}, "vocab_size=1099511627776"),
        ({"intermediate_size": "x" * 10**6}, r"intermediate_size='x+\.\.\.x+': an integer"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_key_value_heads": 3}, "num_heads=4 is not a multiple of model.num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7"),
        (
            {"architectures": "LlamaForCausalLM"},
            "architectures='LlamaForCausalLM': a list of texts",
        ),
        ({"architectures": [["x"]]}, "architectures="),
        ({"architectures": {"x": 1}}, "architectures="),
        ({"architectures": None, "model_type": ["llama"]}, r"model_type=\['llama'\]"),
        ({"architectures": ["EvilModel"], "auto_map": {"AutoModel": "evil.py"}}, "EvilModel"),
        ({"layer_types": "full_attention"}, "layer_types='full_attention': a list of texts"),
        ({"layer_types": [None]}, r"layer_types=\[None\]"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear': an object or null"),
        ({"rope_scaling": [1]}, r"rope_scaling=\[1\]"),
        ({"rope_scaling": {"rope_type": "novel"}}, "'novel'"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "'llama3'"),
        ({"rope_scaling": {"rope_type": None}}, "None"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": "8",
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 32,
                }
            },
            "factor='8'",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 32,
                }
            },
            "low_freq_factor=4.0 must be less than",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 32.5,
                }
            },
            "original_max_position_embeddings=32.5",
        ),
        ({"quantization_config": {"x": "y" * 10**6}}, "quantization_config="),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_field_of_config_json_that_cannot_be_is_named(change, message, folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    for action in (pretrained_config, import_hf):
        assert re.search(message, refusal(action, folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"null", "a JSON object is accepted, not None"),
        (b"[]", "a JSON object is accepted"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\x80\x04pickle", "not valid JSON"),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("name", ["config.json", INDEX, "generation_config.json"])
def test_json_that_is_none_is_refused_by_file(name, content, message, folder):
    (folder / name).write_bytes(content)
    tokenizer = word_tokenizer(["a"])
    action = (lambda: stop_ids(folder, tokenizer)) if "gen" in name else lambda: import_hf(folder)
    assert re.search(f"{re.escape(name)}: .*{message}", refusal(action))


def test_a_json_file_without_end_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**11)  # sparse
    assert "at most" in refusal(import_hf, tmp_path)
    os.mkfifo(tmp_path / "fifo")  # reading it would wait for ever
    (tmp_path / "config.json").unlink()
    (tmp_path / "fifo").rename(tmp_path / "config.json")
    assert "no config.json" in refusal(import_hf, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted({*CONFIG, "rope_scaling", "head_dim"})), JSON))
def test_any_config_json_is_read_or_refused(change):
    start = time.monotonic()
    try:
        model_config_from_hf(CONFIG | change)
    except ValueError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - start < SECONDS


# The index and the safetensors files


def with_index(folder: Path, index: object) -> None:
    """Gives a folder an index."""
    (folder / INDEX).write_text(json.dumps(index))


NAMES = list(tensors(FAMILY))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map=None; an object that maps"),
        ({"weight_map": None}, "weight_map=None"),
        ({"weight_map": {}}, "weight_map={}"),
        ({"weight_map": []}, r"weight_map=\[\]"),
        ({"weight_map": "model.safetensors"}, "weight_map='model.safetensors'"),
        ({"weight_map": {"a": None}}, "puts 'a' into None; the name of a .safetensors file"),
        ({"weight_map": {"a": 5}}, "into 5"),
        ({"weight_map": {"a": ""}}, "into ''"),
        ({"weight_map": {"a": ".."}}, r"into '\.\.'"),
        ({"weight_map": {"a": "../other/model.safetensors"}}, "into '../other/model.safetensors'"),
        ({"weight_map": {"a": "{tmp}/other/model.safetensors"}}, "other/model.safetensors'; the"),
        ({"weight_map": {"a": "..\\other\\model.safetensors"}}, "model.safetensors'; the name"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "into 'pytorch_model.bin'"),
        ({"weight_map": {"a": "model.pt"}}, "into 'model.pt'"),
        ({"weight_map": {"a": "x\0.safetensors"}}, "into"),
        ({"weight_map": {"a": "x" * 300 + ".safetensors"}}, "into"),
        ({"weight_map": {"a": "x\ud800.safetensors"}}, "into 'x.ud800.safetensors'; the name"),
        ({"weight_map": {"a": "\udc80.safetensors"}}, "into '.udc80.safetensors'"),
        ({"weight_map": {"a": "absent.safetensors"}}, "absent.safetensors: not found"),
        ({"weight_map": {"a": "link.safetensors"}}, "link.safetensors: a link to .*other"),
        ({"weight_map": {"a": "folder.safetensors"}}, "folder.safetensors: not a file"),
        ({"weight_map": {"a": "model.safetensors"}}, "'a' is in model.safetensors, which holds no"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_an_index_names_files_of_its_folder_alone(index, message, folder, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "other")
    (folder / "link.safetensors").symlink_to(tmp_path / "other" / SINGLE)
    (folder / "folder.safetensors").mkdir()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Executed()))
    (folder / "model.pt").write_bytes(pickle.dumps(Executed()))
    with_index(folder, json.loads(json.dumps(index).replace("{tmp}", str(tmp_path))))
    for action in (pretrained_config, import_hf):
        assert re.search(message, refusal(action, folder))
    assert not Executed.happened


class Executed:
    """Says when it was unpickled."""

    happened = False

    def __reduce__(self):
        return (setattr, (Executed, "happened", True))


def test_an_index_of_the_folder_and_links_of_the_hubs_cache_are_read(folder, whole, tmp_path):
    with_index(folder, {"weight_map": dict.fromkeys(NAMES, SINGLE)})
    import_hf(folder)
    cache = tmp_path / "models--a--b"
    shutil.copytree(whole, cache / "blobs")
    (cache / "snapshots/rev").mkdir(parents=True)
    for path in (cache / "blobs").iterdir():
        (cache / "snapshots/rev" / path.name).symlink_to(f"../../blobs/{path.name}")
    import_hf(cache / "snapshots/rev")
    # a link within the folder, and one that leads out of it
    (folder / SINGLE).rename(folder / "real.safetensors")
    (folder / SINGLE).symlink_to("real.safetensors")
    import_hf(folder)
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(whole / SINGLE)
    assert f"{SINGLE}: a link to" in refusal(import_hf, folder)


OTHER = "a_second.safetensors"


@pytest.mark.parametrize(
    ("first", "second", "weight_map", "message"),
    [
        (NAMES, NAMES[:1], dict.fromkeys(NAMES, SINGLE) | {NAMES[0]: OTHER}, "model.saf.* holds"),
        (NAMES, NAMES[:1], dict.fromkeys(NAMES, SINGLE), None),  # no file of the model
        (NAMES, NAMES[:2], dict.fromkeys(NAMES, SINGLE) | {NAMES[0]: OTHER}, "holds"),
        (NAMES, [], dict.fromkeys(NAMES[1:], SINGLE), "weight_map puts into None; each tensor"),
        (
            NAMES[1:],
            NAMES[:1],
            dict.fromkeys(NAMES[1:], SINGLE) | {NAMES[0]: OTHER},
            None,
        ),
    ],
    ids=range(5),
)
def test_each_tensor_is_in_the_file_that_the_index_names(
    first, second, weight_map, message, folder
):
    values = tensors(FAMILY)
    save_file({name: values[name] for name in first}, folder / SINGLE)
    save_file({name: values[name] for name in second}, folder / OTHER)
    with_index(folder, {"weight_map": weight_map})
    if message is None:
        import_hf(folder)
    else:
        assert re.search(message, refusal(import_hf, folder))


@settings(max_examples=60)
@given(
    index=st.one_of(
        JSON,
        st.fixed_dictionaries({"weight_map": JSON}),
        st.fixed_dictionaries(
            {
                "weight_map": st.dictionaries(
                    st.sampled_from(NAMES) | st.text(max_size=5),
                    st.sampled_from([SINGLE, "a/b", "/etc/passwd", "x.safetensors"])
                    | st.text(max_size=8).map(lambda name: name + ".safetensors")
                    | JSON,
                )
            }
        ),
    )
)
@example(index={"weight_map": {"a": "\ud800.safetensors"}})
def test_any_index_is_read_or_refused(index, whole):
    with_index(whole, index)
    try:
        pretrained_config(whole)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error)
    finally:
        (whole / INDEX).unlink()


def header(fields: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    """The header of a file with one tensor."""
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\x80\x04pickle",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**8) + b"{}",
        header(b"["),
        header(b"[" * 100_000),
        header(b'{"a":' * 100_000),
        header({"a": None}),
        header(one(), b"\0" * 4),
        header(one(), b"\0" * 12),
        header(one(shape=[3]), b"\0" * 8),
        header(one(shape=[-2]), b"\0" * 8),
        header(one(shape=[2**62, 4]), b"\0" * 8),
        header(one(shape="2"), b"\0" * 8),
        header(one("F99"), b"\0" * 8),
        header(one(offsets=[0, 2**60]), b"\0" * 8),
        header(one(offsets=[8, 0]), b"\0" * 8),
        header(one() | {"b": one()["a"]}, b"\0" * 8),
    ],
    ids=range(19),
)
def test_a_damaged_safetensors_file_is_named(content, folder):
    (folder / SINGLE).write_bytes(content)
    message = refusal(import_hf, folder)
    assert f"{SINGLE}: not a whole safetensors file" in message


def test_a_cut_file_is_refused_wherever_it_is_cut(folder):
    data = (folder / SINGLE).read_bytes()
    for size in [*range(0, 4000, 331), len(data) // 2, len(data) - 1]:
        (folder / SINGLE).write_bytes(data[:size])
        assert "not a whole safetensors file" in refusal(import_hf, folder)


@settings(max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_of_the_header_are_read_or_refused(noise, place):
    data = header(one(), b"\0" * 8)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "config.json").write_text(json.dumps(CONFIG))
        (directory / SINGLE).write_bytes(data[:place] + noise + data[place + len(noise) :])
        refusal(import_hf, directory)  # in no case is it a model


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_tensors_of_integers_are_no_weights(dtype, folder):
    name = "model.norm.weight"
    save_file(tensors(FAMILY) | {name: np.ones(32, dtype)}, folder / SINGLE)
    assert f"of another type: {name}" in refusal(pretrained_config, folder)


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "float32"), (np.inf, "bfloat16"), (1e39, "float32")]
)
def test_weights_that_are_not_finite_are_refused_by_tensor(value, dtype, folder):
    name = "model.layers.1.mlp.down_proj.weight"
    values = {n: v.astype(np.float64) for n, v in tensors(FAMILY).items()}
    values[name][3, 4] = value
    save_file(values, folder / SINGLE)
    assert f"tensor {name} has a value that is NaN or infinite in {dtype}" in refusal(
        import_hf, folder, dtype
    )


def test_names_of_tensors_do_not_reach_the_terminal_raw(folder):
    save_file(tensors(FAMILY) | {"\x1b[2J": np.zeros(1, np.float32)}, folder / SINGLE)
    assert r"'\x1b[2J'" in refusal(import_hf, folder)


# Ids that end a text


@pytest.mark.parametrize(
    ("in_config", "in_generation", "ids"),
    [
        (None, None, set()),
        (2, None, {2}),
        (2, 7, {2, 7}),
        ([2, 5], [7, 2], {2, 5, 7}),
        ([], [], set()),
    ],
)
def test_eos_ids_of_both_files_count(in_config, in_generation, ids):
    files = ({"eos_token_id": in_config}, {"eos_token_id": in_generation})
    assert eos_ids(*files, VOCAB) == ids
    assert eos_ids({}, {}, None) == set()


@pytest.mark.parametrize("odd", [-1, VOCAB, 2**40, 2.0, "2", True, [None], [[2]], {"id": 2}, ""])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_odd_eos_ids_are_refused_by_file(file, odd, folder):
    content = (CONFIG if file == "config.json" else {}) | {"eos_token_id": odd}
    (folder / file).write_text(json.dumps(content))
    message = refusal(stop_ids, folder, word_tokenizer(words()))
    assert f"{file}: eos_token_id={odd!r}: a token id from 0 to {VOCAB - 1}" in message


def test_all_eos_ids_of_a_folder_end_a_text(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"eos_token_id": 9}))
    tokenizer = word_tokenizer(words())
    assert stop_ids(folder, tokenizer) == (tokenizer.eos_token_id, 5, 7, 9)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 2}))
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 2}))
    assert "eos_token '<eos>' has the id 2; an id from 0 to 1" in refusal(
        stop_ids, folder, tokenizer
    )


# Tokenizers


def damaged(file: str, change):
    """A change of one file of a tokenizer's folder."""

    def apply(folder: Path) -> None:
        content = change(json.loads((folder / file).read_text()))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / file).write_bytes(data)

    return apply


TOKENIZER_CHANGES = {
    "cut": damaged("tokenizer.json", lambda t: json.dumps(t).encode()[:500]),
    "empty": damaged("tokenizer.json", lambda t: b""),
    "object": damaged("tokenizer.json", lambda t: {}),
    "null": damaged("tokenizer.json", lambda t: None),
    "list": damaged("tokenizer.json", lambda t: []),
    "bytes": damaged("tokenizer.json", lambda t: b"\xff\xfe"),
    "no model": damaged("tokenizer.json", lambda t: t | {"model": None}),
    "merges": damaged(
        "tokenizer.json", lambda t: t | {"model": t["model"] | {"merges": [["zz", "y"]]}}
    ),
    "ids": damaged("tokenizer.json", lambda t: t | {"model": t["model"] | {"vocab": {"a": -1}}}),
    "deep": damaged("tokenizer.json", lambda t: b"[" * 100_000),
    "config list": damaged("tokenizer_config.json", lambda t: []),
    "config null": damaged("tokenizer_config.json", lambda t: None),
    "config eos": damaged("tokenizer_config.json", lambda t: t | {"eos_token": 5}),
    "config object": damaged("tokenizer_config.json", lambda t: t | {"tokenizer_object": "x"}),
    "config other file": damaged(
        "tokenizer_config.json",
        lambda t: t | {"fast_tokenizer_files": ["../tokenizer.1.0.json", "tokenizer.json"]},
    ),
    "config no files": damaged("tokenizer_config.json", lambda t: t | {"fast_tokenizer_files": 5}),
    "config padding": damaged("tokenizer_config.json", lambda t: t | {"padding_side": "a\nb"}),
    "config length": damaged("tokenizer_config.json", lambda t: t | {"model_max_length": "x"}),
}


@pytest.mark.parametrize("change", TOKENIZER_CHANGES)
def test_a_damaged_tokenizer_is_refused_by_folder(change, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    TOKENIZER_CHANGES[change](tmp_path)
    assert str(tmp_path) in refusal(tokenizer_of, tmp_path)


# Links


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "additional_chat_templates",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
    ],
)
def test_a_link_out_of_the_folder_is_no_file_of_a_tokenizer(name, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "tool.jinja").write_text("secret")
    folder = tmp_path / "model"
    byte_tokenizer().save_pretrained(folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    is_folder = name == "additional_chat_templates"
    (folder / name).symlink_to(secret if is_folder else secret / "tool.jinja")
    message = refusal(tokenizer_of, folder)
    assert f"{name}: a link to" in message and "a file inside the folder is accepted" in message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_link_out_of_the_folder_is_no_configuration(name, folder, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(CONFIG))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "other.json")
    action = import_hf if name == "config.json" else stop_ids
    arguments = [] if name == "config.json" else [word_tokenizer(words())]
    assert f"{name}: a link to" in refusal(action, folder, *arguments)


def test_links_of_the_hubs_cache_and_within_the_folder_are_read(tmp_path):
    cache = tmp_path / "models--a--b"
    byte_tokenizer("{{ messages[0].content }}").save_pretrained(cache / "blobs")
    snapshot = cache / "snapshots/rev"
    (snapshot / "additional_chat_templates").mkdir(parents=True)
    for path in (cache / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    nested = snapshot / "additional_chat_templates/tool.jinja"
    nested.symlink_to("../../../blobs/chat_template.jinja")
    assert tokenizer_of(snapshot).chat_template["tool"] == "{{ messages[0].content }}"
    folder = Path(shutil.copytree(cache / "blobs", tmp_path / "model"))
    (folder / "chat_template.jinja").rename(folder / "real")
    (folder / "chat_template.jinja").symlink_to("real")
    assert tokenizer_of(folder).chat_template == "{{ messages[0].content }}"


# What loads, and fails or explodes later


@pytest.mark.parametrize(
    "template", [5, True, ["x"], [5], {"default": 5}, "{{ 'a\ud800' }}"], ids=str
)
def test_a_chat_template_is_a_text(template, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    damaged("tokenizer_config.json", lambda t: t | {"chat_template": template})(tmp_path)
    assert str(tmp_path) in refusal(tokenizer_of, tmp_path)


def test_a_template_that_renders_a_lone_surrogate_is_refused():
    template = ChatTemplate(byte_tokenizer(r"w1 {{ '\ud800' }}"))
    assert "renders a lone surrogate, in 'w1 \\ud800'" in refusal(template.ids, USER)


@pytest.mark.parametrize("largest", [VOCAB, 5000, 2**31])
def test_a_tokenizer_with_ids_that_the_model_lacks_is_refused(largest, folder):
    fields = json.loads(word_tokenizer(words()).backend_tokenizer.to_str())
    word_tokenizer(words()).save_pretrained(folder)
    fields["model"]["vocab"]["more"] = largest
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    message = refusal(tokenizer_of, folder)
    assert f"ids up to {largest}, the model a vocabulary of {VOCAB}" in message


def replace(pattern: dict, content: str) -> dict:
    """A step of a normalizer or a decoder."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(content: bytes) -> dict:
    """A step with a table that holds one text."""
    data = struct.pack("<I", 0) + content + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


TENFOLD = replace({"String": "a"}, "a" * 10)


@pytest.mark.parametrize(
    "steps",
    [
        [TENFOLD] * 4,
        [replace({"Regex": "a"}, "a" * 600)],
        [{"type": "Sequence", "normalizers": [TENFOLD] * 3}, TENFOLD],
        [{"type": "ByteLevel"}] * 30,
        [{"type": "Prepend", "prepend": "a" * 900}, replace({"String": "aa"}, "a" * 10)],
        [charsmap(b"a" * 2000)],
        [TENFOLD] * 5000,
    ],
    ids=range(7),
)
def test_a_normalizer_that_explodes_is_refused(steps, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    bomb = {"type": "Sequence", "normalizers": steps}
    damaged("tokenizer.json", lambda t: t | {"normalizer": bomb})(tmp_path)
    assert "normalizer and pre_tokenizer can make a text" in refusal(tokenizer_of, tmp_path)


def test_decoders_and_templates_that_explode_are_refused(tmp_path):
    copies = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
    processor = {
        "type": "TemplateProcessing",
        "single": copies,
        "pair": copies,
        "special_tokens": {},
    }
    for part, bomb in {
        "decoder": {"type": "Sequence", "decoders": [TENFOLD] * 4},
        "post_processor": {"type": "Sequence", "processors": [processor] * 10},
    }.items():
        byte_tokenizer().save_pretrained(tmp_path)
        damaged("tokenizer.json", lambda t, fields={part: bomb}: t | fields)(tmp_path)
        assert f"{part} can make a text" in refusal(tokenizer_of, tmp_path)


def test_usual_steps_are_no_bomb(tmp_path):
    steps = [
        {"type": "NFKC"},
        {"type": "Prepend", "prepend": "▁"},
        replace({"String": " "}, "▁"),
        replace({"Regex": " {2,}"}, " "),
        charsmap("صلى الله عليه وسلم".encode()),
    ]
    fields = {"normalizer": {"type": "Sequence", "normalizers": steps}}
    check_growth(fields, tmp_path)


def test_a_tokenizer_without_end_and_a_damaged_sentencepiece_model_are_refused(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(10**11)
    assert "tokenizer.json: 100000000000 bytes; at most" in refusal(tokenizer_of, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff\xff\x0f")
    assert str(tmp_path) in refusal(tokenizer_of, tmp_path)


def test_code_beside_a_tokenizer_is_not_run(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    damaged(
        "tokenizer_config.json",
        lambda t: t | {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil"] * 2}},
    )(tmp_path)
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Evil: ...\n"
    )
    tokenizer_of(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", ["", "x\0y", "a/b/c/d", "../../..//x", "x" * 5000, "http://[", "\n"]
)
def test_odd_names_of_models_are_refused(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if name:
        with pytest.raises((ValueError, OSError)):
            find_model(name)


# GGUF


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> bytes:
    """A small GGUF file with a tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b", "ab", "<e>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    shapes = {
        "token_embd": (4, 8),
        "output_norm": (8,),
        "blk.0.attn_norm": (8,),
        "blk.0.ffn_norm": (8,),
        **{f"blk.0.attn_{part}": (8, 8) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (16, 8),
        "blk.0.ffn_up": (16, 8),
        "blk.0.ffn_down": (8, 16),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def read_gguf(path: Path) -> None:
    """Reads everything in a file."""
    import_hf(path)
    GGUF(path).tokenizer()


def test_the_small_gguf_file_is_read(gguf_file, tmp_path):
    (tmp_path / "model.gguf").write_bytes(gguf_file)
    read_gguf(tmp_path / "model.gguf")


def test_a_cut_gguf_file_is_refused_wherever_it_is_cut(gguf_file, tmp_path):
    sizes = [*range(0, len(gguf_file) - 1024, 37), len(gguf_file) // 2, len(gguf_file) - 300]
    for number, size in enumerate(sizes):
        path = tmp_path / f"{number}.gguf"  # open_gguf remembers the last path
        path.write_bytes(gguf_file[:size])
        assert path.name in refusal(read_gguf, path)


def replaced(data: bytes, name: bytes, form: str, value: int, skip: int = 0) -> bytes:
    """The file with the number that stands `skip` bytes behind a name replaced."""
    place = data.index(name) + len(name) + skip
    return data[:place] + struct.pack(form, value) + data[place + struct.calcsize(form) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"NOPE" + d[4:], "does not begin with GGUF"),
        (lambda d: d[:4] + struct.pack("<I", 99) + d[8:], "version 99"),
        (lambda d: d[:8] + struct.pack("<Q", 2**63) + d[16:], "claims 9223372036854775808 tensors"),
        (lambda d: d[:8] + struct.pack("<Q", 100_000) + d[16:], "ends within|dimensions|claims"),
        (lambda d: d[:16] + struct.pack("<Q", 2**40) + d[24:], "claims 1099511627776 fields"),
        (lambda d: d[:24] + struct.pack("<Q", 2**62) + d[32:], "name of field 0 claims"),
        (lambda d: replaced(d, b"llama.block_count", "<I", 77), "unknown type 77"),
        (lambda d: replaced(d, b"tokenizer.ggml.model", "<Q", 2**40, 4), "ggml.model claims"),
        (lambda d: replaced(d, b"tokenizer.ggml.tokens", "<Q", 2**50, 8), "ggml.tokens claims"),
        (lambda d: replaced(d, b"tokenizer.ggml.tokens", "<I", 9, 4), "array of the type 9"),
        (lambda d: replaced(d, b"token_embd.weight", "<I", 2**31), "has 2147483648 dimensions"),
        (lambda d: replaced(d, b"token_embd.weight", "<Q", 2**62, 4), "claims .* elements"),
        (lambda d: replaced(d, b"token_embd.weight", "<I", 12345, 20), "not a readable GGUF"),
        (lambda d: replaced(d, b"token_embd.weight", "<Q", 2**60, 24), "not a readable GGUF"),
        (lambda d: replaced(d, b"llama.block_count", "<I", 10**9, 4), "block_count=1000000000"),
        (lambda d: replaced(d, b"llama.attention.head_count", "<I", 0, 4), "head_count=0"),
        (lambda d: replaced(d, b"llama.embedding_length", "<I", 16, 4), "of another shape"),
        (lambda d: replaced(d, b"tokenizer.ggml.eos_token_id", "<I", 99, 4), "eos_token_id=99"),
        (lambda d: d.replace(b"a b", b"a_b"), "tokenizer.ggml.merges='a_b'"),
        (lambda d: d.replace(b"a b", b"b b"), "tokenizer.ggml.merges"),
        (
            lambda d: d.replace(b"general.architecture", b"general.architecturX"),
            "architecture=None",
        ),
        (lambda d: d.replace(b"llama.block_count", b"llama.block_cou\x1bt"), "cannot be printed"),
    ],
    ids=range(22),
)
def test_a_gguf_file_that_lies_is_refused(change, message, gguf_file, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(change(gguf_file))
    assert re.search(f"model.gguf.*({message})", refusal(read_gguf, path))


@settings(max_examples=100)
@given(st.data())
def test_any_damaged_gguf_file_is_read_or_refused(gguf_file, data):
    place = data.draw(st.integers(0, 1200))
    noise = data.draw(st.binary(min_size=1, max_size=12))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.gguf"
        path.write_bytes(gguf_file[:place] + noise + gguf_file[place + len(noise) :])
        try:
            check_layout(path)
            GGUF(path).tokenizer()
        except ValueError as error:
            assert "\n" not in str(error)
    assert time.monotonic() - start < SECONDS


# Chat templates

USER = [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no\x1b[2J') }}", r"failed: TemplateError: no \[2J"),
        ("{% for %}", "failed: TemplateSyntaxError"),
        ("{{ nothing.at_all }}", "failed: UndefinedError"),
        ("{{ 1 // 0 }}", "failed: ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed: RecursionError"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "failed"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "failed: SecurityError"),
        ("{% include '/etc/passwd' %}", "failed: TypeError"),
        ("{{ 'a' * 10**10 }}", "failed: it needs more memory"),  # when it is compiled
        ("{{ messages[0].role * 10**10 }}", "failed: it needs more memory"),
        ("{{ 'a'|center(10**10) }}", "failed: it needs more memory"),
        ("{{ '%10000000000d' % 1 }}", "failed: it needs more memory"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "it renders 99999000 char"),
        (5, "is int; a text is accepted"),
        (None, "is NoneType; a text is accepted"),
        ([{"name": "default", "template": "x"}], "is list; a text is accepted"),
    ],
    ids=range(16),
)
def test_a_template_that_fails_is_refused(template, message):
    with pytest.raises(ValueError, match=message) as caught:
        render(template, USER)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x=[0]) %}{% for i in range(99999) %}{% set n.x = n.x + n.x %}"
        "{% for j in n.x %}{% endfor %}{% endfor %}",
    ],
    ids=range(2),
)
def test_a_template_that_does_not_end_is_ended(template):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"did not end within 0\.5 s|needs more memory"):
        render(template, USER, seconds=0.5)
    assert time.monotonic() - start < 30
    assert render("{{ messages[0].content }}", USER) == "a\nb"  # the next one is served


@pytest.mark.parametrize(
    "template",
    [
        "{{ [1, 2] | random }}",
        "{{ 'abc'|random }}",
        "{% filter random %}abc{% endfilter %}",
        "{{ ['ab', 'cd'] | map('random') | join }}",
        "{% set draw = 'ran' ~ 'dom' %}{{ ['ab'] | map(draw) | join }}",
        "{{ lipsum(n=1) }}",
        "{% set f = lipsum %}{{ f() }}",
        "{% if messages %}{{ messages | random }}{% endif %}",
    ],
    ids=range(8),
)
def test_a_template_that_draws_random_texts_is_refused(template):
    with pytest.raises(ValueError, match="it draws random texts"):
        render(template, USER)


@pytest.mark.parametrize("template", ["{{ lipsum }}", "{{ messages[0].items }}"])
def test_addresses_of_objects_are_refused(template):
    with pytest.raises(ValueError, match="the address of an object"):
        render(template, USER)
    assert render("{{ 'random' }} lipsum", USER) == "random lipsum"


def test_a_template_renders_as_in_transformers():
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{% if m.name is defined %}!{% endif %}[{{ m.role }}]{{ m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
        "{{ messages[0]|tojson }}"
    )
    messages = [{"role": "user", "content": "é\ud800 <b>\n", "name": None}, *USER]
    for prompt in (True, False):
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        assert render_chat(tokenizer, messages, add_generation_prompt=prompt) == expected
    assert render("{{ 'x' * 100000 }}", USER) == "x" * 100_000
    long = [{"role": "user", "content": "y" * 500_000}]
    assert render("{{ messages[0].content }}", long) == "y" * 500_000


def test_the_clock_of_a_template_may_be_stopped():
    template = "{{ strftime_now('%d %b %Y') }}"
    assert render(template, USER, today="1999-12-31") == "31 Dec 1999"
    assert render(template, USER) != "31 Dec 1999"


@pytest.mark.parametrize("messages", [[{1, 2}], [{"content": object()}], [{"content": b"x"}]])
def test_messages_that_are_no_json_are_refused(messages):
    with pytest.raises(ValueError, match="cannot be rendered"):
        render("x", messages)


def test_an_object_is_read_from_any_json_file(tmp_path):
    (tmp_path / "x").write_text('{"a": 1}')
    assert read_object(tmp_path / "x") == {"a": 1}
