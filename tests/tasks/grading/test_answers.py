"""Where answers stand, which writings are one answer, which values are equal."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixrl_jax.tasks.grading.answers import (
    LONGEST,
    boxed,
    final_answer,
    normalise,
    rational,
    same,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{ 1, 2 \right\}}", r"\left\{ 1, 2 \right\}"),
        (r"\fbox{3} is it", "3"),
        (r"\boxed 7$", "7"),
        (r"\boxed{ }", None),
        (r"cut off: \boxed{\frac{1}{2", None),
        ("He sold 48/2 = <<48/2=24>>24 in May.\nThat is 48 + 24 = 72 in all.\n#### 72", "72"),
        ("#### 1\nno: #### 1,234 \nbye", "1,234"),
        ("The answer is 12.", "12"),
        ("The final answer is: $x = 3.5$. I hope it is correct.", "$x = 3.5$"),
        ("Answer: 1/2", "1/2"),
        (r"#### 5 but \boxed{6}", "6"),
        ("I do not know", None),
        ("", None),
    ],
)
def test_the_last_stated_answer_is_found(text, answer):
    assert final_answer(text) == answer


@given(st.lists(st.sampled_from(["{", "}", "a", "\\boxed{", " "]), max_size=30).map("".join))
def test_what_a_box_holds_is_balanced(text):
    content = boxed(text)
    if content is not None and "{" in text[text.rfind("\\boxed") + 6 :][:1]:
        assert content.count("{") == content.count("}")


@pytest.mark.parametrize(
    "writings",
    [
        [
            r"\frac{1}{2}",
            r"\dfrac12",
            r"\tfrac{1}2",
            r"\frac 12",
            r"$\frac{1}{2}$",
            "1/2",
            "0.5",
            ".5",
            "0.50",
        ],
        [
            "1000",
            "1,000",
            r"1{,}000",
            r"1,\!000",
            r"\$1,000",
            "1000.0",
            r"1000\text{ cm}",
            r"1000\text{ cm}^2",
            "x=1000",
            r"\boxed{1000}",
        ],
        ["-3", "\u22123", "- 3", "-3.", r"-3^\circ", r"-3^{\circ}"],
        ["50", r"50\%", "50%"],
        [r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", r"(3,\dfrac{\pi}{2})"],
        [r"\text{Evelyn}", "Evelyn", r"\textbf{Evelyn}"],
        ["2\\frac{1}{2}", "5/2", "2.5"],
        [r"x \leq 3", r"x\le3"],
        [r"\sqrt2", r"\sqrt{2}", r"\sqrt 2"],
        [r"x^{2}", "x^2"],
    ],
)
def test_writings_of_one_answer(writings):
    for a, b in itertools.product(writings, writings):
        assert same(a, b) is True, (a, b, normalise(a), normalise(b))


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("1/2", "1/3", False),
        ("10", "100", False),
        ("-1", "1", False),
        ("1,2", "12", None),
        ("(1,000)", "1000", None),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", None),
        ("3", "3^{400000000}", None),
        ("1e400000000", "1", None),
        ("1/0", "1", None),
        ("", "", True),
    ],
)
def test_what_writing_and_value_decide_and_what_they_leave_open(gold, answer, verdict):
    assert same(gold, answer) is verdict


FORMS = st.sampled_from(["{0}/{1}", r"\frac{{{0}}}{{{1}}}", r"\dfrac{{{0}}}{{{1}}}"])


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6), FORMS)
def test_fractions_keep_their_exact_value(numerator, denominator, form):
    assert rational(normalise(form.format(numerator, denominator))) == Fraction(
        numerator, denominator
    )


@given(st.decimals(-(10**12), 10**12, places=4))
def test_decimals_keep_their_exact_value_with_and_without_separators(number):
    assert (
        rational(normalise(str(number)))
        == rational(normalise(f"{number:,}"))
        == Fraction(str(number))
    )


@settings(max_examples=200)
@given(st.text(st.sampled_from("\\{}$^_,.- 0123456789abfrcdxo#"), max_size=80))
def test_any_text_is_itself_and_raises_nothing(text):
    assert same(text, text) is True
    final_answer(text)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "{" * 100_000 + "}" * 100_000,
        "\\boxed{" + "9" * 100_000 + "}",
        "####" * 50_000,
        "answer is " * 20_000,
        "\\frac" * 40_000,
        "1," * 100_000,
        " " * 200_000,
        "\\text{" * 30_000,
        "9" * 5_000 + "/" + "9" * 5_000,
    ],
)
def test_no_text_takes_long(text):
    """Milliseconds: with a pattern that is quadratic in the text this test would take minutes."""
    stated = final_answer(text)
    same("7", text if stated is None else stated)
    same(text[:LONGEST], text[1:LONGEST])
