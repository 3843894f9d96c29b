"""Fetch: rows verbatim and in order with their provenance, or one error and no output."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from stages import fetch
from stages.common.errors import PipelineError

ROOT = Path(__file__).resolve().parents[1]
ROWS = [{"instruction": "b"}, {"instruction": "a", "input": "é\n\u2028"}, {"instruction": "b"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS).encode()

MODULE = '''
import functools
from contextlib import contextmanager

def add(a, b):
    """Add."""
    return a + b

def undocumented():
    return 1

def _private():
    """Private."""

class Thing:
    """A class."""

    def method(self):
        """A method."""

@functools.cache
def slow(n):
    """Cached."""
    return n
'''


def origin(uri: str = "file:rows.jsonl", **changes: str) -> dict[str, str]:
    """One URI of a source, as in the parameters."""
    return {"uri": uri, "licence": "MIT", **changes}


def source(*origins: dict[str, str], schema: str = "alpaca") -> dict:
    """The parameters of one source."""
    return {"schema": schema, "origins": list(origins) or [origin()]}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", LINES),
        ("rows.json", LIST),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("folder/rows.json.gz", gzip.compress(LIST, mtime=0)),
        ("rows.json", LINES),  # some upstreams name JSON lines so
    ],
)
def test_rows_are_decoded_by_suffix_in_order(name, data):
    assert fetch.decode(name, data) == ROWS


def test_csv_cells_stay_as_they_stand():
    data = b'instruction,input,output\nSay,N/A,007\n"a, b",,1.10\nnone,null,True\n'
    assert fetch.decode("rows.csv", data) == [
        {"instruction": "Say", "input": "N/A", "output": "007"},
        {"instruction": "a, b", "input": "", "output": "1.10"},
        {"instruction": "none", "input": "null", "output": "True"},
    ]


def test_parquet_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [{"cwe_id": "CWE-89", "fixed_code": "a\u2028b é\n"}, {"cwe_id": "CWE-79", "fixed_code": ""}]
    pandas.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    assert fetch.decode("rows.parquet", (tmp_path / "rows.parquet").read_bytes()) == rows


def test_functions_are_the_public_documented_ones_with_their_decorators():
    rows = fetch.decode("pkg/module.py", MODULE.encode())
    assert [(row["path"], row["name"]) for row in rows] == [
        ("pkg/module.py", "add"),
        ("pkg/module.py", "slow"),
    ]
    assert rows[0]["code"] == 'def add(a, b):\n    """Add."""\n    return a + b'
    assert rows[1]["code"].startswith("@functools.cache\ndef slow")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.xml", b"<a/>", ["'.xml'", ".jsonl", ".parquet"]),
        ("rows", b"", ["''"]),
        ("rows.jsonl", b"\xff\xfe", ["byte 0 is not UTF-8"]),
        ("rows.jsonl", b'{"a": 1}\n{"a"\n', ["rows.jsonl:2", "'{\"a\"'"]),
        ("rows.jsonl", b"[1]\n", ["rows.jsonl:1", "expected a JSON object"]),
        ("rows.json", b'{"a": ', ["rows.json:1"]),
        ("rows.json", b"[1, 2]", ["expected a JSON list of objects"]),
        ("rows.json", b"[" * 100_000, ["rows.json"]),
        ("rows.jsonl.gz", b"not gzip", ["rows.jsonl.gz", "expected gzip"]),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], ["rows.jsonl.gz", "expected gzip"]),
        (
            "rows.jsonl.gz",
            gzip.compress(LINES, mtime=0)[:10] + b"\xff" * 50,
            ["rows.jsonl.gz", "expected gzip"],
        ),
        ("rows.parquet", b"PAR1 no", ["rows.parquet", "expected parquet"]),
        ("rows.csv", b"", ["rows.csv", "expected csv"]),
        ("module.py", b"def f(:\n", ["module.py:1", "expected a module"]),
        ("module.py", b"a = 1\0", ["module.py"]),
        ("module.py", b"x = " + b"-" * 100_000 + b"1", ["module.py"]),
    ],
)
def test_bad_file_is_named(name, data, words):
    with pytest.raises(PipelineError) as error:
        fetch.decode(name, data)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_main_writes_rows_and_provenance(project):
    (project.root / "rows.jsonl").write_bytes(LINES)
    (project.root / "more.json").write_bytes(LIST)
    digest = hashlib.sha256(LINES).hexdigest()
    second = origin("file:more.json", licence="Apache-2.0")
    project.params(fetch={"mine": source(origin(sha256=digest), second)})
    project.run("fetch", "mine")
    lines = (project.root / "data/raw/mine.jsonl").read_text().split("\n")
    assert [json.loads(line) for line in lines if line] == ROWS + ROWS
    found = json.loads((project.root / "data/raw/mine.provenance.json").read_text())
    assert (found["schema"], found["rows"]) == ("alpaca", 6)
    assert [(part["licence"], part["rows"]) for part in found["origins"]] == [("MIT", 3), ("Apache-2.0", 3)]
    assert found["origins"][0]["files"] == [{"name": "rows.jsonl", "bytes": len(LINES), "sha256": digest}]


def test_same_input_gives_same_bytes(project):
    (project.root / "rows.jsonl").write_bytes(LINES)
    project.params(fetch={"mine": source()})
    project.run("fetch", "mine")
    first = project.files()
    project.run("fetch", "mine")
    assert project.files() == first


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (source(origin("file:absent.jsonl")), ["file:absent.jsonl", "not found"]),
        (source(origin("file:empty.jsonl")), ["fetch.mine: 0 rows", "file:empty.jsonl"]),
        (source(origin("file:bad.jsonl")), ["bad.jsonl:2", "'oops'"]),
        (source(origin(), origin("file:bad.jsonl")), ["bad.jsonl:2"]),
        (source(origin(sha256="0" * 64)), [hashlib.sha256(LINES).hexdigest(), "expected " + "0" * 64]),
        (source(origin(sha256="abc")), ["fetch.mine.origins.0.sha256: 'abc'"]),
        (source(origin("hf://datasets/o/n@main/x.json")), ["'main'", "40 hex digits"]),
        (source(origin("package://no-such-thing@1.0/x.jsonl")), ["no-such-thing", "not installed"]),
        (source(origin("package://pytest@0.0.1/x.jsonl")), ["expected 0.0.1"]),
        (source(origin("memory://rows.jsonl")), ["memory://rows.jsonl", "sha256"]),
        ({"schema": "alpaca"}, ["fetch.mine.origins: nothing"]),
        (source(schema="poem"), ["fetch.mine.schema: 'poem'"]),
        ({**source(), "colour": "red"}, ["fetch.mine.colour: 'red'"]),
        (source({**origin(), "branch": "main"}), ["fetch.mine.origins.0.branch: 'main'"]),
    ],
)
def test_bad_source_gives_one_line_and_no_output(project, capsys, parameters, words):
    import fsspec

    (project.root / "rows.jsonl").write_bytes(LINES)
    (project.root / "empty.jsonl").write_bytes(b"\n")
    (project.root / "bad.jsonl").write_bytes(b'{"a": "b"}\noops\n')
    with fsspec.open("memory://rows.jsonl", "wb") as stream:
        stream.write(LINES)
    project.params(fetch={"mine": parameters})
    before = project.files()
    assert project.command("fetch", "mine") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.out == ""
    assert all(word in printed.err for word in words)
    assert project.files() == before


def test_unknown_source_is_named(project):
    project.params(fetch={"mine": source()})
    with pytest.raises(PipelineError, match=r"fetch\.yours: no group 'yours'; found mine"):
        project.run("fetch", "yours")
