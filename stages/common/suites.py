"""Evaluation suites: JSON lines files become tasks that a model can be asked and a judge can mark.

A row has `id`, `kind` and what its kind needs (see data/benchmarks/README.md); rows of HumanEval are
understood as they are. A detection row is a pair and becomes two tasks.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from stages.common import files, prompts
from stages.common.errors import PipelineError

BENCHMARKS = Path("data/benchmarks")
HUMANEVAL = Path("data/raw/humaneval.jsonl")

SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can spell and UTF-8 cannot hold
TRAITS = ("", "hard_negative", "quiet")  # of a pair: the fixed side looks dangerous; no tell-tale name


class Keys(NamedTuple):
    """What a row of one kind holds beside `id` and `kind`."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


TESTED = ("security_test", "fault_test", "cwe", "reference", "unsafe")
KEYS = {
    "detection": Keys(("language", "cwe", "vulnerable", "fixed"), ("trait",)),
    "code": Keys(("prompt", "entry_point", "test"), ("language", *TESTED)),
    "fixing": Keys(("language", "cwe", "vulnerable", "entry_point", "test", "security_test"), ("reference",)),
    "explanation": Keys(("language", "cwe", "vulnerable"), ("also",)),
    "reference": Keys(("prompt", "all_of"), ("at_least", "ours")),
}


@dataclass(frozen=True)
class Task:
    """One question to a model and what its judge needs."""

    id: str
    suite: str  # name of the file, without .jsonl
    kind: str  # one of KEYS
    prompt: str
    pair: str = ""  # detection: id shared by both sides
    vulnerable: bool = False  # detection: the right verdict
    trait: str = ""  # detection: one of TRAITS
    cwe: str = ""
    language: str = ""
    code: str = ""  # code: what stands before the answer when the answer lacks it (a HumanEval prompt)
    entry_point: str = ""  # code, fixing: the function that the tests call
    test: str = ""  # code, fixing: raises unless the answer works
    security_test: str = ""  # code, fixing: raises unless the answer withstands an attack
    fault_test: str = ""  # code: raises unless the answer handles a fault
    solution: str = ""  # an answer that is right, which training must not contain either
    unsafe: str = ""  # code, fixing: an answer that works and fails the other test
    also: list[str] = field(default_factory=list)  # explanation: other CWEs that are right
    all_of: list[list[str]] = field(default_factory=list)  # reference: of each group of words one must occur
    at_least: int = 0  # reference: how many groups, 0 for all
    ours: "Task | None" = None  # reference: the same question as our judge marks it

    def checks(self) -> dict[str, str]:
        """The tests of code by what they prove: `functional`, `secure`, `handled`."""
        tests = {"functional": self.test, "secure": self.security_test, "handled": self.fault_test}
        return {name: test for name, test in tests.items() if test}


def load(path: Path) -> list[Task]:
    """Every task of a suite file, in order.

    Raises PipelineError naming the file and line of a row with other keys than its kind's, or a repeated id.
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
    """At most `limits[suite]` rows of each suite, spread evenly over it; suites without a limit whole.

    Both sides of a pair count as one. The choice depends on the suite's length alone, so it is the same in
    every run. Raises PipelineError on a limit for a suite that is not there.
    """
    unknown = set(limits) - {task.suite for task in tasks}
    if unknown:
        raise PipelineError(f"generate.limits.{min(unknown)}: no such suite; expected a file of {BENCHMARKS}")
    chosen: list[Task] = []
    for suite in dict.fromkeys(task.suite for task in tasks):
        units: dict[str, list[Task]] = {}
        for task in tasks:
            if task.suite == suite:
                units.setdefault(task.pair or task.id, []).append(task)
        rows = list(units.values())
        count = min(limits.get(suite, len(rows)), len(rows))
        chosen += [task for index in range(count) for task in rows[index * len(rows) // count]]
    return chosen


def _tasks(row: files.Row, suite: str, where: str) -> list[Task]:
    if "canonical_solution" in row:
        return [_humaneval(row, suite, where)]
    kind = row.get("kind")
    if not isinstance(kind, str) or kind not in KEYS:
        raise PipelineError(f"{where}: kind: {kind!r}; expected one of {', '.join(KEYS)}")
    needed, optional = KEYS[kind]
    for key in ("id", *needed):
        if key not in row:
            raise PipelineError(f"{where}: no key {key!r}; expected {', '.join(('id', *needed))}")
        if row[key] == "" and key not in ("cwe", "language"):
            raise PipelineError(f"{where}: {key}: ''; expected some text ({kind})")
    for key, value in row.items():
        if key not in ("id", "kind", *needed, *optional):
            raise PipelineError(f"{where}: key {key!r}; expected {', '.join((*needed, *optional))} ({kind})")
        expected, good = TYPES.get(key, TEXT)
        if not good(value):
            raise PipelineError(f"{where}: {key}: {repr(value)[:80]}; expected {expected}")
    return BUILDERS[kind](row, suite, where)


def _detection(row: files.Row, suite: str, where: str) -> list[Task]:
    return [
        Task(
            f"{row['id']}/{side}",
            suite,
            "detection",
            prompts.detect(row[side], row["language"]),
            pair=row["id"],
            vulnerable=side == "vulnerable",
            trait=row.get("trait", ""),
            cwe=row["cwe"],
            language=row["language"],
        )
        for side in ("vulnerable", "fixed")
    ]


def _code(row: files.Row, suite: str, where: str) -> list[Task]:
    return [
        Task(
            row["id"],
            suite,
            "code",
            row["prompt"],
            language=_executable(row.get("language", "python"), where),
            cwe=row.get("cwe", ""),
            entry_point=row["entry_point"],
            test=row["test"],
            security_test=row.get("security_test", ""),
            fault_test=row.get("fault_test", ""),
            solution=row.get("reference", ""),
            unsafe=row.get("unsafe", ""),
        )
    ]


def _executable(language: str, where: str) -> str:
    if language not in ("python", "javascript"):
        raise PipelineError(f"{where}: language: {language!r}; expected python or javascript")
    return language


def _fixing(row: files.Row, suite: str, where: str) -> list[Task]:
    return [
        Task(
            row["id"],
            suite,
            "fixing",
            prompts.fix(row["vulnerable"], row["language"]),
            language=_executable(row["language"], where),
            cwe=row["cwe"],
            entry_point=row["entry_point"],
            test=row["test"],
            security_test=row["security_test"],
            solution=row.get("reference", ""),
            unsafe=row["vulnerable"],
        )
    ]


def _explanation(row: files.Row, suite: str, where: str) -> list[Task]:
    prompt = prompts.explain(row["vulnerable"], row["language"])
    return [
        Task(
            row["id"],
            suite,
            "explanation",
            prompt,
            cwe=row["cwe"],
            language=row["language"],
            also=row.get("also", []),
        )
    ]


def _reference(row: files.Row, suite: str, where: str) -> list[Task]:
    groups, at_least = row["all_of"], row.get("at_least", 0)
    if at_least > len(groups):
        raise PipelineError(f"{where}: at_least: {at_least}; expected at most {len(groups)}, as all_of has")
    return [
        Task(
            row["id"],
            suite,
            "reference",
            row["prompt"],
            all_of=groups,
            at_least=at_least,
            ours=_ours(row, suite, f"{where}: ours") if "ours" in row else None,
        )
    ]


def _ours(row: files.Row, suite: str, where: str) -> Task:
    given = row["ours"]
    if given.get("kind") == "code" and not {"id", "prompt", "canonical_solution"} & set(given):
        return _tasks({"id": row["id"], "prompt": row["prompt"], **given}, suite, where)[0]
    verdict = given.get("kind") == "verdict" and set(given) == {"kind", "vulnerable"}
    if not verdict or type(given["vulnerable"]) is not bool:
        raise PipelineError(
            f"{where}: {repr(given)[:80]}; expected kind code with its keys, or kind verdict with vulnerable"
        )
    return Task(row["id"], suite, "verdict", row["prompt"], vulnerable=given["vulnerable"])


BUILDERS: dict[str, Callable[[files.Row, str, str], list[Task]]] = {
    "detection": _detection,
    "code": _code,
    "fixing": _fixing,
    "explanation": _explanation,
    "reference": _reference,
}


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _text(value: object) -> bool:
    return isinstance(value, str) and not SURROGATE.search(value)


# What a key's value must be: in words, and as a test. Keys that are not named hold text.
TEXT: tuple[str, Callable[[object], bool]] = ("text that UTF-8 can hold", _text)
TYPES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "trait": (f"one of {', '.join(map(repr, TRAITS))}", lambda value: value in TRAITS),
    "also": ("a list of text", _texts),
    "all_of": (
        "a list of lists of text",
        lambda value: isinstance(value, list) and all(_texts(group) and group for group in value),
    ),
    "at_least": ("a whole number", lambda value: type(value) is int and value >= 0),
    "ours": ("an object", lambda value: isinstance(value, dict)),
}


def _distinct(tasks: list[Task], where: str) -> list[Task]:
    names = [task.id for task in tasks] + [task.pair for task in tasks if task.pair and task.vulnerable]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise PipelineError(f"{where}: id {repeated[0]!r} occurs twice; expected every id once")
    return tasks


def _humaneval(row: files.Row, suite: str, where: str) -> Task:
    for key in ("task_id", "prompt", "canonical_solution", "test", "entry_point"):
        if key not in row:
            raise PipelineError(f"{where}: no key {key!r}; expected HumanEval's keys")
        if not _text(row[key]):
            raise PipelineError(f"{where}: {key}: {repr(row[key])[:80]}; expected {TEXT[0]}")
    return Task(
        row["task_id"],
        suite,
        "code",
        prompts.complete(row["prompt"]),
        language="python",
        code=row["prompt"],
        entry_point=row["entry_point"],
        test=f"{row['test']}\n\ncheck({row['entry_point']})\n",
        solution=row["canonical_solution"],
    )
