"""Catalogue: every line where it stands, whatever the chunks; what near-duplicates share; copies' names."""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from examples import example, pair, parameters, preference

from stages.common import catalogue, overlap
from stages.common.records import Example


def stored(folder: Path, examples: list[Example], source: str = "one") -> Path:
    path = folder / f"{source}.jsonl"
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in examples), encoding="utf-8")
    return path


@pytest.mark.parametrize("size", [1, 7, 1 << 22])
def test_chunks_hold_every_line_that_is_not_blank_and_where_it_stands(tmp_path, monkeypatch, size):
    text = "ä\n\n \r\nlast but one\r\n\x00\u2028\nno newline".encode()
    path = tmp_path / "one.jsonl"
    path.write_bytes(text)
    monkeypatch.setattr(catalogue, "CHUNK", size)
    lines = [line for chunk in catalogue.chunks(path, "") for line in chunk]
    assert [line.number for line in lines] == [1, 4, 5, 6]
    assert all(text[line.offset :].startswith(line.text) for line in lines)
    path.write_bytes(b"")
    assert list(catalogue.chunks(path, "")) == []


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("plain", "answer", "plain\nanswer\n"),
        ("see\n```python\na = 1\n```\nthere", "b", "a = 1\n\nb\n"),
        ("", "````md\n```python\na = 1\n```\n````", "\n```python\na = 1\n```\n\n"),
    ],
)
def test_code_is_what_near_duplicates_share(prompt, completion, expected):
    assert catalogue.substance(example(prompt=prompt, completion=completion)) == expected


def test_rows_and_signatures_of_several_files(tmp_path):
    long = "x " * 6000
    examples = [*pair(1), preference(2), example(3, completion=long), example(4), example(5, completion=long)]
    copies = [example(6, source="two", prompt=examples[4].prompt, completion=examples[4].completion)]
    paths = [stored(tmp_path, examples), stored(tmp_path, copies, "two")]
    chosen = parameters(near_duplicate=0.8)
    with TemporaryFile() as signatures:
        rows, _ = catalogue.read(paths, chosen, overlap.build([], chosen.overlap), 1, signatures)
        labels = catalogue.alike(rows, chosen, signatures)
    assert rows["source"].tolist() == [0] * 6 + [1]
    assert rows["characters"].tolist() == [catalogue.characters(one) for one in examples + copies]
    assert rows["unit"][0] == rows["unit"][1] and len(set(rows["unit"].tolist())) == 6
    assert (rows["flags"] & catalogue.PREFERENCE > 0).tolist() == [False, False, True] + [False] * 4
    assert labels[6] == 4 and labels[[3, 5]].tolist() == [3, 5], "too long to be compared"


def test_copies_are_written_under_names_of_their_own(tmp_path):
    examples = [example(n) for n in range(3)]
    path, out = stored(tmp_path, examples), tmp_path / "out.jsonl"
    chosen = parameters()
    with TemporaryFile() as signatures:
        rows, _ = catalogue.read([path], chosen, overlap.build([], chosen.overlap), 1, signatures)
    catalogue.write(out, rows[[2, 0, 2]], rows["source"][[0, 0, 0]] + [0, 0, 1], [path])
    names = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert names == [examples[2].id, examples[0].id, f"{examples[2].id}@2"]
