"""The edge between text and token ids: two small tokenizers for models trained from scratch,
loading, and a fingerprint.

Both are ordinary Hugging Face fast tokenizers, so an exported model carries one that transformers
reads.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prefixrl_jax.model.sentencepiece import from_sentencepiece


def word_tokenizer(
    words: Sequence[str],
    pad: str = "<pad>",
    bos: str = "<bos>",
    eos: str = "<eos>",
    unk: str = "<unk>",
) -> PreTrainedTokenizerFast:
    """One id for each whitespace-separated word: pad, bos, eos and unk are 0 to 3, then `words` in
    their order.

    Encoding adds no special tokens; decoding joins with single spaces. Raises ValueError naming a
    word that is empty, holds whitespace, or occurs twice (the special tokens count).
    """
    entries = [pad, bos, eos, unk, *words]
    for word, times in Counter(entries).items():
        if times > 1:
            raise ValueError(
                f"word {word!r} occurs {times} times in the vocabulary: each must occur once"
            )
        if word.split() != [word]:
            raise ValueError(
                f"word {word!r}: a word must hold at least one character and no whitespace"
            )
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token=unk)
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(backend, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk)


def byte_tokenizer(
    pad: str = "<pad>", bos: str = "<bos>", eos: str = "<eos>"
) -> PreTrainedTokenizerFast:
    """UTF-8 bytes: id b is byte b, then pad, bos and eos are 256 to 258.

    `decode(encode(text)) == text` for every text. Text never encodes to a special token, not even
    one that spells it: those enter by id alone. Encoding adds none.
    """
    backend = Tokenizer(
        models.BPE({char: byte for byte, char in enumerate(_byte_characters())}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend, pad_token=pad, bos_token=bos, eos_token=eos, split_special_tokens=True)


def _wrap(backend: Tokenizer, **fields) -> PreTrainedTokenizerFast:
    # Special tokens that the model's vocabulary lacks get the next ids, in the order they are
    # added.
    backend.add_special_tokens([token for name, token in fields.items() if name.endswith("_token")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **fields
    )


def _byte_characters() -> list[str]:
    """The printable character that byte-level pipelines write for each byte 0 to 255."""
    kept = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = [b for b in range(256) if b not in kept]
    return [chr(b) if b in kept else chr(256 + others.index(b)) for b in range(256)]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of the SHA-256 of all that decides which ids a text gets, the same in every
    process and after a save.

    That is the vocabulary, the pipeline, the special tokens and the chat template.
    """
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    # left behind by the latest call, not part of the tokenizer
    for call_state in ("padding", "truncation"):
        pipeline.pop(call_state, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [pipeline, special, bool(tokenizer.split_special_tokens), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer saved at `path`, a directory with tokenizer.json or a SentencePiece
    tokenizer.model, or a name on the Hugging Face Hub.

    Raises ValueError naming `path` when there is none, or when a SentencePiece model cannot be
    rebuilt as it is.
    """
    try:
        if (Path(path) / "tokenizer.model").is_file() and not (
            Path(path) / "tokenizer.json"
        ).is_file():
            return from_sentencepiece(Path(path))
        # Not AutoTokenizer: from transformers 5 on it rebuilds some families' pipeline (Qwen2's,
        # for one) around the bare vocabulary, so that a tokenizer of another kind beside such a
        # model would come back changed without a word.
        return PreTrainedTokenizerFast.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer {str(path)!r}: cannot be loaded; a directory with tokenizer_config.json and"
            f" tokenizer.json or tokenizer.model is accepted ({error})"
        ) from error
