"""Reading locks, and comparing them with what is installed."""

from pathlib import Path

import pytest

from stages.common.errors import PipelineError
from tools import locks

A, B = (f"sha256:{letter * 64}" for letter in "ab")
LOCK = f"""\
# made by a tool
six==1.17.0 \\
    --hash={A} \\
    --hash={B}
    # via something
two==1 ; python_full_version < '3.12' \\
    --hash={A}
two==2 ; python_full_version >= '3.12' \\
    --hash={B}
dog==3 ; sys_platform == 'win32' \\
    --hash={B}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "x.lock"
    path.write_text(text, encoding="utf-8")
    return path


def test_entries_hashes_and_markers(tmp_path: Path) -> None:
    pins = locks.read(written(tmp_path, LOCK))
    assert [(pin.name, pin.version, pin.hashes) for pin in pins] == [
        ("six", "1.17.0", (A, B)),
        ("two", "1", (A,)),
        ("two", "2", (B,)),
        ("dog", "3", (B,)),
    ]
    assert locks.applied(pins, locks.linux("3.11")) == {"six": "1.17.0", "two": "1"}
    assert locks.applied(pins, locks.linux("3.12")) == {"six": "1.17.0", "two": "2"}


@pytest.mark.parametrize(
    "line",
    ["six", "six>=1", "six==1,==2", "https://example.org/six.whl", "    --hash=sha256:aa", f"--hash={A}"],
)
def test_what_pins_nothing_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(PipelineError, match=r"x\.lock:2: .*; expected name==version"):
        locks.read(written(tmp_path, f"one==1\n{line}\n"))


def test_two_versions_at_once_are_refused(tmp_path: Path) -> None:
    pins = locks.read(written(tmp_path, "six==1\nsix==2\n"))
    with pytest.raises(PipelineError, match="six: 1 and 2; expected one version"):
        locks.applied(pins)


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
