"""Hugging Face in and out: logits and greedy text against transformers, tensors byte for byte,
refusals by name; tokenizers.
"""

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES, VOCAB, configuration, words
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_models import TINY, as_context, random_params

from prefixrl_jax.group import row_inputs
from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import RopeScaling
from prefixrl_jax.model.hf import export_hf, import_hf
from prefixrl_jax.model.hf_config import hf_config, model_config_from_hf
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.model.tokenizer import fingerprint, load_tokenizer, word_tokenizer
from prefixrl_jax.model.weights import abstract_params
from prefixrl_jax.runtime import mesh
from prefixrl_jax.sampling import noise, sampler

torch.set_num_threads(1)  # its threads spin, and the models are tiny
WINDOW = {"layer_types": None, "use_sliding_window": True, "sliding_window": 16}
# of the contexts; with the continuations well beyond LLAMA3's original 32 positions
LENGTHS = (5, 61, 90)
TOKENS = 12  # of the continuations


@cache
def reference(family: str) -> transformers.PreTrainedModel:
    """A random float32 transformers model; every tensor, biases and norms too, is far from its
    initialisation.
    """
    torch.manual_seed(len(family))
    model = transformers.AutoModelForCausalLM.from_config(
        configuration(family), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3) if p.ndim == 1 else p.normal_(0, p.shape[1] ** -0.5)
            if "norm" in name:
                p.add_(1)
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved(family)`: the directory where transformers saved the reference model and a
    tokenizer.
    """

    @cache
    def save(family: str):
        directory = tmp_path_factory.mktemp(family)
        reference(family).save_pretrained(directory)
        word_tokenizer(words()).save_pretrained(directory)
        return directory

    return save


def tensors(directory) -> dict[str, np.ndarray]:
    """Every tensor below `directory`, by its name in the checkpoint."""
    return {
        name: value
        for path in directory.glob("*.safetensors")
        for name, value in load_file(path).items()
    }


params_of = cache(random_params)


def random_rows(lengths=LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, n).tolist() for n in lengths]


@partial(jax.jit, static_argnums=1)
def continuation_logits(params, config, context, tokens):
    """Logits [P, G, T, V] that predict the tokens of continuations [P, G, T]."""
    kv = transformer.encode_context(params, config, context)
    hidden = transformer.continue_group(params, config, context, kv, row_inputs(context, tokens))
    return transformer.logits(params, config, hidden)


def torch_logits(model, row: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0].numpy()


def assert_same_logits(model, params, config) -> None:
    """Continuation logits of ragged contexts, two rows each, against transformers on context and
    continuation joined.
    """
    contexts = random_rows()
    rows = np.random.default_rng(1).integers(0, VOCAB, (len(contexts), 2, TOKENS)).astype(np.int32)
    ours = np.asarray(continuation_logits(params, config, as_context(contexts), jnp.asarray(rows)))
    for p, context in enumerate(contexts):
        for g in range(2):
            theirs = torch_logits(model, context + rows[p, g].tolist())
            np.testing.assert_allclose(ours[p, g], theirs[len(context) - 1 : -1], atol=1e-4, rtol=0)


# Parity


@pytest.mark.parametrize(
    ("family", "unroll"),
    [*((family, False) for family in FAMILIES), ("qwen2", True), ("qwen3", True)],
)
def test_logits_equal_those_of_transformers(family, unroll, saved):
    params, config = import_hf(saved(family))
    assert_same_logits(reference(family), params, dataclasses.replace(config, unroll_layers=unroll))


@pytest.mark.parametrize("family", ["llama3_untied", "qwen2"])
def test_every_position_of_a_sequence(family, saved):
    params, config = import_hf(saved(family))
    (row,) = random_rows((100,), seed=2)
    ours = continuation_logits(params, config, as_context([row[:1]]), jnp.asarray([[row[1:]]]))[
        0, 0
    ]
    theirs = torch_logits(reference(family), row)[:-1]
    assert theirs.std() > 0.3  # else a small difference would say nothing
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "unroll"), [*((family, False) for family in FAMILIES), ("qwen3", True)]
)
def test_greedy_text_is_that_of_transformers(family, unroll, saved):
    params, config = import_hf(saved(family))
    config, new = dataclasses.replace(config, unroll_layers=unroll), 32
    contexts, slots = random_rows((5, 70)), 2
    ids = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (len(contexts), slots))
    state = sampler.start(params, as_context(contexts), config=config, slots=slots, columns=new)
    hashes = jnp.asarray(np.stack([noise.words(str(p)) for p in range(len(contexts))]))
    state = sampler.assign(state, noise.stream_key(0, "test"), hashes, ids, ids >= 0, ids >= 0)
    # an id that no token has
    greedy = sampler.Sampling(max_new_tokens=new, stop_ids=(VOCAB,), temperature=0)
    tokens = np.asarray(
        sampler.decode_chunk(params, state, config=config, sampling=greedy, steps=new).tokens
    )
    for p, context in enumerate(contexts):
        theirs = reference(family).generate(
            torch.tensor([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
        )
        for g in range(slots):
            assert tokens[p, g].tolist() == theirs[0, len(context) :].tolist()


# Round trips


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, "float32") for family in FAMILIES),
        ("qwen2", "bfloat16"),
        ("llama_tied", "float16"),
    ],
)
def test_import_then_export_gives_the_same_bytes(family, dtype, saved, tmp_path):
    source = saved(family)
    if dtype != "float32":
        source = tmp_path / "source"
        transformers.AutoModelForCausalLM.from_pretrained(
            saved(family), dtype=getattr(torch, dtype)
        ).save_pretrained(source)
    # nothing is computed in float16
    params, config = import_hf(source, dtype="float32" if dtype == "float16" else dtype)
    export_hf(params, config, word_tokenizer(words()), tmp_path / "out", dtype=dtype)
    before, after = tensors(source), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype == jnp.dtype(dtype) for name in before)
    assert all(
        before[name].tobytes() == after[name].tobytes() and before[name].shape == after[name].shape
        for name in before
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_config_says_the_same_as_the_one_imported(family, saved, tmp_path):
    params, config = import_hf(saved(family))
    export_hf(params, config, word_tokenizer(words()), tmp_path / "out")
    before, after = (
        transformers.AutoConfig.from_pretrained(d).to_dict()
        for d in (saved(family), tmp_path / "out")
    )
    # The limit on the length is not a property of the computation, nor are names and SmolLM2's two
    # remarks.
    for name in ("max_position_embeddings", "_name_or_path", "rope_interleaved", "is_llama_config"):
        before.pop(name, None), after.pop(name, None)
    # transformers' own Qwen2 files leave it out
    before.setdefault("head_dim", config.hidden_size // config.num_heads)
    assert before == after
    written = json.loads((tmp_path / "out/config.json").read_text())
    for other_spelling in (("rope_parameters",), ("rope_theta", "rope_scaling")):
        fields = {name: value for name, value in written.items() if name not in other_spelling}
        assert model_config_from_hf(fields) == config
        assert (
            transformers.AutoConfig.for_model(**fields).rope_parameters == before["rope_parameters"]
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"unroll_layers": True},
        {"tie_embeddings": False, "rope_scaling": RopeScaling(4.0, 1.0, 4.0, 32)},
        {"attention_bias": True, "num_layers": 3},
        {"qk_norm": True, "head_dim": 10, "tie_embeddings": False},
    ],
    ids=["llama", "llama3", "qwen2", "qwen3"],
)
def test_transformers_loads_an_export_with_equal_logits(fields, tmp_path):
    config = dataclasses.replace(TINY, vocab_size=VOCAB, **fields)
    params = params_of(config)
    export_hf(params, config, word_tokenizer(words()), tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert type(model).__name__ == config.family
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_logits(model, params, config)


def test_a_large_model_is_cut_into_files_with_an_index(tmp_path):
    config = dataclasses.replace(TINY, vocab_size=VOCAB)
    params, limit = params_of(config), 8000
    export_hf(params, config, word_tokenizer(words()), tmp_path / "one")
    export_hf(params, config, word_tokenizer(words()), tmp_path / "many", max_shard_bytes=limit)
    whole, index = (
        tensors(tmp_path / "one"),
        json.loads((tmp_path / "many/model.safetensors.index.json").read_text()),
    )
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert files == sorted(set(index["weight_map"].values()))
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    for name in files:
        values = load_file(tmp_path / "many" / name)
        assert sum(value.nbytes for value in values.values()) <= limit or len(values) == 1
        assert all(index["weight_map"][tensor] == name for tensor in values)
    loaded, _ = import_hf(tmp_path / "many")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, loaded, params))
    assert_same_logits(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "many"), params, config
    )
    (tmp_path / "many" / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=files[1]):
        import_hf(tmp_path / "many")


def test_export_in_another_dtype(tmp_path):
    params = params_of(TINY)
    export_hf(params, TINY, word_tokenizer(words(33)), tmp_path / "out", dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    expected = np.asarray(params["embed"]["embedding"].astype(jnp.bfloat16), np.float32)
    assert np.array_equal(model.model.embed_tokens.weight.detach().float().numpy(), expected)


def test_import_places_every_leaf_where_its_sharding_says(saved):
    params, config = import_hf(saved("qwen3"))
    shardings = param_shardings(config, mesh.make_mesh(), "train")
    placed, _ = import_hf(
        saved("qwen3"), place=lambda config: param_shardings(config, mesh.make_mesh(), "train")
    )
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, placed, shardings))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, placed, params))
    half, half_config = import_hf(saved("qwen3"), dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}
    assert (half_config.param_dtype, half_config.dtype) == ("bfloat16", "bfloat16")


# The folder


def test_folder_carries_tokenizer_generation_settings_and_card(tmp_path):
    tokenizer = word_tokenizer(words(33))
    ours = {"eos_token_id": [2, 7], "temperature": 0.7, "do_sample": True}
    export_hf(params_of(TINY), TINY, tokenizer, tmp_path / "out", generation=ours, card="Ours.")
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.temperature, generation.pad_token_id) == (
        [2, 7],
        0.7,
        0,
    )
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Ours." in card
    assert fingerprint(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == fingerprint(
        tokenizer
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_card_says_when_auto_tokenizer_would_change_the_tokenizer(tmp_path):
    for name, config in (
        ("llama", TINY),
        ("qwen2", dataclasses.replace(TINY, attention_bias=True)),
    ):
        tokenizer = word_tokenizer(words(33))
        export_hf(params_of(config), config, tokenizer, tmp_path / name)
        unchanged = fingerprint(
            transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        ) == fingerprint(tokenizer)
        assert ("PreTrainedTokenizerFast" in (tmp_path / name / "README.md").read_text()) == (
            not unchanged
        )
        assert fingerprint(load_tokenizer(tmp_path / name)) == fingerprint(tokenizer)


def test_an_export_that_dies_leaves_what_was_there(tmp_path, monkeypatch):
    params, tokenizer, out = params_of(TINY), word_tokenizer(words(33)), tmp_path / "out"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "save_pretrained", die)
        with pytest.raises(KeyboardInterrupt):
            export_hf(params, TINY, tokenizer, out)
        assert not out.exists()
    export_hf(params, TINY, tokenizer, out, card="first")
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "save_pretrained", die)
        with pytest.raises(KeyboardInterrupt):
            export_hf(params, TINY, tokenizer, out, card="second", max_shard_bytes=1000)
    assert "first" in (out / "README.md").read_text()
    export_hf(params, TINY, tokenizer, out, card="third", max_shard_bytes=1000)
    assert "third" in (out / "README.md").read_text()
    assert not (out / "model.safetensors").exists()  # nothing of the earlier export is left
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Refusals


@pytest.fixture
def broken(tmp_path, saved):
    """`broken(change, family)`: a copy of a saved model whose dict of tensors went through
    `change`.
    """

    def make(change, family="llama_tied"):
        values = tensors(saved(family))
        change(values)
        save_file(values, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((saved(family) / "config.json").read_text())
        return tmp_path

    return make


def test_missing_extra_and_misshaped_tensors_are_named(broken):
    up, bias = "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.bias"
    with pytest.raises(ValueError, match=f"missing: {up}, model.norm.weight$"):
        import_hf(broken(lambda v: (v.pop(up), v.pop("model.norm.weight"))))
    with pytest.raises(ValueError, match=f"not of this model: {bias}$"):
        import_hf(broken(lambda v: v.update({bias: np.zeros(3)})))
    wrong = rf"{up} \(47, 32\) where the configuration asks for \(48, 32\)"
    with pytest.raises(
        ValueError,
        match=rf"missing: model.norm.weight; not of this model: {bias}; of another shape: {wrong}$",
    ):
        import_hf(
            broken(
                lambda v: (
                    v.update({up: v[up][:-1].copy(), bias: np.zeros(3)}),
                    v.pop("model.norm.weight"),
                )
            )
        )
    with pytest.raises(ValueError, match=r"missing: lm_head.weight$"):
        import_hf(broken(lambda v: v.pop("lm_head.weight"), "qwen2"))


def test_redundant_tensors_are_ignored_only_when_redundant(broken, saved):
    def add(values, scale=1):
        values["lm_head.weight"] = values["model.embed_tokens.weight"] * scale
        values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    params, _ = import_hf(broken(add))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, import_hf(saved("llama_tied"))[0]))
    with pytest.raises(ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        import_hf(broken(partial(add, scale=2)))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama_tied", {"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ("llama_tied", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama_tied", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama_tied", {"attention_bias": True}, "attention_bias=True of LlamaForCausalLM"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True of Qwen3ForCausalLM"),
        ("llama_tied", {"num_local_experts": 8}, "num_local_experts=8"),
        ("llama_tied", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("llama_tied", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama_tied", {"quantization_config": {"bits": 4}}, "quantization_config="),
        ("llama_tied", {"rope_interleaved": True}, "rope_interleaved=True"),
        ("llama_tied", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        (
            "llama_tied",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            "'yarn'",
        ),
        (
            "llama_tied",
            {"rope_parameters": {"partial_rotary_factor": 0.25}},
            "partial_rotary_factor",
        ),
        (
            "llama_tied",
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "full_attention",
        ),
        (
            "llama_tied",
            {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
            "low_freq_factor, high_freq_factor",
        ),
        ("qwen2", WINDOW | {"max_window_layers": 1}, "sliding_window=16"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        (
            "qwen3",
            {"head_dim": None, "num_key_value_heads": None},
            "num_key_value_heads, head_dim|head_dim, num_key_value_heads",
        ),
        ("llama_tied", {"hidden_size": None}, "hidden_size"),
    ],
)
def test_what_the_model_lacks_is_refused_by_name(family, change, message, saved):
    fields = json.loads((saved(family) / "config.json").read_text()) | change
    with pytest.raises(ValueError, match=message):
        model_config_from_hf({k: v for k, v in fields.items() if v is not None})


def test_a_sliding_window_that_is_not_in_use_is_no_obstacle(saved):
    fields = json.loads((saved("qwen2") / "config.json").read_text())
    expected = model_config_from_hf(fields)
    assert model_config_from_hf(fields | WINDOW | {"max_window_layers": 2}) == expected
    assert (
        model_config_from_hf(fields | {"sliding_window": 4096, "use_sliding_window": False})
        == expected
    )


def test_old_llama_files_may_leave_out_sizes_and_overrides_win(saved):
    fields = json.loads((saved("llama_tied") / "config.json").read_text())
    for name in ("head_dim", "num_key_value_heads", "architectures"):
        del fields[name]
    config = model_config_from_hf(fields, remat=True, dtype="bfloat16")
    assert (config.family, config.head_dim, config.num_kv_heads) == ("LlamaForCausalLM", 8, 4)
    assert (config.remat, config.dtype, config.param_dtype) == (True, "bfloat16", "float32")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"qk_norm": True, "attention_bias": True},
            "model.qk_norm=True with model.attention_bias=True",
        ),
        ({"hidden_size": 26}, "model.hidden_size=26 is not a multiple of model.num_heads=4"),
        ({"vocab_size": 30}, "model.vocab_size=30 is smaller than the tokenizer's 37 ids"),
    ],
)
def test_what_transformers_cannot_express_is_not_exported(fields, message):
    with pytest.raises(ValueError, match=message):
        hf_config(dataclasses.replace(TINY, **fields), word_tokenizer(words(33)))


def test_safetensors_files_carry_the_format_transformers_asks_for(tmp_path):
    export_hf(params_of(TINY), TINY, word_tokenizer(words(33)), tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    modes = {
        name: (tmp_path / "out" / name).stat().st_mode
        for name in ("model.safetensors", "config.json")
    }
    assert len(set(modes.values())) == 1, modes  # whoever may read one may read all


MEMORY = """
import re, sys, threading
import jax
from prefixrl_jax.runtime import mesh
from prefixrl_jax.model.hf import import_hf
from prefixrl_jax.model.sharding import param_shardings

def held():  # by the process itself: pages of a mapped file are the system's to drop
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def watch(stop, seen):
    while not stop.wait(0.002):
        seen.append(held())

place = lambda c: param_shardings(c, mesh.make_mesh(1, 2, 1), "train")
import_hf(sys.argv[1], "bfloat16", place)  # a small model: everything is imported and started
stop, seen = threading.Event(), [before := held()]
thread = threading.Thread(target=watch, args=(stop, seen))
thread.start()
params, _ = import_hf(sys.argv[2], "bfloat16", place)
stop.set()
thread.join()
sizes = [x.nbytes for x in jax.tree.leaves(params)]
print(max(seen) - before, sum(sizes), max(sizes))
"""


def test_import_holds_the_shards_and_one_leaf(tmp_path):
    """Peak memory of a process that reads 0.6 GB of float32 into bfloat16 shards on two devices."""
    large = dataclasses.replace(
        TINY, num_layers=16, hidden_size=768, intermediate_size=3072, num_heads=12, head_dim=64
    )
    for name, config in (("small", TINY), ("large", large)):
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(config))
        export_hf(zeros, config, word_tokenizer(words(33)), tmp_path / name)
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    }
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    peak, held, largest = map(int, done.stdout.split())
    # and one layer as it was stored
    assert held > 2.5e8 and held < peak < held + largest + 6e7, (peak, held, largest)
