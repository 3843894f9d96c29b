"""Whatever a stage does beside what dvc.yaml names is found and named; what is its own passes."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, tiny_tokenizer, watched_or_skipped, write_yaml

from tools import hermetic, watching
from tools.hermetic import Places, Stage


@pytest.fixture(autouse=True, scope="module")
def _watched() -> None:
    watched_or_skipped()


def run(root: Path, command: str, stage: str = "work") -> tuple[int, hermetic.Doings, Places]:
    """Run a shell command as DVC runs that of a stage; returns its status, what it did, and where."""
    scratch = root.parent
    shutil.rmtree(scratch / "temporary", ignore_errors=True)
    (scratch / hermetic.LOG).unlink(missing_ok=True)
    environment, places = hermetic.watched(root, scratch, dict(os.environ))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment |= {"DVC_STAGE": stage, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    status = subprocess.run([environment["SHELL"], "-c", command], cwd=root, env=environment).returncode
    return status, hermetic.noted(scratch / hermetic.LOG), places


def declared(root: Path, name: str = "work") -> Stage:
    return Stage(name, frozenset({str(root / "dep.txt")}), frozenset({str(root / "out/made.txt")}))


def found(root: Path, command: str, stage: str = "work") -> set[tuple[str, str]]:
    """What a stage with one dep and one out does beside: what, and the name, below the project's folder."""
    status, did, places = run(root, command, stage)
    assert status == 0
    broken = hermetic.violations(declared(root, stage), did[stage], places)
    return {(each.what, each.name.removeprefix(f"{root}/")) for each in broken}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project's folder with files that a stage names, and others."""
    place = (tmp_path / "project").resolve()
    for name in ("dep.txt", "other.txt", "folder/inner.txt", "out/other_stage.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("text\n", encoding="utf-8")
    (place / "link").symlink_to("folder")
    (tmp_path / "outside.txt").write_text("text\n", encoding="utf-8")
    return place


PYTHON = "python -c '{}'"
DOINGS = {
    "Python reads": (PYTHON.format('open("other.txt")'), {("reads", "other.txt")}),
    "Python reads by a folder's descriptor": (
        PYTHON.format('import os; os.open("inner.txt", 0, dir_fd=os.open("folder", 0))'),
        {("lists", "folder"), ("reads", "folder/inner.txt")},
    ),
    "another program reads": ("cat other.txt > out/made.txt", {("reads", "other.txt")}),
    "a program of a program reads": ("sh -c 'sh -c \"cat other.txt; true\"'", {("reads", "other.txt")}),
    "it reads what another stage makes": ("cat out/other_stage.txt", {("reads", "out/other_stage.txt")}),
    "it reads through a link": ("cat link/inner.txt", {("reads", "folder/inner.txt")}),
    "it reads by way of ..": ("cat folder/../other.txt", {("reads", "other.txt")}),
    "it reads from another folder": ("cd folder; cat inner.txt", {("reads", "folder/inner.txt")}),
    "it reads what begins like a dep": (
        "cp other.txt dep.txt.old; cat dep.txt.old; rm dep.txt.old",
        {
            ("reads", "other.txt"),
            *((what, "dep.txt.old") for what in ("makes", "reads", "removes")),
        },
    ),
    "it lists a folder": (PYTHON.format('import os; os.listdir("folder")'), {("lists", "folder")}),
    "it executes a file": ("cp /bin/true out/made.txt; cp out/made.txt x; ./x; rm x", None),
    "it writes a new file": ("echo text > stray.txt", {("makes", "stray.txt")}),
    "it writes another stage's file": (
        "echo text > out/other_stage.txt",
        {("writes", "out/other_stage.txt")},
    ),
    "it appends to a dep": ("echo text >> dep.txt", {("writes", "dep.txt")}),
    "it writes into a file": (
        PYTHON.format('open("other.txt", "r+").write("more")'),
        {("writes", "other.txt")},
    ),
    "it removes": ("rm other.txt", {("removes", "other.txt")}),
    "it removes beside its out": ("rm out/other_stage.txt", {("removes", "out/other_stage.txt")}),
    "it renames": ("mv other.txt third.txt", {("removes", "other.txt"), ("makes", "third.txt")}),
    "it makes a folder": ("mkdir new", {("makes", "new")}),
    "it removes a folder that it made": ("mkdir new; rmdir new", {("makes", "new"), ("removes", "new")}),
    "it makes a symbolic link": ("ln -s dep.txt new", {("makes", "new")}),
    "it makes a hard link": ("ln other.txt out/made.txt", {("reads", "other.txt")}),
    "it changes a mode": ("chmod 600 other.txt", {("writes", "other.txt")}),
    "it changes a time": ("touch -c other.txt", {("writes", "other.txt")}),
    "it truncates": (PYTHON.format('import os; os.truncate("other.txt", 0)'), {("writes", "other.txt")}),
    "it leaves a file beside its out": ("echo text > out/more.txt", {("makes", "out/more.txt")}),
    "it leaves a process": ("sleep 4 &", {("leaves", "a process that runs on")}),
}


@pytest.mark.parametrize(("command", "expected"), DOINGS.values(), ids=DOINGS)
def test_what_dvc_yaml_does_not_name_is_found(
    command: str, expected: set[tuple[str, str]] | None, root: Path
) -> None:
    if expected is None:
        assert ("runs", "x") in found(root, command)
    else:
        assert found(root, command) == expected


def test_native_readers_are_seen(root: Path) -> None:
    """Rust, C and another interpreter, none of which tells Python's audit hook what it opens."""
    import sqlite3

    tiny_tokenizer().backend_tokenizer.save(str(root / "tokenizer.json"))
    with sqlite3.connect(root / "table.db") as database:
        database.execute("create table t (x)")
    code = 'import sqlite3, tokenizers; tokenizers.Tokenizer.from_file("tokenizer.json")'
    code += '; sqlite3.connect("table.db").execute("select * from t")'
    seen = found(root, PYTHON.format(code))
    assert {("reads", "tokenizer.json"), ("reads", "table.db")} <= seen
    if shutil.which("node"):
        command = """node -e 'require("fs").readFileSync("other.txt")'"""
        assert ("reads", "other.txt") in found(root, command)


def test_files_outside_the_project_are_seen(root: Path) -> None:
    outside = root.parent / "outside.txt"
    assert found(root, f"cat {outside}; echo > {outside}") == {
        ("reads", str(outside)),
        ("writes", str(outside)),
    }


def test_fetch_reads_the_origins_that_params_name_wherever_they_lie(root: Path) -> None:
    outside = root.parent / "outside.txt"
    assert found(root, f"cat {outside} other.txt", "fetch@x") == {("reads", "other.txt")}


@pytest.fixture
def server() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=lambda: listening.accept(), daemon=True).start()
        yield listening.getsockname()[1]


def test_every_way_to_the_network_is_seen_and_only_two_stages_may_go_it(root: Path, server: int) -> None:
    near = f'("127.0.0.1", {server})'
    ways = {
        "stream": f"socket.create_connection({near})",
        "datagram": f'socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", {near})',
        "message": f'socket.socket(type=socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, {near})',
    }
    for way in ways.values():
        command = PYTHON.format(f"import socket; {way}")
        assert found(root, command) == {("connects", f"127.0.0.1:{server}")}
        assert found(root, command, "base") == set()
    bind = PYTHON.format('import socket; [socket.create_server(("", port)) for port in (0, 45678)]')
    assert found(root, bind) == {("binds", "0.0.0.0:45678")}


def test_a_stage_that_keeps_to_its_own_passes(root: Path) -> None:
    code = """
import os, tempfile
os.makedirs("out")
text = open("dep.txt", "r+").read() + open("params.yaml").read()
with tempfile.TemporaryFile(dir="out") as first, tempfile.NamedTemporaryFile() as second:
    second.write(text.encode())
os.makedirs("out", exist_ok=True)
open("out/.made.txt.part", "w").write(text)
os.rename("out/.made.txt.part", "out/made.txt")
open(os.devnull, "w").write(open("out/made.txt").read())
os.listdir("out"), os.path.exists("other.txt")
"""
    (root / "params.yaml").write_text("x: 1\n", encoding="utf-8")
    shutil.rmtree(root / "out")
    assert found(root, PYTHON.format(code)) == set()
    assert (root / "out/made.txt").is_file()


def test_a_file_that_is_not_there_is_only_looked_for(root: Path) -> None:
    as_torch_does = "cublas/lib nvidia glibc-hwcaps/x86-64-v4/libcuda.so.1 libcuda.so.1"
    _, did, places = run(root, f"cat absent.txt {as_torch_does} dep.txt out/made.txt")
    assert hermetic.violations(declared(root), did["work"], places) == []
    assert hermetic.sought(declared(root), did["work"], places) == [str(root / "absent.txt")]
    assert hermetic.idle(declared(root), {"reads": {str(root / "dep.txt")}}) == [str(root / "out/made.txt")]


def test_ways_past_the_filter_are_closed(root: Path) -> None:
    code = "import ctypes; call = ctypes.CDLL(None, use_errno=True).syscall; "
    code += "print([(call(number, 0, 0, 0), ctypes.get_errno()) for number in (425, 304, 0x40000000 | 2)])"
    environment, _ = hermetic.watched(root, root.parent, dict(os.environ))
    command = [environment["SHELL"], "-c", PYTHON.format(code)]
    done = subprocess.run(command, env=environment | {"DVC_STAGE": "x"}, capture_output=True, text=True)
    assert done.stdout == "[(-1, 38), (-1, 1), (-1, 38)]\n"


@pytest.mark.parametrize(("command", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("true", 0)])
def test_the_status_of_the_command_is_passed_on(command: str, status: int, root: Path) -> None:
    assert run(root, command)[0] == status


def test_two_listeners_cannot_be_and_it_is_said(root: Path) -> None:
    environment, _ = hermetic.watched(root, root.parent, dict(os.environ))
    names = (watching.LOG, watching.ROOT)
    given = " ".join([*(f"{name}={environment[name]}" for name in names), "DVC_STAGE=y"])
    shell = environment["SHELL"]
    done = subprocess.run(
        [shell, "-c", f"{given} {shell} -c true"],
        env=environment | {"DVC_STAGE": "x"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: hermetic: [Errno 16] seccomp listener: Device or resource busy; expected"
    )


def test_modules_are_named_by_a_program_file(root: Path) -> None:
    (root / "stages").mkdir()
    for name, text in (("work", "import stages.own"), ("own", ""), ("harmless", ""), ("strange", "")):
        (root / f"stages/{name}.py").write_text(text, encoding="utf-8")
    chosen = {"harmless": ["stages.harmless"], "brings": {}, "imports": {}}
    write_yaml(root / "params.yaml", {"program": chosen})
    stage = Stage("work", frozenset({str(root / "programs/work.json")}), frozenset())
    own = {str(root / f"stages/__pycache__/{name}.cpython-311.pyc") for name in ("own", "strange")}
    done = {"reads": {*own, str(root / "stages/harmless.py"), str(root / "requirements.lock")}}
    broken = hermetic.violations(stage, done, Places(str(root), frozenset()))
    assert [Path(each.name).name for each in broken] == ["strange.cpython-311.pyc"]


def test_packages_that_were_loaded_are_told_by_their_files() -> None:
    place = sorted(hermetic.PACKAGES)[0]
    read = (
        "torch/__init__.py",
        "torch/nn/__pycache__/modules.cpython-311.pyc",
        "six.py",
        "a.dist-info/x.txt",
    )
    names = hermetic.imports({"reads": {f"{place}/{name}" for name in read} | {"/etc/hosts.py"}})
    assert names == {"torch", "torch.nn.modules", "six"}


PIPELINE = """
stages:
  good:
    cmd: cat dep.txt > good.txt
    deps: [dep.txt]
    outs: [good.txt]
  bad:
    cmd: cat good.txt dep.txt other.txt > bad.txt
    deps: [good.txt]
    outs: [bad.txt]
  broken:
    cmd: cat dep.txt nothing
    deps: [dep.txt, other.txt]
"""


def test_stages_are_tried_in_a_copy_and_each_violation_is_told(root: Path) -> None:
    (root / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_SITE_CACHE_DIR": str(root.parent / "site")}

    def command(*names: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "tools.hermetic", *names],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    for name in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(name, cwd=root, env=environment, check=True)
    before = sorted(path.name for path in root.iterdir())
    status, said, _ = command("bad", "good")
    assert status == 1
    assert "hermetic: 1 of 2: good\nhermetic: 2 of 2: bad\n" in said
    for name in ("dep.txt", "other.txt"):
        assert f"bad reads {name}; expected it among the stage's deps (dvc.yaml)\n" in said
    assert said.endswith("hermetic: 2 stages, 2 violations (mend dvc.yaml or the stage)\n")
    assert sorted(path.name for path in root.iterdir()) == before, "it runs in a copy"
    assert command("good")[0] == 0
    missing = "error: good.txt: not found; expected what an earlier stage makes (make repro, dvc pull)\n"
    assert command("bad") == (2, "", missing)
    assert command("worse")[2].startswith("error: worse: no such stage; expected one of bad, broken, good")
    status, said, wrong = command("broken")
    assert status == 2 and "note: broken looks for nothing, which is no dep" in said
    assert "does not touch" not in said
    assert "nothing: No such file" in wrong and wrong.endswith("expected 0 (it says why above)\n")
