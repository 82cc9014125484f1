"""The files of an exported folder beside the weights: configuration, tokenizer and model card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerFast

from prefixrl_jax.model.export_target import CARD, CARD_HEADER, CONFIG
from prefixrl_jax.model.hf_config import GENERATION, special_ids
from prefixrl_jax.model.tokenizer import survives_auto_tokenizer
from prefixrl_jax.runtime.files import write_json

TOKENIZER_NOTE = (
    "\n## Tokenizer\n\n`AutoTokenizer` replaces this model's tokenizer with its family's own. Load"
    " it with\n`transformers.PreTrainedTokenizerFast.from_pretrained(path)`, which reads"
    " `tokenizer.json` as it is."
)


class FolderExtras(TypedDict, total=False):
    """The parts of an exported folder that describe more than the model.

    Attributes:
        generation: fields of generation_config.json beside the special token ids, which it may
            replace.
        card: Markdown of README.md, below the header that names the library.
        of_run: whether the folder may be hf/ of a run, which is for its export stage alone.
    """

    generation: dict[str, Any]
    card: str
    of_run: bool


def text_files(
    fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast, extras: FolderExtras
) -> dict[str, bytes]:
    """Return the content of every file but the weights, by name.

    Args:
        fields: of config.json.
        extras: see FolderExtras.
    """
    with tempfile.TemporaryDirectory(prefix="prefixrl_export_") as name:
        folder = Path(name)
        write_json(folder / CONFIG, fields)
        generation = special_ids(tokenizer) | extras.get("generation", {})
        write_json(folder / GENERATION, generation)
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # which the tokenizers library makes of an error of the system
            raise OSError(f"the tokenizer could not be written: {error}") from error
        card = [CARD_HEADER, extras.get("card", "")]
        if not survives_auto_tokenizer(folder, tokenizer):
            card.append(TOKENIZER_NOTE)
        (folder / CARD).write_text("\n".join(filter(None, card)) + "\n", encoding="utf-8")
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
