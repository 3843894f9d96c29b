"""Suites: rows become tasks, a pair two of them, and a bad row is named with its file and line."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from stages.common import suites
from stages.common.errors import PipelineError

ROWS = {
    "detection": {
        "id": "d/1",
        "kind": "detection",
        "language": "python",
        "cwe": "CWE-89",
        "vulnerable": "bad()",
        "fixed": "good()",
    },
    "code": {"id": "c/1", "kind": "code", "prompt": "Write f.", "entry_point": "f", "test": "assert f()"},
    "keywords": {"id": "k/1", "kind": "keywords", "prompt": "Write.", "all_of": [["try"], ["except"]]},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    },
}


def suite(folder: Path, *rows: object, name: str = "mine.jsonl") -> Path:
    """A suite file of these rows."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pair_becomes_two_tasks_with_one_question(tmp_path):
    weak, fixed = suites.load(suite(tmp_path, ROWS["detection"]))
    assert (weak.vulnerable, fixed.vulnerable) == (True, False)
    assert weak.pair == fixed.pair == "d/1" and weak.id != fixed.id and weak.suite == "mine"
    assert weak.prompt.replace("bad()", "good()") == fixed.prompt
    assert "CWE-89" not in weak.prompt


def test_humaneval_row_is_asked_without_its_solution_and_checked(tmp_path):
    (task,) = suites.load(suite(tmp_path, ROWS["humaneval"]))
    assert (task.id, task.kind, task.code) == ("HumanEval/0", "code", "def f():\n")
    assert (task.call, task.solution) == ("check(f)", "    return 1\n") and "return 1" not in task.prompt


@pytest.mark.parametrize("kind", ["code", "keywords"])
def test_other_kinds_keep_their_fields(tmp_path, kind):
    (task,) = suites.load(suite(tmp_path, ROWS[kind]))
    assert all(getattr(task, key) == ROWS[kind][key] for key in ("id", "kind", *suites.KEYS[kind]))


@pytest.mark.parametrize(
    ("kind", "key"),
    [(kind, key) for kind, keys in suites.KEYS.items() for key in ("id", *keys)]
    + [("humaneval", key) for key in ("task_id", "prompt", "entry_point", "test")],
)
def test_missing_key_is_named_with_file_and_line(tmp_path, kind, key):
    bad = {name: value for name, value in ROWS[kind].items() if name != key}
    path = suite(tmp_path, ROWS["keywords"], bad)
    with pytest.raises(PipelineError) as error:
        suites.load(path)
    assert str(error.value).startswith(f"{path}:2: ") and repr(key) in str(error.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{**ROWS["code"], "kind": "poem"}], [":1: kind: 'poem'", "detection, code, keywords"]),
        ([{"id": "x"}], [":1: kind: None"]),
        ([ROWS["code"], ROWS["code"]], ["'c/1' occurs twice"]),
        ([], ["0 tasks"]),
        ([{**ROWS["detection"], "vulnerable": 3}], [":1: vulnerable: 3"]),
        ([{**ROWS["code"], "test": None}], [":1: test: None"]),
        ([{**ROWS["keywords"], "all_of": "try"}], [":1: all_of: 'try'"]),
    ],
)
def test_bad_suite_is_refused(tmp_path, rows, words):
    path = suite(tmp_path, *rows)
    with pytest.raises(PipelineError) as error:
        suites.load(path)
    assert str(path) in str(error.value) and all(word in str(error.value) for word in words)


def test_dropping_a_file_adds_a_suite(tmp_path):
    humaneval = suite(tmp_path, ROWS["humaneval"], name="humaneval.jsonl")
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    suite(benchmarks, ROWS["code"], name="b.jsonl")
    suite(benchmarks, ROWS["keywords"], name="a.jsonl")
    (benchmarks / "README.md").write_text("no suite")
    assert [task.suite for task in suites.load_all(benchmarks, humaneval)] == ["a", "b", "humaneval"]


def test_one_id_in_two_suites_is_refused(tmp_path):
    humaneval = suite(tmp_path, ROWS["humaneval"], name="humaneval.jsonl")
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        suite(benchmarks, ROWS["code"], name=name)
    with pytest.raises(PipelineError, match="c/1"):
        suites.load_all(benchmarks, humaneval)


def tasks(count: int, name: str) -> list[suites.Task]:
    """Tasks of one suite, numbered."""
    return [suites.Task(f"{name}/{number}", name, "code", "") for number in range(count)]


@pytest.mark.parametrize(("size", "limit"), [(10, 3), (10, 10), (10, 99), (164, 41), (1, 1), (7, 6)])
def test_subset_is_spread_evenly_and_in_order(size, limit):
    chosen = suites.subset(tasks(size, "a") + tasks(5, "b"), {"a": limit})
    numbers = [int(task.id.split("/")[1]) for task in chosen if task.suite == "a"]
    assert len(numbers) == min(size, limit) and numbers == sorted(set(numbers)) and numbers[0] == 0
    gaps = {after - before for before, after in pairwise(numbers)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert [task for task in chosen if task.suite == "b"] == tasks(5, "b")
