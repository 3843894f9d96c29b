"""URIs: each scheme brings its files, and what is malformed, missing or not pinned is refused by name."""

import importlib.metadata
from pathlib import Path

import pytest

from stages.common import uris
from stages.common.errors import PipelineError

COMMIT = "ea3f2471cf1b1f0db85067f1ef93848e38e88c25"
PYTEST = importlib.metadata.version("pytest")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever opens a socket fails the test."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_file_is_read(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    monkeypatch.chdir(tmp_path)
    assert uris.files("file:rows.jsonl") == {"rows.jsonl": b"{}\n"}
    assert uris.files(f"file:{tmp_path / 'rows.jsonl'}") == {"rows.jsonl": b"{}\n"}


def test_package_file_is_read():
    found = uris.files(f"package://pytest@{PYTEST}/pytest/__init__.py")
    assert found == {"pytest/__init__.py": Path(pytest.__file__).read_bytes()}


def test_package_pattern_gives_sorted_files():
    found = uris.package_files(f"package://pytest@{PYTEST}/_pytest/*.py")
    assert len(found) > 20 and list(found) == sorted(found)
    assert all(path.suffix == ".py" and path.is_file() for path in found.values())


def test_other_schemes_go_through_fsspec():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://some/rows.jsonl", "wb") as stream:
        stream.write(b"{}")
    assert uris.files("memory://some/rows.jsonl") == {"rows.jsonl": b"{}"}


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file:absent.jsonl", ["not found"]),
        ("file:", ["not found"]),
        ("package://no-such-distribution@1.0/x.py", ["no-such-distribution", "not installed", "1.0"]),
        ("package://pytest@0.0.1/pytest/*.py", [PYTEST, "expected 0.0.1"]),
        (f"package://pytest@{PYTEST}/nothing/*.here", ["no file", "nothing/*.here"]),
        ("package://pytest/pytest/__init__.py", ["package://<distribution>@<version>/<path>"]),
        ("package:pytest", ["package://<distribution>@<version>/<path>"]),
        ("hf://datasets/owner/name@main/rows.json", ["'main'", "40 hex digits"]),
        ("hf://datasets/owner/name@v1.0/rows.json", ["'v1.0'", "40 hex digits"]),
        (f"hf://datasets/owner/name@{COMMIT[:39]}/rows.json", [COMMIT[:39], "40 hex digits"]),
        (f"hf://datasets/owner/name@{COMMIT.upper()}/rows.json", ["40 hex digits"]),
        ("hf://datasets/owner/name/rows.json", ["expected hf://"]),
        (f"hf://datasets/owner/name@{COMMIT}", ["no path"]),
        ("nosuchscheme://x/rows.json", ["expected a URL that can be read"]),
        ("memory://absent/rows.jsonl", ["expected a URL that can be read"]),
    ],
)
def test_bad_uri_is_refused_by_name(tmp_path, monkeypatch, uri, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError) as error:
        uris.files(uri)
    message = str(error.value)
    assert message.startswith(f"{uri}: ") and all(word in message for word in words)
    assert "\n" not in message and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT[:7], COMMIT + "0"])
def test_model_must_be_pinned_too(revision):
    with pytest.raises(PipelineError, match="40 hex digits"):
        uris.hub_model(f"hf://owner/name@{revision}")
