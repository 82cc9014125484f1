"""The hard set is chosen by the pass rates of the samples attempted."""

from prefixrl_jax.corpus.attempts import Attempts, hard_set
from prefixrl_jax.tasks.task import Problem, Verdict


def test_the_hard_set_is_a_band_of_pass_rates():
    successes = {"a": 0, "b": 2, "c": 1, "d": 4, "e": 0}  # of four samples
    attempts = {name: Attempts(Problem(name, {}), 2) for name in successes}
    for name, count in successes.items():
        for i in range(4):
            attempts[name].add(i, Verdict.CORRECT if i < count else Verdict.UNPARSED, 5, None)

    def choose(band, count=9):
        return "".join(p.id for p in hard_set(attempts, band, count))

    assert choose((0.0, 0.0)) == "ae"
    assert choose((0.25, 0.5)) == "bc"
    assert choose((0.0, 1.0)) == "abcde"
    assert choose((0.0, 0.25), 2) == "ac"
    assert choose((0.9, 0.95)) == ""
