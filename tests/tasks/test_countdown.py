"""Countdown against an independent player of words, and exact fractions of whole games."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixrl_jax.tasks.countdown import Countdown, random_play_outcomes
from prefixrl_jax.tasks.task import Problem, Verdict

TASK = Countdown(numbers=4, max_number=10, max_outcome=30)
EXAMPLE = Problem("p", {"numbers": [3, 8, 2, 6], "goal": 12})
SOLVED = "B-C 8 2 E=6 A*E 3 6 F=18 D-F 6 18 G=12"
SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: max(a, b) - min(a, b), "*": lambda a, b: a * b}


def ids(words, task=TASK):
    return task.tokenizer.encode(" ".join(words))


def moves(held: dict[str, int]):
    """Every legal move of the numbers held by letter: its word, and what is held after it."""
    for (a, b), (sign, of) in itertools.product(
        itertools.combinations(sorted(held), 2), SIGNS.items()
    ):
        rest = {letter: n for letter, n in held.items() if letter not in (a, b)}
        yield f"{a}{sign}{b}", (held[a], held[b]), rest, of(held[a], held[b])


def judge(numbers, goal, words, most=30) -> str:
    """What becomes of a response, read word by word: "solved", "lost" (legal, the goal not reached)
    or "wrong".
    """
    held, names, words = dict(zip("ABCD", numbers, strict=True)), iter("EFG"), list(words)
    over = False
    while len(held) > 1 and not over and len(words) >= 4:
        legal = {word: after for word, *after in moves(held)}
        operands, rest, outcome = legal.get(words[0], ((), {}, 0))
        over, letter = outcome > most, next(names)
        if (
            words[1:3] != [str(n) for n in operands]
            or words[3] != f"{letter}={'over' if over else outcome}"
        ):
            return "wrong"
        held, words = rest | {letter: outcome}, words[4:]
    if words not in (["done"], ["stuck"]):
        return "wrong"
    return "solved" if words == ["done"] and list(held.values()) == [goal] and not over else "lost"


@st.composite
def plays(draw):
    """A problem and legal random play on it, that may end early."""
    numbers = draw(st.lists(st.integers(1, 10), min_size=4, max_size=4))
    held, words, names = dict(zip("ABCD", numbers, strict=True)), [], iter("EFG")
    for _ in range(draw(st.integers(2, 3))):
        word, operands, rest, outcome = draw(st.sampled_from(list(moves(held))))
        letter = next(names)
        words += [word, *map(str, operands), f"{letter}={outcome if outcome <= 30 else 'over'}"]
        held = rest | {letter: outcome}
        if outcome > 30:
            break
    last = max(held.values())
    goal = draw(st.sampled_from([min(last, 30), draw(st.integers(0, 30))]))
    return Problem("p", {"numbers": numbers, "goal": goal}), [
        *words,
        draw(st.sampled_from(["done", "done", "stuck"])),
    ]


@settings(max_examples=200)
@given(plays())
def test_legal_play_is_graded_right(play):
    problem, words = play
    expected = judge(**problem.data, words=words)
    assert expected != "wrong"
    assert TASK.grade(problem, ids(words)) is (
        Verdict.CORRECT if expected == "solved" else Verdict.WRONG
    )
    assert TASK.follow(problem, ids(words[:-1]))[0] == ""


@settings(max_examples=25)
@given(st.integers(0, 11), st.permutations([3, 8, 2, 6]))
def test_every_changed_token_is_caught(at, numbers):
    problem = Problem("p", {"numbers": numbers, "goal": 12})
    letters = {n: "ABCD"[i] for i, n in enumerate(numbers)}

    def move(sign, *held):
        first, second = sorted(held)  # (letter, number)
        return [f"{first[0]}{sign}{second[0]}", str(first[1]), str(second[1])]

    words = [
        *move("-", (letters[8], 8), (letters[2], 2)),
        "E=6",
        *move("*", (letters[3], 3), ("E", 6)),
        "F=18",
    ]
    words += [*move("-", (letters[6], 6), ("F", 18)), "G=12", "done"]
    assert TASK.grade(problem, ids(words)) is Verdict.CORRECT
    for token in range(len(TASK.tokenizer)):
        changed = ids(words)
        changed[at] = token
        spoken = TASK.tokenizer.convert_ids_to_tokens(changed)
        assert (TASK.grade(problem, changed) is Verdict.CORRECT) == (
            judge(**problem.data, words=spoken) == "solved"
        )


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (SOLVED + " done", Verdict.CORRECT),
        (SOLVED + " stuck", Verdict.WRONG),
        (SOLVED, Verdict.UNPARSED),
        (SOLVED.replace("G=12", "G=11") + " done", Verdict.WRONG),
        (SOLVED.replace("8 2", "2 8") + " done", Verdict.WRONG),
        (SOLVED.replace("D-F 6 18", "B-F 8 18") + " done", Verdict.WRONG),
        ("B*D 8 6 E=over stuck", Verdict.WRONG),
        ("B*D 8 6 E=over A+C 3 2 F=5 stuck", Verdict.WRONG),
        ("B-C 8 2 done", Verdict.UNPARSED),
        ("8 B-C 2 E=6 done", Verdict.UNPARSED),
        ("E-C 8 2 E=6 done", Verdict.UNPARSED),
        ("A-G 3 2 E=1 done", Verdict.UNPARSED),
        ("A-F 3 2 E=1 done", Verdict.WRONG),
        ("done", Verdict.WRONG),
        ("", Verdict.UNPARSED),
    ],
)
def test_verdicts_by_hand(words, verdict):
    assert TASK.grade(EXAMPLE, ids(words.split())) is verdict


@pytest.mark.parametrize(
    ("words", "leaks"),
    [
        ("", False),
        ("B-C 8 2 E=6 A*E 3 6", False),
        (SOLVED.removesuffix(" D-F 6 18 G=12"), False),
        (SOLVED.removesuffix(" 6 18 G=12"), True),  # the move that reaches the goal
        (SOLVED.removesuffix(" G=12"), True),
        (SOLVED, True),
        ("B*D 8 6 E=over stuck", True),
        ("B*D 8 6 E=over A+C", False),
    ],
)
def test_leaks(words, leaks):
    assert TASK.leaks(EXAMPLE, ids(words.split())) is leaks


def outcomes(held: tuple[int, ...], most: int) -> dict[int, Fraction]:
    """Chance of every outcome of random legal play, over all games one by one."""
    if len(held) == 1:
        return {held[0]: Fraction(1)}
    chances: dict[int, Fraction] = {}
    legal = [(*rest.values(), n) for _, _, rest, n in moves(dict(enumerate(held)))]
    for after in legal:
        if after[-1] <= most:
            for outcome, chance in outcomes(after, most).items():
                chances[outcome] = chances.get(outcome, 0) + chance / len(legal)
    return chances


@settings(max_examples=10)
@given(st.lists(st.integers(1, 10), min_size=2, max_size=4), st.integers(10, 30))
def test_outcomes_of_random_play_are_exact(numbers, most):
    chances, expected = random_play_outcomes(numbers, most), outcomes(tuple(numbers), most)
    assert chances.shape == (most + 1,)
    np.testing.assert_allclose(
        chances, [float(expected.get(n, 0)) for n in range(most + 1)], atol=1e-12
    )


def test_generated_problems_lie_in_the_band_and_splits_share_no_numbers():
    task = Countdown(numbers=4, max_number=10, max_outcome=30, band=(2e-3, 1e-2))
    sets = {split: task.generate(split, 20, seed=3) for split in ("train", "heldout", "base")}
    for problems in sets.values():
        assert len({p.id for p in problems}) == 20
        for p in problems:
            assert task.parse(p.data) == p.data
            assert 2e-3 < outcomes(tuple(p.data["numbers"]), 30)[p.data["goal"]] < 1e-2
    other = task.generate("heldout", 40, seed=4)  # disjoint under another seed too
    every = (sets["train"], sets["heldout"] + other, sets["base"])
    families = [{tuple(sorted(p.data["numbers"])) for p in problems} for problems in every]
    assert not any(a & b for a, b in itertools.combinations(families, 2))
    assert task.generate("train", 20, seed=3) == sets["train"] != task.generate("train", 20, seed=4)


def test_too_many_problems_asked_for():
    with pytest.raises(
        ValueError,
        match=r"only \d+ of 999 train problems lie in task\.countdown\.band=\(0\.5, 0\.6\)",
    ):
        Countdown(numbers=2, max_number=3, max_outcome=9, band=(0.5, 0.6)).generate("train", 999, 0)


def test_base_text_is_legal_play_as_likely_as_every_other():
    """All of it legal; the first moves of many games are uniform over the 18 that four numbers
    have.
    """
    first: dict[str, int] = {}
    ends = []
    for prompt, response in TASK.base_text(np.random.default_rng(0), 3000):
        asked, spoken = TASK.text(prompt).split(), TASK.text(response).split()
        numbers, goal = [int(w[2:]) for w in asked[1:5]], int(asked[5].removeprefix("goal="))
        assert (
            asked[0] == "<bos>"
            and asked[6:] == [":"]
            and [w[:2] for w in asked[1:5]] == ["A=", "B=", "C=", "D="]
        )
        problem = Problem("p", {"numbers": numbers, "goal": goal})
        assert TASK.render(problem) == prompt and TASK.split_of(problem) == "base"
        assert judge(numbers, goal, spoken) != "wrong"
        assert (spoken[-1] == "stuck") == spoken[-2].endswith("over")
        first[spoken[0]] = first.get(spoken[0], 0) + 1
        ends.append(spoken[-1])
    assert len(first) == 18 and max(abs(n - 3000 / 18) for n in first.values()) < 4.5 * np.sqrt(
        3000 / 18
    )
    assert 0.2 < np.mean([end == "done" for end in ends]) < 0.8


def test_strategies_are_shares_of_the_moves():
    strategies = TASK.strategies(EXAMPLE, ids(f"{SOLVED} done".split()))
    assert strategies == {"sums": 0.0, "differences": 2 / 3, "products": 1 / 3, "moves": 3.0}
    assert TASK.strategies(EXAMPLE, ids(["done"]))["moves"] == 0.0


GOOD = {"numbers": [3, 8, 2, 6], "goal": 12}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": None}, "'numbers' is missing"),
        ({"goal": None}, "'goal' is missing"),
        ({"numbers": "3 8 2 6"}, "a list of 4 numbers"),
        ({"numbers": [3, 8, 2]}, "a list of 4 numbers"),
        ({"numbers": [3, 8, 2, 11]}, "from 1 to 10"),
        ({"numbers": [3, 8, 2, 0]}, "from 1 to 10"),
        ({"numbers": [3, 8, 2, True]}, "from 1 to 10"),
        ({"goal": 31}, "goal=31: an integer from 0 to 30"),
        ({"goal": 12.0}, r"goal=12\.0"),
    ],
)
def test_rows_are_refused_with_the_field(change, message):
    assert TASK.parse({**GOOD, "extra": 1}) == GOOD
    with pytest.raises(ValueError, match=message):
        TASK.parse({k: v for k, v in {**GOOD, **change}.items() if v is not None})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"numbers": 1}, r"task\.countdown\.numbers=1: a whole number from 2 to 8"),
        ({"numbers": 9}, r"numbers=9"),
        ({"max_number": 31}, r"max_number=31: must be at most task\.countdown\.max_outcome=30"),
        ({"max_number": 0}, r"max_number=0"),
        ({"band": (0.2, 0.1)}, r"task\.countdown\.band=\(0\.2, 0\.1\)"),
        ({"band": (0.1,)}, r"band=\(0\.1,\)"),
    ],
)
def test_settings_are_refused_with_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        Countdown(**fields)
