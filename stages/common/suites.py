"""Evaluation suites: JSON lines files become tasks that a model can be asked and a judge can mark.

A row has `id`, `kind` and what its kind needs (see data/benchmarks/README.md); rows of HumanEval are
understood as they are. A detection row is a pair and becomes two tasks.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stages.common import files, prompts
from stages.common.errors import PipelineError

BENCHMARKS = Path("data/benchmarks")
HUMANEVAL = Path("data/raw/humaneval.jsonl")

KEYS = {
    "detection": ("language", "cwe", "vulnerable", "fixed"),
    "code": ("prompt", "entry_point", "test"),
    "keywords": ("prompt", "all_of"),
}


@dataclass(frozen=True)
class Task:
    """One question to a model and what its judge needs."""

    id: str
    suite: str  # name of the file, without .jsonl
    kind: str  # "detection", "code" or "keywords"
    prompt: str
    pair: str = ""  # detection: id shared by both sides
    vulnerable: bool = False  # detection: the right verdict
    cwe: str = ""
    language: str = ""
    code: str = ""  # code: what stands before the answer when the answer lacks it (a HumanEval prompt)
    entry_point: str = ""
    test: str = ""  # code: Python that raises unless the answer is right
    call: str = ""  # code: the line that starts the test, where the test only defines it
    solution: str = ""  # code: an answer that is right, which training must not contain either
    all_of: list[list[str]] = field(default_factory=list)  # keywords: of each group one must occur


def load(path: Path) -> list[Task]:
    """Every task of a suite file, in order.

    Raises PipelineError naming the file and line of a row without its keys, and on a repeated id.
    """
    tasks: list[Task] = []
    for number, row in enumerate(files.read_rows(path), 1):
        tasks += _tasks(row, path.stem, f"{path}:{number}")
    if not tasks:
        raise PipelineError(f"{path}: 0 tasks; expected some")
    return _distinct(tasks, str(path))


def load_all(benchmarks: Path = BENCHMARKS, humaneval: Path = HUMANEVAL) -> list[Task]:
    """The project's own suites by name, then HumanEval."""
    paths = [*sorted(benchmarks.glob("*.jsonl")), humaneval]
    return _distinct([task for path in paths for task in load(path)], " and ".join(map(str, paths)))


def subset(tasks: list[Task], limits: Mapping[str, int]) -> list[Task]:
    """At most `limits[suite]` tasks of each suite, spread evenly over it; suites without a limit whole.

    The choice depends on the suite's length alone, so it is the same in every run. Raises PipelineError
    on a limit for a suite that is not there.
    """
    unknown = set(limits) - {task.suite for task in tasks}
    if unknown:
        raise PipelineError(f"generate.limits.{min(unknown)}: no such suite; expected a file of {BENCHMARKS}")
    chosen: list[Task] = []
    for suite in dict.fromkeys(task.suite for task in tasks):
        rows = [task for task in tasks if task.suite == suite]
        count = min(limits.get(suite, len(rows)), len(rows))
        chosen += [rows[index * len(rows) // count] for index in range(count)]
    return chosen


def _tasks(row: files.Row, suite: str, where: str) -> list[Task]:
    if "canonical_solution" in row:
        return [_humaneval(row, suite, where)]
    kind = row.get("kind")
    if kind not in KEYS:
        raise PipelineError(f"{where}: kind: {kind!r}; expected one of {', '.join(KEYS)}")
    missing = [key for key in ("id", *KEYS[kind]) if key not in row]
    if missing:
        raise PipelineError(f"{where}: no key {missing[0]!r}; expected {', '.join(('id', *KEYS[kind]))}")
    for key in ("id", *KEYS[kind]):
        _check_type(key, row[key], where)
    if kind == "detection":
        return [_detection(row, suite, side) for side in ("vulnerable", "fixed")]
    given = {key: row[key] for key in KEYS[kind]}
    return [Task(row["id"], suite, kind, solution=row.get("reference", ""), **given)]


def _check_type(key: str, value: object, where: str) -> None:
    if key == "all_of":
        groups = value if isinstance(value, list) else [None]
        good = all(
            isinstance(group, list) and group and all(isinstance(word, str) for word in group)
            for group in groups
        )
    else:
        good = isinstance(value, str)
    if not good:
        expected = "a list of lists of text" if key == "all_of" else "text"
        raise PipelineError(f"{where}: {key}: {value!r}; expected {expected}")


def _distinct(tasks: list[Task], where: str) -> list[Task]:
    repeated = [name for name, count in Counter(task.id for task in tasks).items() if count > 1]
    if repeated:
        raise PipelineError(f"{where}: id {repeated[0]!r} occurs twice; expected every id once")
    return tasks


def _detection(row: files.Row, suite: str, side: str) -> Task:
    prompt = prompts.detect(row[side], row["language"])
    return Task(
        f"{row['id']}/{side}",
        suite,
        "detection",
        prompt,
        pair=row["id"],
        vulnerable=side == "vulnerable",
        cwe=row["cwe"],
        language=row["language"],
    )


def _humaneval(row: files.Row, suite: str, where: str) -> Task:
    try:
        return Task(
            row["task_id"],
            suite,
            "code",
            prompts.complete(row["prompt"]),
            code=row["prompt"],
            entry_point=row["entry_point"],
            test=row["test"],
            call=f"check({row['entry_point']})",
            solution=row["canonical_solution"],
        )
    except KeyError as missing:
        raise PipelineError(f"{where}: no key {missing}; expected HumanEval's keys") from None
