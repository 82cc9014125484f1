"""Errands against a walker that reads words and moves on letters and digits."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixrl_jax.tasks import errand
from prefixrl_jax.tasks.errand import Errand, random_play_success
from prefixrl_jax.tasks.task import Problem, Verdict

TASK = Errand(size=3, calls=2, walls=2, max_moves=6)
DATA = {"walls": ["b1", "b3"], "calls": ["a3", "c1"], "start": "a2"}
EXAMPLE = Problem("p", DATA)
SOLVED = "up a3 down a2 right b2 right c2 down c1"


def ids(words, task=TASK):
    return [task.tokenizer.convert_tokens_to_ids(word) for word in words]


def steps(data, place: str, size: int = 3) -> dict[str, str]:
    """Where each step leads."""
    column, row, found = ord(place[0]), int(place[1:]), {}
    ahead = {
        "up": (column, row + 1),
        "down": (column, row - 1),
        "left": (column - 1, row),
        "right": (column + 1, row),
    }
    for word, (c, r) in ahead.items():
        name = f"{chr(c)}{r}"
        found[word] = (
            name
            if 0 <= c - ord("a") < size and 1 <= r <= size and name not in data["walls"]
            else place
        )
    return found


def in_order(places, calls) -> bool:
    """Whether the calls are a subsequence of the places."""
    places = iter(places)
    return all(call in places for call in calls)


def judge(data, words, most=6, size=3) -> str:
    """What becomes of a walk, read word by word: "solved", "lost" (right, but a call is missing) or
    "wrong".
    """
    place, places, words = data["start"], [], list(words)
    while len(words) > 1:
        if steps(data, place, size).get(words[0]) != words[1]:
            return "wrong"
        place, words = words[1], words[2:]
        places.append(place)
    if words not in (["done"], ["stuck"]):
        return "wrong"
    return (
        "solved"
        if words == ["done"] and in_order(places, data["calls"]) and len(places) <= most
        else "lost"
    )


@st.composite
def walks(draw):
    """A problem on a floor of 3 x 3 with places drawn at random, and a right walk on it."""
    first, second, start, *rest = draw(st.permutations([f"{c}{r}" for c in "abc" for r in "123"]))
    data = {"walls": rest[: draw(st.integers(0, 4))], "calls": [first, second], "start": start}
    place, words = start, []
    for _ in range(draw(st.integers(0, 8))):
        word, place = draw(st.sampled_from(list(steps(data, place).items())))
        words += [word, place]
    return Problem("p", data), [*words, draw(st.sampled_from(["done", "done", "stuck"]))]


@settings(max_examples=200)
@given(walks(), st.data())
def test_a_walk_and_the_walk_with_a_changed_token_are_graded_right(walk, data):
    problem, words = walk
    assert judge(problem.data, words) != "wrong" and TASK.follow(problem, ids(words[:-1]))[0] == ""
    at = data.draw(st.integers(0, len(words) - 1))
    token = data.draw(st.integers(0, len(TASK.tokenizer) - 1))
    changed = [*words[:at], TASK.tokenizer.convert_ids_to_tokens(token), *words[at + 1 :]]
    for spoken in (words, changed):
        assert (TASK.grade(problem, ids(spoken)) is Verdict.CORRECT) == (
            judge(problem.data, spoken) == "solved"
        )


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (SOLVED + " done", Verdict.CORRECT),
        (SOLVED + " up c2 done", Verdict.CORRECT),  # on after the last call
        (SOLVED + " stuck", Verdict.WRONG),
        (SOLVED, Verdict.UNPARSED),
        ("left a2 " + SOLVED + " done", Verdict.CORRECT),  # the edge
        ("left a2 left a2 " + SOLVED + " done", Verdict.WRONG),  # seven moves
        ("right b2 right c2 down c1 up c2 done", Verdict.WRONG),
        ("right b2 up b2 left a2 up a3 down a2 done", Verdict.WRONG),
        ("up a3 right b3 right c3 down c2 down c1 done", Verdict.WRONG),
        ("up a3 right b2 right c2 down c1 done", Verdict.WRONG),
        (SOLVED.removeprefix("up a3 ") + " done", Verdict.WRONG),
        ("up wall-a3 done", Verdict.WRONG),
        ("a3 up done", Verdict.UNPARSED),
        ("up done", Verdict.UNPARSED),
        ("done", Verdict.WRONG),
        ("", Verdict.UNPARSED),
    ],
)
def test_verdicts_by_hand(words, verdict):
    assert TASK.grade(EXAMPLE, ids(words.split())) is verdict
    assert (judge(DATA, words.split()) == "solved") == (verdict is Verdict.CORRECT)


@pytest.mark.parametrize(
    ("words", "leaks"),
    [
        ("", False),
        (SOLVED.removesuffix(" down c1"), False),
        (SOLVED.removesuffix(" c1"), True),  # the step that makes the last call
        (SOLVED, True),
        (SOLVED + " up c2", True),
        ("up a3 done", True),
        ("up a3 down", False),
        ("right b2 right c2 down c1 up", False),  # a call out of its order
        ("up a3 wall-b1", False),
    ],
)
def test_leaks(words, leaks):
    assert TASK.leaks(EXAMPLE, ids(words.split())) is leaks


def test_the_prompt_says_all_that_is_needed():
    told = "<bos> wall-b1 wall-b3 first-a3 second-c1 : a2"
    assert TASK.text(
        TASK.render(EXAMPLE)
    ) == told and TASK.tokenizer.unk_token_id not in TASK.render(EXAMPLE)


def chance(data, moves: int, size: int) -> Fraction:
    """P(a random walk makes all calls), exactly, by recursion over places and the calls still to be
    made.
    """
    known: dict = {}

    def value(place: str, calls: tuple[str, ...], left: int) -> Fraction:
        if not calls or not left:
            return Fraction(not calls)
        if (place, calls, left) not in known:
            after = steps(data, place, size).values()
            known[place, calls, left] = (
                sum(value(p, calls[p == calls[0] :], left - 1) for p in after) / 4
            )
        return known[place, calls, left]

    return value(data["start"], tuple(data["calls"]), moves)


@settings(max_examples=25)
@given(walks(), st.integers(0, 10))
def test_success_of_random_play_is_exact(walk, moves):
    data = walk[0].data
    walls, calls = (
        [TASK.cells.index(cell) for cell in data[field]] for field in ("walls", "calls")
    )
    after = [
        [TASK.cells.index(place) for place in steps(data, cell).values()] for cell in TASK.cells
    ]
    found = random_play_success(np.array(after), calls, moves)
    assert found.shape == (9,)
    for cell, name in enumerate(TASK.cells):
        if cell not in walls:
            assert found[cell] == pytest.approx(
                float(chance({**data, "start": name}, moves, 3)), abs=1e-12
            )


def test_generated_problems_lie_in_the_band_and_splits_share_no_floor():
    task = Errand(size=4, calls=2, walls=3, max_moves=9, band=(0.001, 0.02))
    sets = {split: task.generate(split, 15, seed=3) for split in ("train", "heldout", "base")}
    for problems in sets.values():
        assert len({p.id for p in problems}) == 15
        for p in problems:
            assert task.parse(p.data) == p.data
            assert 0.001 < chance(p.data, 9, 4) < 0.02
    other = task.generate("heldout", 20, seed=4)  # disjoint under another seed too
    floors = [
        {repr(task.family(p)) for p in ps}
        for ps in (sets["train"], sets["heldout"] + other, sets["base"])
    ]
    assert not any(a & b for a, b in itertools.combinations(floors, 2))
    assert task.generate("train", 15, seed=3) == sets["train"] != task.generate("train", 15, seed=4)


def test_too_many_problems_asked_for(monkeypatch):
    monkeypatch.setattr(errand, "TRIES", 50)
    with pytest.raises(
        ValueError, match=r"only 0 of 5 train problems lie in task\.errand\.band=\(0\.99, 1\.0\)"
    ):
        Errand(size=3, calls=3, walls=0, max_moves=1, band=(0.99, 1.0)).generate("train", 5, 0)


def test_base_text_is_random_walks_with_every_step_as_likely():
    task = Errand(size=4, calls=2, walls=3, max_moves=12)
    ends, words = [], []
    for prompt, response in task.base_text(np.random.default_rng(0), 1000):
        asked, spoken = task.text(prompt).split(), task.text(response).split()
        cells = {
            mark: [w.split("-")[1] for w in asked if w.startswith(f"{mark}-")]
            for mark in ("wall", "first", "second")
        }
        data = {
            "walls": cells["wall"],
            "calls": cells["first"] + cells["second"],
            "start": asked[-1],
        }
        problem = Problem("p", task.parse(data))
        assert (
            len(data["walls"]) == 3
            and task.render(problem) == prompt
            and task.split_of(problem) == "base"
        )
        ends.append(judge(data, spoken, 12, 4))
        assert len(spoken) == 25 and spoken[-1] == "done" and ends[-1] != "wrong"
        words += spoken[0:-1:2]
    assert 0 < ends.count("solved") < 1000
    counts = [words.count(word) for word in ("up", "down", "left", "right")]
    assert sum(counts) == 12_000 and max(abs(n - 3000) for n in counts) < 4.5 * np.sqrt(3000)


@given(walks())
@settings(max_examples=50)
def test_distances_fall_by_one_with_the_best_step_and_no_faster(walk):
    problem = walk[0]
    distances, states = TASK.distances(problem), TASK.follow(problem, ids(walk[1][:-1]))[1]
    for state in states:
        after = [tuple(TASK.play(problem, state, move)) for move in TASK.moves]
        here, best = (
            distances.get(tuple(state), np.inf),
            min(distances.get(a, np.inf) for a in after),
        )
        assert here == (0 if TASK.at_goal(problem, state) else best + 1)


def test_strategies():
    found = TASK.strategies(EXAMPLE, ids(f"left a2 {SOLVED} done".split()))
    assert found == {"moves": 6.0, "nearer": 5 / 6, "revisits": 2 / 6, "calls made": 2.0}
    assert TASK.strategies(EXAMPLE, ids(["done"])) == {
        "moves": 0.0,
        "nearer": 0.0,
        "revisits": 0.0,
        "calls made": 0.0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({field: None}, f"field '{field}' is missing") for field in DATA),
        ({"walls": "b1"}, "a list of cells, and a list of 2 cells"),
        ({"calls": ["a3"]}, "a list of 2 cells"),
        ({"calls": ["a3", "d1"]}, "'d1' is not a cell: from a1 to c3"),
        ({"walls": ["b1", 3]}, "3 is not a cell"),
        ({"start": "b1"}, "start=b1: no two may share a cell"),
        ({"calls": ["a3", "a3"]}, "no two may share a cell"),
    ],
)
def test_rows_are_refused_with_the_field(change, message):
    assert TASK.parse({**DATA, "extra": 1}) == DATA
    with pytest.raises(ValueError, match=message):
        TASK.parse({k: v for k, v in {**DATA, **change}.items() if v is not None})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 1}, r"task\.errand\.size=1: from 2 to 26"),
        ({"calls": 0}, r"task\.errand\.calls=0: from 1 to 5 with size=4"),
        ({"size": 2, "calls": 4}, r"calls=4: from 1 to 3 with size=2"),
        ({"walls": -1}, r"task\.errand\.walls=-1: from 0 to 11 with size=4 and calls=4"),
        ({"walls": 12}, r"walls=12"),
        ({"max_moves": 0}, r"task\.errand\.max_moves=0: at least 1"),
        ({"band": (0.0, 1.5)}, r"task\.errand\.band=\(0\.0, 1\.5\)"),
    ],
)
def test_settings_are_refused_with_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        Errand(**fields)
