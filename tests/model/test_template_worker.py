"""The process that renders chat templates, asked as templates.py asks it."""

from __future__ import annotations

import json
import subprocess

import pytest
from runs import PYTHON, ROOT


def ask(*questions: list) -> list[list]:
    """Returns the answers of a process of its own."""
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run(
        [*PYTHON, "-m", "prefixrl_jax.model.template_worker", str(2**31)],
        cwd=ROOT,
        input=lines.encode(),
        capture_output=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()[1:]]  # the first says it is ready


MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.mark.slow
@pytest.mark.pipeline
def test_templates_are_rendered_one_after_the_other_whatever_one_does():
    dated = "{{ strftime_now('%d %m %Y') }} {{ messages[0].content }}"
    answers = ask(
        ["{{ messages[0].content }}!", MESSAGES, {}, None, 5],
        [dated, MESSAGES, {}, "2024-07-26", 5],
        ["{{ 1 / 0 }}", MESSAGES, {}, None, 5],
        ["{{ messages | random }}", MESSAGES, {}, None, 5],
        ["{{ messages[0].content }}.", MESSAGES, {}, None, 5],
    )
    assert [text for text, _ in answers] == ["Hello!", "26 07 2024 Hello", None, None, "Hello."]
    assert answers[2][1] == "ZeroDivisionError: division by zero"
    assert "draws random texts" in answers[3][1]
