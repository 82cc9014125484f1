"""Texts encoded at once have the ids that each of them has."""

import pytest
from chat_folder import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from prefixrl_jax.model.encoding import encode_all
from prefixrl_jax.model.tokenizer import word_tokenizer

TOKENIZERS = {"bytes": byte_tokenizer(), "words": word_tokenizer(["a", "b", "c"])}
SPLITTING = byte_tokenizer()
SPLITTING.split_special_tokens = False
TOKENIZERS["bytes with special tokens"] = SPLITTING


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@given(st.lists(st.text(max_size=20) | st.sampled_from(["a b", "<eos>", "a<pad>b", "", " c"])))
def test_ids_are_those_of_each_text(tokenizer, texts):
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert encode_all(tokenizer, texts) == expected


def test_what_an_earlier_call_has_set_does_not_count():
    tokenizer = byte_tokenizer()
    texts = ["a", "a longer one<eos>"]
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    tokenizer(texts, padding=True, truncation=True, max_length=3, split_special_tokens=False)
    assert encode_all(tokenizer, texts) == expected
