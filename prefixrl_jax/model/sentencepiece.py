"""A SentencePiece model as a fast tokenizer, rebuilt from what the model file says.

The classes of transformers fit some families' files each. Here the file's own normaliser,
vocabulary and algorithm are taken, and the result is compared with SentencePiece before it is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.text_growth import check_growth

# What conversions get wrong, if anything: spaces at the ends and in a row, newlines, digits, bytes,
# accents.
PROBES = (
    "The 12 ducks lay 1,234.5 eggs.",
    "  two  spaces \n\n\tend ",
    "don't\u00a0Größe ﬁ ½",
    "日本語 Ω 😀",
    "\\frac{1}{2}",
)
MAX_PIECE = 1000  # characters; every split of a piece in two is looked up
UNIGRAM, BPE = 1, 2  # model_type in the file
CONTROL, USER_DEFINED = 3, 4  # types of pieces, which GGUF files have too
# What tokenizer_config.json may say of a tokenizer.
CONFIG_FIELDS = ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template")


def from_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a folder that has a tokenizer.model.

    Special tokens and chat template are those of tokenizer_config.json, if there is one. In a model
    with user-defined symbols, text that begins with a space or a symbol gets no prefix, as in
    transformers.

    Raises ValueError for an algorithm other than BPE and unigram, or if a probe gets other ids than
    SentencePiece gives it.
    """
    from sentencepiece import sentencepiece_model_pb2

    # protobuf makes this class when the module is imported
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString((path / "tokenizer.model").read_bytes())
    symbols = [p.piece for p in proto.pieces if p.type == USER_DEFINED]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_backend(proto, symbols),
        clean_up_tokenization_spaces=False,
        **_named_tokens(path, proto),
    )
    check_growth(json.loads(tokenizer.backend_tokenizer.to_str()), path / "tokenizer.model")
    _compare(tokenizer, path / "tokenizer.model", symbols)
    return tokenizer


def _backend(proto: Any, symbols: list[str]) -> Tokenizer:
    """Return the tokenizer's pipeline: normaliser, vocabulary and algorithm, decoder."""
    adds_prefix = proto.normalizer_spec.add_dummy_prefix
    backend = Tokenizer(_model(proto))
    backend.normalizer = _normalizer(proto.normalizer_spec, bool(symbols))
    # Text is divided at symbols, and only its beginning gets a prefix.
    if symbols and adds_prefix:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if adds_prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(undo)
    backend.add_tokens(
        [
            AddedToken(p.piece, normalized=False, special=p.type == CONTROL)
            for p in proto.pieces
            if p.type in (CONTROL, USER_DEFINED)
        ]
    )
    return backend


def _compare(tokenizer: PreTrainedTokenizerFast, file: Path, symbols: list[str]) -> None:
    """Raise ValueError unless every probe text gets the ids that SentencePiece gives it."""
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_file=str(file))
    probes = [probe.lstrip() if symbols else probe for probe in PROBES]
    for text in [*probes, *(f"a {symbol} b" for symbol in symbols)]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected = original.encode(text)
        if ids != expected:
            raise ValueError(
                f"rebuilt from tokenizer.model it gives {text!r} the ids {ids}, SentencePiece"
                f" {expected}; bring the tokenizer.json that belongs to the model"
            )


def _model(proto: Any) -> models.Model:
    spec = proto.trainer_spec
    pieces = [(p.piece, p.score) for p in proto.pieces]
    if spec.model_type == UNIGRAM:
        return models.Unigram(pieces, spec.unk_id, spec.byte_fallback)
    if spec.model_type != BPE:
        raise ValueError(
            f"model_type {spec.model_type} of tokenizer.model; unigram ({UNIGRAM}) and BPE ({BPE})"
            " are accepted"
        )
    longest = max((len(piece) for piece, _ in pieces), default=0)
    if longest > MAX_PIECE:
        raise ValueError(
            f"tokenizer.model has a piece of {longest} characters; at most {MAX_PIECE} are accepted"
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


def _normalizer(spec: Any, has_symbols: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and not has_symbols:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _named_tokens(path: Path, proto: Any) -> dict[str, str]:
    """Return the special tokens and the chat template.

    They come from the folder's configuration, or else from the model file.
    """
    spec = proto.trainer_spec
    named: dict[str, Any] = {"unk_token": spec.unk_piece}
    for name in ("bos", "eos", "pad"):
        piece_id = getattr(spec, f"{name}_id")
        if piece_id >= 0:
            named[f"{name}_token"] = proto.pieces[piece_id].piece
    config = path / "tokenizer_config.json"
    if config.is_file():
        for name, value in json.loads(config.read_text(encoding="utf-8")).items():
            if name in CONFIG_FIELDS and value:
                named[name] = value["content"] if isinstance(value, dict) else value
    template = path / "chat_template.jinja"
    if template.is_file():
        named["chat_template"] = template.read_text(encoding="utf-8")
    return named
