"""Files: what is written comes back, an output is whole or absent, and a bad row is named with its line."""

import random

import pytest

from stages.common import files
from stages.common.errors import PipelineError

ROWS = [{"a": "x\ny", "b": 1}, {"a": "é → 語", "b": None}, {}]


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "deep" / "er" / "rows.jsonl"
    files.write_rows(path, ROWS)
    assert files.read_rows(path) == ROWS
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


def test_text_that_utf8_cannot_hold_is_named_and_leaves_no_file(tmp_path):
    with pytest.raises(PipelineError, match=r"rows\.jsonl"):
        files.write_rows(tmp_path / "rows.jsonl", [{"a": "\ud800"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_blank_lines_and_line_ends_do_not_matter(ending):
    assert files.parse_rows(f'\n{{"a": 1}}\n  \n{{"a": 2}}{ending}', "x") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "line", ["{", "[1]", "3", '"text"', "null", "{'a': 1}", '{"a": 1} {"b": 2}', "{" * 5]
)
def test_malformed_row_is_named_with_its_line(line):
    with pytest.raises(PipelineError) as error:
        files.parse_rows('{"a": 1}\n\n' + line + "\n", "some.jsonl")
    assert str(error.value).startswith("some.jsonl:3: ")
    assert repr(line) in str(error.value) and "expected a JSON object" in str(error.value)


def test_very_deep_row_is_a_malformed_row():
    with pytest.raises(PipelineError, match=r"some\.jsonl:1"):
        files.parse_rows('{"a":' * 100_000, "some.jsonl")


@pytest.mark.parametrize("text", ["[1]", "3", "", "{", "null"])
def test_read_json_wants_one_object(tmp_path, text):
    path = tmp_path / "value.json"
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"value\.json.*expected one JSON object"):
        files.read_json(path)


@pytest.mark.parametrize("read", [files.read_text, files.read_rows, files.read_json])
def test_missing_and_binary_files_are_named(tmp_path, read):
    with pytest.raises(PipelineError, match=r"absent\.jsonl: not found"):
        read(tmp_path / "absent.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"ab\xff\xfe")
    with pytest.raises(PipelineError, match=r"binary\.jsonl: byte 2 is not UTF-8"):
        read(tmp_path / "binary.jsonl")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_metrics_must_be_finite(tmp_path, number):
    (tmp_path / "m.json").write_text('{"old": 1}')
    with pytest.raises((PipelineError, ValueError)):
        files.write_json(tmp_path / "m.json", {"loss": number})
    assert files.read_json(tmp_path / "m.json") == {"old": 1}


def failing_rows():
    """Rows of which the second cannot be made."""
    yield {"a": 1}
    raise PipelineError("row 2: bad")


def test_failed_write_keeps_the_old_file_and_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.write_rows(path, ROWS)
    with pytest.raises(PipelineError, match="row 2"):
        files.write_rows(path, failing_rows())
    assert files.read_rows(path) == ROWS
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


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
