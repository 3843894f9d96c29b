"""The shipped training data: enough of it, varied, without renamed copies, and proven."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.common import cwe, sandbox
from stages.common.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
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


def test_pairs_are_many_and_varied():
    found = training_pairs()
    assert len(found) >= 160
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


@pytest.mark.parametrize("side", [2, 3], ids=["vulnerable", "fixed"])
def test_no_snippet_is_another_one_renamed(side):
    assert repeated([skeleton(pair[side]) for pair in training_pairs()]) == []


def test_both_sides_differ_in_more_than_layout():
    assert [weak for _, _, weak, fixed in training_pairs() if plain(weak) == plain(fixed)] == []


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
