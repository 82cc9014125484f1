"""Whatever a notebook user tries on the facade works, or one sentence says what is accepted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import words
from tiny_models import TINY, random_params

import prefixrl_jax as prl
from prefixrl_jax.model.fields import shown
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.tokenizer import word_tokenizer

MESSAGE = {"role": "user", "content": "w1"}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    tokenizer = word_tokenizer(words(33))
    tokenizer.chat_template = "{% for m in messages %}<bos> {{ m['content'] }} {% endfor %}"
    tokenizer.model_max_length = 400  # becomes max_position_embeddings
    directory = tmp_path_factory.mktemp("model")
    export_hf(random_params(TINY), TINY, tokenizer, directory)
    return prl.load(directory)


def token_ids(lm, prompts, **options):
    return [c.token_ids for c in lm.generate(prompts, max_new_tokens=3, **options)]


@pytest.mark.parametrize(
    "prompts",
    [
        "w1 w2",
        ("w1 w2",),
        (text for text in ["w1 w2"]),
        np.array(["w1 w2"]),
        [[5, 6]],
        [(5, 6)],
        [np.array([5, 6])],
        np.array([[5, 6]], np.uint16),
        jnp.array([[5, 6]]),
        [[np.int64(5), 6]],
    ],
    ids=lambda p: type(p).__name__,
)
def test_prompts_of_every_usual_form_are_the_same_prompt(lm, prompts):
    assert token_ids(lm, prompts) == token_ids(lm, ["w1 w2"])


@pytest.mark.parametrize(
    "options",
    [
        {"n": np.int32(2)},
        {"n": jnp.int32(2), "temperature": jnp.float32(0.5)},
        {"temperature": np.float64(0.5)},
        {"temperature": 0},
        {"seed": 2**64 - 1},
        {"prefix": np.array([5])},
        {"prefix": ""},
        {"prefix": []},
    ],
    ids=str,
)
def test_numbers_and_arrays_of_other_libraries_work(lm, options):
    assert token_ids(lm, ["w1"], **options) == token_ids(lm, ["w1"], **options)


NO_PROMPTS = r"prompts=.*: a list of texts, of conversations or of lists of token ids is accepted"
NO_PROMPT = r"prompts\[0\]=.*: a text, a conversation or a list of token ids is accepted"
NO_NUMBER = r"temperature=.*: 0 \(greedy\) or a positive number is accepted"
NO_MESSAGE = (
    r"a message is \{'role': \.\.\., 'content': \.\.\.\} with a text as content and a role of"
)
REFUSED = [
    *[((prompts,), {}, NO_PROMPTS) for prompts in (None, 3, b"w1", {"a": 1}, {"w1"}, np.array(3))],
    (([MESSAGE],), {}, r"prompts is a conversation, .*put it in a list, as in generate\(\[\[\{"),
    ((MESSAGE,), {}, NO_PROMPTS),
    (([1, 2],), {}, "token ids of one prompt belong in a list of their own"),
    ((np.array([1, 2]),), {}, "token ids of one prompt belong in a list of their own"),
    (([1.0],), {}, "token ids of one prompt belong in a list of their own"),
    *[
        (([prompt],), {}, NO_PROMPT)
        for prompt in (None, [], b"w1", [1.0], [True], [[1]], ["w1"], [None], [2**70])
    ],
    (([[]],), {}, NO_PROMPT),
    (([[36, 37]],), {}, r"prompts\[0\] has the token id 37: the model has ids from 0 to 36"),
    ((["w1", [-1]],), {}, r"prompts\[1\] has the token id -1"),
    (([""],), {}, r"prompts\[0\]='' has no tokens"),
    (([chr(0xD800)],), {}, r"prompts\[0\] has a lone surrogate, '\\ud800', at character 0"),
    (([[MESSAGE | {"role": "usr"}]],), {}, r"prompts\[0\]\[0\]\['role'\]='usr': " + NO_MESSAGE),
    (([[MESSAGE | {"role": 3}]],), {}, r"prompts\[0\]\[0\]\['role'\]=3: " + NO_MESSAGE),
    (([[MESSAGE | {"content": None}]],), {}, r"\['content'\]=None: " + NO_MESSAGE),
    (([[MESSAGE | {"content": [{"text": "a"}]}]],), {}, r"\['content'\]=\[.*: " + NO_MESSAGE),
    (([[{"role": "user"}]],), {}, NO_MESSAGE),
    (([[MESSAGE, "w1"]],), {}, r"prompts\[0\]\[1\]='w1': " + NO_MESSAGE),
    (([[MESSAGE | {"content": chr(0xDC00)}]],), {}, r"\['content'\] has a lone surrogate"),
    *[
        ((["w1"],), {name: value}, rf"{name}=.*: a whole number from [01] to \d+ is")
        for name, values in {
            "n": (0, -1, 10**12, 10**5000, 2.0, "2", None, True, np.float32(1)),
            "max_new_tokens": (0, 10**9, 1.5, "8", None),
            "seed": (-1, 2**64, 0.5, None, "a"),
        }.items()
        for value in values
    ],
    *[
        ((["w1"],), {"temperature": t}, NO_NUMBER)
        for t in ("1", None, float("nan"), True, [1, 2], 10**400, 10**5000)
    ],
    *[
        ((["w1"],), {"temperature": t}, r"temperature=.*: must be 0 \(greedy\) or a number from")
        for t in (-1, float("inf"), 1e-30)
    ],
    *[
        ((["w1"],), {"prefix": p}, r"prefix=.*: a text or a list of")
        for p in (3, [0.5], ["w1"], b"")
    ],
    ((["w1"],), {"prefix": [40]}, r"prefix has the token id 40"),
    ((["w1 " * 300],), {}, r"prompts\[0\] has 300 tokens, and max_new_tokens=256 .* made for 400"),
    ((["w1"],), {"max_new_tokens": 10**6}, "the model is made for 400"),
]


@pytest.mark.parametrize(("prompts", "options", "message"), REFUSED, ids=shown)
def test_what_cannot_be_generated_is_refused_in_one_sentence(lm, prompts, options, message):
    with pytest.raises(ValueError, match=message) as error:
        lm.generate(*prompts, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_unknown_keyword_is_named(lm):
    with pytest.raises(TypeError, match="max_tokens"):
        lm.generate(["w1"], max_tokens=3)


@pytest.mark.parametrize("ids", [[[5, 6]], ((5, 6),), np.array([[5, 6]]), jnp.array([[5, 6]])])
def test_logits_and_logprobs_of_every_array(lm, ids):
    logits, logprobs = lm.logits(ids), lm.logprobs(ids)
    assert logits.shape == (1, 2, 37)
    np.testing.assert_allclose(jax.nn.log_softmax(logits)[0, 0, 6], logprobs[0, 0], atol=1e-5)
    assert lm.logprobs([[5]]).shape == (1, 0)


@pytest.mark.parametrize(
    "ids",
    [
        None,
        "w1",
        [],
        [[]],
        [5, 6],
        [[1.0]],
        [[[1]]],
        [[1], [1, 2]],
        [[True]],
        [["w1"]],
        3,
        [[2**70]],
    ],
    ids=str,
)
def test_other_ids_have_no_logits(lm, ids):
    for of in (lm.logits, lm.logprobs):
        with pytest.raises(ValueError, match=r"ids=.*: an array \[texts, tokens\] of token ids"):
            of(ids)


@pytest.mark.parametrize("outside", [-1, 37, 2**31, 2**40])
def test_ids_outside_the_vocabulary_have_no_logits(lm, outside):
    """An index beyond a table would be that of its last row."""
    for of in (lm.logits, lm.logprobs):
        with pytest.raises(ValueError, match=f"ids has the token id {outside}: the model has ids"):
            of([[1, outside]])
    with pytest.raises(ValueError, match="ids has 401 tokens"):
        lm.logits([[1] * 401])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "path_or_id=None: a path or a name, as text, is accepted"),
        ((3,), "path_or_id=3"),
        (("",), "path_or_id=''"),
        ((".", "cpu"), "mesh='cpu': a jax.sharding.Mesh or None"),
        ((".", None, "float16"), "dtype='float16': one of float32, bfloat16, float64"),
        ((".", None, jnp.float32), "dtype=.*: one of float32"),
    ],
)
def test_what_cannot_be_loaded_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        prl.load(*arguments)


def test_a_model_is_saved_to_a_path(lm):
    with pytest.raises(ValueError, match="directory=None: a path"):
        lm.save_pretrained(None)


@pytest.mark.parametrize(
    ("path", "accepted"),
    [
        ("x" * 300, "each of at most 255 bytes"),
        ("a/" + "é" * 200, "each of at most 255 bytes"),
        ("a/" * 300, "a path of at most 100 names"),
        ("a\0b", "a path without NUL characters"),
        ("a\ud800", "has a lone surrogate"),
        (b"a", "a path or a name, as text"),
    ],
    ids=range(6),
)
def test_what_is_no_path_is_refused_by_argument(lm, path, accepted):
    for name, action in {"path_or_id": prl.load, "directory": lm.save_pretrained}.items():
        with pytest.raises(ValueError, match=f"^{name}.*{accepted}") as error:
            action(path)
        assert "\n" not in str(error.value) and "\0" not in str(error.value)


def test_a_folder_that_cannot_be_made_is_named(lm):
    with pytest.raises(OSError, match=r"^directory='/proc/x': could not be written"):
        lm.save_pretrained("/proc/x")


@pytest.mark.parametrize("template", ["  ", "{% if false %}w1{% endif %}"])
def test_a_template_that_renders_nothing_is_blamed(lm, template):
    tokenizer = word_tokenizer(words(33))
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=r"renders prompts\[0\] to a text without tokens"):
        dataclasses.replace(lm, tokenizer=tokenizer).generate([[MESSAGE]])


@pytest.mark.parametrize("odd", [None, 42, b"42", ["math"], {}], ids=str)
@pytest.mark.parametrize("place", range(3))
def test_what_is_no_text_is_not_graded(place, odd):
    values = ["math", "42", "42"]
    values[place] = odd
    name = ("kind", "answer", "text")[place]
    with pytest.raises(ValueError, match=f"^{name}=.*: a text is accepted"):
        prl.grade(*values)
