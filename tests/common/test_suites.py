"""Suites: rows become tasks, a pair two of them, and a bad row is named with its file and line."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from stages.common import prompts, suites
from stages.common.errors import PipelineError

ROWS = {
    "detection": {
        "id": "d/1",
        "kind": "detection",
        "language": "python",
        "cwe": "CWE-89",
        "vulnerable": "bad()",
        "fixed": "good()",
        "trait": "quiet",
    },
    "code": {
        "id": "c/1",
        "kind": "code",
        "prompt": "Write f.",
        "entry_point": "f",
        "test": "assert f()",
        "language": "javascript",
        "security_test": "assert f(1)",
        "fault_test": "assert f(2)",
        "cwe": "CWE-79",
        "reference": "good",
        "unsafe": "bad",
    },
    "fixing": {
        "id": "f/1",
        "kind": "fixing",
        "language": "python",
        "cwe": "CWE-22",
        "vulnerable": "def f(): bad()",
        "entry_point": "f",
        "test": "f()",
        "security_test": "f(1)",
        "reference": "def f(): good()",
    },
    "explanation": {
        "id": "e/1",
        "kind": "explanation",
        "language": "php",
        "cwe": "CWE-79",
        "vulnerable": "echo $x;",
        "also": ["CWE-80", "CWE-116"],
    },
    "reference": {
        "id": "r/1",
        "kind": "reference",
        "prompt": "Is it safe?",
        "all_of": [["no", "unsafe"], ["sql"]],
        "at_least": 1,
        "ours": {"kind": "verdict", "vulnerable": True},
    },
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    },
}
HUMANEVAL_KEYS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
OURS = {"kind": "code", "entry_point": "f", "test": "f()", "fault_test": "f(0)", "reference": "def f(): ..."}


def least(kind: str) -> dict[str, object]:
    """A row with what its kind needs and no more."""
    return {key: value for key, value in ROWS[kind].items() if key not in suites.KEYS[kind].optional}


def suite(folder: Path, *rows: object, name: str = "mine.jsonl") -> Path:
    """A suite file of these rows."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(folder: Path, row: object) -> suites.Task:
    """The only task of a suite of one row."""
    (task,) = suites.load(suite(folder, row))
    return task


def refused(path: Path) -> str:
    """What is said of a suite file that cannot be loaded."""
    with pytest.raises(PipelineError) as error:
        suites.load(path)
    return str(error.value)


# Every kind of row. --------------------------------------------------------------------------------------


def test_there_is_an_example_of_every_kind_with_every_key():
    assert set(ROWS) == {*suites.KEYS, "humaneval"} == {*suites.BUILDERS, "humaneval"}
    for kind, keys in suites.KEYS.items():
        assert set(ROWS[kind]) == {"id", "kind", *keys.needed, *keys.optional}


def test_pair_becomes_two_tasks_with_one_question(tmp_path):
    weak, fixed = suites.load(suite(tmp_path, ROWS["detection"]))
    assert (weak.id, fixed.id) == ("d/1/vulnerable", "d/1/fixed")
    assert (weak.vulnerable, fixed.vulnerable) == (True, False)
    assert weak.prompt == prompts.detect("bad()", "python") and "CWE-89" not in weak.prompt
    same = {"id": "", "vulnerable": False, "prompt": ""}
    assert asdict(weak) | same == asdict(fixed) | same
    assert (weak.pair, weak.suite, weak.kind, weak.trait) == ("d/1", "mine", "detection", "quiet")
    assert (weak.cwe, weak.language) == ("CWE-89", "python") and weak.checks() == {}


@pytest.mark.parametrize("trait", suites.TRAITS)
def test_trait_of_a_pair_stays_and_none_is_empty(tmp_path, trait):
    plain = least("detection")
    assert {task.trait for task in suites.load(suite(tmp_path, plain))} == {""}
    assert {task.trait for task in suites.load(suite(tmp_path, {**plain, "trait": trait}))} == {trait}


def test_code_is_asked_and_checked(tmp_path):
    task = one(tmp_path, ROWS["code"])
    same = ("id", "kind", "prompt", "entry_point", "test", "language", "security_test", "fault_test", "cwe")
    assert {key: getattr(task, key) for key in same} == {key: ROWS["code"][key] for key in same}
    assert (task.solution, task.unsafe, task.code, task.suite) == ("good", "bad", "", "mine")


def test_code_without_a_language_is_python(tmp_path):
    task = one(tmp_path, least("code"))
    assert (task.language, task.cwe, task.solution, task.unsafe) == ("python", "", "", "")


def test_fixing_shows_the_flaw_and_keeps_it_as_the_wrong_answer(tmp_path):
    task = one(tmp_path, ROWS["fixing"])
    assert task.prompt == prompts.fix("def f(): bad()", "python")
    assert (task.kind, task.unsafe, task.solution) == ("fixing", "def f(): bad()", "def f(): good()")
    assert (task.entry_point, task.language, task.cwe) == ("f", "python", "CWE-22")


def test_explanation_keeps_what_else_is_right(tmp_path):
    task = one(tmp_path, ROWS["explanation"])
    assert task.prompt == prompts.explain("echo $x;", "php") and "CWE" not in task.prompt
    assert (task.cwe, task.also, task.language, task.checks()) == ("CWE-79", ["CWE-80", "CWE-116"], "php", {})
    assert one(tmp_path, least("explanation")).also == []


def test_reference_has_its_grader_and_ours(tmp_path):
    task = one(tmp_path, ROWS["reference"])
    assert (task.prompt, task.all_of, task.at_least) == ("Is it safe?", [["no", "unsafe"], ["sql"]], 1)
    assert task.ours == suites.Task("r/1", "mine", "verdict", "Is it safe?", vulnerable=True)
    bare = one(tmp_path, least("reference"))
    assert (bare.ours, bare.at_least) == (None, 0)


def test_our_judge_of_a_reference_row_may_be_code(tmp_path):
    ours = one(tmp_path, {**ROWS["reference"], "ours": OURS}).ours
    assert ours is not None and (ours.id, ours.kind, ours.prompt) == ("r/1", "code", "Is it safe?")
    assert ours.checks() == {"functional": "f()", "handled": "f(0)"} and ours.language == "python"
    assert ours.solution == "def f(): ..."


def test_humaneval_row_is_asked_without_its_solution_and_checked(tmp_path):
    task = one(tmp_path, ROWS["humaneval"])
    assert (task.id, task.kind, task.code, task.language) == ("HumanEval/0", "code", "def f():\n", "python")
    assert task.solution == "    return 1\n" and "return 1" not in task.prompt
    assert task.prompt == prompts.complete("def f():\n")
    (test,) = task.checks().values()
    names = {"f": lambda: 1}
    exec(test, names)  # noqa: S102 (the row above)
    names["f"] = lambda: 2
    with pytest.raises(AssertionError):
        exec(test, names)  # noqa: S102


@pytest.mark.parametrize(
    ("tests", "checks"),
    [
        ({}, {}),
        ({"test": "a"}, {"functional": "a"}),
        ({"test": "a", "security_test": "b"}, {"functional": "a", "secure": "b"}),
        ({"test": "a", "fault_test": "c"}, {"functional": "a", "handled": "c"}),
        (
            {"fault_test": "c", "security_test": "b", "test": "a"},
            {"functional": "a", "secure": "b", "handled": "c"},
        ),
    ],
)
def test_checks_are_the_tests_by_what_they_prove(tests, checks):
    task = suites.Task("c/1", "c", "code", "", **tests)
    assert task.checks() == checks and list(task.checks()) == list(checks)


# Rows that are refused. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key"),
    [(kind, key) for kind, keys in suites.KEYS.items() for key in ("id", *keys.needed)]
    + [("humaneval", key) for key in ("task_id", "prompt", "entry_point", "test")],
)
def test_missing_key_is_named_with_file_and_line(tmp_path, kind, key):
    bad = {name: value for name, value in ROWS[kind].items() if name != key}
    path = suite(tmp_path, ROWS["code"], bad)
    assert refused(path).startswith(f"{path}:2: no key {key!r}; expected ")


@pytest.mark.parametrize("kind", suites.KEYS)
@pytest.mark.parametrize("key", ["", "call", "Test", "task_id", "suite", "solution", "code"])
def test_unknown_key_is_named_with_file_and_line(tmp_path, kind, key):
    path = suite(tmp_path, ROWS["humaneval"], {**ROWS[kind], key: "x"})
    assert refused(path).startswith(f"{path}:2: key {key!r}; expected ")


WRONG = (3, None, True, ["x"], {"x": 1}, "half \ud83d a character")
OTHER = {
    "trait": (*WRONG, "loud", "Quiet"),
    "also": ("CWE-79", 3, None, {"a": "b"}, ["CWE-79", 3], [["CWE-79"]], ["\ud83d"]),
    "all_of": ("try", 3, None, ["try"], [[]], [["try"], "except"], [["try", 3]], {"a": ["b"]}),
    "at_least": ("1", 1.0, -1, None, True, [1], 3),
    "ours": ("code", None, True, [], [{"kind": "verdict"}]),
}


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (kind, key, value)
        for kind, row in ROWS.items()
        for key in row
        if key != "kind"
        for value in OTHER.get(key, WRONG)
    ],
)
def test_wrong_value_is_named_with_file_line_and_key(tmp_path, kind, key, value):
    path = suite(tmp_path, ROWS["code"] | {"id": "other"}, {**ROWS[kind], key: value})
    assert refused(path).startswith(f"{path}:2: {key}: ")


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (kind, key)
        for kind, keys in suites.KEYS.items()
        for key in ("id", *keys.needed)
        if key not in ("cwe", "language", "all_of")
    ],
)
def test_a_task_without_a_question_or_a_test_is_refused(tmp_path, kind, key):
    path = suite(tmp_path, {**ROWS[kind], key: ""})
    assert refused(path) == f"{path}:1: {key}: ''; expected some text ({kind})"


@pytest.mark.parametrize("kind", ["poem", "", "verdict", "humaneval", "Code", None, 3, [], {}, ["code"]])
def test_unknown_kind_is_refused_with_those_there_are(tmp_path, kind):
    path = suite(tmp_path, {**ROWS["code"], "kind": kind})
    assert refused(path) == f"{path}:1: kind: {kind!r}; expected one of {', '.join(suites.KEYS)}"


@pytest.mark.parametrize("kind", ["code", "fixing"])
@pytest.mark.parametrize("language", ["ruby", "Python", "js", "typescript", ""])
def test_code_in_a_language_that_nobody_can_judge_is_refused(tmp_path, kind, language):
    path = suite(tmp_path, {**ROWS[kind], "language": language})
    assert refused(path) == f"{path}:1: language: {language!r}; expected python or javascript"


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ({}, "expected kind code with its keys, or kind verdict with vulnerable"),
        ({"kind": "poem"}, "expected kind code"),
        ({"kind": "poem", "vulnerable": True}, "expected kind code"),
        ({"kind": "verdict"}, "expected kind code"),
        ({"kind": "verdict", "vulnerable": "yes"}, "expected kind code"),
        ({"kind": "verdict", "vulnerable": 1}, "expected kind code"),
        ({"kind": "verdict", "vulnerable": True, "more": 1}, "expected kind code"),
        ({"kind": [], "vulnerable": True}, "expected kind code"),
        ({**OURS, "id": "r/2"}, "expected kind code"),
        ({**OURS, "prompt": "Another one."}, "expected kind code"),
        ({**OURS, "canonical_solution": "pass"}, "expected kind code"),
        ({"kind": "code", "entry_point": "f"}, "no key 'test'"),
        ({**OURS, "call": "f"}, "key 'call'"),
        ({**OURS, "test": 3}, "test: 3"),
        ({**OURS, "test": ""}, "test: ''"),
        ({**OURS, "language": "ruby"}, "language: 'ruby'"),
    ],
)
def test_bad_judge_of_ours_is_refused_with_its_place(tmp_path, ours, words):
    path = suite(tmp_path, {**ROWS["reference"], "ours": ours})
    said = refused(path)
    assert said.startswith(f"{path}:1: ours: ") and words in said and len(said) < 400


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "0 tasks"),
        ([{"id": "x"}], ":1: kind: None"),
        ([{}], ":1: kind: None"),
        ([ROWS["code"], ROWS["code"]], "'c/1' occurs twice"),
        ([ROWS["detection"], ROWS["detection"]], "'d/1/vulnerable' occurs twice"),
        ([ROWS["detection"], {**ROWS["code"], "id": "d/1"}], "'d/1' occurs twice"),
        ([{**ROWS["code"], "id": "d/1/fixed"}, ROWS["detection"]], "'d/1/fixed' occurs twice"),
        ([ROWS["humaneval"], ROWS["humaneval"]], "'HumanEval/0' occurs twice"),
        ([3], ":1: '3"),
    ],
)
def test_bad_suite_is_refused(tmp_path, rows, words):
    path = suite(tmp_path, *rows)
    said = refused(path)
    assert said.startswith(str(path)) and words in said


# All suites, and parts of them. --------------------------------------------------------------------------


def test_dropping_a_file_adds_a_suite(tmp_path):
    humaneval = suite(tmp_path, ROWS["humaneval"], name="humaneval.jsonl")
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    suite(benchmarks, ROWS["code"], name="b.jsonl")
    suite(benchmarks, ROWS["reference"], name="a.jsonl")
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


def pairs(count: int, name: str) -> list[suites.Task]:
    """Both sides of some pairs."""
    return [
        suites.Task(f"{name}/{number}/{side}", name, "detection", "", pair=f"{name}/{number}")
        for number in range(count)
        for side in ("vulnerable", "fixed")
    ]


@pytest.mark.parametrize("made", [tasks, pairs])
@pytest.mark.parametrize(
    ("size", "limit"), [(10, 3), (10, 1), (10, 9), (10, 10), (10, 99), (164, 41), (273, 90), (1, 1), (7, 6)]
)
def test_subset_is_spread_evenly_and_in_order(made, size, limit):
    whole = made(size, "a")
    chosen = suites.subset(whole + tasks(5, "b"), {"a": limit})
    numbers = list(dict.fromkeys(int(task.id.split("/")[1]) for task in chosen if task.suite == "a"))
    assert len(numbers) == min(size, limit) and numbers == sorted(numbers) and numbers[0] == 0
    gaps = {after - before for before, after in pairwise([*numbers, size])}
    assert max(gaps) - min(gaps) <= 1
    assert [task for task in chosen if task.suite == "b"] == tasks(5, "b")
    kept = {task.id for task in chosen}
    assert [task for task in whole if task.id in kept] == [task for task in chosen if task.suite == "a"]
    assert len(kept) == len(chosen) == len(numbers) * len(whole) // size + 5


def test_sides_of_a_pair_stay_together_wherever_they_stand():
    apart = pairs(6, "a")[::2] + pairs(6, "a")[1::2]
    chosen = suites.subset(apart, {"a": 2})
    assert [task.id for task in chosen] == ["a/0/vulnerable", "a/0/fixed", "a/3/vulnerable", "a/3/fixed"]


def test_without_limits_everything_stays_and_a_limit_for_nothing_is_named():
    whole = tasks(3, "a") + pairs(2, "b")
    assert suites.subset(whole, {}) == whole
    with pytest.raises(
        PipelineError, match=r"^generate\.limits\.nothing: no such suite; expected a file of "
    ):
        suites.subset(whole, {"a": 1, "nothing": 1})
