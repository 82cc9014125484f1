"""Answers of public bug reports, and texts made to break a reader of answers or to slow it down."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixrl_jax.tasks.grading.answers import final_answer
from prefixrl_jax.tasks.grading.compare import PLAIN_NUMBERS, same
from prefixrl_jax.tasks.grading.parse import is_no_number, read
from prefixrl_jax.tasks.grading.precise import Reals
from prefixrl_jax.tasks.grading.tokens import LONGEST, tokenize
from prefixrl_jax.tasks.grading.values import UnreadableError

REALS = Reals()

# Each pair is different, though it was equal for some grader at some time.
DIFFERENT = [
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", r"\frac{1}{3 \cdot 2^{2006}}"),
    (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
    ("0.0000001", "0.0000002"),
    (r"\frac{100}{3}", "33.3"),
    ("2 1/2", "21/2"),
    ("n=2, 3, 4", "n=1, 2, 3"),
    ("D = (0, 1)", "D = (0, 1.5)"),
    (r"19, 46, \text{ and } 82", "21, 36, and 82"),
    (r"\pm 2021", "2021"),
    ("12:00", "1:00"),
    (r"1, 2, \ldots, n", r"1, 3, 5, \ldots, 2n-1"),
    (r"1:2:3:\ldots", r"1:4:9:\ldots"),
    ("4", r"4\sqrt{2}"),
    (r"1\sqrt{19}", "1"),
    ("(a+5)(b+2)", "(+5)(b+2)"),
    ("x+2n+1", "x+1"),
    ("42", "43=42"),
    ("42", "42=43"),
    ("42", "42, 43"),
    ("42", r"42 \text{ or } 43"),
    ("42", "between 42 and 43"),
    ("42", "not 42"),
    ("42", r"42 \pm 1"),
    ("42", "<42"),
    ("42", r"\le 42"),
    ("42", "42!"),
    ("42", "-42"),
    ("42", "(42, 42)"),
    ("42", "4 2"),
    ("42", "42_8"),
    ("42", "42i"),
    ("42", "42x"),
    ("42", "42 dozen"),
    ("42", "42 million"),
    ("42", r"42\%\%"),
    ("42", "\\overline{42}"),
    ("42", "4²"),
    ("16", "4^{2^{}}"),
    ("5", "x^2=5"),
    ("5", "2x=5"),
    ("1", "x+z=1"),
    ("0", r"\frac{0}{0}"),
    ("1", "0^0"),
    ("1", r"\frac{\infty}{\infty}"),
    ("0", r"\infty-\infty"),
    ("2^{10}", "210"),
    ("x^{10}", "x^1 0"),
    ("[0,1]", "(0,1)"),
    ("[1,2]", r"\{1,2\}"),
    ("(3,1)", r"\{1,3\}"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"\{\frac{1}{2},1\}", r"\{\frac{1}{2}\}"),
    ("x<1", "x>1"),
    ("x<1", r"x\le1"),
    ("x^2+y^2=1", "x^2+y^2=2"),
    ("x+y<1", "-x-y<-1"),
    ("f(x)", "f(y)"),
    (r"\text{east}", r"\text{not east}"),
    ("E", "e"),
    ("even", "uneven"),
    (r"|x-1000000|", "1000000-x"),
    (r"\sqrt{(x-1000000)^2}", "1000000-x"),
    (r"\lfloor \frac{n}{1000000} \rfloor", "0"),
    (r"x + \frac{1}{10^{300}}", "x"),
    (r"e^{\pi\sqrt{163}}", "262537412640768744"),
    (r"\pi", r"\frac{355}{113}"),
    ("1,000", "1,00"),
    ("5 cm", "5 m"),
    (r"5\text{ m}", r"5\text{ m}^2"),
    ("50", "500\\%"),
    ("1", "0.01\\%"),
    (r"\log_2 8", r"\log_8 2"),
    (r"\sin^{-1} x", r"\frac{1}{\sin x}"),
]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_what_is_different_is_not_equal_either_way_round(a, b):
    assert not same(a, b, REALS)
    assert not same(b, a, REALS)
    assert not same(a, b, PLAIN_NUMBERS)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("2.5", "2 1/2"),
        (r"\frac{\sqrt{3}}{2}", "√3/2"),
        ("3/4", "¾"),
        ("-7", "−7"),
        ("120000", "1.2e5"),
        ("0.5", "50%"),
        ("24", "24 dollars"),
        ("24", "$24.00"),
        ("18", "18 dollars per day"),
        ("60", "60% of the students"),
        (r"(37,3),(17,3),(3,37)", "(3, 37), (37, 3), (17, 3)"),
        (r"-12;-11;-10", r"\{-12, -11, -10\}"),
        ("AB=4,CD=5", "4, 5"),
        ("p=5, q=2", "q=2, p=5"),
        (r"a=4,\,-8,\,-10", "-10,-8,4"),
        ("(p,q)=(3,2)", "(3,2)"),
        (r"x_{1}=\frac{1}{2}", "1/2"),
        (r"\frac{NO}{BO}=\frac{1}{\sqrt{6}}", r"\frac{1}{\sqrt{6}}"),
        ("$34x+45y-20z+100=0$", "$-34x-45y+20z-100=0$"),
        (r"0<f(x)<1", "0 < f(x) < 1"),
        (r"-793 < a < 10", "(-793, 10)"),
        (r"x \in \{-1\} \cup [0,7)", r"[0,7) \cup \{-1\}"),
        (r"\sqrt[3]{\frac{33-\sqrt{33}}{2}}", r"\left(\frac{33-\sqrt{33}}{2}\right)^{1/3}"),
        (r"108^{\\circ}", "108"),
    ],
)
def test_ordinary_answers_of_bug_reports_are_right(gold, answer):
    assert same(gold, answer, REALS) is True


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "\\boxed{1}" * 20_000,
        "\\boxed{" + "{" * 50_000,
        "{" * 100_000 + "}" * 100_000,
        "\\boxed{" + "9" * 100_000 + "}",
        "####" * 50_000,
        "#### " + "**" * 50_000,
        "#### " + "*a" * 50_000,
        "answer is " * 20_000,
        "**1" * 50_000,
        "\\frac" * 40_000,
        "1," * 100_000,
        " " * 200_000,
        "\\text{" * 30_000,
        "9" * 5_000 + "/" + "9" * 5_000,
        "1e" + "9" * 300,
        "(" * LONGEST,
        "((1,2)," * 57,
        "-" * LONGEST,
        "2^" * 200,
        "9!" * 200,
        r"\pm" * 100,
        r"(\pm" * 80,
        "|" * LONGEST,
        "x" * LONGEST,
        "(x+y)^{999}" * 36,
        "(x+1)" * 80,
        r"\binom{4000}{2000}" * 20,
        "4000!" * 80,
        "1 " * 200,
        "1=" * 200,
        "x<" * 200,
        r"(0,1)\cup" * 40,
        r"\{1,2\}," * 50,
        "1 or " * 80,
        "½" * LONGEST,
        "²" * LONGEST,
        "\x00\ud800\u202e",
        "٣",
        "𝟒𝟐",
    ],
)
def test_no_text_takes_long(text):
    """Milliseconds: with a pattern that is quadratic in the text this test would take minutes."""
    started = time.process_time()
    stated = final_answer(text)
    for answer in (text if stated is None else stated, text[:LONGEST], text[-LONGEST:]):
        same("7", answer)
        same(answer, "7")
        same(answer, answer + " ")
        same(answer[:LONGEST], answer[1:LONGEST])
    assert time.process_time() - started < 5


PIECES = [
    *"0123456789abexyzi+-*/^_!=<>()[]{}|,.;:%$ '\\",
    *(" or ", " and ", "cm", "dollars", " million", "nan", "**", "####", "1/2", "12", "0.5", "1e9"),
    *(r"\frac", r"\frac{1}{2}", r"\sqrt", r"\sqrt{2}", r"\pi", r"\pm", r"\infty", r"\cup", r"\in"),
    *(r"\{", r"\}", r"\left(", r"\right]", r"\text{", r"\text{ cm}", r"\boxed{", r"\le", r"\ne"),
    *(
        r"\sin",
        r"\log",
        r"\binom",
        r"\lfloor",
        r"\rfloor",
        r"\dots",
        r"\cdot",
        r"^\circ",
        r"\\",
        "&",
    ),
    *(
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\overline{3}",
        r"\mathbb{R}",
        r"\setminus",
        r"\approx",
    ),
    *("½", "√", "²", "−", "π", "∞", "≤", "٣", "\u00a0", "\ud800", "é"),
]
texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=60)


@settings(deadline=2000, max_examples=400)
@given(texts, texts)
def test_any_two_texts_are_compared_in_bounded_time(a, b):
    final_answer(a)
    for scalars in (PLAIN_NUMBERS, REALS):
        verdict = same(a, b, scalars)
        # The order of the arguments does not matter: no rule follows the form of the gold answer.
        assert verdict == same(b, a, scalars)
    try:
        read(a)
    except UnreadableError:
        return
    assert tokenize(a)


@settings(deadline=2000, max_examples=200)
@given(texts)
def test_no_text_is_nan_and_none_but_nan_differs_from_itself(text):
    assert not same(text, "nan") and not same("nan", text)
    assert same(text, text) is (bool(tokenize(text)) and not is_no_number(text))


NUMBERS = st.integers(1, 30)
EXPRESSIONS = st.recursive(
    NUMBERS.map(lambda n: (str(n), float(n))),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]})+({p[1][0]})", p[0][1] + p[1][1])),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]})({p[1][0]})", p[0][1] * p[1][1])),
        inner.map(lambda p: (f"\\sqrt{{{p[0]}}}", p[1] ** 0.5)),
        inner.map(lambda p: (f"\\frac{{1}}{{{p[0]}}}", 1 / p[1])),
        inner.map(lambda p: (f"\\left({p[0]}\\right)^2", p[1] ** 2)),
    ),
    max_leaves=5,
)


@settings(deadline=5000, max_examples=200)
@given(EXPRESSIONS, EXPRESSIONS)
def test_floats_that_are_far_apart_never_come_from_equal_answers(a, b):
    """A second opinion on what is read: the value that was built with the text, in floats."""
    (text, value), (other, other_value) = a, b
    if abs(value - other_value) > 1e-6 * max(value, other_value):
        assert not same(text, other, REALS)
    rearranged = f"({other})+({text})"
    assert same(f"{text}+{other}", rearranged, REALS) is True
