"""Some drawn calls that touch a file fail, one a run, and nothing is lost; all of them do in
`make faults`.
"""

from __future__ import annotations

import pytest
from runs import python

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


def test_a_run_in_which_a_call_fails_says_so_and_goes_on_as_if_it_had_not(tmp_path):
    done = python("-m", "tests.faults", tmp_path, "--jobs=1", "--sample=8")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("8 cases in ") and "failed" not in last
