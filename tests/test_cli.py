"""The shell of the commands: help of the program's own flags, and one line for a bad one."""

from __future__ import annotations

import pytest
from runs import python

from prefixrl_jax import cli

COMMANDS = {
    "main": {"config", "workdir", "[no]multihost", "stage", "[no]dry_run"},
    "compare": {"config", "workdir", "[no]multihost", "methods", "seeds", "flops", "tune"}
    | {"reference", "level"},
    "export": {"workdir", "out", "step", "dtype"},
    "theory": {"out", "seeds", "max_horizon"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_flags_of_the_command_and_of_no_library(command):
    done = python("-m", f"prefixrl_jax.{command}", "--help")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    flags = {line.strip()[2:] for line in done.stdout.splitlines() if line.startswith("  --")}
    assert flags == COMMANDS[command]
    assert f"python -m prefixrl_jax.{command}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: --config and --workdir must be given; --help shows all flags"),
        (("--dryrun",), "Unknown command line flag 'dryrun'. Did you mean: dry_run"),
        (("--config=configs/none.py",), "--config=configs/none.py: no such file here"),
        (("--config=configs",), "--config=configs: no such file here"),
        (("--config=configs/countdown.py:x", "--workdir=/tmp/x"), "get_config() takes 0"),
        (("--config=configs/smoke.py", "--config.train.stepz=3"), 'Did you mean "steps"'),
        (("extra", "--config=configs/smoke.py", "--workdir=x"), "unexpected arguments ['extra']"),
        (
            ("--config=configs/smoke.py", "--workdir=x", "--stage=trian", "--dry_run"),
            "--stage='trian': one of base, corpus",
        ),
    ],
)
def test_a_bad_command_line_ends_with_one_line_and_status_2(arguments, message):
    done = python("-m", "prefixrl_jax.main", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line


def test_names_beyond_ascii_in_the_c_locale():
    c_locale = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = python("-m", "prefixrl_jax.main", "--config=Prüfung/é.py", **c_locale)
    assert done.returncode == 2
    assert "--config=Prüfung/é.py: no such file here" in done.stderr


def test_a_log_record_shows_control_characters_and_does_not_obey_them():
    record = cli._PrintableRecord("name", 30, "path", 1, "model %s", ("a\x1b[2J",), None)
    assert record.getMessage() == r"model a\x1b[2J"
