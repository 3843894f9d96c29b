"""Quality: each rule fires on what it is for, at its threshold, and lets the good short snippet pass."""

import dataclasses
import json
from pathlib import Path

import pytest

from stages.common.errors import PipelineError
from stages.common.params import validate
from stages.common.quality import Quality, problem

ROOT = Path(__file__).parents[2]

CHOSEN = Quality(
    max_line=1_000,
    max_mean_line=100.0,
    min_alphanumeric=0.25,
    max_comments=0.8,
    max_duplicate_lines=0.75,
    max_repeated_words=0.5,
    min_chars=200,
    min_words=60,
    min_lines=12,
)


def reason(answer: str, language: str = "", question: str = "Do it.", **changed: float) -> str | None:
    return problem(question, answer, answer, language, dataclasses.replace(CHOSEN, **changed))


def lines(count: int, text: str = "value_{} = {}") -> str:
    return "\n".join(text.format(number, number) for number in range(count))


LONG = lines(12, "total_{0} = " + " + ".join(f"part_{letter}_{{1}}" for letter in "abcdefghijk"))


@pytest.mark.parametrize(
    ("answer", "language", "expected"),
    [
        ("x = []", "python", None),
        ("^\\d+$", "", None),
        ("42", "", None),
        ("a\tb\r\nc\f", "", None),
        ("*\n**\n***", "", None),
        ("return None", "python", None),
        ("# TODO: sort\nx.sort()", "python", None),
        ("The key is none of these.", "", None),
        ("word " * 59, "", None),
        ("-" * 199, "", None),
        ("x" * 1_000, "python", None),
        ("# why\n# and how\nx = 1", "python", None),
        ("日本語のテキストです。" * 30, "", None),
        (lines(40), "python", None),
        # control characters
        ("a\0b", "", "character U+0000"),
        ("a\x1b[31mb", "", "character U+001B"),
        ("caf\ufffd", "", "character U+FFFD"),
        ("a\ud800", "", "character U+D800"),
        ("a\x85b", "", "character U+0085"),
        # placeholders
        ("", "", "placeholder ''"),
        (" \n", "", "placeholder ''"),
        ("...", "", "placeholder '...'"),
        ("N/A", "", "placeholder 'N/A'"),
        ("<noinput>", "", "placeholder '<noinput>'"),
        ("No  output.", "", "placeholder 'No  output.'"),
        ("None", "python", "placeholder 'None'"),
        ("```\n# TODO\n```", "python", "placeholder '```\\n# TODO\\n```'"),
        ("/* your code here */", "c", "placeholder '/* your code here */'"),
        # the question again
        ("do  IT.", "", "the answer is the question"),
        # lines
        ("x" * 1_001, "python", "longest line 1001 characters"),
        ("x" * 1_001, "", None),
        (LONG, "", None),
        (LONG, "python", "mean line 130 characters"),
        (LONG.partition("\n")[2], "python", None),
        # letters
        ("-" * 200, "", "alphanumeric share 0.00"),
        ("a" * 50 + "-" * 150, "", None),
        ("a" * 49 + "-" * 151, "", "alphanumeric share 0.24"),
        (" " * 500 + "a" * 50 + "-" * 150, "", None),
        # repetition
        (lines(3) + "\nsame line here" * 9, "python", None),
        (lines(2) + "\nsame line here" * 10, "python", "duplicate lines 0.75"),
        ("same line here\n" * 11, "python", None),
        ("}\n" * 12 + lines(12), "c", None),
        ("round and round we go " * 12, "", "repeated words"),
        ("word " * 60, "", "repeated words 1.00: 'word word word word'"),
    ],
)  # fmt: skip
def test_rules(answer, language, expected):
    found = reason(answer, language, max_duplicate_lines=0.74)
    assert found == expected or (expected and found and found.startswith(expected))


@pytest.mark.parametrize("side", ["question", "answer"])
def test_both_sides_are_searched_for_control_characters(side):
    texts = {"question": "Do it.", "answer": "It is done."} | {side: "a\x07b"}
    assert problem(**texts, code="", language="", chosen=CHOSEN) == "character U+0007"


def test_comments_count_from_the_least_number_of_lines_on():
    assert reason("x = 1\n" + lines(20, "# remark {} of {}"), "python") == "comment share 0.99"
    assert reason("x = 1\n" + lines(8, "# remark {} of {}"), "python") is None
    assert reason("x = 1\n" + lines(20, "# remark {} of {}"), "cobol") is None


def test_code_that_stops_short():
    whole = "def f(x):\n    return [\n        x,\n        g(x),\n    ]\n"
    assert reason(whole, "python") is None
    assert reason(whole[:-8], "python") == "truncated code"
    assert reason(whole[:-8], "") is None


def test_the_first_rule_wins():
    assert reason("\0" * 300, "python") == "character U+0000"


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({"max_line": 5}, "x = 10"),
        ({"max_mean_line": 5.0, "min_lines": 1}, "x = 10"),
        ({"min_alphanumeric": 0.9, "min_chars": 1}, "x = 10"),
        ({"max_comments": 0.1, "min_lines": 1}, "x = 10  # ten"),
        ({"max_duplicate_lines": 0.4, "min_lines": 2}, "total += 10\ntotal += 10"),
        ({"max_repeated_words": 0.1, "min_words": 1}, "a b c d " * 5),
    ],
)
def test_every_threshold_is_read(changed, answer):
    assert reason(answer, "python") is None
    assert reason(answer, "python", **changed) is not None


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Quality)])
def test_no_threshold_has_a_default_and_each_is_checked(field):
    good = dataclasses.asdict(CHOSEN)
    assert validate(good, "quality", Quality) == CHOSEN
    for bad in ({name: value for name, value in good.items() if name != field}, good | {field: -1}):
        with pytest.raises(PipelineError, match=f"quality.{field}"):
            validate(bad, "quality", Quality)


@pytest.mark.parametrize(
    "text", ["x" * 2_000_000, "x\n" * 500_000, "# \n" * 100_000, "((" * 50_000, "a b " * 200_000]
)
def test_big_text_comes_back(text):
    problem(text, text, text, "", CHOSEN)


def test_our_own_snippets_pass():
    """Everything but the parser's own judgement, which has its tests with the parser."""
    broken = []
    for path in [*sorted((ROOT / "data/handmade").glob("*.jsonl")), ROOT / "data/benchmarks/detection.jsonl"]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            language = row.get("language") or row.get("lang", "")
            for key, text in row.items():
                found = "\n" in text and reason(text, language)
                if found and found != "truncated code":
                    broken.append((path.name, number, key, found))
    assert broken == []
