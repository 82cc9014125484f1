"""Water jugs against an independent simulator, and the checks on users' rows and settings."""

import functools
import itertools
import json
import math
import pathlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefixrl_jax.tasks.jug_play import random_play_success
from prefixrl_jax.tasks.sources import read_problems
from prefixrl_jax.tasks.task import Problem, Verdict
from prefixrl_jax.tasks.water_jugs import WaterJugs

DATA = pathlib.Path(__file__).parent.parent / "data"
TASK = WaterJugs(max_capacity=12, jugs=3, max_moves=8)
POLYA = Problem("polya", {"capacities": [9, 4], "start": [0, 0], "goal": 6})
SOLVED = (
    "fill-A A=9 B=0 A>B A=5 B=4 empty-B A=5 B=0 A>B A=1 B=4 empty-B A=1 B=0 A>B A=0 B=1 fill-A A=9"
    " B=1 A>B A=6 B=4"
)


# An independent simulator: states are tuples, moves are the words of a response.


def successors(state, capacities) -> dict[str, tuple[int, ...]]:
    """Every legal move and where it leads."""
    moves = {}
    for i, name in enumerate("ABCD"[: len(state)]):
        moves[f"fill-{name}"] = (*state[:i], capacities[i], *state[i + 1 :])
        moves[f"empty-{name}"] = (*state[:i], 0, *state[i + 1 :])
        for j, other in enumerate("ABCD"[: len(state)]):
            if i != j:
                together, room = state[i] + state[j], capacities[j]
                moved = list(state)
                moved[i], moved[j] = max(0, together - room), min(together, room)
                moves[f"{name}>{other}"] = tuple(moved)
    return {move: after for move, after in moves.items() if after != state}


def amounts(state) -> list[str]:
    """The words that state what the jugs hold."""
    return [f"{jug}={n}" for jug, n in zip("ABCD", state, strict=False)]


def shortest(capacities, start, goal) -> list[str] | None:
    """Words of a shortest solution, by breadth-first search."""
    frontier, seen = [(tuple(start), [])], {tuple(start)}
    while frontier:
        following = []
        for state, words in frontier:
            for move, after in successors(state, capacities).items():
                if after not in seen:
                    path = [*words, move, *amounts(after)]
                    if goal in after:
                        return [*path, "done"]
                    seen.add(after)
                    following.append((after, path))
        frontier = following
    return None


def problem_of(task, prompt) -> dict:
    """The problem read back from its prompt's words."""
    words = task.text(prompt).split()

    def numbers(mark: str) -> list[int]:
        return [int(word[2:]) for word in words if word[1:2] == mark]

    return {
        "capacities": numbers("/"),
        "start": numbers("="),
        "goal": int(words[-2].removeprefix("goal=")),
    }


def ids(task, words):
    return task.tokenizer.encode(" ".join(words))


def judge(capacities, start, goal, words, max_moves) -> bool:
    """Whether a response solves a problem, read word by word."""
    state, moves, words = tuple(start), 0, list(words)
    while words and words[0] not in ("done", "stuck"):
        after = successors(state, capacities).get(words[0])
        if after is None or words[1 : 1 + len(after)] != amounts(after):
            return False
        state, moves, words = after, moves + 1, words[1 + len(after) :]
    return words == ["done"] and goal in state and moves <= max_moves


def is_right_so_far(capacities, start, goal, words) -> bool:
    """Whether words, which may end anywhere, are legal moves with the right amounts."""
    state = tuple(start)
    width = 1 + len(state)
    for at in range(0, len(words), width):
        after = successors(state, capacities).get(words[at])
        if after is None:
            return False
        stated = words[at + 1 : at + width]
        if stated != amounts(after)[: len(stated)]:
            return False
        state = after
    return True


@st.composite
def plays(draw):
    """A problem and legal random play on it that stops at the goal or after some moves."""
    capacities = draw(st.lists(st.integers(1, 12), min_size=2, max_size=3))
    start = [draw(st.integers(0, c)) for c in capacities]
    goal = draw(st.integers(1, max(capacities)).filter(lambda g: g not in start))
    state, words = tuple(start), []
    for _ in range(draw(st.integers(0, 9))):
        move, state = draw(st.sampled_from(sorted(successors(state, capacities).items())))
        words += [move, *amounts(state)]
        if goal in state:
            break
    last = draw(st.sampled_from(["done", "stuck"]))
    return Problem("p", {"capacities": capacities, "start": start, "goal": goal}), [*words, last]


@settings(max_examples=300)
@given(plays(), plays(), st.integers(0, 40))
def test_a_prefix_of_another_problem_could_begin_an_answer_when_its_moves_are_right_here_too(
    play, another, length
):
    (played, words), (other, _) = play, another
    prefix = words[:-1][:length]
    for problem in (played, other):
        expected = is_right_so_far(**problem.data, words=prefix)
        assert TASK.could_begin(problem, ids(TASK, prefix)) is expected
    assert TASK.could_begin(played, ids(TASK, words[:-1]))
    assert not TASK.could_begin(played, ids(TASK, words))


@settings(max_examples=200)
@given(plays())
def test_legal_play_is_graded_right(play):
    problem, words = play
    solved = judge(**problem.data, words=words, max_moves=TASK.max_moves)
    assert TASK.grade(problem, ids(TASK, words)) is (Verdict.CORRECT if solved else Verdict.WRONG)


@settings(max_examples=60)
@given(plays(), st.data())
def test_every_changed_token_is_caught(play, data):
    problem, _ = play
    words = shortest(**problem.data)
    if words is None or TASK.grade(problem, ids(TASK, words)) is not Verdict.CORRECT:
        return
    at = data.draw(st.integers(0, len(words) - 1))
    for token in range(len(TASK.tokenizer)):
        changed = ids(TASK, words)
        if changed[at] != token:
            changed[at] = token
            spoken = TASK.tokenizer.convert_ids_to_tokens(changed)
            # another move may lead to the same amounts
            right = judge(**problem.data, words=spoken, max_moves=TASK.max_moves)
            assert (TASK.grade(problem, changed) is Verdict.CORRECT) == right
            assert not right or at % (len(problem.data["start"]) + 1) == 0


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (SOLVED + " done", Verdict.CORRECT),
        (SOLVED + " stuck", Verdict.WRONG),
        ("fill-A A=9 B=0 done", Verdict.WRONG),
        ("fill-A A=9 B=0 A>B A=6 B=3 done", Verdict.WRONG),
        ("empty-A A=0 B=0 done", Verdict.WRONG),
        ("fill-A A=9 B=0", Verdict.UNPARSED),
        ("fill-A A=9 done", Verdict.UNPARSED),
        ("fill-A B=9 A=0 done", Verdict.WRONG),
        ("A=9 fill-A B=0 done", Verdict.UNPARSED),
        ("fill-C A=9 B=0 done", Verdict.UNPARSED),
        ("done done done done", Verdict.UNPARSED),
        ("", Verdict.UNPARSED),
        ("done", Verdict.WRONG),
    ],
)
def test_verdicts_by_hand(words, verdict):
    assert TASK.grade(POLYA, ids(TASK, words.split())) is verdict
    assert verdict.reward == (verdict is Verdict.CORRECT)


def test_more_moves_than_allowed_are_wrong():
    problem = Problem("p", {"capacities": [9, 4], "start": [0, 0], "goal": 4})
    waste = ["fill-A", "A=9", "B=0", "empty-A", "A=0", "B=0"]
    for rounds, verdict in ((3, Verdict.CORRECT), (4, Verdict.WRONG)):
        assert (
            TASK.grade(problem, ids(TASK, [*waste * rounds, "fill-B", "A=0", "B=4", "done"]))
            is verdict
        )


@pytest.mark.parametrize(
    "row",
    [json.loads(line) for line in (DATA / "jugs_published.jsonl").open()],
    ids=lambda row: row["id"],
)
def test_published_problems_are_solved_as_published(row):
    """Luchins (1942), Polya (1945) and the puzzle of a film of 1995."""
    task = WaterJugs(max_capacity=163, jugs=3, max_moves=40)
    problem = Problem(row["id"], task.parse(row))
    words = shortest(**problem.data)
    assert task.grade(problem, ids(task, words)) is Verdict.CORRECT
    assert not any(
        task.leaks(problem, ids(task, words[:n]))
        for n in range(0, len(words) - len(row["start"]) - 1)
    )
    capacities = [f"{jug}/{n}" for jug, n in zip("ABC", row["capacities"])]
    prompt = ["<bos>", *capacities, *amounts(row["start"]), f"goal={row['goal']}", ":"]
    assert task.text(task.render(problem)).split() == prompt


def test_luchins_problems_have_his_solution():
    """B - A - 2C, written out for his first three-jar problem."""
    task = WaterJugs(max_capacity=163, jugs=3, max_moves=10)
    problem, _ = read_problems(task, str(DATA / "jugs_published.jsonl"))[1]
    words = (
        "fill-B A=0 B=127 C=0 B>A A=21 B=106 C=0 B>C A=21 B=103 C=3 empty-C A=21 B=103 C=0"
        " B>C A=21 B=100 C=3 done"
    )
    assert task.grade(problem, ids(task, words.split())) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("words", "leaks"),
    [
        ("", False),
        ("fill-A A=9 B=0 A>B", False),
        (SOLVED, True),
        ("fill-A A=9 B=0 done", True),
        ("fill-A A=9 B=0 stuck", True),
        (SOLVED.removesuffix(" A>B A=6 B=4"), False),
        # The goal was reached, then left: the prefix still says how.
        (SOLVED + " empty-B A=6 B=0 empty-A A=0 B=0", True),
    ],
)
def test_leaks(words, leaks):
    assert TASK.leaks(POLYA, ids(TASK, words.split())) is leaks


def weighted(state, capacities, pour_weight) -> dict[tuple[int, ...], float]:
    """Where one random legal move leads, and how often."""
    moves = [
        (after, pour_weight if ">" in move else 1)
        for move, after in successors(state, capacities).items()
    ]
    return {
        s: sum(w for after, w in moves if after == s) / sum(w for _, w in moves) for s, _ in moves
    }


def chance(capacities, start, goal, moves, pour_weight):
    """P(random legal play reaches the goal), exactly, by recursion over the simulator's states."""

    @functools.cache
    def value(state, left):
        if goal in state:
            return 1
        return (
            sum(p * value(s, left - 1) for s, p in weighted(state, capacities, pour_weight).items())
            if left
            else 0
        )

    return float(value(tuple(start), moves))


@pytest.mark.parametrize(
    ("capacities", "goal", "moves", "pour_weight"),
    [
        ((5, 3), 4, 6, Fraction(1)),
        ((4, 7), 5, 7, Fraction(3)),
        ((3, 4), 2, 1, Fraction(2)),
        ((6, 4), 3, 8, Fraction(1, 2)),
    ],
)
def test_success_of_random_play_is_exact(capacities, goal, moves, pour_weight):
    chances = random_play_success(capacities, goal, moves, float(pour_weight))
    assert chances.shape == (capacities[0] + 1, capacities[1] + 1)
    for start in itertools.product(*(range(c + 1) for c in capacities)):
        expected = 0.0 if goal in start else chance(capacities, start, goal, moves, pour_weight)
        assert chances[start] == pytest.approx(expected, abs=1e-12)


def test_success_of_random_play_against_monte_carlo():
    rng, games = np.random.default_rng(0), 3000

    @functools.cache
    def following(state):
        """The states that one move leads to, and the chance of each."""
        return tuple(zip(*weighted(state, (5, 3), 3).items()))

    def solves() -> bool:
        state = (0, 0)
        for _ in range(6):
            states, chances = following(state)
            state = states[rng.choice(len(states), p=chances)]
            if 4 in state:
                return True
        return False

    expected = random_play_success((5, 3), 4, 6, 3.0)[0, 0]
    assert sum(solves() for _ in range(games)) / games == pytest.approx(
        expected, abs=4 * np.sqrt(expected / games)
    )


def test_base_text_plays_moves_as_often_as_their_weights_say():
    """First moves of many games: their number agrees with the simulator's probabilities."""
    task = WaterJugs(max_capacity=6, max_moves=1, pour_weight=3.0)
    counts, expected = {}, {}
    for prompt, response in task.base_text(np.random.default_rng(0), 4000):
        data = problem_of(task, prompt)
        after = tuple(int(w.split("=")[1]) for w in task.text(response).split()[1:3])
        counts[after] = counts.get(after, 0) + 1
        for state, p in weighted(tuple(data["start"]), data["capacities"], 3).items():
            expected[state] = expected.get(state, 0) + p
    assert set(counts) <= set(expected)
    assert max(abs(counts.get(s, 0) - n) / np.sqrt(n) for s, n in expected.items() if n > 10) < 4.5


def test_generated_problems_lie_in_the_band_and_splits_share_none():
    task = WaterJugs(max_capacity=8, max_moves=6, band=(0.02, 0.2))
    sets = {split: task.generate(split, 30, seed=3) for split in ("train", "heldout", "base")}
    for problems in sets.values():
        assert len({p.id for p in problems}) == 30
        for p in problems:
            assert task.parse(p.data) == p.data
            assert 0.02 < chance(*p.data.values(), 6, 3.0) < 0.2
    names = [p.id for problems in sets.values() for p in problems]
    assert len(set(names)) == 90
    assert task.generate("train", 30, seed=3) == sets["train"]
    assert task.generate("train", 30, seed=4) != sets["train"]
    other = {p.id for p in task.generate("heldout", 30, seed=4)}
    assert not other & {p.id for p in sets["train"]}  # disjoint under another seed too


def test_too_many_problems_asked_for():
    with pytest.raises(
        ValueError,
        match=r"only \d+ of 9999 train problems lie in task\.water_jugs\.band=\(0\.02, 0\.2\)",
    ):
        WaterJugs(max_capacity=5, max_moves=6, band=(0.02, 0.2)).generate("train", 9999, 0)


def test_base_text_is_legal_play_of_problems_of_no_other_split():
    rng = np.random.default_rng(0)
    other_prompts = {
        tuple(TASK.render(p))
        for split in ("train", "heldout")
        for p in WaterJugs(8, band=(0.0, 1.0), max_moves=6).generate(split, 50, 0)
    }
    outcomes, counts = [], {}
    pairs = TASK.base_text(rng, 400)
    assert len(pairs) == 400
    for prompt, response in pairs:
        data = problem_of(TASK, prompt)
        spoken = TASK.text(response).split()
        solved = judge(**data, words=spoken, max_moves=TASK.max_moves)
        outcomes.append(solved)
        assert (spoken[-1] == "done") == solved
        assert tuple(prompt) not in other_prompts
        if not solved:  # a lost game is legal play as well: up to its end it only lacks the goal
            width = len(data["start"]) + 1
            assert len(spoken) == width * TASK.max_moves + 1 and spoken[-1] == "stuck"
            assert judge(
                **{**data, "goal": int(spoken[-2].split("=")[1])},
                words=[*spoken[:-1], "done"],
                max_moves=TASK.max_moves,
            )
        counts[spoken[0]] = counts.get(spoken[0], 0) + 1
    # every move of three jugs begins some game
    assert 0 < sum(outcomes) < 400 and len(counts) == 12


@pytest.mark.parametrize(
    ("words", "strategies"),
    [
        (
            "fill-A A=9 B=0 A>B A=5 B=4 empty-B A=5 B=0 A>B A=1 B=4 stuck",
            {"fill": 0.25, "empty": 0.25, "pour": 0.5, "nearer": 1.0, "moves": 4.0},
        ),
        (  # there and back
            "fill-A A=9 B=0 empty-A A=0 B=0 fill-A A=9 B=0 A>B A=5 B=4 stuck",
            {"fill": 0.5, "empty": 0.25, "pour": 0.25, "nearer": 0.75, "moves": 4.0},
        ),
        ("stuck", {"fill": 0.0, "empty": 0.0, "pour": 0.0, "nearer": 0.0, "moves": 0.0}),
    ],
)
def test_strategies_are_shares_of_the_moves(words, strategies):
    assert TASK.strategies(POLYA, ids(TASK, words.split())) == strategies


@given(
    st.integers(3, 7), st.integers(3, 7), st.integers(1, 6), st.integers(0, 7), st.integers(0, 7)
)
def test_distances_are_those_of_a_search_by_depth(a, b, goal, x, y):
    assume(a != b and goal < max(a, b) and x <= a and y <= b and goal not in (x, y))
    problem = Problem(
        f"jugs-{a}-{b}-{x}-{y}-{goal}", {"capacities": [a, b], "start": [x, y], "goal": goal}
    )

    def depth(x: int, y: int) -> float:
        ring, seen = {(x, y)}, set()
        for moves in itertools.count():
            if not ring or any(goal in state for state in ring):
                return moves if ring else math.inf
            seen |= ring
            after = {
                s
                for x, y in ring
                for s in (
                    (a, y),
                    (x, b),
                    (0, y),
                    (x, 0),
                    (max(x + y - b, 0), min(x + y, b)),
                    (min(x + y, a), max(x + y - a, 0)),
                )
            }
            ring = after - seen

    distances = TASK.distances(problem)
    assert all(depth(*state) == distance for state, distance in distances.items())
    assert distances.get((x, y), math.inf) == depth(x, y)


GOOD = {"capacities": [9, 4], "start": [0, 0], "goal": 6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacities": None}, "capacities"),
        ({"start": None}, "start"),
        ({"goal": None}, "goal"),
        ({"capacities": "9 4"}, "capacities="),
        ({"capacities": [9, 13]}, "from 0 to 12"),
        ({"goal": 6.0}, r"goal=6\.0"),
        ({"start": [0, -1]}, "start="),
        ({"start": [0]}, "start="),
        ({"capacities": [9], "start": [0]}, "2 to 3 numbers"),
        ({"capacities": [9, 4, 4, 4], "start": [0] * 4}, "2 to 3 numbers"),
        ({"start": [0, 5]}, "start="),
        ({"start": [6, 0]}, "goal=6"),
        ({"goal": 10}, "goal=10"),
        ({"goal": 0}, "goal=0"),
        ({"goal": True}, "goal=True"),
    ],
)
def test_jug_rows_are_refused_with_the_field(change, message):
    assert TASK.parse({**GOOD, "extra": 1}) == GOOD
    row = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        TASK.parse(row)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"jugs": 5}, r"jugs=5: a whole number from 2 to 4"),
        ({"jugs": 1}, "jugs=1"),
        ({"band": (0.2, 0.1)}, r"band=\(0\.2, 0\.1\)"),
        ({"max_capacity": 3}, "max_capacity=3"),
        ({"max_moves": 0}, "max_moves=0"),
        ({"pour_weight": 0.0}, r"pour_weight=0\.0"),
    ],
)
def test_jug_settings_are_refused_with_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        WaterJugs(**fields)
