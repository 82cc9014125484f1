"""The parts of the tests that pytest calls: fixtures that several files use, and hooks."""

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path

import environment  # noqa: F401  before anything imports jax
import hypothesis
import pytest
from runs import ROOT, SMOKE, locked
from tiny_models import TINY, as_float64

from prefixrl_jax.model.config import ModelConfig

# What is drawn is what is tested, not how long a busy machine takes for it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

TORCH = find_spec("torch") is not None


@pytest.fixture(scope="session", params=[False, True], ids=["scanned", "unrolled"])
def config(request) -> ModelConfig:
    """A tiny float32 model with grouped-query attention, its layers scanned and unrolled."""
    return dataclasses.replace(TINY, unroll_layers=request.param)


@pytest.fixture(scope="session")
def config64(config) -> ModelConfig:
    """The same in float64; to be used under `jax.enable_x64(True)`."""
    return as_float64(config)


@pytest.fixture(scope="session", autouse=True)
def children_without_torch():
    """Hides PyTorch from the processes that tests start: a user's run does without it."""
    paths = [str(ROOT / "tests" / "without_torch"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> Path:
    """The work directory of a finished run of `runs.SMOKE`, made once for all workers.

    For reading; a test that goes on from it copies it (`runs.begun`).
    """
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    with locked(directory / "smoke.lock"):
        if not (directory / "smoke" / "report.html").exists():
            SMOKE.finish(directory / "smoke")
    return directory / "smoke"


def pytest_report_header():
    """Says what is left out."""
    return None if TORCH else "PyTorch is not installed: no comparison with it"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out the files that import PyTorch at the top where it is not installed."""
    if TORCH or collection_path.suffix != ".py":
        return None
    return True if "\nimport torch\n" in collection_path.read_text() else None


def pytest_collection_modifyitems(config, items):
    """Puts the files that take minutes first, so that no worker is left alone with one at the end.

    Deselects what is marked `torch` where PyTorch is not installed.
    """
    if not TORCH:
        left_out = [item for item in items if item.get_closest_marker("torch")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
