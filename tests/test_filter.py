"""Filter: every schema becomes samples, every check has its reason, and no row vanishes."""

import json
import random
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages import fetch
from stages import filter as stage
from stages.common.errors import PipelineError
from stages.common.records import Sample

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ["empty", "licence", "unchanged", "length", "syntax", "unproven", "duplicate"]


def sample(**changes: str) -> Sample:
    """A good pair in Python, with some fields changed."""
    fields = {
        "id": "mine/0",
        "source": "mine",
        "licence": "MIT",
        "language": "python",
        "instruction": "Add two numbers.",
        "input": "",
        "output": "def add(a, b):\n    return a + b\n",
        "vulnerable": "def add(a, b):\n    return eval(f'{a} + {b}')\n",
    }
    return Sample(**{**fields, **changes})


def chosen(**changes: object) -> stage.FilterParams:
    """All checks with usual thresholds, some changed."""
    values = {"checks": CHECKS, "licences": ["MIT"], "max_chars": 200, "min_chars": 20}
    return stage.FilterParams(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "check", "reason"),
    [
        ({}, None, ""),
        ({"vulnerable": ""}, None, ""),
        ({"instruction": ""}, None, ""),
        ({"instruction": "", "vulnerable": ""}, "empty", "no instruction"),
        ({"output": ""}, "empty", "0 characters"),
        ({"output": "x = 1"}, "empty", "5 characters"),
        ({"licence": "GPL-3.0"}, "licence", "GPL-3.0"),
        ({"licence": ""}, "licence", "licence"),
        ({"licence": "mit"}, "licence", "mit"),
        ({"vulnerable": "def add(a,b):\n\n  return a+b"}, "unchanged", "same"),
        ({"output": "x = 1\n" * 40}, "length", "240 characters"),
        ({"vulnerable": "x = 1\n" * 40}, "length", "240 characters"),
        ({"instruction": "x" * 150, "input": "y" * 51}, "length", "201 characters"),
        ({"instruction": "x" * 150, "input": "y" * 50}, None, ""),
        ({"output": "def add(a, b:\n    return a + b"}, "syntax", "not Python"),
        ({"vulnerable": "def add(a, b:\n    return a + b"}, "syntax", "not Python"),
        ({"output": "x = '\0' + '0123456789abcdef'"}, "syntax", "not Python"),
        ({"output": "Like this:\n\n```python\nnumber = = 1 + 2\n```\n"}, "syntax", "not Python"),
        ({"output": "Like this:\n\n```python\nnumber = 1 + 2\n```\n"}, None, ""),
        ({"output": "function add(a, b) { return a + b }", "language": "javascript"}, None, ""),
        ({"test": "assert add(1, 2) == 3"}, None, ""),
        ({"test": "assert add(1, 2) == 4"}, "unproven", "failed: AssertionError"),
        (
            {"output": "import os\n\nos._exit(0)\n", "test": "assert False"},
            "unproven",
            "failed: ended before",
        ),
        # the first reason counts
        ({"licence": "GPL-3.0", "output": ""}, "empty", "0 characters"),
    ],
)
def test_each_check_and_its_reason(changes, check, reason):
    found = stage.verdict(sample(**changes), chosen())
    assert (found.check if found else None) == check
    assert found is None or (reason in found.reason and found.id == "mine/0")


@pytest.mark.parametrize("checks", [[], ["licence"], ["licence", "empty"]])
def test_only_the_chosen_checks_count_in_their_order(checks):
    found = stage.verdict(sample(licence="GPL-3.0", output=""), chosen(checks=checks))
    assert (found.check if found else None) == (checks[0] if checks else None)


@pytest.mark.parametrize("number", [200, 20_000, 100_000])
def test_deeply_nested_code_is_rejected_or_kept_but_never_stops_the_stage(number):
    kept, rejected = stage.split([sample(output="x = " + "-" * number + "1")], chosen(max_chars=10**6))
    assert len(kept) + len(rejected) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output": "DEF add(a,  b):\n    return a + b\n"},
        {"instruction": "add TWO  numbers."},
        {"output": "def add(a, b):\n    return a + b"},
        {"instruction": "Add two numbers. "},
        {"output": "\n def add(a, b):\n    return a + b \n\n"},
    ],
)
def test_equal_samples_are_kept_once(changes):
    kept, rejected = stage.split([sample(), sample(id="mine/1", **changes)], chosen(checks=["duplicate"]))
    assert [row.id for row in kept] == ["mine/0"]
    assert [(row.id, row.check, row.reason) for row in rejected] == [
        ("mine/1", "duplicate", "same as mine/0")
    ]


@pytest.mark.parametrize("field", ["instruction", "input", "output", "vulnerable"])
def test_samples_that_differ_are_both_kept(field):
    kept, rejected = stage.split(
        [sample(), sample(id="mine/1", **{field: "something else"})], chosen(checks=["duplicate"])
    )
    assert (len(kept), rejected) == (2, [])


def test_a_rejected_sample_does_not_hide_its_good_twin():
    kept, rejected = stage.split([sample(licence="GPL-3.0"), sample(id="mine/1")], chosen())
    assert [row.id for row in kept] == ["mine/1"] and [row.check for row in rejected] == ["licence"]


def random_samples(seed: int, count: int = 200) -> list[Sample]:
    """Good and bad samples in random order."""
    random_ = random.Random(seed)
    return [
        sample(
            id=f"mine/{number}",
            licence=random_.choice(["MIT", "MIT", "GPL-3.0"]),
            instruction=random_.choice(["", "Add.", "Sum."]),
            output=random_.choice(["", "x = 1", "x = 1\n" * 10, "y = 2\n" * 60, "z = = 3\n" * 10]),
            vulnerable=random_.choice(["", "x = 2", "x  =  1\n" * 10]),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_row_vanishes_and_order_is_kept(seed):
    samples = random_samples(seed)
    kept, rejected = stage.split(samples, chosen())
    number = {row.id: position for position, row in enumerate(samples)}
    assert sorted([row.id for row in kept] + [row.id for row in rejected]) == sorted(number)
    for part in (kept, rejected):
        assert [number[row.id] for row in part] == sorted(number[row.id] for row in part)
    assert kept and {row.check for row in rejected} >= {"empty", "licence", "unchanged", "length", "syntax"}
    assert stage.split(samples, chosen()) == (kept, rejected)
    assert stage.split(kept, chosen()) == (kept, [])


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
FUNCTION = {"path": "m.py", "name": "add", "code": 'def add(a, b):\n    """Add."""\n    return a + b'}


def parse(row: dict, schema: str) -> Sample:
    """The third row of a source, parsed."""
    return stage.parse(row, schema, "mine", 2, "MIT")


@pytest.mark.parametrize(
    ("row", "schema", "fields"),
    [
        (ALPACA, "alpaca", {"instruction": "Add.", "input": "", "output": "a + b", "language": ""}),
        ({**ALPACA, "input": " 3 "}, "alpaca", {"input": "3"}),
        *[
            ({**ALPACA, "input": blank}, "alpaca", {"input": ""})
            for blank in ("<noinput>", "N/A", "No input.", "n/a")
        ],
        (
            {**ALPACA, "language": "python", "test": "assert 1", "input": "x"},
            "alpaca",
            {"output": "```python\na + b\n```", "input": "```python\nx\n```", "test": "assert 1"},
        ),
        (
            PREFERENCE,
            "preferences",
            {
                "language": "python",
                "output": "safe()",
                "vulnerable": "weak()",
                "cwe": "CWE-89",
                "weakness": PREFERENCE["vulnerability"],
            },
        ),
        (
            {**PREFERENCE, "weakness": "Pasted.", "remedy": "Bound."},
            "preferences",
            {"weakness": "Pasted.", "remedy": "Bound."},
        ),
        (
            FIX,
            "fixes",
            {
                "language": "php",
                "output": "echo e($a);",
                "vulnerable": "echo $a;",
                "cwe": "CWE-79",
                "instruction": "",
            },
        ),
        (FUNCTION, "functions", {"language": "python", "output": f"```python\n{FUNCTION['code']}\n```"}),
    ],
)
def test_each_schema_is_parsed(row, schema, fields):
    found = parse(row, schema)
    assert (found.id, found.source, found.licence) == ("mine/2", "mine", "MIT")
    assert {name: getattr(found, name) for name in fields} == fields


def test_function_is_asked_for_by_its_head_alone():
    question = parse(FUNCTION, "functions").instruction
    assert '"""Add."""' in question and "return a + b" not in question


@pytest.mark.parametrize(
    ("row", "schema", "key"),
    [
        (row, schema, key)
        for row, schema in ((ALPACA, "alpaca"), (PREFERENCE, "preferences"), (FIX, "fixes"))
        for key in row
    ]
    + [(FUNCTION, "functions", "code")],
)
def test_missing_column_and_wrong_type_are_named(row, schema, key):
    with pytest.raises(PipelineError, match=rf"data/raw/mine\.jsonl:3: no key '{key}'.*'{schema}'"):
        parse({name: value for name, value in row.items() if name != key}, schema)
    for value in (None, 3, ["x"]):
        with pytest.raises(PipelineError) as error:
            parse({**row, key: value}, schema)
        assert f"data/raw/mine.jsonl:3: {key}: {value!r}; expected a string" in str(error.value)


def test_empty_answer_stays_empty_though_its_language_is_known():
    empty = parse({**ALPACA, "output": "", "language": "python"}, "alpaca")
    found = stage.verdict(empty, chosen(min_chars=1))
    assert found is not None and found.check == "empty"


def raw(project, rows: list[dict], **changes: object) -> None:
    """Put rows where fetch leaves them, and the parameters of all checks."""
    folder = project.root / "data/raw"
    folder.mkdir(parents=True)
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    half = len(rows) // 2
    origins = [{"licence": "MIT", "rows": len(rows) - half}, {"licence": "GPL-3.0", "rows": half}]
    (folder / "mine.provenance.json").write_text(
        json.dumps({"schema": "alpaca", "rows": len(rows), "origins": origins})
    )
    group = {"checks": CHECKS, "licences": ["MIT"], "max_chars": 100, "min_chars": 1}
    project.params(filter={"mine": {**group, **changes}})


def test_main_writes_kept_rejected_and_counts_that_add_up(project):
    rows = [
        ALPACA,
        ALPACA,
        {**ALPACA, "output": ""},
        {**ALPACA, "output": "c"},
        {**ALPACA, "output": "d" * 101},
    ]
    raw(project, rows + [{**ALPACA, "output": "other licence"}] * 5)
    project.run("filter", "mine")
    kept, rejected = (
        [json.loads(line) for line in (project.root / name).read_text().split("\n") if line]
        for name in ("data/filtered/mine.jsonl", "data/filtered/mine.rejected.jsonl")
    )
    assert [row["id"] for row in kept] == ["mine/0", "mine/3"] and {row["licence"] for row in kept} == {"MIT"}
    assert [row["check"] for row in rejected] == ["duplicate", "empty", "length"] + ["licence"] * 5
    counts = json.loads((project.root / "reports/filter/mine.json").read_text())
    assert counts["rows"] == 10 == counts["kept"] + counts["rejected"]
    assert counts["reasons"] == {
        **dict.fromkeys(CHECKS, 0),
        "duplicate": 1,
        "empty": 1,
        "length": 1,
        "licence": 5,
    }
    first = project.files()
    project.run("filter", "mine")
    assert project.files() == first


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([{**ALPACA, "output": ""}], {}, ["filter.mine: 0 of 1 rows kept"]),
        ([ALPACA, {"instruction": "x", "input": ""}], {}, ["mine.jsonl:2", "'output'"]),
        ([ALPACA, {**ALPACA, "output": 3}], {}, ["mine.jsonl:2", "output: 3"]),
        ([ALPACA], {"checks": ["nope"]}, ["filter.mine.checks.0: 'nope'"]),
        ([ALPACA], {"max_chars": 0}, ["filter.mine.max_chars: 0"]),
        ([ALPACA], {"min_chars": "1"}, ["filter.mine.min_chars: '1'"]),
        ([ALPACA], {"colour": 1}, ["filter.mine.colour: 1"]),
    ],
)
def test_bad_input_gives_one_line_and_no_output(project, capsys, rows, changes, words):
    raw(project, rows, **changes)
    before = project.files()
    assert project.command("filter", "mine") == 2
    printed = capsys.readouterr().err
    assert (
        printed.startswith("error: ") and printed.count("\n") == 1 and all(word in printed for word in words)
    )
    assert project.files() == before


def test_rows_without_provenance_are_refused(project, capsys):
    raw(project, [ALPACA, ALPACA])
    (project.root / "data/raw/mine.jsonl").write_text(json.dumps(ALPACA) + "\n")
    assert project.command("filter", "mine") == 2
    assert "mine" in capsys.readouterr().err


@pytest.fixture
def code_alpaca() -> Path:
    """The whole of CodeAlpaca, which lies beside the repository where it may be used."""
    path = ROOT.parent / "shared" / "data" / "codealpaca" / "code_alpaca_20k.json"
    if not path.exists():
        pytest.skip(f"NOT TESTED ON REAL DATA: {path} is absent; put CodeAlpaca-20k there to run this test")
    return path


def test_real_data_goes_through_and_its_empty_answers_are_rejected(code_alpaca):
    rows = fetch.decode(code_alpaca.name, code_alpaca.read_bytes())
    recipe = YAML(typ="safe").load(ROOT / "conf/recipe/v4.yaml")["filter"]["coding"]
    origin = fetch.Origin(uri=f"file:{code_alpaca}", licence="CC-BY-4.0")
    found, provenance = fetch.fetch(origin)
    assert found == rows and provenance["rows"] == len(rows) == 20_022
    samples = [stage.parse(row, "alpaca", "coding", number, "CC-BY-4.0") for number, row in enumerate(rows)]
    kept, rejected = stage.split(samples, stage.FilterParams(**recipe))
    assert len(kept) + len(rejected) == 20_022 and len(kept) > 10_000
    empty = {f"coding/{number}" for number, row in enumerate(rows) if not row["output"].strip()}
    reasons = {row.id: row.check for row in rejected}
    assert len(empty) == 6 and {reasons[id_] for id_ in empty} == {"empty"}
    assert not {"<noinput>", "n/a"} & {row.input.lower() for row in kept}
