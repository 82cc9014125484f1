"""The facade for notebooks: prompt-major samples, prefixes by text and by ids, log-probs, saving;
and a cheap import.
"""

import subprocess
import sys

import jax
import numpy as np
import pytest
import transformers
from families import words
from tiny_models import TINY, continuation_logprobs, random_params

import prefixrl_jax as prl
from prefixrl_jax.group import Context
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.tokenizer import word_tokenizer

TEMPLATE = (
    "{% for m in messages %}<bos> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w7{%"
    " endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory, tokenizer = tmp_path_factory.mktemp("model"), word_tokenizer(words(33))
    tokenizer.chat_template = TEMPLATE
    export_hf(random_params(TINY), TINY, tokenizer, directory, generation={"eos_token_id": [2, 11]})
    return directory


@pytest.fixture(scope="module")
def lm(folder):
    return prl.load(folder)


def token_ids(lm, prompts, n):
    return [c.token_ids for c in lm.generate(prompts, n=n, max_new_tokens=9)]


def test_samples_come_prompt_by_prompt(lm):
    out = lm.generate(["w1 w2", "w3"], n=3, max_new_tokens=9, seed=4)
    assert len(out) == 6 and lm.stop_ids == (2, 11)
    for c in out:
        assert len(c.token_ids) == len(c.logprobs) <= 9
        assert c.finish_reason == ("stop" if c.token_ids[-1] in (2, 11) else "length")
        assert c.text == lm.tokenizer.decode(
            c.token_ids[: len(c.token_ids) - (c.finish_reason == "stop")]
        )
    one, other = (
        lm.generate([prompt], n=3, max_new_tokens=9, seed=4) for prompt in ("w1 w2", "w3")
    )
    assert out == [*one, *other]  # wherever a prompt stands in the list
    assert lm.generate(["w1 w2"], n=3, max_new_tokens=9, seed=5) != one
    assert lm.generate([]) == []


def test_a_prompt_that_comes_again_has_further_samples(lm):
    """Those of its first place do not change, and none is drawn twice."""
    four = token_ids(lm, ["w1 w2"], n=4)
    out = token_ids(lm, ["w1 w2", "w3", "w1 w2"], n=2)
    assert [*out[:2], *out[4:]] == four and len(set(map(tuple, four))) == 4


def test_more_samples_than_are_decoded_at_a_time(lm, monkeypatch):
    expected = token_ids(lm, ["w1 w2", "w3", "w4"], n=4)
    monkeypatch.setattr("prefixrl_jax.api.IN_FLIGHT", 3)
    assert token_ids(lm, ["w1 w2", "w3", "w4"], n=4) == expected


def test_logprobs_are_those_of_the_samples(lm):
    prompt = lm.render("w1 w2 w3")
    for c in lm.generate(["w1 w2 w3"], n=2, max_new_tokens=8):
        found = lm.logprobs([[*prompt, *c.token_ids]])
        np.testing.assert_allclose(found[0, len(prompt) - 1 :], c.logprobs, atol=1e-5)
        logits = jax.nn.log_softmax(lm.logits([[*prompt, *c.token_ids]]))[0, len(prompt) - 1 : -1]
        np.testing.assert_allclose(
            logits[np.arange(len(c.token_ids)), c.token_ids], c.logprobs, atol=1e-5
        )
        context = Context(np.array([prompt], np.int32), np.array([len(prompt)], np.int32))
        expected = continuation_logprobs(
            lm.params, lm.config, context, np.array([[c.token_ids]], np.int32)
        )
        np.testing.assert_allclose(found[0, len(prompt) - 1 :], expected[0, 0], atol=1e-5)


def test_a_prefix_begins_every_answer_and_is_not_part_of_it(lm):
    prefixes = ("w8 w9", lm.tokenizer.encode("w8 w9"))
    text, ids = (
        lm.generate(["w1"], n=2, max_new_tokens=6, temperature=0, prefix=prefix)
        for prefix in prefixes
    )
    assert text == ids == lm.generate(["w1 w8 w9"], n=2, max_new_tokens=6, temperature=0)
    assert text[0] == text[1]  # greedy


def test_a_conversation_leaves_the_assistants_turn_open(lm):
    ids = lm.render([{"role": "user", "content": "w1"}])
    assert lm.tokenizer.decode(ids) == "<bos> w1 w7"
    assert lm.generate(
        [[{"role": "user", "content": "w1"}]], temperature=0, max_new_tokens=4
    ) == lm.generate(["<bos> w1 w7"], temperature=0, max_new_tokens=4)


def test_what_cannot_be_a_prompt_is_named(lm, folder, tmp_path):
    with pytest.raises(ValueError, match=r"prompts\[0\]='' has no tokens"):
        lm.generate([""])
    lm.save_pretrained(tmp_path / "again")
    plain = prl.load(tmp_path / "again")
    plain.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat_template"):
        plain.generate([[{"role": "user", "content": "w1"}]])


def test_what_is_saved_loads_again(lm, tmp_path):
    lm.save_pretrained(tmp_path / "out")
    again = prl.load(tmp_path / "out")
    assert again.stop_ids == lm.stop_ids and again.config == lm.config
    assert all(map(np.array_equal, jax.tree.leaves(again.params), jax.tree.leaves(lm.params)))


@pytest.mark.torch
def test_what_is_saved_loads_in_transformers(lm, tmp_path):
    lm.save_pretrained(tmp_path / "out")
    assert transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out"
    ).generation_config.eos_token_id == [2, 11]


@pytest.mark.parametrize(
    ("kind", "answer", "text", "verdict"),
    [
        ("gsm8k", "72", "#### 72", "correct"),
        ("gsm8k", "72", "#### 73", "wrong"),
        ("gsm8k", "72", "about seventy", "unparsed"),
        ("math", r"\frac{1}{2}", r"so \boxed{0.5}", "correct"),
        ("math", "x+1", r"\boxed{x-1}", "wrong"),
        ("math", r"\frac{1}{\sqrt{2}}", r"\boxed{\frac{\sqrt{2}}{2}}", "correct"),
    ],
)
def test_grades(kind, answer, text, verdict):
    assert prl.grade(kind, answer, text) is prl.Verdict(verdict)


def test_grades_that_cannot_be_given():
    with pytest.raises(ValueError, match="grader kind 'chess': one of gsm8k, math"):
        prl.grade("chess", "1", "1")
    with pytest.raises(ValueError, match="gold answer is empty"):
        prl.grade("math", " ", "1")


def test_importing_the_package_imports_nothing():
    code = (
        "import sys; import prefixrl_jax; print({'jax', 'numpy', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has LM"):
        _ = prl.nothing
