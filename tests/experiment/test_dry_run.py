"""What a run would do and cost is printed without computing it."""

import pytest
from runs import Command


@pytest.mark.slow
@pytest.mark.pipeline
def test_dry_run_spends_nothing(tmp_path):
    output = Command().finish(tmp_path / "run", "--dry_run")
    for word in ("parameters", "mesh", "memory", "FLOPs", '"learning_rate"'):
        assert word in output
    assert not (tmp_path / "run" / "stages").exists()
