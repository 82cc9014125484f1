r"""What stands around a box and changes what it states: -\boxed{4}, \sqrt{\boxed{2}}."""

from __future__ import annotations

import re

from prefixrl_jax.tasks.grading.vocabulary import words

LONGEST = 200  # characters before a box that are looked at

# Commands that may stand directly before a box without a change of what it states.
_HARMLESS = words(
    "$ [ ( , ; : ! quad qquad displaystyle textstyle Rightarrow implies Longrightarrow iff to"
    " therefore Leftrightarrow rightarrow longrightarrow approx equiv in newline"
    " left big Big hline item \\ because hfill noindent centering bf it rm text par"
)
_GROUPS = words(
    "text textbf textit textrm mathbf mathrm mbox boldsymbol bm color textcolor begin end underline"
    " boxed fbox tag emph operatorname displaystyle hspace vspace large Large"
)
_DENYING = re.compile(
    r"\b(?:(?:not|never|isn't)(?:\s+(?:is|be|the))?[\s:]*"
    r"|(?:minus|negative|plus|times|sqrt|root|half|twice|double|triple|over|modulo|mod|sin|cos|tan"
    r"|log|ln|exp)(?:\s+(?:of|the))*)[\s({$*_]*$",
    re.IGNORECASE,
)
# A line of hyphens and the like, or a tag such as </think>.
_RULE_OR_TAG = re.compile(
    r"(?:(?:^|\n)[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*\n|</?[A-Za-z]\w*>|\|>)"
    r"\s*(?:\$+|\\\[|\\\()?\s*$"
)
_COMMAND = re.compile(r"\\([A-Za-z]+|.)$", re.DOTALL)
_GROUP = re.compile(r"\\([A-Za-z]+)\s*(?:\{[^{}]*\}\s*)*$")
_DECORATION = re.compile(r"(?:\*\*|__|\$|\s|&|~)+$")
_MARKED_LINE = re.compile(r"(?:^|\n)\s*(?:[*>|]|\d+[.)])\s*$")
_AFTER = re.compile(
    r"(?:\s|\\[,;:! ])*(?:\^(?!\s*(?:\\circ|\{\s*\\circ))|_(?!_)|[+/×·÷]|\\cdot|\\times|!\w)"
)


def changes_box(before: str, after: str) -> bool:
    """Return whether the text before or behind a box makes another value of what it holds.

    A sign, an operator, a function or a factor does; words, "=", ":" and arrows do not.
    """
    return _changes_before(before[-LONGEST:]) or _changes_after(after[:LONGEST])


def _changes_before(text: str) -> bool:
    if _DENYING.search(text):
        return True
    if _RULE_OR_TAG.search(text):
        return False
    command = _COMMAND.search(text)
    if command:
        return command[1] not in _HARMLESS
    stripped = _DECORATION.sub("", text)
    is_apart = stripped != text
    if is_apart and _MARKED_LINE.search(stripped + " "):
        return False
    command = _COMMAND.search(stripped)
    if command:
        return command[1] not in _HARMLESS
    return bool(stripped) and _changes_mark(stripped, is_apart)


def _changes_mark(text: str, is_apart: bool) -> bool:
    """Return whether the last character before a box, other than space, changes it."""
    last = text[-1]
    if text.endswith(("->", "=>")):
        return False
    if last == "}":
        opening = text.rfind("{")
        group = _GROUP.search(text[:opening])
        return group is None or group[1] not in _GROUPS
    if last == "{":
        return _opens_argument(text[:-1])
    if last in "([":
        # f(\boxed{2}) or 3(\boxed{2}), but no "( \boxed{2})" in a sentence.
        return bool(re.search(r"[\w)\]}^+*/-]\s*[(\[]+$", text)) and not text[-2:-1].isspace()
    if last in "-−+*/^_±∓<>≤≥≠|√×·÷¬~\\":
        return True
    return not is_apart and (last in ")!%" or (last.isascii() and last.isalnum()))


def _opens_argument(text: str) -> bool:
    """Return whether the brace behind a text begins what a command or a sign changes."""
    group = _GROUP.search(text)
    if group:
        return group[1] not in _GROUPS
    return text[-1:] in ("^", "_", "}", "]") or _changes_before(text)


def _changes_after(text: str) -> bool:
    return _AFTER.match(text) is not None or bool(
        re.match(r"[A-Za-z0-9]|\s*\\(?:sqrt|frac|pi)", text)
    )
