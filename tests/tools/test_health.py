"""What the health command says, and when it fails."""

import subprocess
import sys

import pytest
from conftest import ROOT

from stages.common.errors import PipelineError
from tools import health, locks


def broken() -> health.Found:
    raise PipelineError("sandbox: Landlock ABI 1; expected 3")


def test_all_well() -> None:
    assert health.told({"git": lambda: (True, "2.43")}) == (True, ["git       ok   2.43"])


def test_one_that_fails_fails_all_and_the_rest_is_told() -> None:
    good, lines = health.told({"sandbox": broken, "git": lambda: (True, "2.43")})
    assert not good
    assert lines == ["sandbox   BAD  sandbox: Landlock ABI 1; expected 3", "git       ok   2.43"]


def test_another_version_than_the_locked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = locks.installed()
    monkeypatch.setattr(locks, "installed", lambda: {**there, "dvc": "1.0"})
    good, text = health.packages()
    assert not good and text.startswith("1 differ: dvc: 1.0; expected ")


@pytest.mark.parametrize("version", ["3.11.3", "3.13.0"])
def test_another_python_than_the_project_s_is_told(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(health.platform, "python_version", lambda: version)
    assert health.python() == (False, f"{version}; expected >=3.11.4,<3.13")


def test_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.health"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*health.CHECKS]
