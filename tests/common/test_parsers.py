"""Parsers: every schema becomes samples, the texts as they stand; what is malformed is named."""

import pytest

from stages.common import parsers
from stages.common.errors import PipelineError
from stages.common.records import Sample

ALPACA = {"instruction": "Add.", "input": "", "output": "a + b"}
PREFERENCE = {
    "lang": "Python ",
    "vulnerability": "cwe-089: SQL injection",
    "question": "List users.",
    "chosen": "```python\nsafe()\n```",
    "rejected": "Here:\n```python\nweak()\n```",
}
FIX = {
    "cwe_id": "CWE-79",
    "cwe_description": "XSS",
    "language": "PHP",
    "vulnerable_code": "echo $a;",
    "fixed_code": "\necho e($a);\n",
}
FAULT = {
    "language": "python",
    "fault": "bad JSON",
    "instruction": "Parse it.",
    "code": "def f():\n    return 1",
    "incomplete": "def f():\n    return 2",
    "missing": "Nothing is caught.",
    "remedy": "It catches.",
    "test": "assert f()",
    "fault_test": "assert f() == 1",
}
FUNCTION = {"path": "m.py", "name": "add", "code": 'def add(a, b):\n    """Add."""\n    return a + b'}
ROWS = {"alpaca": ALPACA, "preferences": PREFERENCE, "fixes": FIX, "faults": FAULT, "functions": FUNCTION}


def parse(row: dict, schema: str) -> Sample:
    """The third row of a source, parsed."""
    return parsers.parse(row, 2, parsers.Origin("mine", schema, "MIT", "1.0"))


@pytest.mark.parametrize(
    ("row", "schema", "fields"),
    [
        (ALPACA, "alpaca", {"instruction": "Add.", "input": "", "output": "a + b", "language": ""}),
        ({**ALPACA, "input": " <noinput>"}, "alpaca", {"input": " <noinput>"}),
        ({**ALPACA, "input": None, "extra": [1]}, "alpaca", {"input": ""}),
        ({**ALPACA, "output": "So:\n```C++\nint a;\n```"}, "alpaca", {"language": "cpp"}),
        ({**ALPACA, "instruction": "Write a Python program."}, "alpaca", {"language": "python"}),
        (
            {**ALPACA, "instruction": "What is a Python list?", "output": "A list is a row of items."},
            "alpaca",
            {"language": ""},
        ),
        (
            PREFERENCE,
            "preferences",
            {
                "language": "python",
                "output": PREFERENCE["chosen"],
                "vulnerable": PREFERENCE["rejected"],
                "cwe": "CWE-89",
                "weakness": PREFERENCE["vulnerability"],
            },
        ),
        (
            {**PREFERENCE, "lang": "c++", "weakness": "Pasted.", "remedy": "Bound."},
            "preferences",
            {"language": "cpp", "weakness": "Pasted.", "remedy": "Bound."},
        ),
        (
            FIX,
            "fixes",
            {"language": "php", "output": "\necho e($a);\n", "vulnerable": "echo $a;", "cwe": "CWE-79"},
        ),
        ({**FIX, "file_pair_id": 7, "language_dir": None}, "fixes", {"instruction": ""}),
        (
            FAULT,
            "faults",
            {
                "output": "```python\ndef f():\n    return 1\n```",
                "vulnerable": "```python\ndef f():\n    return 2\n```",
                "weakness": "Nothing is caught.",
                "test": "assert f()",
                "fault_test": "assert f() == 1",
                "cwe": "",
            },
        ),
        (FUNCTION, "functions", {"language": "python", "output": f"```python\n{FUNCTION['code']}\n```"}),
    ],
)
def test_each_schema_is_parsed(row, schema, fields):
    found = parse(row, schema)
    assert (found.id, found.source, found.licence, found.revision) == ("mine/2", "mine", "MIT", "1.0")
    assert found.transforms == ""
    assert {name: getattr(found, name) for name in fields} == fields


def test_function_is_asked_for_by_its_head_alone():
    question = parse(FUNCTION, "functions").instruction
    assert '"""Add."""' in question and "return a + b" not in question


@pytest.mark.parametrize("code", ["def f(:", "", "x = 1", "class A: pass", "(" * 5000, "a = '\0'"])
def test_what_is_no_function_is_refused(code):
    with pytest.raises(PipelineError, match=r"code: .*expected one Python function"):
        parse({**FUNCTION, "code": code}, "functions")


@pytest.mark.parametrize(
    ("schema", "key"), [(schema, key) for schema, row in ROWS.items() for key in row], ids=str
)
def test_missing_column_and_wrong_type_are_named(schema, key):
    row = ROWS[schema]
    with pytest.raises(PipelineError, match=rf"no key '{key}'"):
        parse({name: value for name, value in row.items() if name != key}, schema)
    for value in (3, ["x"], {"a": {"b": []}}, True, 1.5):
        with pytest.raises(PipelineError) as error:
            parse({**row, key: value}, schema)
        assert f"{key}: {value!r}; expected text" in str(error.value)


def test_text_that_utf8_cannot_hold_is_refused():
    with pytest.raises(PipelineError, match=r"output: '\\ud800'; expected text that UTF-8 can hold"):
        parse({**ALPACA, "output": "a\ud800"}, "alpaca")
