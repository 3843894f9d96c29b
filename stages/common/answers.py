"""Answers with their verdicts: how two models are set side by side, task by task."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.common import files
from stages.common.errors import PipelineError

STATUSES = ("passed", "failed", "timeout", "invalid")
ENDS = ("stop", "length")
LONGEST = 12_000  # characters of a text that are shown; the rest is counted
FRAME = 450  # bytes of markup around the texts of one task, measured on a page of 961

# What changes how a text looks without being seen: control characters, and those that turn the direction of
# writing (https://trojansource.codes). They are shown by their code.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Answer:
    """One answer of one model, and what became of it."""

    id: str
    suite: str
    sample: int  # 0: the greedy answer
    prompt: str
    completion: str
    new_tokens: int
    ended: str  # one of ENDS: the answer's own end, or the limit
    passed: bool
    status: str  # one of STATUSES
    reason: str
    log_odds: float | None = None  # of detection: log p(VULNERABLE) - log p(SAFE), in nats
    verdict: bool | None = None  # of detection: whether it says vulnerable
    checks: Mapping[str, bool] = field(default_factory=dict)  # of code: "functional", "secure", "handled"
    ours: bool | None = None  # of the reference's tests: what our judge says

    def side(self) -> tuple[str, bool]:
        """Of detection: the pair, and whether this is its vulnerable side."""
        pair, _, name = self.id.rpartition("/")
        if name not in ("vulnerable", "fixed"):
            raise PipelineError(
                f"{self.suite}: id {self.id!r}; expected a pair's, ending in vulnerable or fixed"
            )
        return pair, name == "vulnerable"


# The columns of both files beside id, suite and sample: their test, in words and as a function.
WHOLE = ("a whole number", lambda value: type(value) is int and value >= 0)
TEXT = ("text", lambda value: isinstance(value, str))
TRUTH = ("true or false", lambda value: isinstance(value, bool))
MAYBE = ("true, false or null", lambda value: value is None or isinstance(value, bool))
COLUMNS: dict[str, tuple[str, Any]] = {
    "id": TEXT,
    "suite": TEXT,
    "sample": WHOLE,
    "prompt": TEXT,
    "completion": TEXT,
    "new_tokens": WHOLE,
    "ended": (" or ".join(ENDS), lambda value: value in ENDS),
    "passed": TRUTH,
    "status": (", ".join(STATUSES), lambda value: value in STATUSES),
    "reason": TEXT,
}
OPTIONAL: dict[str, tuple[str, Any]] = {
    "log_odds": ("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    "verdict": MAYBE,
    "checks": (
        "an object of true and false",
        lambda value: isinstance(value, dict) and all(isinstance(part, bool) for part in value.values()),
    ),
    "ours": MAYBE,
}
KEY = ("id", "sample")
GIVEN = ("id", "suite", "sample", "prompt", "completion", "new_tokens", "ended", "log_odds")


def read(completions: Path, verdicts: Path) -> list[Answer]:
    """A model's answers, each with its verdict, in the order of `completions`.

    Raises PipelineError naming the file and line of a row that is malformed, comes twice, or has no partner.
    """
    given = _rows(completions, {key: column for key, column in COLUMNS.items() if key in GIVEN})
    judged = _rows(verdicts, {key: column for key, column in COLUMNS.items() if key not in GIVEN[3:]})
    for path, left, right in ((verdicts, given, judged), (completions, judged, given)):
        missing = next((key for key in left if key not in right), None)
        if missing is not None:
            raise PipelineError(f"{path}: nothing on {missing[0]!r} ({missing[1]}); expected a row an answer")
    known = {*COLUMNS, *OPTIONAL}
    return [
        Answer(**{name: value for name, value in {**row, **judged[key]}.items() if name in known})
        for key, row in given.items()
    ]


def _rows(path: Path, columns: Mapping[str, tuple[str, Any]]) -> dict[tuple[str, int], files.Row]:
    rows: dict[tuple[str, int], files.Row] = {}
    for number, text in files.iter_lines(path):
        where = f"{path}:{number}"
        row = files.parse_row(text, where)
        for name, (expected, good) in columns.items():
            if name not in row or not good(row[name]):
                found = repr(row[name])[:60] if name in row else "nothing"
                raise PipelineError(f"{where}: {name}: {found}; expected {expected}")
        for name, (expected, good) in OPTIONAL.items():
            if name in row and not good(row[name]):
                raise PipelineError(f"{where}: {name}: {repr(row[name])[:60]}; expected {expected}")
        key = (row["id"], row["sample"])
        if key in rows:
            raise PipelineError(f"{where}: {row['id']!r} ({row['sample']}) comes twice; expected it once")
        rows[key] = row
    if not rows:
        raise PipelineError(f"{path}: 0 rows; expected some")
    return rows


@dataclass(frozen=True)
class Task:
    """One task and both models' greedy answers."""

    base: Answer
    tuned: Answer

    def outcomes(self) -> tuple[str, ...]:
        """What the page filters by: who passed, and who gave nothing that could be judged."""
        who = {(True, True): "both", (True, False): "base", (False, True): "tuned"}
        passed = who.get((self.base.passed, self.tuned.passed), "neither")
        statuses = {self.base.status, self.tuned.status}
        return (passed, *(name for name in ("invalid", "timeout") if name in statuses))

    def size(self) -> int:
        """About how many bytes it takes on the page."""
        texts = (self.base.prompt, self.base.completion, self.tuned.completion)
        escapes = sum(text[:LONGEST].count(mark) for text in texts for mark in "<>&'\"")
        return FRAME + sum(len(text[:LONGEST].encode("utf-8", "replace")) for text in texts) + 4 * escapes


def paired(base: Sequence[Answer], tuned: Sequence[Answer], path: Path) -> dict[str, list[Task]]:
    """Every task by suite; raises PipelineError naming `path`, the tuned model's, where answers differ."""
    given = {(answer.id, answer.sample): answer for answer in tuned}
    suites: dict[str, list[Task]] = {}
    for answer in base:
        other = given.pop((answer.id, answer.sample), None)
        if other is None:
            raise PipelineError(f"{path}: no answer to {answer.id!r} ({answer.sample}), which base has")
        if (other.prompt, other.suite) != (answer.prompt, answer.suite):
            raise PipelineError(f"{path}: {answer.id!r} was asked otherwise than of base; run generate again")
        if answer.sample == 0:
            suites.setdefault(answer.suite, []).append(Task(answer, other))
    if given:
        raise PipelineError(f"{path}: an answer to {min(given)[0]!r}; expected the tasks that base answered")
    return suites


def sample(suites: Mapping[str, Sequence[Task]], limit: int, seed: int) -> dict[str, list[Task]]:
    """All tasks if they take at most `limit` bytes, otherwise the same share of each suite, drawn by `seed`.

    Of a suite at least one task stays, and the order is kept.
    """
    share = 1.0
    chosen = {suite: list(tasks) for suite, tasks in suites.items()}
    while (size := _size(chosen)) > limit and any(len(tasks) > 1 for tasks in chosen.values()):
        share *= min(0.95, limit / size)
        chosen = {
            suite: _drawn(tasks, max(1, int(share * len(tasks))), seed) for suite, tasks in suites.items()
        }
    return chosen


def _size(suites: Mapping[str, Sequence[Task]]) -> int:
    return sum(task.size() for tasks in suites.values() for task in tasks)


def _drawn(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    import random

    places = random.Random(seed).sample(range(len(tasks)), count)
    return [tasks[place] for place in sorted(places)]


def visible(text: str) -> str:
    """A text to be shown: unseen characters by their code, and not longer than LONGEST.

    >>> visible("a\\u202eb")
    'a⟨U+202E⟩b'
    """
    shown = UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text[:LONGEST].replace("\r\n", "\n"))
    left = len(text) - LONGEST
    return shown if left <= 0 else f"{shown}\n⟨{left:,} characters more⟩"
