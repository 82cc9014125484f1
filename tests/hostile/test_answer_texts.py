"""Answers of public bug reports, and texts made to break a reader of answers or to slow it down."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixrl_jax.tasks.grading import compare
from prefixrl_jax.tasks.grading.answers import final_answer
from prefixrl_jax.tasks.grading.compare import PLAIN_NUMBERS, RATIONALS, same
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
    ("|x|<3", r"(-\infty,3)"),
    ("n!<3", r"(-\infty,3)"),
    (r"\lfloor x \rfloor<3", r"(-\infty,3)"),
    ("f(x)<3", "f(y)<3"),
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


# An answer that earns nothing for the gold answer before it, by kind. The other way round some do.
CRASHES = [
    ("42", "1e5000+1"),
    ("1", "1e4300/3"),
    ("1", "x+1e-4301"),
    ("42", r"\max 5"),
    ("x=5", r"x=\max5"),
    ("42", r"40+\max(2)=42"),
    ("42", r"40+\min\{2\}"),
    ("2", r"\gcd 2"),
]
UNSOLVED = [
    ("x=5", "3x-2=x+8"),
    ("x=5", "2x=10"),
    ("x=5", "x-5=0"),
    ("x<3", "2x-1<5"),
    (r"x \ge 3", r"-x \le -3"),
    (r"\frac34 > \frac23", "5>1"),
    ("1 < 2", "2 < 4"),
    ("42", "|x| = 42"),
    ("42", "|xy| = 42"),
    ("42", "not x = 42"),
    ("42", r"\text{minus } x = 42"),
    ("2x+3", "x=2x+3"),
    ("2x+3", "2x+3=x"),
    ("k=45,n=2", "n=45,n=2"),
    ("k=45,n=2", "k=45,2"),
    ("5", r"\{x : 5\}"),
    (r"\{5\}", r"\{x \mid 5\}"),
]
UNIT_WORDS = [
    *("tenths", "hundredths", "fifths", "sevenths", "twentieths", "tens", "hundreds of tens"),
    *("gross", "lakh", "crores", "quadrillion", "zillions", "grand", "bn", "mn", "mil", "pair"),
    *("pi", "sqrt", "doubled", "twice", "halved", "tripled", "tenfold", "negative", "reciprocal"),
    *(
        "squares",
        "cubed",
        "roots",
        "factorial",
        "logs",
        "inverse",
        "minus",
        "thousandth",
        "thirteen",
    ),
    *("million million", "percent million", "percentage", "Dozen", "Hundredths"),
]
UNITS = [
    *(("5", f"5 {word}") for word in UNIT_WORDS),
    *(("5", rf"5 \text{{ {word}}}") for word in [*UNIT_WORDS, "K", "M", "e", "i", "pm"]),
    ("1", r"1\%"),
    ("5", "5%"),
    ("5", "5 percent of the apples"),
    (r"50\%", r"50\% million"),
    ("0.5", r"50\% thousand"),
]
PRODUCTS = [
    ("AB", "ab"),
    ("mn", "MN"),
    ("rs", "rS"),
    ("ABCD", "BADC"),
    ("pqrs", "PQRS"),
    ("ab-cd", "ab cd"),
    ("ac-bd", "ac bd"),
    ("xy-z", "xy z"),
    (r"\text{xy-z}", "xy z"),
    ("uv'", "uv"),
    ("3", "3xyzw"),
    ("3xyzt", "3"),
    ("3", "3xabc"),
    ("6", "6 xyxy"),
    ("6", "6 pqst"),
]
TEXT_GROUPS = [
    (r"\text{-10 degrees}", r"\text{10 degrees}"),
    (r"\text{x > 3}", r"\text{x < 3}"),
    (r"\textbf{x = 3}", r"\textbf{x \ne 3}"),
    (r"\mathbf{x-y}", r"\mathbf{x+y}"),
    (r"\mathrm{a/b}", r"\mathrm{ab}"),
    (r"\text{3.5 cm}", r"\text{3/5 cm}"),
    (r"\mathrm{-3i}", r"\mathrm{3i}"),
]
TIMES = [
    ("10:00 AM", "10:00 PM"),
    ("10:00 AM", "10:00"),
    ("5:00 pm", "5:00 x"),
    ("5:00", "5:00 hours"),
    ("5", "5 pm"),
    (r"5\text{ pm}", r"5\text{ am}"),
    ("2024-05-06", "2024-06-05"),
    ("2013", "2024-05-06"),
]
SETS = [
    (r"x > 2 \text{ and } x < 5", r"x > 2 \text{ or } x < 5"),
    (r"x > 2 \lor x < 5", r"x > 2 \land x < 5"),
    (r"\mathbb{R}", r"x > \infty"),
    (r"\mathbb{R}", r"x < -\infty"),
    (r"(3,\infty)", r"3<x<-\infty"),
    (r"(-\infty,\infty)", r"\infty < x < -\infty"),
    (r"(-\infty,3)", r"3 > x > \infty"),
    (r"\pm 1 \pm 2", r"1+2, -1-2"),
    (r"\pm(1 \pm \sqrt{2})", r"1+\sqrt{2}, -1+\sqrt{2}"),
    (r"\{" * 18 + "0.5" + r"\}" * 18, r"\{" * 18 + "1/2" + r"\}" * 18),
]
HIGH_PRECISION = [
    ("10^{12}-x", r"\sqrt{(x-10^{12})^2}"),
    ("10^{15}-x", r"\sqrt[4]{(x-10^{15})^4}"),
    ("n!", r"n!+\binom{n}{300}"),
    ("2^n", r"2^n+\binom{n}{500}"),
    ("n! x", r"n! \sqrt{x^2}"),
    ("n! x", r"n! x \cos(2\pi x)"),
    ("2^n x", r"2^n x \cos(2\pi n)"),
    ("1", r"(-1)^{2n}"),
    ("x", r"x(-1)^{2x}"),
    ("x", "x + 0^x"),
    ("0", r"1-\cos(1-\cos(1-\cos(1-\cos(10^{-30}))))"),
    ("1", r"\log \frac{53127}{9973}"),
    ("1", r"\log 10"),
    ("x", r"x + (x-1013904223)(x-1)"),
    (r"\sin(x\sqrt 2)", r"\sin x \sqrt{2}"),
    (r"\cos(xy)", r"\cos x y"),
    (r"\ln(2(x+1))", r"\ln 2 (x+1)"),
]
EARNS_NOTHING = CRASHES + UNSOLVED + UNITS + PRODUCTS + TEXT_GROUPS + TIMES + SETS + HIGH_PRECISION


@pytest.mark.parametrize(("gold", "answer"), EARNS_NOTHING)
def test_what_is_in_doubt_earns_nothing(gold, answer):
    for scalars in (PLAIN_NUMBERS, RATIONALS, REALS):
        assert same(gold, answer, scalars) is not True
    assert same(answer, answer, REALS) is True


def test_an_exception_in_grading_is_wrong_and_counted(monkeypatch):
    for error in (TypeError, OverflowError, RecursionError, ValueError, KeyError):

        def fail(text, error=error):
            raise error("hostile")

        monkeypatch.setattr(compare, "read", fail)
        before = compare.failures[error.__name__]
        assert same("1", "2") is False
        assert compare.failures[error.__name__] == before + 1


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
        (r"60\%", "60% of the students"),
        ("24", "24 months"),
        ("24", "24 square feet"),
        ("24", "24km"),
        ("2000000", "2 million people"),
        ("x=5", "5=x"),
        ("x<3", "3>x"),
        ("10:00 AM", "10:00 a.m."),
        (r"\text{x > 3}", "x > 3"),
        ("24", r"\text{24 apples}"),
        (r"\frac{1}{\sqrt{x}}", r"\frac{\sqrt x}{x}"),
        (r"\sqrt{4x}", r"2\sqrt{x}"),
        ("4^n", "2^{2n}"),
        (r"12^{n+1}", r"12 \cdot 3^n 4^n"),
        ("n!", "n(n-1)!"),
        (r"\frac{n(n-1)}{2}", r"\binom{n}{2}"),
        (r"e^{-x}\sin x", r"\frac{\sin x}{e^x}"),
        (r"\sin 2x", r"2\sin x\cos x"),
        (r"(37,3),(17,3),(3,37)", "(3, 37), (37, 3), (17, 3)"),
        (r"-12;-11;-10", r"\{-12, -11, -10\}"),
        ("AB=4,CD=5", "4, 5"),
        ("p=5, q=2", "q=2, p=5"),
        (r"a=4,\,-8,\,-10", "-10,-8,4"),
        ("(p,q)=(3,2)", "(3,2)"),
        (r"x_{1}=\frac{1}{2}", "1/2"),
        (r"\frac{NO}{BO}=\frac{1}{\sqrt{6}}", r"\frac{1}{\sqrt{6}}"),
        ("$34x+45y-20z+100=0$", "$-34x-45y+20z-100=0$"),
        (r"0<f(x)<1", "(0, 1)"),
        (r"14{,}916", r"14 {, }916"),
        (r"x_{1}=1,\quadx_{2}=2", r"\boxed{1} \quad \text{and} \quad \boxed{2}"),
        (r"-793 < a < 10", "(-793, 10)"),
        (r"x \in \{-1\} \cup [0,7)", r"[0,7) \cup \{-1\}"),
        (r"\sqrt[3]{\frac{33-\sqrt{33}}{2}}", r"\left(\frac{33-\sqrt{33}}{2}\right)^{1/3}"),
        (r"108^{\\circ}", "108"),
    ],
)
def test_ordinary_answers_of_bug_reports_are_right(gold, answer):
    stated = final_answer(answer) or answer
    assert same(gold, stated, REALS) is True


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
        assert same(a, b, scalars) in (True, False, None)
        assert same(b, a, scalars) in (True, False, None)
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
