"""Files: what is written comes back, an output is whole or absent, and a bad row is named with its line."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.common import files
from stages.common.errors import PipelineError

ROWS = [{"a": "x\ny", "b": 1}, {"a": "é → 語", "b": None}, {}]


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "deep" / "er" / "rows.jsonl"
    assert files.write_rows(path, iter(ROWS)) == len(ROWS)
    assert files.read_rows(path) == list(files.iter_rows(path)) == ROWS
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\r\n", "\0", "\ufeff"]
)
def test_unusual_line_ends_inside_a_text_stay_inside_their_row(tmp_path, mark):
    rows = [{"a": f"left{mark}right"}, {"a": "next"}]
    files.write_rows(tmp_path / "rows.jsonl", rows)
    assert files.read_rows(tmp_path / "rows.jsonl") == rows


def test_random_texts_come_back(tmp_path):
    random_ = random.Random(7)
    alphabet = [chr(code) for code in (*range(128), 0x85, 0xA0, 0xE9, 0x2028, 0x2029, 0x1F600)]
    rows = [{"a": "".join(random_.choices(alphabet, k=random_.randrange(30)))} for _ in range(300)]
    files.write_rows(tmp_path / "rows.jsonl", rows)
    assert files.read_rows(tmp_path / "rows.jsonl") == rows


def test_bytes_are_plain_json_lines_with_keys_in_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert files.write_rows(path, [{"b": "é\n", "a": 1}, {}]) == 2
    assert path.read_bytes() == '{"b": "é\\n", "a": 1}\n{}\n'.encode()
    assert files.line({"b": "é\n", "a": 1}) == '{"b": "é\\n", "a": 1}\n'
    assert files.write_lines(path, (f"{n}\r\n" for n in range(2))) == 2
    assert path.read_bytes() == b"0\r\n1\r\n"


def test_no_rows_make_an_empty_file(tmp_path):
    assert files.write_rows(tmp_path / "rows.jsonl", []) == 0
    assert (tmp_path / "rows.jsonl").read_bytes() == b""
    assert files.read_rows(tmp_path / "rows.jsonl") == []


@pytest.mark.parametrize(
    ("write", "given"),
    [
        (files.write_rows, [{"a": 1}, {"a": "x\ud800"}]),
        (files.write_rows, [{"a": 1}, {"\ud800": 1}]),
        (files.write_lines, ["x\n", "\ud800\n"]),
    ],
)
def test_text_that_utf8_cannot_hold_is_named_with_its_line_and_leaves_no_file(tmp_path, write, given):
    with pytest.raises(PipelineError) as error:
        write(tmp_path / "rows.jsonl", given)
    place = f"{tmp_path}/rows.jsonl:2"
    assert str(error.value) == f"{place}: '\\ud800'; expected text that UTF-8 can hold"
    with pytest.raises(PipelineError, match=r"rows\.jsonl: '\\ud800'"):
        files.write_text(tmp_path / "rows.jsonl", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_lines_come_with_their_numbers_and_blank_ones_are_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n{}\r\n \t\r\né\x0c\u2028\x85\rx\n\n\x00\nend".encode())
    assert list(files.iter_lines(path)) == [
        (2, "{}\r\n"),
        (4, "é\x0c\u2028\x85\rx\n"),
        (6, "\x00\n"),
        (7, "end"),
    ]


def test_rows_are_read_one_by_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[2]\n\xff\n')
    rows = files.iter_rows(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(PipelineError, match=r"rows\.jsonl:3: '\[2\]\\n'; expected a JSON object"):
        next(rows)
    lines = files.iter_lines(path)
    assert [next(lines)[0], next(lines)[0]] == [1, 3]
    with pytest.raises(PipelineError, match=r"rows\.jsonl:4: byte 0 is not UTF-8"):
        next(lines)


def test_rows_are_written_one_by_one(tmp_path):
    """Each is asked for after the one before was taken, and nothing has the final name until the end."""
    path, asked = tmp_path / "rows.jsonl", []

    def lines() -> Iterator[str]:
        for n in range(3):
            (part,) = tmp_path.iterdir()
            asked.append((part.name != path.name, part.stat().st_size // 10**6))
            yield f"{n}" * 10**6 + "\n"

    assert files.write_lines(path, lines()) == 3
    assert asked == [(True, 0), (True, 1), (True, 2)]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_file_can_be_written_from_its_own_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.write_rows(path, ROWS)
    assert files.write_rows(path, ({**row, "c": 1} for row in files.iter_rows(path))) == len(ROWS)
    assert files.read_rows(path) == [{**row, "c": 1} for row in ROWS]


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_blank_lines_and_line_ends_do_not_matter(tmp_path, ending):
    path = tmp_path / "some.jsonl"
    path.write_bytes(f'\n{{"a": 1}}\n  \n{{"a": 2}}{ending}'.encode())
    assert files.read_rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "line", ["{", "[1]", "3", '"text"', "null", "{'a': 1}", '{"a": 1} {"b": 2}', "{" * 5]
)
def test_malformed_row_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "some.jsonl"
    path.write_text('{"a": 1}\n\n' + line)
    with pytest.raises(PipelineError) as error:
        files.read_rows(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert repr(line) in str(error.value) and "expected a JSON object" in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        '{"a":' * 100_000,
        '{"a": ' + "[" * 10**6 + "]" * 10**6 + "}",
        '{"a": ' + "9" * 10_000 + "}",
        '"' + "x" * 10**7 + '"',
        "\0",
        "\ufeff{}",
        '{"a": "\x00"}',
    ],
    ids=["open", "deep", "number", "long", "nul", "mark", "control"],
)
def test_odd_row_is_a_malformed_row_and_its_error_is_one_short_line(line):
    with pytest.raises(PipelineError) as error:
        files.parse_row(line, "some.jsonl:1")
    message = str(error.value)
    assert message.startswith(f"some.jsonl:1: {line[:60]!r}; expected a JSON object")
    assert len(message) < 400 and "\n" not in message


@pytest.mark.parametrize("text", ["[1]", "3", "", "{", "null"])
def test_read_json_wants_one_object(tmp_path, text):
    path = tmp_path / "value.json"
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"value\.json.*expected one JSON object"):
        files.read_json(path)


def lines(path: Path) -> list[tuple[int, str]]:
    """All lines with their numbers."""
    return list(files.iter_lines(path))


@pytest.mark.parametrize("read", [files.read_text, files.read_rows, files.read_json, lines])
def test_missing_and_binary_files_are_named(tmp_path, read):
    with pytest.raises(PipelineError, match=r"absent\.jsonl: not found"):
        read(tmp_path / "absent.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"ab\xff\xfe")
    with pytest.raises(PipelineError, match=r"binary\.jsonl(:1)?: byte 2 is not UTF-8"):
        read(tmp_path / "binary.jsonl")


def test_bad_byte_is_counted_in_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n\n{"a": "\xc3("}\n')
    with pytest.raises(PipelineError, match=r"rows\.jsonl:3: byte 7 is not UTF-8; expected UTF-8 text"):
        files.read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_metrics_must_be_finite(tmp_path, number):
    (tmp_path / "m.json").write_text('{"old": 1}')
    with pytest.raises((PipelineError, ValueError)):
        files.write_json(tmp_path / "m.json", {"loss": number})
    assert files.read_json(tmp_path / "m.json") == {"old": 1}


def failing_rows() -> Iterator[dict[str, int]]:
    """Rows of which the second cannot be made."""
    yield {"a": 1}
    raise PipelineError("row 2: bad")


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("rows", "error"),
    [(failing_rows, PipelineError), (lambda: [{"a": 1}, {"a": object()}], TypeError)],
)
def test_failed_write_keeps_what_was_there_and_leaves_nothing_half_written(tmp_path, old, rows, error):
    path = tmp_path / "rows.jsonl"
    if old:
        files.write_rows(path, ROWS)
    before = [(file.name, file.read_bytes()) for file in tmp_path.iterdir()]
    with pytest.raises(error):
        files.write_rows(path, rows())
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == before


def test_failure_midway_through_a_folder_leaves_the_old_folder(tmp_path):
    def fill(name: str) -> None:
        with files.whole(tmp_path / "model") as folder:
            folder.mkdir()
            (folder / name).write_text(name)
            if name == "bad":
                raise PipelineError(name)

    fill("old")
    with pytest.raises(PipelineError):
        fill("bad")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    fill("new")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


def test_rest_of_a_killed_run_does_not_get_into_the_output(tmp_path):
    with files.whole(tmp_path / "model") as folder:
        rest = folder
        rest.mkdir()
    (tmp_path / "model").rename(rest)
    (rest / "stale").write_text("from before")
    with files.whole(tmp_path / "model") as folder:
        folder.mkdir()
        (folder / "fresh").write_text("now")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["fresh"]


@pytest.mark.parametrize("name", ["a", "a-b", "A_1.2", "9", "a..b"])
def test_plain_name_is_taken(name):
    assert files.plain_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "é", "a\0", "a#1"])
def test_name_that_could_leave_its_folder_is_refused(name):
    with pytest.raises(ValueError, match="expected letters"):
        files.plain_name(name)


def test_json_is_indented_with_keys_in_order(tmp_path):
    files.write_json(tmp_path / "m.json", {"b": "é", "a": {}})
    assert (tmp_path / "m.json").read_bytes() == '{\n  "b": "é",\n  "a": {}\n}\n'.encode()
    assert json.loads(files.read_text(tmp_path / "m.json")) == files.read_json(tmp_path / "m.json")
