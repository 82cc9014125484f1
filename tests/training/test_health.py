"""Warnings first, then a stop."""

import logging

import pytest
from absl import logging as absl_logging

from prefixrl_jax.training.health import ENTROPY, LOGP_DIFF, HealthCheck, Unhealthy


@pytest.fixture
def warnings(caplog):
    absl_logging.get_absl_logger().propagate = True
    with caplog.at_level(logging.WARNING, logger="absl"):
        yield caplog
    absl_logging.get_absl_logger().propagate = False


def test_a_gap_warns_twice_and_stops_at_the_third_step_in_a_row(warnings):
    check = HealthCheck(max_logp_diff=0.1, min_entropy=0.0)
    # the third is in order: counting begins anew
    for step, gap in enumerate((0.2, 0.3, 0.05, 0.2, 0.2), start=1):
        check(step, {LOGP_DIFF: gap})
    assert (
        len(warnings.records) == 4
        and "step 4: sampler_trainer/logp_diff_max is 0.2, above train.max_logp_diff=0.1"
        in warnings.text
    )
    with pytest.raises(Unhealthy, match=r"step 6: .* is 0\.4, above .*=0\.1, for 3 steps in a row"):
        check(6, {LOGP_DIFF: 0.4})


def test_a_low_entropy_warns_once(warnings):
    check = HealthCheck(max_logp_diff=0.1, min_entropy=0.3)
    for step, entropy in enumerate((0.5, 0.2, 0.1), start=1):
        check(step, {LOGP_DIFF: 0.0, ENTROPY: entropy})
    (record,) = warnings.records
    assert record.getMessage() == "step 2: entropy is 0.2 nats a token, below train.min_entropy=0.3"


def test_bounds_of_zero_are_off(warnings):
    check = HealthCheck(max_logp_diff=0.0, min_entropy=0.0)
    for step in range(1, 9):
        check(step, {LOGP_DIFF: 99.0, ENTROPY: 0.0})
        check(step, {})
    assert not warnings.records
