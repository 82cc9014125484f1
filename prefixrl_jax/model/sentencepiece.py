"""A SentencePiece model as a Hugging Face fast tokenizer, rebuilt from what the model file itself
says.

The classes of transformers fit some families' files each; here the file's own normaliser,
vocabulary and algorithm are taken, and the result is compared with SentencePiece before it is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Spaces at the ends and in a row, newlines, digits, bytes, accents: what conversions get wrong, if
# anything.
PROBES = (
    "The 12 ducks lay 1,234.5 eggs.",
    "  two  spaces \n\n\tend ",
    "don't\u00a0Größe ﬁ ½",
    "日本語 Ω 😀",
    "\\frac{1}{2}",
)
UNIGRAM, BPE = 1, 2  # model_type in the file
CONTROL, USER_DEFINED = 3, 4  # types of pieces
# taken from tokenizer_config.json
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template")


def from_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in the folder `path`: tokenizer.model, and special tokens and chat template of
    tokenizer_config.json.

    In a model with user-defined symbols text that begins with a space or a symbol gets no prefix,
    as in transformers.

    Raises ValueError for an algorithm other than BPE and unigram, or if any probe gets other ids
    than SentencePiece gives it.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    file = path / "tokenizer.model"
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it when imported
    proto.ParseFromString(file.read_bytes())
    backend = Tokenizer(_model(proto))
    symbols = [p.piece for p in proto.pieces if p.type == USER_DEFINED]
    backend.normalizer = _normalizer(proto.normalizer_spec, bool(symbols))
    # text is divided at symbols, and only its beginning gets a prefix
    if symbols and proto.normalizer_spec.add_dummy_prefix:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(
        undo + [decoders.Strip(" ", 1, 0)] * proto.normalizer_spec.add_dummy_prefix
    )
    backend.add_tokens(
        [
            AddedToken(p.piece, normalized=False, special=p.type == CONTROL)
            for p in proto.pieces
            if p.type in (CONTROL, USER_DEFINED)
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **_named(path, proto)
    )
    original = SentencePieceProcessor(model_file=str(file))
    for text in [
        *(probe.lstrip() if symbols else probe for probe in PROBES),
        *(f"a {symbol} b" for symbol in symbols),
    ]:
        if (found := tokenizer.encode(text, add_special_tokens=False)) != (
            expected := original.encode(text)
        ):
            raise ValueError(
                f"rebuilt from tokenizer.model it gives {text!r} the ids {found}, SentencePiece"
                f" {expected}; bring the tokenizer.json that belongs to the model"
            )
    return tokenizer


def _model(proto: Any) -> models.Model:
    spec, pieces = proto.trainer_spec, [(p.piece, p.score) for p in proto.pieces]
    if spec.model_type == UNIGRAM:
        return models.Unigram(pieces, spec.unk_id, spec.byte_fallback)
    if spec.model_type != BPE:
        raise ValueError(
            f"model_type {spec.model_type} of tokenizer.model; unigram ({UNIGRAM}) and BPE ({BPE})"
            " are accepted"
        )
    rank = {piece: i for i, (piece, _) in enumerate(pieces)}
    # A piece is merged from any two that make it up: better pieces first, and of one piece's pairs
    # those of better parts.
    merges = [
        (-score, rank[piece[:i]], rank[piece[i:]], piece[:i], piece[i:])
        for piece, score in pieces
        for i in range(1, len(piece))
        if piece[:i] in rank and piece[i:] in rank
    ]
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    return models.BPE(
        rank, pairs, unk_token=spec.unk_piece, fuse_unk=True, byte_fallback=spec.byte_fallback
    )


def _normalizer(spec: Any, symbols: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and not symbols:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _named(path: Path, proto: Any) -> dict[str, str]:
    """Special tokens and chat template: those of the folder's files, else the model file's own."""
    spec, config = proto.trainer_spec, path / "tokenizer_config.json"
    found: dict[str, Any] = {"unk_token": spec.unk_piece}
    found |= {
        f"{name}_token": proto.pieces[i].piece
        for name in ("bos", "eos", "pad")
        if (i := getattr(spec, f"{name}_id")) >= 0
    }
    for name, value in (json.loads(config.read_text()) if config.is_file() else {}).items():
        if name in NAMED and value:
            found[name] = value["content"] if isinstance(value, dict) else value
    if (template := path / "chat_template.jinja").is_file():
        found["chat_template"] = template.read_text()
    return found
