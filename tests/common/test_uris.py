"""URIs: each scheme brings its files, and what is malformed, missing or not pinned is refused by name."""

import hashlib
import importlib.metadata
import json
import time
from pathlib import Path

import pytest
from hub import Fault, Hub, job

from stages.common import uris
from stages.common.errors import PipelineError

COMMIT = "ea3f2471cf1b1f0db85067f1ef93848e38e88c25"
PYTEST = importlib.metadata.version("pytest")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever opens a socket fails the test."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("absolute", [False, True])
def test_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl" if absolute else Path("rows.jsonl")
    revision = f"sha256:{hashlib.sha256(b'{}' + bytes([10])).hexdigest()[:16]}"
    assert uris.find(f"file:{path}", tmp_path) == uris.Found(revision, None, {"rows.jsonl": path})


@pytest.mark.usefixtures("no_network")
def test_package_file_is_found(tmp_path: Path) -> None:
    found = uris.find(f"package://pytest@{PYTEST}/pytest/__init__.py", tmp_path)
    assert found == uris.Found(PYTEST, None, {"pytest/__init__.py": Path(str(pytest.__file__))})


@pytest.mark.usefixtures("no_network")
def test_package_pattern_gives_sorted_files() -> None:
    found = uris.package_files(f"package://pytest@{PYTEST}/_pytest/*.py")
    assert len(found) > 20 and list(found) == sorted(found)
    assert all(path.suffix == ".py" and path.is_file() for path in found.values())


@pytest.mark.usefixtures("no_network")
def test_other_schemes_go_through_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://some/rows.jsonl", "wb") as stream:
        stream.write(b"{}")
    found = uris.find("memory://some/rows.jsonl", tmp_path)
    path = found.paths["rows.jsonl"]
    assert path.read_bytes() == b"{}" and path.parent == tmp_path
    assert found.revision == f"sha256:{hashlib.sha256(b'{}').hexdigest()[:16]}"


def test_a_url_is_downloaded_or_refused_by_name(tmp_path: Path) -> None:
    with Hub({"datasets/o/n": {"main": {"rows.json": b"[]"}}}) as hub:
        url = f"{hub.endpoint}/datasets/o/n/resolve/main/rows.json"
        found = uris.find(f"{url}?download=true", tmp_path)
        assert [(name, path.read_bytes()) for name, path in found.paths.items()] == [("rows.json", b"[]")]
        for status in (401, 404, 503):
            hub.faults += [Fault("/rows.json", method, status=status, times=9) for method in ("HEAD", "GET")]
            with pytest.raises(PipelineError, match="expected a URL that can be read") as error:
                uris.find(url, tmp_path)
            assert str(error.value).startswith(url) and "\n" not in str(error.value)
            hub.faults.clear()


@pytest.mark.usefixtures("no_network")
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
        ("hf://datasets/owner/name@main/rows.json", ["'main'", "40 hex digits", "make pin"]),
        ("hf://datasets/owner/name@v1.0/rows.json", ["'v1.0'", "40 hex digits", "make pin"]),
        ("hf://datasets/owner/name@refs%2Fpr%2F1/rows.json", ["'refs/pr/1'", "40 hex digits"]),
        (f"hf://datasets/owner/name@{COMMIT[:39]}/rows.json", [COMMIT[:39], "40 hex digits"]),
        (f"hf://datasets/owner/name@{COMMIT.upper()}/rows.json", ["40 hex digits"]),
        ("hf://datasets/owner/name/rows.json", ["expected hf://"]),
        ("hf://datasets/ówner/name@main/rows.json", ["expected hf://"]),
        (f"hf://datasets/owner/name@{COMMIT}", ["no path"]),
        ("nosuchscheme://x/rows.json", ["expected a URL that can be read"]),
        ("memory://absent/rows.jsonl", ["expected a URL that can be read"]),
    ],
)
def test_bad_uri_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(PipelineError) as error:
        uris.find(uri, tmp_path / "scratch")
    message = str(error.value)
    assert message.startswith(f"{uri}: ") and all(word in message for word in words)
    assert "\n" not in message and list(tmp_path.iterdir()) == [tmp_path / "scratch"]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("revision", ["main", "v1", COMMIT[:7], COMMIT + "0"])
def test_model_must_be_pinned_too(revision: str) -> None:
    with pytest.raises(PipelineError, match="40 hex digits"):
        uris.hub_model(f"hf://owner/name@{revision}")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-7"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        (
            {"retry-after": "Tue, 01 Jan 2999 00:00:00 GMT"},
            pytest.approx(32472144000 - time.time(), rel=0.01),
        ),
        ({"ratelimit": '"api";r=0;t=55', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}, 55.0),
        ({"ratelimit": '"api";r=12;t=55'}, None),
    ],
)
def test_the_wait_is_the_one_that_the_hub_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert uris._asked_wait(headers) == seconds


MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer/merges.txt": b"a b",
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
}
SHOW = """
from pathlib import Path
folder = uris.hub_model({uri!r})
names = {{str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}}
print(json.dumps(names))
"""


def test_a_model_comes_without_code_and_pickles_or_with_a_reason(tmp_path: Path) -> None:
    def ask(name: str, revision: str = COMMIT) -> dict:
        return job(tmp_path, "", code=SHOW.format(uri=f"hf://owner/{name}@{revision}"))

    with Hub({f"owner/{name}": {COMMIT: MODEL} for name in ("plain", "busy", "gated")}) as hub:
        digest = hashlib.sha256(MODEL["model.safetensors"]).hexdigest()
        hub.faults += [
            Fault("models/owner/busy/tree", status=503),
            Fault("owner/busy/resolve", status=429, headers={"Retry-After": "3"}),
            Fault("owner/gated/resolve", "HEAD", status=403, headers={"X-Error-Code": "GatedRepo"}, times=99),
            Fault(digest, cut=2000, reset=True),
            Fault("/revision/slow", delay=2),
        ]
        late = job(tmp_path, "", code="uris.SILENCE = 0.2; uris.commit(uris.place('hf://owner/plain@slow'))")
        jobs = [ask("plain"), ask("busy"), ask("gated"), ask("absent"), ask("plain", "0" * 40), late]
        plain, busy, *refused = hub.run(tmp_path / "home", jobs)
    wanted = {name: len(data) for name, data in MODEL.items() if not name.endswith((".bin", ".md"))}
    assert json.loads(plain["out"]) == json.loads(busy["out"]) == wanted
    assert plain["waits"] == [0.001] and "the connection broke" in plain["err"]
    assert sorted(busy["waits"]) == [0.001, 0.003] and "503" in busy["err"] and "429" in busy["err"]
    words = ["gated", "no such repository", "no such revision", "timed out"]
    for outcome, word in zip(refused, words, strict=True):
        assert outcome["status"] == 2 and outcome["err"].count("\n") == 1 and word in outcome["err"]
