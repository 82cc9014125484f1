r"""Where a response states its answer, and which gold answers are none.

`parse.py` reads the answer that is found here, `compare.py` compares it. All of it takes time that
is linear in the text, so that it cannot hang. No jax is imported here.
"""

from __future__ import annotations

import re

from prefixrl_jax.tasks.grading.around import changes_box
from prefixrl_jax.tasks.grading.parse import is_no_number
from prefixrl_jax.tasks.grading.tokens import tokenize

MOST_BOXES = 50  # that are one answer together
LONGEST_CONNECTION = 40  # characters between two of them

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
# What may stand between boxes that are one answer: \boxed{1} and \boxed{2}.
_CONNECTION = re.compile(
    r"(?:\s|,|;|&|\$|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])|\\\\"
    r"|\\text\s*\{[\s,]*(?:and|or)?\s*\}|\b(?:and|or)\b)*"
)
_PHRASE = re.compile(r"answer(?:\*\*|__)?\s*(?:is|:|=)(?:\*\*|__)?\s*:?\s*", re.IGNORECASE)
# Markdown's marks of emphasis around words; 2**3 keeps its sign.
_EMPHASIS = re.compile(r"(?<![\w)*_])(\*\*|__|`|\*)(?=\S)([^*_`\n]+)(?<=\S)\1(?![\w(*])")
_BOLD_NUMBER = re.compile(
    r"\*\*\s*([-+−]?\s?[$€£]?\s?\d[\d,]*(?:\.\d+)?(?:/\d+)?\s?%?(?:\s[A-Za-z]+)?)[.:]?\s*\*\*"
)


def final_answer(text: str) -> str | None:
    r"""Return the answer that a response states, or None when it states none.

    It is the content of the last \boxed{...}, or of the last several that only "and", "or" and
    commas part; else the text after the last "####"; else the text after the last "answer is"; else
    the one bold number in the last line. A box that is never closed states nothing.
    """
    if _BOX.search(text):
        return _boxed_answer(text)
    if "####" in text:
        line = text.rsplit("####", 1)[1].strip().split("\n", 1)[0]
        return _without_emphasis(line) or None
    end = None
    for match in _PHRASE.finditer(text):
        end = match.end()
    if end is None:
        return _bold_number(text)
    line = _without_emphasis(text[end:].split("\n", 1)[0])
    sentence = re.split(r"\.(?:\s|$)", line, maxsplit=1)[0].strip().rstrip(".,;")
    return _without_emphasis(sentence) or None


def gold_answer(text: str) -> str:
    """Return the gold answer in a text: what its box holds, if it has one."""
    return (_boxed_answer(text) or text) if _BOX.search(text) else text


def check_gold(answer: str, field: str = "answer") -> None:
    """Raise ValueError, naming the field, unless a gold answer is one that a response can state."""
    if not answer.strip():
        raise ValueError(f"{field}: the gold answer is empty; no response could be graded by it")
    if is_no_number(answer) or not tokenize(answer):
        raise ValueError(
            f"{field}={answer!r}: the gold answer is no answer; a finite number, an expression or"
            " words are accepted"
        )


def _boxed_answer(text: str) -> str | None:
    """Return what the last box holds, joined with those that belong to it."""
    starts = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    start, end = starts.pop()
    box = _content(text, end)
    if box is None or changes_box(text[:start], text[box[1] :]):
        return None
    contents = [box[0]]
    separators: list[str] = []
    for earlier, end in reversed(starts[-MOST_BOXES:]):
        box = _content(text[:start], end)
        if box is None:
            break
        connection = text[box[1] : start]
        if len(connection) > LONGEST_CONNECTION or not _CONNECTION.fullmatch(connection):
            break
        if changes_box(text[:earlier], ""):
            return None
        if box[0] not in contents:
            separators.append(" or " if "or" in connection else " ; ")
            contents.append(box[0])
        start = earlier
    answer = contents[-1]
    for separator, content in zip(reversed(separators), reversed(contents[:-1]), strict=True):
        answer += separator + content
    return answer or None


def _content(text: str, position: int) -> tuple[str, int] | None:
    r"""Return what the braces at a position hold, and where they end; None if they do not.

    \boxed 7 holds the next word.
    """
    rest = re.compile(r"\s*").match(text, position)
    begin = rest.end() if rest else position
    if text[begin : begin + 1] != "{":
        word = re.compile(r"\S+").match(text, begin)
        return (word[0].strip("$."), word.end()) if word else None
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, begin):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[begin + 1 : brace.start()].strip(), brace.end()
    return None


def _without_emphasis(text: str) -> str:
    """Return a text without Markdown's marks around words, and without one at either end."""
    text = _EMPHASIS.sub(r"\2", text)
    text = re.sub(r"^\s*(?:\*\*|__)(?=\s)", "", text)
    return re.sub(r"(?:\*\*|__)\s*$", "", text).strip()


def _bold_number(text: str) -> str | None:
    """Return the number in bold in the last line, if there is one bold span and it is a number."""
    line = text.rstrip().rsplit("\n", 1)[-1]
    numbers = _BOLD_NUMBER.findall(line)
    return str(numbers[0]).strip() if len(numbers) == 1 and line.count("**") == 2 else None
