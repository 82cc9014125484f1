"""GGUF files, written with llama.cpp's names and layout, give the model they were made from."""

import gguf
import numpy as np
import pytest
import transformers
from families import architecture, configuration, tensors

from prefixrl_jax.model.gguf import GGUF
from prefixrl_jax.model.hf import import_hf
from prefixrl_jax.model.hub import find_model, stop_ids, tokenizer_of
from prefixrl_jax.model.tokenizer import word_tokenizer

ARCHITECTURES = {
    "llama_tied": gguf.MODEL_ARCH.LLAMA,
    "smollm2": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(chr(c) for c in range(33, 127)),
    "Ġ",
    "Ċ",
    "th",
    "Ġth",
    "12",
]


def llama_cpp_order(value: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of every head, interleaved."""
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def write(path, family: str, quantisation=None, pre: str = "smollm", extra=lambda writer: None):
    """The family's model as a GGUF file."""
    c, arch = configuration(family), ARCHITECTURES[family]
    name = gguf.MODEL_ARCH_NAMES[arch]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h", "Ġ th", "1 2"])
    writer.add_eos_token_id(2)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    extra(writer)
    names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
    for hf, value in tensors(family).items():
        if name == "llama" and ("q_proj" in hf or "k_proj" in hf):
            value = llama_cpp_order(
                value, c.num_attention_heads if "q_proj" in hf else c.num_key_value_heads
            )
        theirs = names.get_name(hf, try_suffixes=(".weight", ".bias"))
        if quantisation is not None and value.ndim == 2 and value.shape[1] % 32 == 0:
            writer.add_tensor(theirs, gguf.quantize(value, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(theirs, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_tensors_and_sizes_are_those_of_the_model(family, tmp_path):
    file, model = GGUF(write(tmp_path / "model.gguf", family)), configuration(family)
    assert set(file.keys()) == tensors(family).keys()
    for name, value in tensors(family).items():
        np.testing.assert_array_equal(file.get_tensor(name), value, err_msg=name)
    params, config = import_hf(tmp_path / "model.gguf")
    assert params.keys() >= {"embed", "layers"}
    assert config.family == architecture(family)
    assert config.norm_eps == pytest.approx(model.rms_norm_eps, rel=1e-6)
    assert config.rope_theta == model.rope_parameters["rope_theta"]
    assert config.tie_embeddings == model.tie_word_embeddings


def test_quantised_tensors_are_near(tmp_path):
    file = GGUF(write(tmp_path / "model.gguf", "llama_tied", gguf.GGMLQuantizationType.Q8_0))
    for name, value in tensors("llama_tied").items():
        read = file.get_tensor(name)
        assert read.dtype == np.float32
        assert np.abs(read - value).max() <= np.abs(value).max() / 200, name


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2"])
def test_the_tokenizer_splits_merges_and_ends_texts(pre, tmp_path):
    path = write(tmp_path / "model.gguf", "qwen2", pre=pre)
    tokenizer = tokenizer_of(path)
    ids = tokenizer.encode("the th123")
    digits = ["12", "3"] if pre == "llama-bpe" else ["1", "2", "3"]  # together, or alone
    assert tokenizer.convert_ids_to_tokens(ids) == ["th", "e", "Ġth", *digits]
    assert tokenizer.decode(ids) == "the th123"
    turn = tokenizer.apply_chat_template([{"content": "a"}], return_dict=False)
    assert turn == [1, TOKENS.index("a"), 2]
    assert stop_ids(path, tokenizer) == (2,) and tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), r"rope_type.*'yarn'"),
        (
            lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
            r"tensor rope_freqs\.weight is of a computation",
        ),
        (
            lambda w: w.add_tensor("blk.0.ffn_gate_exps.weight", np.ones(4, np.float32)),
            r"tensor blk\.0\.ffn_gate_exps\.weight",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(extra, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        import_hf(write(tmp_path / "model.gguf", "llama_tied", extra=extra))


def test_other_tokenizers_families_and_files_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"pre='gpt-4o': supported is 'gpt2' with smollm, llama-bpe, qwen2"
    ):
        GGUF(write(tmp_path / "a.gguf", "qwen2", pre="gpt-4o")).tokenizer()
    (tmp_path / "b.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ValueError, match=r"b\.gguf: not a readable GGUF file"):
        import_hf(tmp_path / "b.gguf")


def test_a_folder_names_its_stop_ids_and_a_missing_one_says_what_to_bring(tmp_path, monkeypatch):
    tokenizer = word_tokenizer(["a"])
    assert stop_ids(tmp_path, tokenizer) == (tokenizer.eos_token_id,)
    transformers.GenerationConfig(eos_token_id=[7, 5]).save_pretrained(tmp_path)
    assert stop_ids(tmp_path, tokenizer) == tuple(sorted({5, 7, tokenizer.eos_token_id}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError,
        match=r"model 'no/such': neither a folder .* bring a folder with config\.json.*tokenizer",
    ):
        find_model("no/such")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        import_hf(find_model(tmp_path))
