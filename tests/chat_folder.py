"""The folder that tasks for pretrained models are tested with: a tokenizer over bytes."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

EOS = 258  # id of <eos>
STOP = 7  # another id that generation_config.json names
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """256 bytes, then <pad>, <bos> and <eos>, which no text is encoded to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    backend.add_special_tokens(list(special.values()))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        chat_template=chat_template,
        **special,
    )


def write_chat_folder(directory: Path) -> Path:
    """Write tokenizer and stop ids of a model without weights."""
    byte_tokenizer().save_pretrained(directory)
    ids = {"eos_token_id": [EOS, STOP]}
    (directory / "generation_config.json").write_text(json.dumps(ids))
    return directory
