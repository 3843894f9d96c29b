"""Pin: branches become commits and files get a sha256, comments and layout stay; or nothing changes."""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, read_rows, read_yaml, write_yaml
from hub import Fault, Hub, job

from conf import pin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BEFORE = """\
# A source, and what to know of it.
schema: alpaca # as upstream says
origins:
  - uri: hf://datasets/owner/name@main/data/rows.json # the first
    licence: MIT

    # a word about the second
  - uri: "hf://datasets/owner/name@v1.0/rows.parquet"
    licence: 'MIT'
    sha256: null # unknown so far
    rows: 3
  - {uri: hf://datasets/owner/name@main/data/rows.json, licence: MIT, note: "in one line: kept so"}
  - uri: hf://datasets/owner/name@main/moving.json
    licence: MIT
    allow_moving: true # on purpose
  - uri: file:rows.json
    licence: MIT
"""
SCALE = """\
# @package _global_
base:
  uri: hf://owner/model@refs%2Fpr%2F1 # a model has no sha256 here
  pad_token: <|endoftext|>
mix:
  limits: {}
"""
FILES = {"data/rows.json": b"[1]", "rows.parquet": b"large", "moving.json": b"[2]"}
REPOS = {
    "datasets/owner/name": {"main": FILES, "v1.0": FILES},
    "owner/model": {"refs/pr/1": {"config.json": b"{}"}},
}
# upstream's shapes and numbers of rows, with other words in them
UPSTREAM = {
    "datasets/sahil2801/CodeAlpaca-20k": {
        "code_alpaca_20k.json": json.dumps(
            [{"instruction": f"i {number}", "input": "", "output": "o"} for number in range(20022)]
        ).encode()
    },
    "datasets/CyberNative/Code_Vulnerability_Security_DPO": {
        "secure_programming_dpo.json": "".join(
            json.dumps(
                dict.fromkeys(["lang", "vulnerability", "system", "question", "chosen", "rejected"], "x")
            )
            + "\n"
            for _ in range(4656)
        ).encode()
    },
}


def shards() -> dict[str, bytes]:
    import pyarrow
    import pyarrow.parquet

    keys = [
        "cwe_id",
        "cwe_description",
        "language",
        "vulnerable_code",
        "fixed_code",
        "file_pair_id",
        "source",
    ]
    found = {}
    for number in range(2):
        sink = pyarrow.BufferOutputStream()
        rows = [dict.fromkeys(keys, f"{number} {row}") for row in range(70)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        found[f"data/train-0000{number}-of-00002.parquet"] = sink.getvalue().to_pybytes()
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def project(folder: Path, source: str = BEFORE, scale: str = SCALE) -> Path:
    for name, text in (("source/mine/full.yaml", source), ("scale/full.yaml", scale)):
        path = folder / "conf" / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    return folder


def texts(folder: Path) -> dict[str, str]:
    paths = (path for path in (folder / "conf").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


WRONG = {
    "no such file": BEFORE.replace("rows.parquet", "absent.parquet"),
    "no such repository": BEFORE.replace("owner/name@v1.0", "owner/absent@v1.0"),
    "no such revision": BEFORE.replace("@v1.0", "@v2.0"),
    "expected 000": BEFORE.replace("sha256: null", f"sha256: '{'0' * 64}'"),
    "expected hf://": BEFORE.replace("@v1.0", ""),
    "not YAML": BEFORE + "\t- :",
    "503": BEFORE.replace("name@v1.0", "busy@v1.0"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The commands run one after the other, in one process, against one Hub."""
    root = tmp_path_factory.mktemp("pin")
    mine = project(root / "mine")
    real = root / "real"
    shutil.copytree(ROOT / "conf", real / "conf", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    sources = [path.parent.name for path in sorted((real / "conf").glob("source/*/full.yaml"))]
    sources = [name for name in sources if "hf:" in (real / f"conf/source/{name}/full.yaml").read_text()]
    compose = f"""
import ruamel.yaml
yaml = ruamel.yaml.YAML(typ="safe")
read = lambda name: yaml.load(open(f"conf/source/{{name}}/full.yaml", encoding="utf-8"))
yaml.dump({{"fetch": {{name: read(name) for name in {sources}}}}}, open("params.yaml", "w", encoding="utf-8"))
"""
    steps = {
        "open": job(mine, "conf.pin", "--check"),
        "pin": job(mine, "conf.pin"),
        "again": job(mine, "conf.pin"),
        "closed": job(mine, "conf.pin", "--check"),
        "pin real": job(real, "conf.pin"),
        "compose": job(real, "", code=compose),
    }
    steps |= {f"fetch {name}": job(real, "stages.fetch", name) for name in sources}
    steps |= {word: job(project(root / word, text), "conf.pin") for word, text in WRONG.items()}
    upstream = {"datasets/hitoshura25/crossvul": shards(), **UPSTREAM}
    repos = REPOS | {name: {"main": tree, COMMIT: tree} for name, tree in upstream.items()}
    with Hub(repos | {"datasets/owner/busy": {"v1.0": FILES}}) as hub:
        hub.faults.append(Fault("owner/busy/revision", status=503, times=99))
        done = dict(zip(steps, hub.run(root / "home", list(steps.values())), strict=True))
    return {"root": root, "hub": hub, "sources": sources, "upstream": upstream, **done}


def test_a_revision_and_a_digest_take_their_places_and_all_else_stays(outcomes: dict[str, Any]) -> None:
    hub = outcomes["hub"]
    main, tag = (hub.commit("datasets/owner/name", revision) for revision in ("main", "v1.0"))
    pull = hub.commit("owner/model", "refs/pr/1")
    rows, large = sha256(FILES["data/rows.json"]), sha256(FILES["rows.parquet"])
    expected = BEFORE
    for old, new in (
        (
            "name@main/data/rows.json # the first\n",
            f"name@{main}/data/rows.json # the first\n    sha256: {rows}\n",
        ),
        ('"hf://datasets/owner/name@v1.0/rows.parquet"', f'"hf://datasets/owner/name@{tag}/rows.parquet"'),
        ("sha256: null # unknown", f"sha256: {large} # unknown"),
        ("name@main/data/rows.json, licence", f"name@{main}/data/rows.json, sha256: {rows}, licence"),
    ):
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    found = texts(outcomes["root"] / "mine")
    assert found["conf/source/mine/full.yaml"] == expected
    assert found["conf/scale/full.yaml"] == SCALE.replace("refs%2Fpr%2F1", pull)
    assert outcomes["pin"]["status"] == 0
    printed = outcomes["pin"]["out"].splitlines()
    assert len(printed) == 7 and all(line.startswith("conf/") for line in printed)
    assert sum(main in line for line in printed) == 2 and sum(rows in line for line in printed) == 2


def test_a_second_time_there_is_nothing_to_do(outcomes: dict[str, Any]) -> None:
    for name in ("again", "closed"):
        said = {"status": 0, "out": "pin: everything from the Hub is pinned\n", "err": "", "waits": []}
        assert outcomes[name] == said


def test_check_lists_what_is_open_and_asks_nobody(outcomes: dict[str, Any]) -> None:
    done = outcomes["open"]
    assert (done["status"], done["err"]) == (1, "")
    assert [line.rsplit(": ", 1)[-1] for line in done["out"].splitlines()] == ["uri", *["uri", "sha256"] * 3]
    first = outcomes["hub"].log[0]
    assert "/revision/" in first[1]  # the first request is of `pin`


@pytest.mark.parametrize("word", WRONG)
def test_when_one_cannot_be_pinned_nothing_changes(outcomes: dict[str, Any], word: str) -> None:
    done = outcomes[word]
    assert done["status"] == 2 and done["out"] == ""
    assert word in done["err"].splitlines()[-1] and done["err"].splitlines()[-1].startswith("error: ")
    assert texts(outcomes["root"] / word) == {
        "conf/source/mine/full.yaml": WRONG[word],
        "conf/scale/full.yaml": SCALE,
    }


def test_the_sources_of_the_full_scale_can_be_pinned_and_then_fetched(outcomes: dict[str, Any]) -> None:
    real = outcomes["root"] / "real"
    assert outcomes["pin real"]["status"] == 0, outcomes["pin real"]["err"]
    assert sorted(outcomes["sources"]) == ["coding", "fixes", "preferences"]
    for name in outcomes["sources"]:
        text = (ROOT / f"conf/source/{name}/full.yaml").read_text(encoding="utf-8")
        now = (real / f"conf/source/{name}/full.yaml").read_text(encoding="utf-8")
        kept = re.sub(r"@[^/]+/", "@/", text)
        assert re.sub(r"    sha256: [0-9a-f]{64}\n", "", re.sub(r"@[0-9a-f]{40}/", "@/", now)) == kept
        assert outcomes[f"fetch {name}"]["status"] == 0, outcomes[f"fetch {name}"]["err"]
    counts = {name: len(read_rows(real / f"data/raw/{name}.jsonl")) for name in outcomes["sources"]}
    assert counts == {"coding": 20022, "fixes": 140, "preferences": 4656}
    found = json.loads((real / "data/raw/coding.provenance.json").read_text(encoding="utf-8"))
    assert found["origins"][0]["note"] and found["origins"][0]["licence"] == "CC-BY-4.0"


@pytest.mark.parametrize(
    "path",
    sorted(
        str(path.relative_to(ROOT))
        for glob in ("source/*", "scale")
        for path in ROOT.glob(f"conf/{glob}/*.yaml")
    ),
)
def test_a_file_that_is_read_and_written_is_the_same(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    stream = io.StringIO()
    pin.yaml().dump(pin.read(ROOT / path), stream)
    assert stream.getvalue() == text


def test_what_is_pinned_is_told_by_the_uri(tmp_path: Path) -> None:
    write_yaml(
        tmp_path / "tree.yaml", {"a": [{"uri": "hf:x", "b": {"uri": "hf:y"}}, {"uri": "file:z"}], "uri": 1}
    )
    assert [entry["uri"] for entry in pin.entries(read_yaml(tmp_path / "tree.yaml"))] == ["hf:x", "hf:y"]
