"""What is kept of samples in memory comes back as it went in."""

import hypothesis
import hypothesis.strategies as st

from prefixrl_jax.corpus.outcomes import LARGEST, Outcomes, PackedTrace
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.tasks.task import Verdict

# Ids of sampling are close together; those of imported traces are line numbers.
IDS = st.integers(0, 40) | st.integers(0, LARGEST)


@hypothesis.given(
    st.lists(st.tuples(IDS, st.sampled_from(Verdict), st.integers(0, LARGEST))), IDS, st.randoms()
)
def test_outcomes_are_a_mapping_in_which_the_first_of_an_id_stays(samples, threshold, draw):
    outcomes = Outcomes()
    expected = {}
    for sample_id, verdict, tokens in samples:
        is_new = sample_id not in expected
        assert outcomes.add(sample_id, verdict, tokens) == is_new
        expected.setdefault(sample_id, (verdict, tokens))
    assert outcomes.verdicts == {i: verdict for i, (verdict, _) in expected.items()}
    assert outcomes.lengths == {i: tokens for i, (_, tokens) in expected.items()}
    assert list(outcomes.verdicts) == sorted(expected)
    assert len(outcomes) == len(outcomes.lengths) == len(expected)
    assert outcomes.count_below(threshold) == sum(i < threshold for i in expected)
    shuffled = list(expected.items())
    draw.shuffle(shuffled)
    again = Outcomes()
    for sample_id, (verdict, tokens) in shuffled:
        again.add(sample_id, verdict, tokens)
    assert again == outcomes == outcomes.copy()


def test_a_copy_is_independent():
    outcomes = Outcomes()
    outcomes.add(3, Verdict.WRONG, 5)
    copy = outcomes.copy()
    copy.add(4, Verdict.WRONG, 5)
    assert list(outcomes.lengths) == [3]
    assert copy != outcomes


def test_a_packed_trace_comes_back():
    trace = Trace("p", 7, [1, 2], [4, 5, 0], [-0.1, -1e-30, -3.5], "stop", 8, 2e9)
    assert PackedTrace.of(trace).unpack() == trace
