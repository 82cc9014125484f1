r"""Expressions: tokens to a tree of scalars.

What may be read in two ways (1/2x, \sqrt12, 2 \frac{4}{3}) is not read at all: such an answer is
compared as written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from prefixrl_jax.tasks.grading.numerals import ENDS_TERM, NumeralReader, is_number, read_number
from prefixrl_jax.tasks.grading.tokens import QUOTE
from prefixrl_jax.tasks.grading.values import (
    Call,
    Number,
    Power,
    Product,
    Scalar,
    Sum,
    Symbol,
    UnreadableError,
)
from prefixrl_jax.tasks.grading.vocabulary import (
    APPLIED_LETTERS,
    CONSTANTS,
    FUNCTIONS,
    FUNCTIONS_OF_SEVERAL,
    GREEK,
)

DEEPEST = 40  # nested groups of an expression that is read

MINUS_ONE = Number(Fraction(-1))
_LETTERS = GREEK | CONSTANTS
_PAIRS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_CLOSING = {
    "|": "|",
    r"\lfloor": r"\rfloor",
    r"\lceil": r"\rceil",
}


def read_expression(tokens: Sequence[str]) -> Scalar:
    """Return the tree of an expression.

    Raises:
        UnreadableError: the tokens are no expression, or one that may be read in two ways.
    """
    reader = _Reader(tokens)
    tree = reader.sum()
    if reader.next is not None:
        raise UnreadableError(f"{reader.next!r} is not expected")
    return tree


class _Reader(NumeralReader):
    """A recursive-descent parser over the tokens of one expression."""

    def __init__(self, tokens: Sequence[str]):
        super().__init__(tokens)
        self._depth = 0

    def sum(self) -> Scalar:
        """Read terms with + and - between them."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise UnreadableError("the expression is nested too deeply")
        terms = [self._signed_term()]
        while self.next in ("+", "-"):
            terms.append(self._signed_term())
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Sum(tuple(terms))

    def _signed_term(self) -> Scalar:
        sign = 1
        while self.next in ("+", "-"):
            sign *= -1 if self._take() == "-" else 1
        term = self._term()
        return term if sign > 0 else negated(term)

    def _term(self) -> Scalar:
        """Read factors with multiplication, written or not, and division between them."""
        factors = [self._factor()]
        divided = False
        while self.next is not None and self.next not in ENDS_TERM:
            if self.next == "/":
                if divided:
                    raise UnreadableError("a/b/c may be read in two ways")
                self._take()
                factors.append(Power(self._unsigned_factor(), MINUS_ONE))
                divided = True
                continue
            if self.next == r"\cdot":
                self._take()
                factors.append(self._unsigned_factor())
                divided = False
                continue
            # 1/2x is (1/2)x for some and 1/(2x) for others; 2 3 is no product, n 2^n is one.
            if divided or (is_number(self.next) and not self._is_power_behind(factors[-1])):
                raise UnreadableError("a product without a sign that may be read in two ways")
            factors.append(self._factor())
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def _is_power_behind(self, factor: Scalar) -> bool:
        """Return whether a power of a number is next, behind a factor that is no number."""
        return self._peek(1) == "^" and not isinstance(factor, Number)

    def _unsigned_factor(self) -> Scalar:
        if self.next == "-":
            self._take()
            return negated(self._factor())
        return self._factor()

    def _factor(self) -> Scalar:
        """Read one operand with its exponent and factorial signs."""
        tree = self._operand()
        while self.next in ("^", "!", "°"):
            mark = self._take()
            if mark == "!":
                if self.next == "!":
                    raise UnreadableError("a double factorial")
                tree = Call("factorial", (tree,))
            elif mark == "°":
                tree = Product((tree, Symbol(r"\pi"), Number(Fraction(1, 180))))
            else:
                tree = Power(tree, self._exponent())
                if self.next in ("^", "!"):
                    raise UnreadableError("an exponent with a mark that may belong to it or not")
        return tree

    def _exponent(self) -> Scalar:
        if self.next in ("{", "("):
            return self._group()
        if self.next == "-":
            self._take()
            return negated(self._atom())
        return self._atom()

    def _atom(self) -> Scalar:
        """Read a number, letter or constant, as it stands behind ^ and _ without braces."""
        token = self.next
        if is_number(token):
            return Number(read_number(self._take()))
        if token is not None and token.isalpha() and len(token) > 1:
            raise UnreadableError("several letters where one is expected")
        if token is not None and (token.isalpha() or token in _LETTERS):
            return Symbol(self._take())
        return self._operand()

    def _operand(self) -> Scalar:
        token = self.next
        if token is None:
            raise UnreadableError("an operand is missing")
        if is_number(token):
            return self._number()
        if token.isalpha() or token in _LETTERS or token.startswith(QUOTE):
            return self._letter()
        if token in _PAIRS:
            return self._group()
        if token in _CLOSING:
            return self._between(self._take())
        if token in FUNCTIONS or token in FUNCTIONS_OF_SEVERAL:
            return self._function(self._take())
        special = self._special(token)
        self._take()
        return special()

    def _special(self, token: str) -> Callable[[], Scalar]:
        readers = {
            r"\frac": self._fraction,
            r"\sqrt": self._root,
            r"\binom": self._binomial,
        }
        if token not in readers:
            raise UnreadableError(f"{token!r} has no reading here")
        return readers[token]

    def _letter(self) -> Scalar:
        """Read a letter with its subscript and primes, or a product of letters."""
        token = self._take()
        if token.startswith(QUOTE):
            token = token.removeprefix(QUOTE)
            if len(token) != 1 or not token.isalpha():
                raise UnreadableError("words inside an expression")
        if token.isalpha() and len(token) > 1:
            self._tokens[self._position : self._position] = list(token[1:])
            token = token[0]
        name = token + self._marks()
        if self.next == "(" and self._applies(name):
            self._take()
            arguments = [self.sum()]
            while self.next == ",":
                self._take()
                arguments.append(self.sum())
            self._expect(")")
            return Call(name, tuple(arguments))
        return Symbol(name)

    def _marks(self) -> str:
        """Read the subscript and the primes of a letter."""
        marks = ""
        if self.next == "_":
            self._take()
            if self.next == "{":
                self._take()
                inside = []
                while self.next != "}":
                    inside.append(self._take())
                self._take()
                marks = "_" + "".join(inside)
            else:
                marks = "_" + self._take()
        while self.next == "'":
            marks += self._take()
        return marks

    def _applies(self, name: str) -> bool:
        """Return whether the brackets behind a name hold arguments: f(2), but x(y+1) is a product.

        Nobody writes a product as x(2) or P(k), so brackets without a sum hold arguments.
        """
        if name[0] in APPLIED_LETTERS:
            return True
        if name in _LETTERS or name in ("e", "i"):
            return False
        depth = 0
        for token in self._tokens[self._position :]:
            depth += (token in _PAIRS) - (token in _PAIRS.values())
            if depth == 1 and token in ("+", "-"):
                return False
            if depth == 0:
                return True
        return False

    def _group(self) -> Scalar:
        opening = self._take()
        tree = self.sum()
        if opening == "{" and self.next == r"\choose":
            self._take()
            tree = Call("binomial", (tree, self.sum()))
        self._expect(_PAIRS[opening])
        return tree

    def _between(self, opening: str) -> Scalar:
        tree = self.sum()
        self._expect(_CLOSING[opening])
        return Call({"|": "abs"}.get(opening, opening[2:]), (tree,))

    def _argument(self) -> Scalar:
        """Read an argument of a command: a group, or one digit or letter."""
        if self.next == "{":
            return self._group()
        self._split_digits()
        return self._atom()

    def _fraction(self) -> Scalar:
        numerator = self._argument()
        return Product((numerator, Power(self._argument(), MINUS_ONE)))

    def _binomial(self) -> Scalar:
        return Call("binomial", (self._argument(), self._argument()))

    def _root(self) -> Scalar:
        degree: Scalar = Number(Fraction(2))
        if self.next == "[":
            self._take()
            degree = self.sum()
            self._expect("]")
        if self.next in ("{", "("):
            return Power(self._group(), Power(degree, MINUS_ONE))
        if self.next is not None and self.next.isdigit() and len(self.next) > 1:
            raise UnreadableError(r"\sqrt12 may be read in two ways")
        return Power(self._atom(), Power(degree, MINUS_ONE))

    def _function(self, name: str) -> Scalar:
        r"""Read the argument of a function: \sin^2 x, \log_2 8, \cos(x+1), \max(a, b)."""
        base: Scalar | None = None
        exponent: Scalar | None = None
        while self.next in ("^", "_"):
            if self._take() == "^":
                exponent = self._exponent()
            else:
                base = self._group() if self.next == "{" else self._argument()
        if exponent == MINUS_ONE:
            if name not in (r"\sin", r"\cos", r"\tan"):
                raise UnreadableError("the inverse of a function")
            name, exponent = r"\a" + name[1:], None
        arguments = self._arguments(name)
        if base is not None:
            if name != r"\log":
                raise UnreadableError("a subscript of a function")
            name, arguments = "log", (*arguments, base)
        tree = Call(name, arguments)
        return tree if exponent is None else Power(tree, exponent)

    def _arguments(self, name: str) -> tuple[Scalar, ...]:
        if self.next in ("(", "{", r"\{") and name in FUNCTIONS_OF_SEVERAL:
            opening = self._take()
            arguments = [self.sum()]
            while self.next == ",":
                self._take()
                arguments.append(self.sum())
            self._expect(_PAIRS[opening])
            if len(arguments) == 1:
                raise UnreadableError("a function of several numbers with one")
            return tuple(arguments)
        if name in FUNCTIONS_OF_SEVERAL:
            raise UnreadableError("a function of several numbers without brackets")
        if self.next in ("(", "{", "["):
            argument = self._group()
            if self.next in ("^", "!"):
                raise UnreadableError("a mark of the argument or of the function")
            return (argument,)
        return (self._argument_without_brackets(),)

    def _argument_without_brackets(self) -> Scalar:
        r"""Read what a function is applied to by convention: \sin x, \sin 2x, \ln \frac{1}{2}.

        In \sin xy, \sin x \sqrt{2} and \sin x (y + 1) it is not clear where the argument ends.
        """
        factors = [self._factor()]
        stops = (None, "/", r"\cdot", "(", *ENDS_TERM, *FUNCTIONS)
        while self.next not in stops and not is_number(self.next):
            factors.append(self._factor())
        if self.next == "/":
            raise UnreadableError("a quotient that is the argument or has the function above")
        if self.next == "(" or (self.next == r"\cdot" and self._peek(1) not in FUNCTIONS):
            raise UnreadableError("a factor of the argument or of the function")
        first, *others = factors
        is_multiple = isinstance(first, Number) and all(isinstance(f, Symbol) for f in others)
        if others and not is_multiple:
            raise UnreadableError("a product that is the argument or begins with the function")
        return Product(tuple(factors)) if others else first


def negated(tree: Scalar) -> Scalar:
    """Return minus a scalar."""
    if isinstance(tree, Number):
        return Number(-tree.value)
    return Product((MINUS_ONE, tree))
