"""The shipped data: enough of it, varied, without renamed copies, apart from the benchmarks, and proven."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.common import cwe, overlap, sandbox, suites
from stages.common.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
SUITES = sorted((ROOT / "data/benchmarks").glob("*.jsonl"))
LANGUAGES = {"python", "javascript", "php", "c"}
FAULTS = ("missing file", "bad JSON", "HTTP error", "division by zero", "locked database", "timeout")
SAMPLE = 20  # rows whose tests are run here; `filter` runs all of them

Pair = tuple[str, str, str, str]  # language, weakness, vulnerable code, fixed code


def rows(path: str) -> list[dict]:
    """The rows of a shipped file."""
    return [json.loads(line) for line in (ROOT / "data" / path).read_text().split("\n") if line]


def training_pairs() -> list[Pair]:
    """Every pair to train on."""
    return [
        (row["lang"], cwe.find(row["vulnerability"]), row["rejected"], row["chosen"])
        for row in rows("handmade/preferences.jsonl")
    ] + [
        (row["language"], cwe.find(row["cwe_id"]), row["vulnerable_code"], row["fixed_code"])
        for row in rows("handmade/fixes.jsonl")
    ]


def detection_pairs() -> list[Pair]:
    """Every pair to measure with."""
    return [
        (row["language"], row["cwe"], row["vulnerable"], row["fixed"])
        for row in rows("benchmarks/detection.jsonl")
    ]


def skeleton(code: str) -> str:
    """Code with names, numbers and texts blanked: a renamed copy has the same."""
    code = re.sub(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`", "S", code)
    code = re.sub(r"\b\d[\w.]*", "0", code)
    code = re.sub(r"[A-Za-z_$]\w*", "i", code)
    return "".join(code.split())


def plain(code: str) -> str:
    """Code without what case and layout hide."""
    return "".join(code.lower().split())


def repeated(texts: list[str]) -> list[str]:
    """Texts that occur more than once."""
    return [text for text, count in Counter(texts).items() if count > 1]


def test_skeleton_sees_through_renaming():
    assert skeleton("def f(a):\n  return a + 'x'") == skeleton('def total(sum_):\n    return sum_ + "yy"')
    assert skeleton("return a + b") != skeleton("return a - b")


@pytest.mark.parametrize(("pairs", "least"), [(training_pairs, 160), (detection_pairs, 60)])
def test_pairs_are_many_and_varied(pairs, least):
    found = pairs()
    assert len(found) >= least
    assert {language for language, *_ in found} >= LANGUAGES
    assert len({weakness for _, weakness, *_ in found}) >= 16
    assert {weakness for _, weakness, *_ in found} <= set(cwe.NAMES)


def test_error_handling_rows_are_many_and_varied():
    found = rows("handmade/error_handling.jsonl")
    assert len(found) >= 500
    assert all(tuple(row) == SCHEMAS["faults"] for row in found)
    assert {row["language"] for row in found} == {"python", "javascript"}
    faults = Counter(row["fault"] for row in found)
    assert all(faults[fault] >= 40 for fault in FAULTS), faults
    assert {row["fault"] for row in found if row["language"] == "javascript"} >= set(FAULTS)


@pytest.mark.parametrize("key", ["instruction", "code", "incomplete", "missing", "remedy"])
def test_error_handling_rows_repeat_nothing(key):
    assert repeated([plain(row[key]) for row in rows("handmade/error_handling.jsonl")]) == []


def test_error_handling_answers_are_neither_one_another_renamed_nor_their_incomplete_twin():
    found = rows("handmade/error_handling.jsonl")
    assert repeated([skeleton(row["code"]) for row in found]) == []
    assert [row["code"] for row in found if plain(row["code"]) == plain(row["incomplete"])] == []


def test_python_answers_come_with_tests_and_others_without():
    for row in rows("handmade/error_handling.jsonl"):
        python = row["language"] == "python"
        assert (bool(row["test"]), bool(row["fault_test"])) == (python, python), row["instruction"]


@pytest.mark.parametrize("pairs", [training_pairs, detection_pairs])
@pytest.mark.parametrize("side", [2, 3], ids=["vulnerable", "fixed"])
def test_no_snippet_is_another_one_renamed(pairs, side):
    assert repeated([skeleton(pair[side]) for pair in pairs()]) == []


@pytest.mark.parametrize("pairs", [training_pairs, detection_pairs])
def test_both_sides_differ_in_more_than_layout(pairs):
    assert [weak for _, _, weak, fixed in pairs() if plain(weak) == plain(fixed)] == []


@pytest.mark.parametrize("form", [plain, skeleton])
def test_training_and_measurement_share_no_snippet(form):
    trained = {form(code) for pair in training_pairs() for code in pair[2:]}
    measured = {form(code) for pair in detection_pairs() for code in pair[2:]}
    assert trained & measured == set()


@pytest.mark.parametrize(("form", "sides"), [(plain, 2), (skeleton, 1)])
def test_error_handling_shares_no_answer_with_its_benchmark(form, sides):
    keys = {"handmade": ("code", "incomplete")[:sides], "benchmarks": ("reference", "unsafe")[:sides]}
    trained, measured = (
        {form(row[key]) for row in rows(f"{folder}/error_handling.jsonl") for key in names}
        for folder, names in keys.items()
    )
    assert trained & measured == set()


@pytest.mark.parametrize("name", ["error_handling", "fixes", "preferences"])
def test_no_training_row_gives_a_benchmark_away(name):
    tasks = [task for path in SUITES for task in suites.load(path)]
    index = overlap.build(tasks, overlap.Overlap(ngram=8, share=0.5, entry_points=True))
    assert overlap.copied(overlap.find(index, "", tasks[0].prompt), True), "a benchmark's own text is found"
    found = [overlap.find(index, *row.values()) for row in rows(f"handmade/{name}.jsonl")]
    assert found and [one for one in found if overlap.copied(one, entry_points=True)] == []


def test_length_does_not_tell_the_sides_apart():
    pairs = detection_pairs()
    longer = sum(len(fixed) > len(weak) for _, _, weak, fixed in pairs)
    assert longer < 0.95 * len(pairs)


def test_no_snippet_names_its_own_verdict():
    words = re.compile(
        r"vulnerab|insecure|unsafe|exploit|CWE-|\bfixed\b|\bsecure(?:ly)?\b(?!:)", re.IGNORECASE
    )
    comments = re.compile(r"(?:#|//|/\*).*")
    told = [
        comment
        for pair in detection_pairs()
        for code in pair[2:]
        for comment in comments.findall(code)
        if words.search(comment)
    ]
    assert told == []


def test_error_handling_suite_tells_right_from_unsafe():
    given = rows("benchmarks/error_handling.jsonl")
    programs = [f"{row[side]}\n\n{row['test']}" for row in given for side in ("reference", "unsafe")]
    with ThreadPoolExecutor(2) as pool:
        statuses = [outcome.status for outcome in pool.map(sandbox.run, programs)]
    wrong = [
        row["id"]
        for row, both in zip(given, zip(statuses[::2], statuses[1::2], strict=True), strict=True)
        if both != ("passed", "failed")
    ]
    assert len(given) >= 20 and wrong == []


def test_error_handling_rows_are_proven_in_a_sample():
    proven = [row for row in rows("handmade/error_handling.jsonl") if row["test"]]
    runs = [
        (row, code, test)
        for row in random.Random(0).sample(proven, SAMPLE)
        for code in ("code", "incomplete")
        for test in ("test", "fault_test")
    ]
    with ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(sandbox.run, (f"{row[code]}\n\n{row[test]}" for row, code, test in runs))
    wrong = [
        (row["instruction"], code, test, outcome)
        for (row, code, test), outcome in zip(runs, outcomes, strict=True)
        if outcome.status != ("failed" if (code, test) == ("incomplete", "fault_test") else "passed")
    ]
    assert wrong == []


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_shipped_suite_loads(path):
    assert len(suites.load(path)) >= 6
