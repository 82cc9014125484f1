r"""Numbers in a stream of tokens: integers, decimals, repeating decimals, mixed numbers."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from prefixrl_jax.tasks.grading.values import Number, UnreadableError

LARGEST_EXPONENT = 9999  # of a number like 1e5
# What may stand behind a term: behind anything else, 2 1/2 may be read in two ways.
ENDS_TERM = frozenset(["+", "-", ")", "]", "}", r"\}", ",", "|", r"\rfloor", r"\rceil", r"\choose"])


def read_number(token: str) -> Fraction:
    """Return the value of a number token ("12", ".5", "1.2e5")."""
    _, _, exponent = token.lower().partition("e")
    if exponent and abs(int(exponent[:10])) > LARGEST_EXPONENT:
        raise UnreadableError(f"{token!r} has too large an exponent")
    return Fraction(token)


def is_number(token: str | None) -> bool:
    """Return whether a token is a number."""
    return token is not None and (token[0].isdigit() or (token[0] == "." and len(token) > 1))


class NumeralReader:
    """A stream of tokens, from which numbers are read."""

    def __init__(self, tokens: Sequence[str]):
        self._tokens = list(tokens)
        self._position = 0

    @property
    def next(self) -> str | None:
        """The next token, None at the end."""
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _peek(self, ahead: int) -> str | None:
        position = self._position + ahead
        return self._tokens[position] if position < len(self._tokens) else None

    def _take(self) -> str:
        token = self.next
        if token is None:
            raise UnreadableError("the expression ends too early")
        self._position += 1
        return token

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise UnreadableError(f"{token!r} is missing")

    def _number(self) -> Number:
        """Read a number: decimal, repeating decimal, or mixed number."""
        token = self._take()
        value = read_number(token)
        if self.next == "." and self._peek(1) == r"\overline":
            token += self._take()
        if self.next == r"\overline":
            return Number(value + self._repeating(token))
        if not token.isdigit():
            return Number(value)
        fraction = self._proper_fraction()
        return Number(value if fraction is None else value + fraction)

    def _repeating(self, token: str) -> Fraction:
        r"""Read the period of a repeating decimal: 0.1\overline{6} is 1/6."""
        self._take()
        period = self._digits()
        if "." not in token or not period.isdigit():
            raise UnreadableError("a line over something that is no decimal")
        places = len(token.partition(".")[2])
        return Fraction(int(period), (10 ** len(period) - 1) * 10**places)

    def _proper_fraction(self) -> Fraction | None:
        """Read the fraction that makes an integer a mixed number, if there is one."""
        if is_number(self.next) and self._peek(1) == "/" and is_number(self._peek(2)):
            parts = [self._take() for _ in range(3)]
            numbers = [parts[0], parts[2]]
        elif self.next == r"\frac" and self._plain_fraction():
            self._take()
            numbers = [self._digits(), self._digits()]
        else:
            return None
        if not all(number.isdigit() for number in numbers):
            raise UnreadableError("a mixed number with a decimal in it")
        numerator, denominator = (int(number) for number in numbers)
        # 3 4/3 is no mixed number, and 2 1/2 x may be read in two ways.
        if not 0 < numerator < denominator or self.next not in (None, *ENDS_TERM):
            raise UnreadableError("a number beside a fraction")
        return Fraction(numerator, denominator)

    def _plain_fraction(self) -> bool:
        r"""Return whether the \frac that is next has a whole number above and below."""
        saved = self._position, list(self._tokens)
        self._take()
        try:
            return self._digits().isdigit() and self._digits().isdigit()
        except UnreadableError:
            return False
        finally:
            self._position, self._tokens = saved

    def _digits(self) -> str:
        r"""Read one argument of \frac that is a number."""
        if self.next == "{":
            self._take()
            digits = self._take()
            self._expect("}")
        else:
            self._split_digits()
            digits = self._take()
        if not is_number(digits):
            raise UnreadableError("a number is expected")
        return digits

    def _split_digits(self) -> None:
        r"""Part the first digit from the next number: \frac12 is \frac{1}{2}."""
        token = self.next
        if token is not None and len(token) > 1 and token.isdigit():
            self._tokens[self._position : self._position + 1] = [token[0], token[1:]]
