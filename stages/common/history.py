"""What git knows of an earlier run: the last committed version of a file that says something else."""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSIONS = 100  # that are looked at; each takes a few milliseconds
SECONDS = 20  # that git may take; a repository on a slow disk takes one or two


@dataclass(frozen=True)
class Earlier:
    """A committed version of a file."""

    commit: str
    date: str  # of the commit, year-month-day
    value: dict[str, Any]


def differing(
    path: Path, now: Mapping[str, float], leaves: Callable[[dict[str, Any]], Mapping[str, float]]
) -> Earlier | str:
    """The newest committed version of the JSON file whose `leaves` are not `now`, or why there is none."""
    try:
        versions = list(_versions(path))
        for commit, date in versions:
            value = _version(path, commit)
            if value is not None and leaves(value) != now:
                return Earlier(commit, date, value)
    except (OSError, subprocess.SubprocessError) as error:
        return f"git cannot tell: {_why(error)}"
    if not versions:
        return f"no version of {path} is committed"
    return "every committed run has these numbers"


def _versions(path: Path) -> Iterator[tuple[str, str]]:
    how = (f"--max-count={VERSIONS}", "--abbrev=10", "--format=%h %cs")
    for line in filter(None, _git("log", *how, "--", path.as_posix()).split("\n")):
        commit, _, date = line.partition(" ")
        yield commit, date


def _version(path: Path, commit: str) -> dict[str, Any] | None:
    """The file in a commit; None where that deleted it, or left something that is no JSON object."""
    try:
        value = json.loads(_git("show", f"{commit}:./{path.as_posix()}"))
    except (subprocess.CalledProcessError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, check=True, timeout=SECONDS)
    return done.stdout.decode("utf-8", "replace")


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not installed"
    if isinstance(error, subprocess.CalledProcessError):
        words = (error.stderr or b"").decode("utf-8", "replace").strip().split("\n")[0]
        return words.removeprefix("fatal: ") or f"status {error.returncode}"
    return str(error)
