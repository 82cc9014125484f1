"""A checkpoint may hold the output head although it is tied to the embedding, if both agree."""

from __future__ import annotations

import dataclasses

import pytest
from families import words
from safetensors.numpy import load_file, save_file
from tiny_models import TINY, random_params

from prefixrl_jax.model.hf import export_hf, import_hf
from prefixrl_jax.model.tokenizer import word_tokenizer


@pytest.mark.parametrize("agrees", [True, False])
def test_a_head_beside_a_tied_embedding_must_be_equal_to_it(tmp_path, agrees):
    config = dataclasses.replace(TINY, tie_embeddings=True)
    export_hf(random_params(config), config, word_tokenizer(words(33)), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    head = tensors["model.embed_tokens.weight"].copy()
    head[0, 0] += 0 if agrees else 1
    save_file({**tensors, "lm_head.weight": head}, path, metadata={"format": "pt"})
    if agrees:
        assert import_hf(tmp_path / "out")[1].tie_embeddings
    else:
        with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens"):
            import_hf(tmp_path / "out")
