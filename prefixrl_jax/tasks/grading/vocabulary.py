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
    " bag ton way pie car pen toy egg eggs"
)
# Words that may stand between the words of a unit: dollars per day, % of the students.
UNIT_FILLERS = words("per of the each for by an at on")
UNIT_LETTERS = words(
    "m g s h l L N J W V A C F"
)  # as units they stand in \text; K may be a thousand
# Words that make another number, or none, of what stands before them.
CHANGING_WORDS = words(
    "or and to not no than least most half halves quarter quarters third thirds squared cubed dozen"
    " dozens score minus plus times divided over factorial mod modulo base more less fewer up down"
    " between if when where unless except other others nan inf infinity is was equals equal but"
    " because so since then one two three four five six seven eight nine ten eleven twelve twenty"
    " thirty forty fifty sixty seventy eighty ninety first wrong incorrect false instead"
    " thirteen fourteen fifteen sixteen seventeen eighteen nineteen single pair couple trio both"
    " zero nil none gross score grand lakh lac crore arab myriad bn mn mil mio tn thou half"
    " permille mille ppm ppb bps pi tau root log ln exp sin cos tan cot sec csc arcsin arccos"
    " arctan raised power sum product quotient difference ratio remainder inverse opposite"
    " complement never maybe perhaps nearly almost about approx approximately roughly around"
    " under below above beyond negative positive imaginary infinite choose only too later"
    " earlier before after either neither nor cube sqrt cbrt abs floor ceil max min short"
    " am pm multiple average mean median"
)
# Beginnings and ends of words that change a number: doubled, triples, halving, fivefold, zillion.
CHANGING_STEMS = (
    *(
        "doubl",
        "tripl",
        "treb",
        "quadrupl",
        "quintupl",
        "halv",
        "twice",
        "thrice",
        "squar",
        "cubed",
        "cubes",
    ),
    *("reciproc", "invers", "negat", "factor", "logar", "expon", "multip", "divi", "subtract"),
    *("added", "adding", "percent", "approx", "increas", "decreas", "reduc", "minus", "sqrt"),
    *(
        "hundred",
        "thousand",
        "fraction",
        "modul",
        "rounded",
        "rounding",
        "twent",
        "thirt",
        "forty",
        "forties",
        "fift",
    ),
    *("sixt", "sevent", "eight", "ninet", "nine", "mirror", "tens", "unequal", "incorrect"),
)
CHANGING_ENDINGS = ("illion", "illions", "illiard", "illiards", "fold", "tuple", "teen", "teens")
NOUNS_IN_TH = words(
    "month path booth cloth bath moth tooth mouth youth sloth wreath width length depth earth birth"
)
# Words that are answers themselves, in small or capital letters.
ANSWER_WORDS = words("yes no true false even odd none")
# Words that are units where they touch a number (24km, 5hours); in 3xyza the letters are factors.
GLUED_WORDS = words(
    "dollar dollars cent cents hour hours minute minutes second seconds meter meters metre metres"
    " inch inches feet foot mile miles yard yards gram grams pound pounds ounce ounces liter liters"
    " degree degrees percent million billion trillion thousand hundred year years month months week"
    " weeks days"
)
