"""What counts as the gold answer: every row of the tables of docs/grading.md is a case."""

import itertools
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixrl_jax.tasks.grading.answers import final_answer
from prefixrl_jax.tasks.grading.compare import PLAIN_NUMBERS, same
from prefixrl_jax.tasks.grading.parse import read
from prefixrl_jax.tasks.grading.precise import Reals
from prefixrl_jax.tasks.grading.values import Number, UnreadableError

PAGE = Path(__file__).parents[3] / "docs" / "grading.md"
REALS = Reals()


def rows(columns: int) -> list[tuple[str, ...]]:
    """The rows of the page's tables with so many columns, without headings and code marks."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").split("\n") if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        tuple(re.sub(r"^`(.*)`$", r"\1", cell) for cell in row)
        for row in cells
        if len(row) == columns and row[-1] not in ("counts", "answer", "---")
    ]


@pytest.mark.parametrize(("_", "gold", "answer", "counts"), rows(4))
def test_what_the_page_says_of_an_answer_is_so(_, gold, answer, counts):
    assert (same(gold, answer, REALS) is True) is (counts == "yes")
    assert same(gold, gold) is True
    assert same(answer, answer) is (answer != "nan")


@pytest.mark.parametrize(("response", "answer"), rows(2))
def test_what_the_page_says_of_where_an_answer_stands_is_so(response, answer):
    assert final_answer(response) == (None if answer == "none" else answer)


def test_the_page_has_its_tables():
    assert len(rows(4)) > 75 and {row[-1] for row in rows(4)} == {"yes", "no"}
    assert len(rows(2)) == 11


@pytest.mark.parametrize(
    "writings",
    [
        ["1/2", r"\frac{1}{2}", r"\dfrac12", r"\tfrac{1}2", r"\frac 12", "$\\frac{1}{2}$", "0.5"],
        ["1000", "1,000", r"1{,}000", r"1,\!000", "1000 cm", "1000.0", r"1000\text{ cm}", "1 000"],
        ["-3", "−3", "- 3", "-3.", r"-3^\circ", r"-3^{\circ}"],
        [r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", r"(3,\dfrac{\pi}{2})"],
        [r"\text{Evelyn}", "Evelyn", r"\textbf{Evelyn}", "evelyn"],
        ["2\\frac{1}{2}", "5/2", "2.5", "2 1/2", "2½", "x=2.5", r"\boxed{2.5}"],
        [r"x \leq 3", r"x\le3", "x <= 3", r"(-\infty, 3]", r"3 \ge x", r"x \in (-\infty,3]"],
        [r"\sqrt2", r"\sqrt{2}", r"\sqrt 2", "√2", "sqrt(2)", "2^{1/2}", "2^(1/2)"],
        [r"x^{2}", "x^2", "x²", r"x \cdot x"],
        ["48 km/h", r"48 \mathrm{~km} / \mathrm{h}", "48 kilometers per hour", "48"],
    ],
)
def test_writings_of_one_answer(writings):
    for a, b in itertools.product(writings, writings):
        assert same(a, b, REALS) is True, (a, b)


FORMS = st.sampled_from(["{0}/{1}", r"\frac{{{0}}}{{{1}}}", r"\dfrac{{{0}}}{{{1}}}"])


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6), FORMS)
def test_fractions_keep_their_exact_value(numerator, denominator, form):
    value = Fraction(numerator, denominator)
    text = form.format(numerator, denominator)
    for other in (value, value + Fraction(1, 10**30)):
        exact = f"{other.numerator}/{other.denominator}"
        assert same(exact, text, PLAIN_NUMBERS) is (other == value)
        assert same(exact, text) is (other == value)


@given(st.integers(1, 10**6), st.integers(1, 999), st.integers(1, 999), st.sampled_from("-+"))
def test_mixed_numbers_are_sums(whole, a, b, sign):
    numerator, denominator = sorted((a, b + 1000))
    value = whole + Fraction(numerator, denominator)
    gold = f"{sign.strip('+')}{value.numerator}/{value.denominator}"
    for form in ("{0}{1} {2}/{3}", r"{0}{1}\frac{{{2}}}{{{3}}}"):
        assert same(gold, form.format(sign, whole, numerator, denominator), PLAIN_NUMBERS)
        glued = f"{sign}{whole}{numerator}/{denominator}"
        assert not same(glued, form.format(sign, whole, numerator, denominator), PLAIN_NUMBERS)


@given(st.decimals(-(10**12), 10**12, places=4))
def test_decimals_keep_their_exact_value_with_and_without_separators(number):
    assert same(str(number), f"{number:,}", PLAIN_NUMBERS) is True
    assert same(str(number), f"{Fraction(str(number))}", PLAIN_NUMBERS) is True


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.randoms())
def test_lists_are_equal_in_any_order_and_tuples_in_one(numbers, random):
    shuffled = random.sample(numbers, len(numbers))
    written, other = (", ".join(map(str, order)) for order in (numbers, shuffled))
    assert same(written, other) is True
    assert same(f"({written})", f"({other})") is (numbers == shuffled)
    assert same(f"\\{{{written}\\}}", f"\\{{{other}\\}}") is True
    assert same(written, f"{other}, 100") is False


@pytest.mark.parametrize(
    "text",
    ["1/2x", r"\sqrt12", r"2\frac{4}{3}", "2 3", "x^2^3", "n!!", "1/2/3", r"\sin x/2", "(1,2", "="],
)
def test_what_may_be_read_in_two_ways_is_not_read(text):
    with pytest.raises(UnreadableError):
        read(text)
    assert same(text, text) is True


def test_a_number_is_read_exactly():
    assert read("0.1") == Number(Fraction(1, 10))
    assert read("1e-9999") == Number(Fraction(1, 10**9999))
    with pytest.raises(UnreadableError, match="too large an exponent"):
        read("1e99999")


@pytest.mark.parametrize("exponent", [30, 50, 99, 1000, 5000])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1-e^{-K}", "1+e^{-K}"),
        (r"\pi+2^{-K}", r"\pi"),
        (r"\sqrt{2}+10^{-K}", r"\sqrt{2}"),
        (r"x+2^{-K}", "x"),
        (r"\sin x + 2^{-K}", r"\sin x"),
        (r"\frac{1}{2^{K}}", r"\frac{1}{2^{K+1}}"),
        ("K!", "(K+1)!"),
        (r"e^{K}", "e^{K}+1"),
        (r"\sqrt{10^{K}+1}", r"\sqrt{10^{K}}"),
        (r"\ln(10^{K}+1)", r"\ln(10^{K})"),
    ],
)
def test_values_that_differ_by_less_than_a_float_are_different(a, b, exponent):
    a, b = (text.replace("K", str(exponent)) for text in (a, b))
    assert not same(a, b, REALS) and not same(b, a, REALS)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1-e^{-5000}", r"\frac{e^{5000}-1}{e^{5000}}"),
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"),
        (r"\sqrt[3]{2+\sqrt{5}}+\sqrt[3]{2-\sqrt{5}}", "1"),
        (r"\sqrt[3]{-8}", "-2"),
        (r"4\arctan(1)", r"\pi"),
        ("e^{i\\pi}", "-1"),
        (r"\frac{3^{n+1}+(-1)^{n+1}}{2}", r"\frac{3\cdot 3^n-(-1)^n}{2}"),
        ("(n+1)!", "(n+1)n!"),
        (r"2\binom{100}{50}+2\binom{100}{49}+1", r"2\binom{101}{50}+1"),
        (r"\cot x", r"\frac{\cos x}{\sin x}"),
        (r"(-\sqrt{3}, \sqrt{3})", r"-\sqrt3 < x < \sqrt3"),
        (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
    ],
)
def test_equal_values_are_found_equal(gold, answer):
    assert same(gold, answer, REALS) is True
    assert same(answer, gold, REALS) is True
