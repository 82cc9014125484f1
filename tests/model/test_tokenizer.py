"""Tokenizers: words and SentencePiece models, their fingerprints, and what is refused."""

import json
import os
import subprocess
import sys

import pytest
import sentencepiece
from chat_folder import byte_tokenizer
from families import words
from tokenizers import normalizers

from prefixrl_jax.model.hub import stop_ids
from prefixrl_jax.model.sentencepiece import PROBES
from prefixrl_jax.model.tokenizer import fingerprint, load_tokenizer, word_tokenizer


def test_word_ids_are_stable_and_text_is_joined_by_spaces():
    tokenizer = word_tokenizer(["fill", "A", "B"])
    assert [
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ] == [0, 1, 2, 3]
    assert tokenizer.encode("fill B  A\nnever") == [4, 6, 5, 3]
    assert tokenizer.decode([1, 4, 6, 2]) == "<bos> fill B <eos>"
    assert tokenizer.decode([1, 4, 6, 2], skip_special_tokens=True) == "fill B"


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (["a", "a"], "'a' occurs 2 times"),
        (["<eos>"], "'<eos>' occurs 2"),
        (["a b"], "'a b'"),
        ([""], "''"),
    ],
)
def test_a_word_that_is_none_or_occurs_twice_is_named(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        word_tokenizer(vocabulary)


@pytest.mark.parametrize(
    "make", [byte_tokenizer, lambda: word_tokenizer(words())], ids=["bytes", "words"]
)
def test_fingerprint_survives_use_saving_and_a_model_beside_it(make, tmp_path):
    tokenizer = make()
    expected = fingerprint(tokenizer)
    tokenizer(["w1 w2", "w3"], padding=True, truncation=True, max_length=2)
    assert fingerprint(tokenizer) == expected
    tokenizer.save_pretrained(tmp_path)
    for model_type in ("llama", "qwen2", "qwen3"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        loaded = load_tokenizer(tmp_path)
        assert fingerprint(loaded) == expected
        assert loaded.decode(loaded.encode("w1 <eos> w2")) == "w1 <eos> w2"


def test_fingerprint_tells_tokenizers_apart_and_is_the_same_in_another_process():
    code = (
        "from prefixrl_jax.model.tokenizer import *; print(fingerprint(word_tokenizer(['a', 'b'])))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert other.stdout.strip() == fingerprint(word_tokenizer(["a", "b"]))
    templated, another_eos, split = (word_tokenizer(["a", "b"]) for _ in range(3))
    templated.chat_template = "{{ messages }}"
    another_eos.eos_token = "a"
    split.split_special_tokens = True
    variants = [
        byte_tokenizer(),
        word_tokenizer(["a", "b"]),
        word_tokenizer(["b", "a"]),
        templated,
        another_eos,
        split,
    ]
    assert len({fingerprint(t) for t in variants}) == len(variants)


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"tokenizer '{tmp_path}': cannot be loaded"):
        load_tokenizer(tmp_path)


def sentencepiece_model(path, **options):
    """Write a SentencePiece model, trained on a few sentences, and return the folder."""
    text = [
        f"the number {i} plus {3 * i} is {4 * i}, and so on; ducks lay eggs" for i in range(300)
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(path / "tokenizer"),
        vocab_size=380,
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    fields = {
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": {"content": "</s>"},
        "chat_template": "{{ messages }}",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(fields))
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return path


# as Llama's and Mistral's models are
PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
FOLDING = {"normalization_rule_name": "nmt_nfkc"}  # as T5's are


@pytest.mark.parametrize(
    "options",
    [PLAIN, FOLDING, PLAIN | {"add_dummy_prefix": False}],
    ids=["plain", "folding", "no prefix"],
)
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("symbols", [[], ["<think>", "</think>"]], ids=["", "symbols"])
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(
    tmp_path, model_type, options, symbols
):
    folder = sentencepiece_model(
        tmp_path, model_type=model_type, user_defined_symbols=symbols, **options
    )
    if symbols and options is FOLDING:  # spaces beside a symbol would be folded away
        with pytest.raises(
            ValueError, match=r"gives 'a <think> b' the ids .*bring the tokenizer\.json"
        ):
            load_tokenizer(folder)
        return
    tokenizer = load_tokenizer(folder)
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    probes = [probe.lstrip() if symbols else probe for probe in PROBES]
    for text in (*probes, "number 7 plus 21 is 28", "so <think> on", "a"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == original.encode(text), text
        assert tokenizer.decode(ids) == original.decode(ids), text
    tokenizer.save_pretrained(tmp_path / "saved")
    assert fingerprint(load_tokenizer(tmp_path / "saved")) == fingerprint(tokenizer)
    assert stop_ids(tmp_path, tokenizer) == (original.eos_id(),)
    assert tokenizer.chat_template == "{{ messages }}"


def test_a_sentencepiece_model_of_another_algorithm_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"model_type 4 of tokenizer\.model; unigram \(1\) and BPE \(2\) are accepted",
    ):
        load_tokenizer(sentencepiece_model(tmp_path, model_type="char"))


def test_a_sentencepiece_model_that_comes_out_changed_is_refused(tmp_path, monkeypatch):
    folder = sentencepiece_model(tmp_path, model_type="bpe", **FOLDING)
    monkeypatch.setattr(
        "prefixrl_jax.model.sentencepiece._normalizer", lambda *_: normalizers.Replace(" ", "▁")
    )
    with pytest.raises(
        ValueError, match=r"SentencePiece .*bring the tokenizer\.json that belongs to the model"
    ):
        load_tokenizer(folder)
