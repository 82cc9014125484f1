"""The words and commands that answers are read by."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


GREEK = words(
    r"\alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \vartheta \kappa \lambda"
    r" \mu \nu \xi \rho \sigma \tau \phi \varphi \chi \psi \omega \ell \Gamma \Delta \Theta"
    r" \Lambda \Sigma \Phi \Psi \Omega"
)
CONSTANTS = words(r"\pi \infty")
FUNCTIONS = words(
    r"\sin \cos \tan \cot \sec \csc \asin \acos \atan \sinh \cosh \tanh \ln \log \exp"
)
FUNCTIONS_OF_SEVERAL = words(r"\max \min \gcd \lcm")
# Letters that stand before brackets as names of functions: f(x + 1) is no product.
APPLIED_LETTERS = words("f g h F G H W")
# Plain words that are commands, as in sqrt(2)/2 or 2pi.
FUNCTION_WORDS = words("sqrt sin cos tan cot sec csc ln log exp pi infty arctan arcsin arccos")
LAYOUT = words(
    r"\left \right \displaystyle \textstyle \limits \quad \qquad \big \Big \bigg \Bigg \bigl \bigr"
    r" \Bigl \Bigr \mathstrut \hspace \nonumber \, \; \: \! \( \) \[ \] ~"
) | {"\\ ", ""}
# What a name on the left of an equation may hold besides letters and numbers.
NAME_MARKS = words(
    r"( ) { } [ ] , | / : _ ' \{ \} \frac \angle \triangle \overline \measuredangle °"
)
# Plain words of two or three letters that are units; others may be products of variables.
SHORT_UNITS = words(
    "cm mm km kg mg lb lbs oz ft in yd mi ml hr hrs min sec deg pct mph kph kmh usd men day cup box"
    " bag ton way pie car pen toy egg"
)
# Words that may stand between the words of a unit: dollars per day, % of the students.
UNIT_FILLERS = words("per of the each for by an at on")
UNIT_LETTERS = words("m g s h l L N J W V A K C F")  # as units they stand in \text
# Words that make another number, or none, of what stands before them.
CHANGING_WORDS = words(
    "or and to not no than least most half halves quarter quarters third thirds squared cubed dozen"
    " dozens score minus plus times divided over factorial mod modulo base more less fewer up down"
    " between if when where unless except other others nan inf infinity is was equals equal but"
    " because so since then one two three four five six seven eight nine ten eleven twelve twenty"
    " thirty forty fifty sixty seventy eighty ninety first wrong incorrect false instead"
)
