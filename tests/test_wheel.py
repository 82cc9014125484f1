"""The wheel as it is installed: package, templates and configurations, away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from runs import HANGS, ROOT

pytestmark = pytest.mark.slow

SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "prefixrl_jax", "configs")
IMPORTS = """
import prefixrl_jax.main
from prefixrl_jax.configs import countdown, demo, math_qwen3_4b
for module in (prefixrl_jax.main, countdown, demo, math_qwen3_4b):
    print(module.__file__)
for config in (countdown, demo, math_qwen3_4b):
    assert config.get_config().train.steps > 0
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel holds, which is built from a copy, without a network."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    wheels = tmp_path_factory.mktemp("wheels")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*build, "--use-pep517", "--no-index", "--wheel-dir", wheels, source],
        check=True,
        timeout=HANGS,
    )
    (wheel,) = wheels.glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, elsewhere: Path, *arguments: str) -> str:
    """What Python prints in a folder from which the checkout cannot be imported."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_package_is_in_the_wheel(installed):
    """Templates included; every folder with Python files is a package."""
    for folder, target in (("prefixrl_jax", "prefixrl_jax"), ("configs", "prefixrl_jax/configs")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".jinja"):
                assert (installed / target / path.relative_to(ROOT / folder)).is_file(), path


def test_configurations_are_imported_from_the_wheel(installed, tmp_path):
    files = python(installed, tmp_path, "-c", IMPORTS).splitlines()
    assert len(files) == 4 and all(Path(file).is_relative_to(installed) for file in files), files


def test_a_configuration_is_found_by_its_name_in_the_checkout(installed, tmp_path):
    flags = ("--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", "--dry_run")
    output = python(installed, tmp_path, "-m", "prefixrl_jax.main", *flags)
    assert "parameters" in output and "FLOPs" in output
