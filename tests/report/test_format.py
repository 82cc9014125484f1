"""Numbers and texts as people read them."""

import math

from prefixrl_jax.report.format import amount, count, interval, number, percent, seconds, visible


def test_numbers_as_people_read_them():
    plain = {
        amount(1.2e12, "FLOP"): "1.20 TFLOP",
        amount(999.96e9, "FLOP"): "1.00 TFLOP",
        amount(0, "FLOP"): "0 FLOP",
        amount(99.96e6, "B"): "100 MB",
        amount(12.34e20, "FLOP"): "1.23 ZFLOP",
        amount(math.nan, "FLOP"): "–",
        seconds(0.0123): "12.3 ms",
        seconds(59.96): "1 min 0 s",
        seconds(200): "3 min 20 s",
        seconds(7199): "2 h 0 min",
        seconds(90_000): "1 d 1 h",
        seconds(None): "–",
        percent(1.0): "100.0 %",
        percent(0.00042): "0.042 %",
        percent(0): "0.0 %",
        percent(True): "–",
        interval([0.1, None]): "–",
        interval(None): "–",
        count(12345): "12,345",
        number(3.14159): "3.142",
    }
    assert {got.replace("\u00a0", " "): want for got, want in plain.items()} == {
        want: want for want in plain.values()
    }


def test_control_characters_are_shown_and_long_texts_are_cut():
    assert visible("a\x07\n\tb") == "a\u2407\n\tb"
    assert visible(None) == "" and visible(3) == "3"
    assert visible("x" * 4000) == "x" * 4000
    assert visible("x" * 5234) == "x" * 4000 + " … [1,234 more characters]"
