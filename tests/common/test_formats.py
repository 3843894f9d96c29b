"""Formats: rows come out as they stand and in order; what is malformed is refused by file and line."""

import bz2
import gzip
import io
import json
import lzma
import random
from typing import Any

import pytest

from stages.common import files, formats
from stages.common.errors import PipelineError

ROWS = [
    {"instruction": "b"},
    {"instruction": "a", "input": "é\n\u2028\0"},
    {"instruction": "b", "n": [1.5, None]},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS).encode()
BOM = b"\xef\xbb\xbf"

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


def decode(name: str, data: bytes) -> list[files.Row]:
    return list(formats.decode(io.BytesIO(data), name))


def zstd(data: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def parquet(columns: dict[str, Any], names: list[str] | None = None, **options: Any) -> bytes:
    """A parquet file of columns, which may be given other names afterwards."""
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table.rename_columns(names) if names else table, sink, **options)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl", LINES.rstrip()),
        ("rows.jsonl", BOM + LINES),
        ("rows.jsonl", b"\n \n" + LINES.replace(b"}\n", b"}\r\n\r\n")),
        ("rows.json", LIST),
        ("rows.json", BOM + json.dumps(ROWS, indent=4).replace("\n", "\r\n").encode()),
        ("rows.json", b"\n\n" + LINES),  # some upstreams name JSON lines so
        ("folder/rows.json.gz", gzip.compress(LIST, mtime=0)),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0) * 1),
        ("rows.jsonl.bz2", bz2.compress(LINES)),
        ("rows.v1.jsonl.xz", lzma.compress(LINES)),
        ("rows.jsonl.zst", zstd(LINES)),
    ],
)
def test_json_rows_come_in_order_as_they_stand(name: str, data: bytes) -> None:
    assert decode(name, data) == ROWS


def test_rows_come_before_the_file_is_read_to_its_end() -> None:
    rows = formats.decode(io.BytesIO(LINES + b"oops\n"), "rows.jsonl")
    assert [next(rows) for _ in ROWS] == ROWS
    with pytest.raises(PipelineError, match=r"rows\.jsonl:4"):
        next(rows)


def test_a_line_of_ten_megabytes_passes() -> None:
    row = {"text": "x" * 10_000_000}
    assert decode("rows.jsonl", json.dumps(row).encode()) == [row]
    assert decode("rows.json", json.dumps([row]).encode()) == [row]


def test_csv_cells_stay_as_they_stand() -> None:
    data = BOM + b'instruction,input,output\nSay,N/A,007\r\n"a, b",,1.10\n\nnone,null,"T\r\n""rue"""\n'
    assert decode("rows.csv", data) == [
        {"instruction": "Say", "input": "N/A", "output": "007"},
        {"instruction": "a, b", "input": "", "output": "1.10"},
        {"instruction": "none", "input": "null", "output": 'T\r\n"rue"'},
    ]
    assert decode("rows.csv", b"a,b\n1,%s" % (b"y" * 300_000))[0]["b"] == "y" * 300_000


def test_parquet_is_read_in_order_across_row_groups() -> None:
    count = 3 * formats.BATCH + 1
    columns = {"text": [f"a\u2028b é\n\0{number}" for number in range(count)], "list": [[1, None]] * count}
    rows = [{"text": text, "list": [1, None]} for text in columns["text"]]
    assert decode("rows.parquet", parquet(columns, row_group_size=50)) == rows
    assert decode("rows.parquet.gz", gzip.compress(parquet(columns), mtime=0)) == rows


def test_missing_numbers_of_parquet_are_null() -> None:
    rows = decode("rows.parquet", parquet({"a": [1.5, float("nan"), None], "b": [{"c": float("nan")}] * 3}))
    assert rows == [{"a": value, "b": {"c": None}} for value in (1.5, None, None)]


def test_functions_are_the_public_documented_ones_with_their_decorators() -> None:
    for end in ("\n", "\r\n", "\r"):
        rows = decode("pkg/module.py", ("\ufeff" + MODULE).replace("\n", end).encode())
        assert [row["name"] for row in rows] == ["add", "slow"]
        assert {row["path"] for row in rows} == {"pkg/module.py"}
        assert rows[0]["code"] == end.join(["def add(a, b):", '    """Add."""', "    return a + b"])
        assert rows[1]["code"].startswith(f"@functools.cache{end}def slow")


GZIPPED = gzip.compress(LINES, mtime=0)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.xml", b"<a/>", ["'.xml'", ".jsonl", ".parquet", ".zst"]),
        ("rows", b"", ["''"]),
        ("rows.gz", GZIPPED, ["''"]),
        # not the text that it should be
        ("rows.jsonl", b'{"a": 1}\n\xff\xfe', ["byte 9 is not UTF-8"]),
        ("rows.json", "[{}]".encode("utf-16"), ["byte 0 is not UTF-8"]),
        ("rows.jsonl", parquet({"a": ["x"]}), ["rows.jsonl"]),
        ("rows.json", b"a,b\n1,2\n", ["rows.json:1", "'a,b"]),
        ("rows.csv", LINES, ["rows.csv:2", "cells"]),
        ("rows.json", b"\0\0", ["rows.json:1"]),
        ("rows.jsonl", b'{"a": "\0"}', ["rows.jsonl:1", "control character"]),
        # not the JSON that it should be
        ("rows.jsonl", b'{"a": 1}\n{"a"\n', ["rows.jsonl:2", '\'{"a"']),
        ("rows.jsonl", b"[1]\n", ["rows.jsonl:1", "expected a JSON object", "not list"]),
        ("rows.jsonl", b"3\n", ["rows.jsonl:1", "not int"]),
        ("rows.json", b'"text"', ["rows.json:1", "not str"]),
        ("rows.json", b'{"a": ', ["rows.json:1"]),
        ("rows.json", b'\n[{"a": 1},\n2]', ["rows.json:3", "expected a JSON list of objects", "not int"]),
        ("rows.json", b'[{"a": 1},]', ["rows.json:1"]),
        ("rows.json", b'[{"a": 1} {"a": 2}]', ["rows.json:1", "expected ',' or the end"]),
        ("rows.json", b'[{"a": 1}]\n[{"a": 2}]', ["rows.json:1", "expected ',' or the end"]),
        ("rows.json", b'[{"a": 1}', ["rows.json:1", "expected ',' or the end"]),
        ("rows.json", b"[", ["rows.json:1"]),
        ("rows.json", b"[" * 100_000, ["rows.json:1", "recursion"]),
        ("rows.json", b'[{"a": %s1%s}]' % (b"[" * 500, b"]" * 500), ["rows.json:1", "at most 32 deep"]),
        ("rows.jsonl", b'{"a":' * 40 + b"1" + b"}" * 40, ["rows.jsonl:1", "at most 32 deep"]),
        # what Python would change in silence
        ("rows.jsonl", b'{"a": 1, "b": 2, "a": 3}', ["rows.jsonl:1", "'a' stands twice"]),
        ("rows.json", b'[{"a": {"b": 1, "b": 1}}]', ["rows.json:1", "'b' stands twice"]),
        ("rows.jsonl", b'{"a": NaN}', ["rows.jsonl:1", "NaN is not a finite number"]),
        ("rows.json", b'[{"a": -Infinity}]', ["rows.json:1", "-Infinity is not a finite number"]),
        ("rows.json", b'[{"a": 1e999}]', ["rows.json:1", "1e999 is not a finite number"]),
        ("rows.jsonl", b'{"a": %s}' % (b"9" * 5000), ["rows.jsonl:1", "4300 digits"]),
        ("rows.csv", b"a,b,a\n1,2,3\n", ["['a', 'b', 'a']", "names that differ"]),
        ("rows.csv", b"a,b\n1,2,3\n", ["rows.csv:2", "3 cells; expected 2"]),
        ("rows.csv", b"a,b\n1,2\n1\n", ["rows.csv:3", "1 cells; expected 2"]),
        ("rows.csv", b'a,b\n1,"2\n', ["rows.csv:2", "expected csv"]),
        ("rows.csv", b"a,b\r1,2\r", ["rows.csv", "expected csv"]),
        ("rows.parquet", parquet({"a": ["1"], "b": ["2"]}, ["a", "a"]), ["['a', 'a']", "names that differ"]),
        ("rows.parquet", parquet({"a": [b"1"]}), ["a: binary", "expected text"]),
        ("rows.parquet", parquet({"a": [[{"b": b"1"}]]}), ["a: list", "expected text"]),
        ("rows.parquet", parquet({"a": [float("-inf")]}), ["a: -inf", "finite"]),
        # cut off or damaged
        ("rows.jsonl.gz", b"not gzip", ["rows.jsonl.gz", "expected a whole .gz file"]),
        ("rows.jsonl.gz", GZIPPED[:-9], ["rows.jsonl.gz", "expected a whole .gz file"]),
        ("rows.jsonl.gz", GZIPPED[:10] + b"\xff" * 50, ["rows.jsonl.gz", "expected a whole .gz file"]),
        ("rows.jsonl.bz2", bz2.compress(LINES)[:-9], ["expected a whole .bz2 file"]),
        ("rows.jsonl.xz", lzma.compress(LINES)[:-9], ["expected a whole .xz file"]),
        ("rows.jsonl.xz", LINES, ["expected a whole .xz file"]),
        ("rows.jsonl.zst", zstd(LINES)[:-9], ["expected a whole .zst file"]),
        ("rows.jsonl.gz", gzip.compress(b"oops\n", mtime=0), ["rows.jsonl.gz:1", "'oops"]),
        ("rows.parquet", b"PAR1 no", ["rows.parquet", "expected parquet"]),
        ("rows.parquet", b"", ["rows.parquet", "expected parquet"]),
        ("rows.parquet", parquet({"a": ["x" * 1000]})[:-30], ["rows.parquet", "expected parquet"]),
        # not Python
        ("module.py", b"def f(:\n", ["module.py:1", "expected a module"]),
        ("module.py", b"a = 1\0", ["module.py"]),
        ("module.py", b"x = " + b"-" * 100_000 + b"1", ["module.py"]),
    ],
)
def test_bad_file_is_named(name: str, data: bytes, words: list[str]) -> None:
    with pytest.raises(PipelineError) as error:
        decode(name, data)
    message = str(error.value)
    assert message.startswith(name) and all(word in message for word in words)
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("r.jsonl", b""),
        ("r.jsonl", b" \n\t\n"),
        ("r.json", b""),
        ("r.json", BOM + b" [ ] \n"),
        ("r.csv", b"\n\n"),
        ("r.csv", b"a,b\n"),
    ],
)
def test_no_rows_is_no_crash(name: str, data: bytes) -> None:
    assert decode(name, data) == []


def test_damaged_json_is_read_as_python_reads_it_or_refused() -> None:
    """A few thousand small damages: our row by row reading agrees with the parser of whole texts."""
    source = random.Random(7)
    whole = b'[{"a": 1}, {"b": [1.5, null, true, "x\\u0000\\n"]}]'
    agreed = 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(2):
            place = source.randrange(len(data))
            data[place : place + source.choice([0, 1])] = source.choice(
                [b"", b"[", b"]", b"{", b",", b'"', b"1", b" "]
            )
        try:
            found = decode("rows.json", bytes(data))
        except PipelineError:
            found = None
        try:
            expected = json.loads(data)
            expected = expected if isinstance(expected, list) else [expected]
            expected = expected if all(isinstance(row, dict) for row in expected) else None
        except ValueError:
            expected = None
        assert found == expected
        agreed += found is not None
    assert 100 < agreed < 2900
