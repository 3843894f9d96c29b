"""Reading locks, and comparing them with what is installed."""

from pathlib import Path

import pytest

from stages.common.errors import PipelineError
from tools import locks

LOCK = """\
# made by a tool
Six==1.17.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via something
two==1 ; python_full_version < '3.12' \\
    --hash=sha256:cc
two==2 ; python_full_version >= '3.12' \\
    --hash=sha256:dd
dog==3 ; sys_platform == 'win32' \\
    --hash=sha256:ee
"""


def test_entries_hashes_and_markers() -> None:
    pins = locks.parse(LOCK)
    assert [(pin.name, pin.version) for pin in pins] == [
        ("six", "1.17.0"),
        ("two", "1"),
        ("two", "2"),
        ("dog", "3"),
    ]
    assert pins[0].hashes == ("sha256:aa", "sha256:bb")
    assert locks.applied(pins, locks.linux("3.11")) == {"six": "1.17.0", "two": "1"}
    assert locks.applied(pins, locks.linux("3.12")) == {"six": "1.17.0", "two": "2"}


@pytest.mark.parametrize("text", ["six", "six>=1", "six==1,==2", "https://example.org/six.whl"])
def test_what_pins_nothing_is_refused(text: str) -> None:
    with pytest.raises(PipelineError, match=r"x\.lock: .*; expected name==version"):
        locks.parse(text, "x.lock")


def test_two_versions_at_once_are_refused() -> None:
    with pytest.raises(PipelineError, match="six: 1 and 2; expected one version"):
        locks.applied(locks.parse("six==1\nsix==2\n"))


def test_a_missing_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"none\.lock: no such file; expected a lock"):
        locks.read(tmp_path / "none.lock")


def test_differences() -> None:
    locked = {"torch": "2.13.0", "six": "1.17.0", "dvc": "3.67.1"}
    there = {"torch": "2.13.0+cpu", "six": "1.16.0", "more": "1"}
    assert locks.differing(locked, there) == [
        "dvc: not installed; expected 3.67.1",
        "six: 1.16.0; expected 1.17.0",
    ]


def test_the_locks_of_an_environment() -> None:
    assert locks.chosen({"torch": "2.13.0", "triton": "3"}) == locks.CUDA
    assert locks.chosen({"torch": "2.13.0+cpu"}) == locks.CPU
