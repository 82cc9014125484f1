"""The edge between text and token ids: a tokenizer of words, loading, and a fingerprint.

All tokenizers are fast tokenizers of transformers, so an exported model carries one that
transformers reads.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import logging
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prefixrl_jax.model.fields import is_encodable, shown
from prefixrl_jax.model.folder_files import check_tokenizer_files
from prefixrl_jax.model.sentencepiece import from_sentencepiece
from prefixrl_jax.model.text_growth import check_tokenizer_growth

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
}


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one id for each whitespace-separated word.

    <pad>, <bos>, <eos> and <unk> are 0 to 3, then come `words` in their order. Encoding adds no
    special tokens; decoding joins with single spaces.

    Raises ValueError naming a word that is empty, holds whitespace, or occurs twice (the special
    tokens count).
    """
    entries = [*SPECIAL_TOKENS.values(), *words]
    for word, times in Counter(entries).items():
        if times > 1:
            raise ValueError(
                f"word {word!r} occurs {times} times in the vocabulary: each must occur once"
            )
        if word.split() != [word]:
            raise ValueError(
                f"word {word!r}: a word must hold at least one character and no whitespace"
            )
    vocabulary = {word: i for i, word in enumerate(entries)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS
    )


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that decides which ids the tokenizer gives a text.

    It is 16 hex digits of the SHA-256 of the vocabulary, the pipeline, the special tokens and the
    chat template. The fingerprint is the same in every process, and after the tokenizer was saved
    and loaded.
    """
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left behind by the latest call, and not part of the tokenizer.
    for call_state in ("padding", "truncation"):
        pipeline.pop(call_state, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [pipeline, special, bool(tokenizer.split_special_tokens), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text, with the BOS that the tokenizer adds, if it adds one.

    A text that spells BOS at its beginning, as a rendered chat template does, gets no second one.
    """
    ids = list(tokenizer.encode(text))
    bos = tokenizer.bos_token_id
    spelled = bos is not None and text.startswith(str(tokenizer.bos_token))
    return ids[1:] if spelled and ids[:2] == [bos, bos] else ids


def survives_auto_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether AutoTokenizer loads a tokenizer saved beside a model unchanged.

    It does not for Qwen2 models, whose family's tokenizer it rebuilds; then a warning is logged.
    """
    from transformers import AutoTokenizer  # a third of a second that every start would pay

    try:
        if fingerprint(AutoTokenizer.from_pretrained(str(directory))) == fingerprint(tokenizer):
            return True
    except (OSError, ValueError) as error:
        logging.warning("AutoTokenizer cannot read the exported tokenizer: %s", error)
    logging.warning(
        "AutoTokenizer changes the exported tokenizer; PreTrainedTokenizerFast reads it as it is"
        " (README.md says so)"
    )
    return False


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Return the fast tokenizer saved at a path, or that of a name on the Hugging Face Hub.

    A folder has tokenizer.json, or the tokenizer.model of SentencePiece. Raises ValueError naming
    `path` when there is none, when a SentencePiece model cannot be rebuilt exactly, or for files
    that no public model has (see folder_files.py and text_growth.py).
    """
    folder = Path(path)
    if folder.is_dir():
        check_tokenizer_files(folder)
        check_tokenizer_growth(folder)
    try:
        if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
            tokenizer = from_sentencepiece(folder)
        else:
            # Not AutoTokenizer: from transformers 5 on it rebuilds some families' pipeline
            # (Qwen2's, for one) around the bare vocabulary. A tokenizer of another kind beside such
            # a model would come back changed without a word.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"tokenizer {str(path)!r}: cannot be loaded; a directory with tokenizer_config.json and"
            f" tokenizer.json or tokenizer.model is accepted ({reason})"
        ) from error
    _check_template(folder, tokenizer)
    return tokenizer


def _check_template(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError for a chat template that is no text, or one that UTF-8 cannot encode."""
    template = tokenizer.chat_template
    templates = template if isinstance(template, dict) else {"default": template}
    for text in templates.values():
        if text is not None and not (isinstance(text, str) and is_encodable(text)):
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: chat_template={shown(text)}: a text without"
                " lone surrogates is accepted"
            )
