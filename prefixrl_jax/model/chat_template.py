"""Conversations to token ids by a tokenizer's chat template, the same on every day.

Two things of transformers' own rendering are changed:

* The date. Templates ask for the present day (`strftime_now`); a run that goes on after midnight
  would ask other prompts. Here it is always `DATE`.
* Control tokens. A text that spells one (`<|im_end|>`) would be encoded to it, and could end its
  own turn. Texts that went through `ChatTemplate.literal` are encoded as text; control tokens that
  the template writes stay what they are.

Conversations that spell no control token get the ids that `apply_chat_template` gives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.encoding import encode_all
from prefixrl_jax.model.fields import is_encodable, shown
from prefixrl_jax.model.templates import render_chat

# The day that Llama 3's templates name when they cannot ask for the present one.
DATE = "2024-07-26"

# Characters that Unicode keeps free for use within programs mark texts on their way.
MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"
LITERAL = "\ufdd0{}\ufdd1"  # a control token that a text spells, by its number
WRITTEN = "\ufdd2{}\ufdd3"  # one that the template writes
BRACKETED = re.compile(r"[<\[{].+[>\]}]", re.DOTALL)

Message = dict[str, str]  # {"role": "user", "content": ...}


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        """Prepare the template; raise ValueError if there is none."""
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat_template: set tokenizer.chat_template, or give prompts"
                " as texts"
            )
        self._tokenizer = tokenizer
        self._controls = {} if tokenizer.split_special_tokens else _control_tokens(tokenizer)
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._numbers = {text: i for i, text in enumerate(self._controls)}

    def literal(self, text: str) -> str:
        """Return the text with marks, for use in a message, that keep its control tokens text.

        Raises ValueError if it holds one of the marks itself.
        """
        if any(mark in text for mark in MARKS):
            raise ValueError(
                f"a text holds one of {MARKS!a}, which are no characters of any script; take it out"
            )
        return self._control.sub(lambda token: LITERAL.format(self._numbers[token[0]]), text)

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation with the assistant's turn left open.

        Raises ValueError if the template cannot render it.
        """
        text = self.text(messages)
        if MARKS[0] in text:
            return self._ids_of_marked(text)
        # as `apply_chat_template` does
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def ids_of_all(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Return what `ids` does for each conversation; the tokenizer gets them all at once."""
        texts = [self.text(messages) for messages in conversations]
        plain = [text for text in texts if MARKS[0] not in text]
        encoded = iter(encode_all(self._tokenizer, plain))
        return [self._ids_of_marked(t) if MARKS[0] in t else next(encoded) for t in texts]

    def text(self, messages: Sequence[Message]) -> str:
        """Return the conversation as the template renders it; marks stay in it."""
        text = render_chat(self._tokenizer, messages, today=DATE)
        if not is_encodable(text):
            raise ValueError(
                f"the chat template renders a lone surrogate, in {shown(text)}; a text that UTF-8"
                " can encode is accepted"
            )
        return text

    def _ids_of_marked(self, text: str) -> list[int]:
        """Return the token ids of a rendered text in which control tokens are marked as text."""
        text = self._control.sub(lambda token: WRITTEN.format(self._numbers[token[0]]), text)
        contents = list(self._controls)
        text = re.sub(LITERAL.format(r"(\d+)"), lambda mark: contents[int(mark[1])], text)
        backend, of_written = self._marking_backend
        ids = backend.encode(text, add_special_tokens=False).ids
        spelled = set(ids) & set(self._controls.values())
        if spelled:
            token = self._tokenizer.convert_ids_to_tokens(min(spelled))
            raise ValueError(
                f"a text spells the control token {token!r}, which this tokenizer cannot encode as"
                " text; take it out"
            )
        return [of_written.get(i, i) for i in ids]

    @cached_property
    def _marking_backend(self) -> tuple[Tokenizer, dict[int, int]]:
        """A copy of the tokenizer that reads control tokens as text and WRITTEN ones as tokens.

        The second value is the control token's id for the id of each WRITTEN token. One call thus
        encodes the whole text, with the same splits and prefix spaces as ever.
        """
        fields = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in fields["added_tokens"]:
            token["special"] |= token["content"] in self._controls
        backend = Tokenizer.from_str(json.dumps(fields))
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # as text
        of_written: dict[int, int] = {}
        for i, control_id in enumerate(self._controls.values()):
            control = self._tokenizer.added_tokens_decoder[control_id]
            written = AddedToken(
                WRITTEN.format(i),
                single_word=control.single_word,
                lstrip=control.lstrip,
                rstrip=control.rstrip,
                normalized=control.normalized,
            )
            backend.add_tokens([written])
            written_id = backend.token_to_id(written.content)
            assert written_id is not None  # it was added
            of_written[written_id] = control_id
        return backend, of_written


def _control_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the id of each control token by its text.

    They are the special tokens, and the added tokens in brackets that the template writes: some
    models do not call those special.
    """
    template = tokenizer.get_chat_template()
    return {
        token.content: i
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.content
        and (token.special or (BRACKETED.fullmatch(token.content) and token.content in template))
    }
