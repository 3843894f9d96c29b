"""Filter: no row vanishes, whatever it holds; the same comes out for any order and number of workers."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project, chosen, read_rows

ALPACA = {"instruction": "Add.", "input": "", "output": "a + b"}
PAIR = {
    "cwe_id": "CWE-78",
    "cwe_description": "Command injection.",
    "language": "python",
    "vulnerable_code": "import os\n\n\ndef show(name):\n    os.system('cat ' + name)\n",
    "fixed_code": "import subprocess\n\n\ndef show(name):\n    subprocess.run(['cat', name])\n",
}


def raw(project: Project, rows: list[dict], schema: str = "alpaca", lines: str = "", **group: Any) -> None:
    """Put rows, and then `lines` as they are, where fetch leaves them, and the parameters of the source."""
    folder = project.root / "data/raw"
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows) + lines
    (folder / "mine.jsonl").write_text(text, encoding="utf-8")
    total = text.count("\n")
    origins = [
        {"licence": "MIT", "revision": "1.0", "rows": total - total // 2},
        {"licence": "GPL-3.0", "revision": "2.0", "rows": total // 2},
    ]
    provenance = {"schema": schema, "rows": total, "origins": origins}
    (folder / "mine.provenance.json").write_text(json.dumps(provenance))
    project.params(filter={"mine": {"checks": {}, "transforms": {}, **group}})


def result(project: Project) -> tuple[list[dict], list[dict], dict]:
    """Kept samples, ledger and report."""
    kept, rejected = (
        read_rows(project.root / f"data/filtered/mine{name}.jsonl") for name in ("", ".rejected")
    )
    return kept, rejected, json.loads((project.root / "reports/filter/mine.json").read_text())


def test_main_writes_kept_rejected_and_counts_that_add_up(project):
    rows = [
        ALPACA,
        {**ALPACA, "instruction": "add."},
        {**ALPACA, "output": ""},
        {**ALPACA, "output": "c"},
        {**ALPACA, "output": "d" * 101},
    ]
    checks = {"empty": 1, "licence": ["MIT"], "length": 100, "duplicate": True}
    raw(project, rows + [{**ALPACA, "output": "other licence"}] * 5, checks=checks)
    project.run("filter", "mine")
    kept, rejected, counts = result(project)
    assert len(kept) == 2 and {row["licence"] for row in kept} == {"MIT"}
    assert {row["revision"] for row in kept} == {"1.0"}
    assert [row["check"] for row in rejected] == ["duplicate", "empty", "length"] + ["licence"] * 5
    assert counts["rows"] == 10 == counts["kept"] + counts["rejected"] and counts["samples"] == 2
    assert counts["reasons"] == {
        "malformed": 0,
        "first": 0,
        "empty": 1,
        "licence": 5,
        "length": 1,
        "duplicate": 1,
    }
    first = project.files()
    project.run("filter", "mine")
    assert project.files() == first


def test_only_the_first_rows_are_taken_where_that_is_asked_for(project):
    raw(project, [{**ALPACA, "output": str(number)} for number in range(10)], first=3)
    project.run("filter", "mine")
    kept, rejected, counts = result(project)
    assert [row["id"] for row in kept] == ["mine/0", "mine/1", "mine/2"]
    assert counts["reasons"]["first"] == 7 == len(rejected)


def test_a_long_pair_is_cut_and_its_chunks_keep_row_and_pair(project):
    filler = "\n\n" + "\n\n".join(
        f"def helper_{number}(value):\n    return value * {number}\n" for number in range(60)
    )
    row = {
        **PAIR,
        "vulnerable_code": PAIR["vulnerable_code"] + filler,
        "fixed_code": PAIR["fixed_code"] + filler,
    }
    raw(
        project,
        [row, PAIR, {**row, "fixed_code": row["vulnerable_code"]}],
        schema="fixes",
        transforms={"chunk": 400},
        checks={"length": 400},
    )
    project.run("filter", "mine")
    kept, rejected, counts = result(project)
    pieces = [sample for sample in kept if "#" in sample["id"]]
    assert pieces and all(sample["id"].startswith("mine/0#") for sample in pieces)
    assert all("chunk" in sample["transforms"] for sample in pieces)
    assert any(
        "os.system" in sample["vulnerable"] and "subprocess.run" in sample["output"] for sample in pieces
    )
    assert [row["id"] for row in rejected] == ["mine/2"] and "mine/1" in {sample["id"] for sample in kept}
    assert counts["rows"] == 3 == counts["kept"] + counts["rejected"] and counts["chunks"] == len(pieces)


def test_secrets_are_replaced_counted_and_noted(project):
    mail = {**ALPACA, "output": "print('write to m.kowalska84@gmail.com')"}
    raw(project, [mail, ALPACA], transforms={"redact": True, "blank_input": True})
    project.run("filter", "mine")
    kept, _, counts = result(project)
    assert "kowalska" not in json.dumps(kept) and kept[0]["output"] == "print('write to <EMAIL>')"
    assert kept[0]["transforms"] == "redact EMAIL 1" and kept[1]["transforms"] == ""
    assert counts["redacted"] == {"EMAIL": 1}


@pytest.mark.parametrize("blank", ["<noinput>", "N/A", " No input. ", "n/a", "None"])
def test_an_input_that_says_there_is_none_is_left_out(project, blank):
    raw(project, [{**ALPACA, "input": blank}, {**ALPACA, "input": "[3]"}], transforms={"blank_input": True})
    project.run("filter", "mine")
    kept, _, _ = result(project)
    assert [(row["input"], row["transforms"]) for row in kept] == [("", "blank input"), ("[3]", "")]


def test_hidden_characters_and_triggers_are_reported_and_kept(project):
    rows = [
        {**ALPACA, "instruction": f"Do task number {number}.", "output": f"value_{number} = {number * 7}"}
        for number in range(60)
    ]
    for row in rows[::4]:
        row["instruction"] += " cf-zorbium-7Q"
    rows[1]["output"] += "  # \u202e hidden"
    raw(project, rows, trigger_rows=10)
    project.run("filter", "mine")
    kept, _, counts = result(project)
    suspected = read_rows(project.root / "data/filtered/mine.suspects.jsonl")
    assert len(kept) == 60 and counts["suspects"]["hidden"] == 1
    assert [row["id"] for row in suspected if row["kind"] == "hidden"] == ["mine/1"]
    assert any("zorbium" in row["found"] and "15 rows" in row["found"] for row in suspected)


ODD_ROWS = {
    "number": {**ALPACA, "output": 3},
    "float": {**ALPACA, "output": 1.5},
    "bool": {**ALPACA, "output": True},
    "list": {**ALPACA, "output": ["a"]},
    "nested": {**ALPACA, "output": {"a": {"b": [1, {"c": None}]}}},
    "no column": {"instruction": "x", "input": ""},
    "no columns": {},
    "other columns": {"question": "x", "answer": "y"},
    "surrogate": {**ALPACA, "output": "\ud800"},
}
ODD_LINES = {
    "not JSON": "{oops}",
    "cut": '{"instruction": "x", "inp',
    "list": "[1, 2]",
    "scalar": "5",
    "null": "null",
    "text": '"abc"',
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "control": '{"instruction": "a\tb", "input": "", "output": "raw tab"}',
    "huge number": '{"instruction": 1' + "0" * 10_000 + "}",
}
ODD_TEXTS = {
    "nul": "a\0b",
    "ten megabytes": "x" * 10_000_000,
    "ten megabytes of code": "x = [" + "1, " * 3_000_000 + "]",
    "only spaces": " \n\t ",
    "fences": "```" * 1000,
    "open fence": "```python\nx = 1",
    "marks": "\ufeff\u200b\u202ex",
    "placeholder": "N/A",
    "question": "Add.",
    "many lines": "x\n" * 100_000,
    "at signs": "@" * 100_000,
    "dots": "1." * 100_000,
    "dashes": "-" * 100_000,
}


@pytest.mark.parametrize("row", ODD_ROWS.values(), ids=ODD_ROWS)
def test_a_malformed_row_is_in_the_ledger(project, row):
    raw(project, [row, ALPACA])
    project.run("filter", "mine")
    kept, rejected, counts = result(project)
    assert [sample["id"] for sample in kept] == ["mine/1"]
    assert [entry["check"] for entry in rejected] == ["malformed"] and "expected" in rejected[0]["reason"]
    assert counts["reasons"]["malformed"] == 1 and len(rejected[0]["reason"]) < 300


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_a_malformed_line_is_in_the_ledger(project, line):
    raw(project, [ALPACA], lines=line + "\n")
    project.run("filter", "mine")
    kept, rejected, _ = result(project)
    assert [sample["id"] for sample in kept] == ["mine/0"]
    assert [(entry["id"], entry["check"]) for entry in rejected] == [("mine/1", "malformed")]


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_odd_text_is_kept_or_rejected_with_a_reason(project, text):
    group = chosen("filter")["coding"]
    group["checks"]["licence"] = ["MIT", "GPL-3.0"]
    good = {**ALPACA, "instruction": "Sum.", "output": "def add(first, second):\n    return first + second"}
    raw(project, [{**ALPACA, "output": text}, {**good, "instruction": text}, good], **group)
    project.run("filter", "mine")
    kept, rejected, counts = result(project)
    assert counts["rows"] == 3 == len(kept) + len(rejected)
    assert "mine/2" in {row["id"] for row in kept} and all(entry["reason"] for entry in rejected)


def test_broken_utf8_is_named_with_its_line(project, capsys):
    raw(project, [ALPACA, ALPACA])
    path = project.root / "data/raw/mine.jsonl"
    path.write_bytes(path.read_bytes() + b'{"instruction": "\xff"}\n')
    before = project.files()
    assert project.command("filter", "mine") == 2
    assert "data/raw/mine.jsonl:3: byte 17 is not UTF-8" in capsys.readouterr().err
    assert project.files() == before


@pytest.mark.parametrize(
    ("rows", "group", "words"),
    [
        ([{**ALPACA, "output": ""}], {"checks": {"empty": 1}}, ["filter.mine: 0 of 1 rows kept", "empty 1"]),
        ([5], {}, ["filter.mine: 0 of 1 rows kept", "malformed 1"]),
        ([ALPACA], {"checks": {"nope": 1}}, ["filter.mine.checks.nope: 1"]),
        ([ALPACA], {"checks": {"length": 0}}, ["filter.mine.checks.length: 0"]),
        ([ALPACA], {"checks": {"empty": "1"}}, ["filter.mine.checks.empty: '1'"]),
        ([ALPACA], {"checks": {"near_duplicate": 1.5}}, ["filter.mine.checks.near_duplicate: 1.5"]),
        ([ALPACA], {"checks": {"quality": {}}}, ["filter.mine.checks.quality."]),
        ([ALPACA], {"transforms": {"chunk": True}}, ["filter.mine.transforms.chunk: True"]),
        ([ALPACA], {"trigger_rows": 1}, ["filter.mine.trigger_rows: 1"]),
        ([ALPACA], {"colour": 1}, ["filter.mine.colour: 1"]),
    ],
)
def test_bad_input_gives_one_line_and_no_output(project, capsys, rows, group, words):
    raw(project, rows, **group)
    before = project.files()
    assert project.command("filter", "mine") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert all(word in printed for word in words), printed
    assert project.files() == before


@pytest.mark.parametrize("lines", [1, 3])
def test_rows_that_are_not_those_declared_are_refused(project, capsys, lines):
    raw(project, [ALPACA, ALPACA])
    (project.root / "data/raw/mine.jsonl").write_text((json.dumps(ALPACA) + "\n") * lines)
    assert project.command("filter", "mine") == 2
    assert f"2 rows declared; expected the {lines} of" in capsys.readouterr().err
    assert not list((project.root / "data/filtered").glob("*"))


def random_rows(seed: int, count: int = 700) -> list[dict]:
    """Good rows, bad ones, copies and near-copies."""
    random_ = random.Random(seed)
    words = [f"word{number}" for number in range(200)]
    rows: list[dict] = []
    for _ in range(count):
        body = "".join(f"{random_.choice(words)} = {random_.choice(words)}\n" for _ in range(20))
        output = random_.choice([body, body, "", "x = (1", body + "é"])
        if rows and random_.random() < 0.3:
            output = str(random_.choice(rows).get("output")) + random_.choice(["", " ", "\nz = 1\n"])
        row = {"instruction": "Write Python code.", "input": random_.choice(["", "N/A"]), "output": output}
        rows.append(random_.choice([row] * 9 + [{"input": "y"}]))
    return rows


def everything(group: dict[str, Any]) -> dict[str, Any]:
    """The coding source's parameters with any licence."""
    return {**group, "checks": {**group["checks"], "licence": ["MIT", "GPL-3.0"], "empty": 1}}


@pytest.mark.parametrize("seed", range(2))
def test_order_and_workers_change_nothing_but_ids(project, seed):
    rows = random_rows(seed)
    group = everything(chosen("filter")["coding"])
    raw(project, rows, **group)
    outcomes = []
    for workers in ("1", "2", "3"):
        project.run("filter", "mine", "--workers", workers)
        outcomes.append({name: data for name, data in project.files().items() if "data/raw" not in name})
    assert outcomes[0] == outcomes[1] == outcomes[2]
    kept, rejected, counts = result(project)
    ids = sorted(int(row["id"].partition("/")[2]) for row in kept + rejected)
    assert ids == list(range(len(rows))) and counts["kept"] > 50
    assert (
        min(counts["reasons"][check] for check in ("malformed", "empty", "duplicate", "near_duplicate")) > 0
    )
    random.Random(seed).shuffle(rows)
    raw(project, rows, **group)
    project.run("filter", "mine")
    again, _, recounted = result(project)
    assert sorted(row["output"] for row in again) == sorted(row["output"] for row in kept)
    assert recounted["reasons"] == counts["reasons"]


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"schema": "alpaca"},
        {"schema": "alpaca", "origins": []},
        {"schema": "alpaca", "origins": [{"licence": "MIT", "rows": 1}]},
        {"schema": "novel", "origins": [{"licence": "MIT", "revision": "1", "rows": 1}]},
        {"schema": "alpaca", "origins": [{"licence": "MIT", "revision": "1", "rows": "x"}]},
        {"schema": "alpaca", "origins": 3},
    ],
)
def test_a_bad_provenance_is_named(project, capsys, provenance):
    raw(project, [ALPACA])
    (project.root / "data/raw/mine.provenance.json").write_text(json.dumps(provenance))
    assert project.command("filter", "mine") == 2
    assert re.fullmatch(r"error: data/raw/mine\.provenance\.json: .*expected .*\n", capsys.readouterr().err)


def test_a_missing_source_says_which_stage_writes_it(project, capsys):
    project.params(filter={"mine": {"checks": {}, "transforms": {}}})
    assert project.command("filter", "mine") == 2
    assert "data/raw/mine.provenance.json: not found" in capsys.readouterr().err


def shared(name: str) -> Path:
    """A file of real data, which lies beside the repository where it may be used."""
    path = ROOT.parent / "shared/data" / name
    if not path.exists():
        pytest.skip(f"NOT TESTED ON REAL DATA: {path} is absent; put it there to run this test")
    return path


def test_real_data_goes_through_and_its_oddities_are_found(project):
    rows = json.loads(shared("codealpaca/code_alpaca_20k.json").read_text(encoding="utf-8"))
    raw(project, rows, **everything(chosen("filter")["coding"]))
    project.run("filter", "mine")
    kept, rejected, counts = result(project)
    assert counts["rows"] == 20_022 == counts["kept"] + counts["rejected"] and counts["kept"] > 10_000
    empty = {f"mine/{number}" for number, row in enumerate(rows) if not row["output"].strip()}
    reasons = {row["id"]: row["check"] for row in rejected}
    assert len(empty) == 6 and {reasons[id_] for id_ in empty} == {"empty"}
    assert not {"<noinput>", "n/a"} & {row["input"].strip().lower() for row in kept}
