"""What a stage is made of: digests that only a change of meaning changes, and versions of what is used."""

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project, chosen

from stages.common import program
from stages.common.errors import PipelineError
from stages.common.program import Lock, Pin, ProgramParams

CHOSEN = ProgramParams(**chosen("program"))
TREE = program.tree(ROOT)
LOCK = (ROOT / program.LOCK).read_text(encoding="utf-8")
STAGES = program.stages(TREE)


def digest(code: str) -> str:
    return program.scan(code.encode()).digest


# Modules. ----------------------------------------------------------------------------------------------

SAME = [
    ("a = 1", "# says\na  =  1 # more"),
    ("a = f('x')", "a = (\n    f(\n        'x',\n    )\n)\n"),
    ("a = 'x\"y'", 'a = "x\\"y"'),
    ("a = 'xy'", "a = ('x'\n     'y')"),
    ("a = f'{x}b{y}'", "a = f'{x}' 'b' f'{y}'"),
    ("a = f'{x:>{w}}'", "a = f'' f'{x:>{w}}'"),
    ("a = 'é'", "a = '\\u00e9'"),
    ("a = 255", "a = 0XFF"),
    ("a = r'\\d'", "a = '\\\\d'"),
    ("a = 'x'", "a = u'x'"),
    ("def f(): return 1", 'def f():\n    """Doc."""\n    return 1'),
    ("def f(): pass", 'def f():\n    """Doc."""'),
    ("class A:\n    b: int", 'class A:\n    """Doc."""\n\n    b: int\n    """Of b."""\n'),
    ("async def f(): await g()", 'async def f():\n    "Doc."\n    await g()'),
    ("", '"""Doc."""\n'),
    ("def f(a): ...", "def f(a,): pass"),
    ("import a", "import a\nif TYPE_CHECKING:\n    from b import C\n"),
    ("a = 1", "a = 1\nif typing.TYPE_CHECKING:\n    import b"),
    ("a = 1", "if TYPE_CHECKING:\n    from b import C\nelse:\n    a = 1\n"),
    ("for a, b in c: d()", "for (a, b) in c:\n    d()\n"),
    ("a = 1\r\nb = 2\r\n", "a = 1\nb = 2"),
]

OTHER = [
    *(("a = 1", f"a = {value}") for value in ("True", "1.0", "1j", "'1'", "-1")),
    ("a = 0.0", "a = -0.0"),
    ("a = 'x'", "a = b'x'"),
    ("a = None", "a = ..."),
    ("a = 'x' 'y'", "a = 'x' + 'y'"),
    ("a = 'x '", "a = 'x'"),
    ("a = f'{x}'", "a = f'{x!r}'"),
    ("a = f'{x}'", "a = f'{x:>3}'"),
    ("a = f'{x}'", "a = '{x}'"),
    ("a = f'b{x}'", "a = f'{x}b'"),
    ("a = b", "a = c"),
    ("a = b.c", "a = b.d"),
    ("a = b + c", "a = b - c"),
    ("a = b and c", "a = b or c"),
    ("a = b < c", "a = b <= c"),
    ("a = (b)", "a = (b,)"),
    ("a = [b]", "a = {b}"),
    ("a = (b + c) * d", "a = b + c * d"),
    ("a: int", "a: str"),
    ("a: int = 1", "a = 1"),
    ("a: int", "(a): int"),
    ("@b\ndef f(): ...", "def f(): ..."),
    ("@b\n@c\ndef f(): ...", "@c\n@b\ndef f(): ..."),
    ("def f(a): ...", "def f(a: int): ..."),
    ("def f(a): ...", "def f(a) -> int: ..."),
    ("def f(a, b): ...", "def f(a, *, b): ..."),
    ("def f(a, b): ...", "def f(a, /, b): ..."),
    ("def f(*, a, b=1): ...", "def f(*, a=1, b): ..."),
    ("def f(a=1): ...", "def f(a=2): ..."),
    ("def f(): yield a", "def f(): yield from a"),
    ("def f(): ...", "async def f(): ..."),
    ("def f(): 'Doc.'", "def f(): return 'Doc.'"),
    ("class A(b): ...", "class A(b, c=1): ..."),
    ("a = {**b}", "a = {None: b}"),
    ("f(*a)", "f(a)"),
    ("f(a=b)", "f(**{'a': b})"),
    ("import a", "import a as b"),
    ("import a", "from a import b"),
    ("from a import b", "from .a import b"),
    ("a()\nb()", "b()\na()"),
    ("if a:\n    b()\n    c()", "if a:\n    b()\nc()"),
    ("if a:\n    b()", "while a:\n    b()"),
    ("if a:\n    b()\nelse:\n    c()", "if a:\n    c()\nelse:\n    b()"),
    ("if not TYPE_CHECKING:\n    a()", ""),
    ("if TYPE_CHECKING:\n    a()\nelse:\n    b()", ""),
    ("match a:\n    case None: b()", "match a:\n    case True: b()"),
    ("match a:\n    case {'b': c}: d()", "match a:\n    case {'b': c, **e}: d()"),
    ("try: a()\nexcept B: c()", "try: a()\nexcept* B: c()"),
    ("def f():\n    global a\n    a = 1", "def f():\n    nonlocal a\n    a = 1"),
    ("a = lambda: b", "a = lambda c: b"),
    ("a = [b for b in c]", "a = [b for b in c if b]"),
]

GOLDEN = "a144737097c395c2e7dd877466e4bb6a24d6b1a4da1940a3d728e82f0b754116"  # of all these


@pytest.mark.parametrize(("first", "second"), SAME)
def test_comments_docstrings_and_layout_change_no_digest(first: str, second: str) -> None:
    assert first != second
    assert digest(first) == digest(second)


@pytest.mark.parametrize(("first", "second"), OTHER)
def test_another_meaning_is_another_digest(first: str, second: str) -> None:
    assert digest(first) != digest(second)


def test_every_version_of_python_gives_the_same_digest() -> None:
    """Seen with 3.11 and 3.12; they cut f-strings differently, and know other characters to be printable."""
    code = [part for pair in (*SAME, *OTHER) for part in pair]
    code += ["a = f'{x:>{w}}{y=}' 'c'", "a = f'{{{x!r:{w}.{p}}}}'", "a = '\U0001fae8\u0378'"]
    text = "".join(map(digest, code))
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


def test_another_formatter_changes_no_digest(tmp_path: Path) -> None:
    there = {path: file for found in TREE.values() for path, file in found.items() if path.endswith(".py")}
    for path, file in there.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(file.read_bytes())
    options = ["--isolated", "--no-cache", "--target-version=py311", "--line-length=50"]
    options += ["--config=format.quote-style='single'", "--config=format.skip-magic-trailing-comma=true"]
    ruff = Path(sys.executable).with_name("ruff")
    subprocess.run([ruff, "format", "-q", *options, tmp_path], check=True)
    assert sum((tmp_path / path).read_bytes() != file.read_bytes() for path, file in there.items()) > 60
    for path, file in there.items():
        assert program.read(tmp_path / path).digest == program.read(file).digest, path


def test_imports_are_seen_wherever_they_stand() -> None:
    code = (
        "import a.b, c as d\nfrom e import f, g as h\nif TYPE_CHECKING:\n    import i\nelse:\n    import j\n"
        "def late():\n    try:\n        from k.l import m\n    except ImportError:\n        import n\n"
        "from . import o\nfrom .p import q\nw = lambda: __import__('r')\n"
    )
    found = program.scan(code.encode())
    names = {"a.b", "c", "e", "e.f", "e.g", "j", "k.l", "k.l.m", "n", ".", "..o", ".p", ".p.q"}
    assert found.imports == names
    assert found.texts == {"r"}


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def small(root: Path) -> program.Tree:
    """Two stages: `one` uses b through a, `two` nothing."""
    write(root, stages__one="from stages.common import a\n", stages__two="", stages__program="")
    write(root, stages__common__a="def late():\n    from stages.common.b import name\n")
    write(root, stages__common__b="import stages.common.a\n", stages__common__c="")
    for name in ("__init__", "common/__init__"):
        (root / f"stages/{name}.py").write_text("", encoding="utf-8")
    (root / "stages/one.html").write_text("<p>", encoding="utf-8")
    (root / "stages/__pycache__").mkdir()
    (root / "stages/__pycache__/one.cpython-311.pyc").write_bytes(b"")
    (root / "stages/.one.py.swp").write_bytes(b"")
    return program.tree(root)


def test_a_program_is_what_a_stage_reaches(tmp_path: Path) -> None:
    there = small(tmp_path)
    assert program.stages(there) == ["one", "two"]
    around = ["stages/__init__.py", "stages/common/__init__.py"]
    one = ["stages/common/a.py", "stages/common/b.py", "stages/one.html", "stages/one.py"]
    assert sorted(program.reached("stages.one", there)) == sorted([*around, *one])
    assert sorted(program.reached("stages.two", there)) == ["stages/__init__.py", "stages/two.py"]
    spared = program.reached("stages.one", there, ["stages.common.b"])
    assert sorted(spared) == sorted({*around, *one} - {"stages/common/b.py"})


def test_a_changed_file_changes_the_programs_of_its_users_alone(tmp_path: Path) -> None:
    lock, nothing = Lock({}, {}), ProgramParams([], {}, {})
    there = small(tmp_path)
    before = {stage: program.described(stage, nothing, there, lock) for stage in ("one", "two")}
    expected = {"stages/one.html": {"one"}, "stages/common/b.py": {"one"}, "stages/common/c.py": set()}
    expected |= {"stages/two.py": {"two"}, "stages/__init__.py": {"one", "two"}}
    for path, users in expected.items():
        kept = (tmp_path / path).read_bytes()
        for added, touched in ((b"a = 1\n", users), (b"# a\n", {"one"} if path.endswith("html") else set())):
            (tmp_path / path).write_bytes(kept + added)
            after = {stage: program.described(stage, nothing, there, lock) for stage in before}
            assert {stage for stage in before if before[stage] != after[stage]} == touched, path
        (tmp_path / path).write_bytes(kept)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("a = (", r".*one\.py:1: '\(' was never closed; expected Python"),
        (
            "import sklearn.svm",
            r"stages/one\.py: imports sklearn\.svm; expected .* by that name, or program\.imports",
        ),
        ("from . import b", r"stages/one\.py: imports \.; expected .*"),
    ],
)
def test_what_cannot_be_described_is_said(code: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, stages__one=code)
    with pytest.raises(PipelineError, match=message):
        program.described("one", ProgramParams([], {}, {}), program.tree(tmp_path), Lock({}, {}))


# Packages. ---------------------------------------------------------------------------------------------


def test_the_lock_is_read_with_its_edges_and_its_markers() -> None:
    found = program.parsed(LOCK)
    assert set(found.pins) == set(re.findall(r"^([a-z0-9-]+)==", LOCK, re.MULTILINE))
    assert found.needs["trl"] >= {"accelerate", "datasets", "transformers"}
    assert found.needs["jinja2"] == {"markupsafe"}
    assert set().union(*found.needs.values()) <= set(found.pins)
    assert [bool(one.marker) for one in found.pins["numpy"]] == [True, True]
    with pytest.raises(PipelineError, match=r"requirements\.lock:2: b>=2; expected name==version"):
        program.parsed("a==1\nb>=2\n")


def pin(name: str, version: str = "1.0", marker: str = "") -> Pin:
    return Pin(name, version, marker, ())


def test_a_package_is_found_by_imports_and_by_texts() -> None:
    lock = Lock({name: [pin(name)] for name in ("ruamel-yaml", "a-b", "c", "d", "d-e")}, {})
    code = (
        "import os, stages.common\nfrom ruamel.yaml import YAML\nimport a_b.x\nimport d.e\nf('c', 'D', 'd e')"
    )
    found = program.packages(program.scan(code.encode()), "one.py", lock, {})
    assert found == {"ruamel-yaml", "a-b", "c", "d", "d-e"}
    found = program.packages(program.scan(b"import yaml.x, y"), "one.py", lock, {"yaml": "c", "y": None})
    assert found == {"c"}


def test_harmless_packages_and_what_only_they_need_are_left_out() -> None:
    needs = {"a": {"b", "c"}, "b": {"d"}, "c": {"d", "e"}, "d": set(), "e": {"a"}}
    assert program.closure({"a"}, needs, []) == set("abcde")
    assert program.closure({"a"}, needs, ["c"]) == set("abd")
    assert program.closure({"a", "e"}, needs, ["a"]) == {"e"}


def test_a_version_that_depends_on_the_python_is_told_for_all() -> None:
    assert program.version([pin("a", "1", "x")]) == "1"
    assert program.version([pin("a", "1", "x"), pin("a", "2", "y")]) == "1 (x), 2 (y)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"harmless": ["tqmd"]},
        {"brings": {"tqmd": []}},
        {"brings": {"trl": ["tqmd"]}},
        {"imports": {"a": "tqmd"}},
    ],
)
def test_packages_in_the_parameters_must_exist(wrong: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=r"^program: tqmd; expected a package .*\(params\.yaml\)"):
        program.described("mix", replace(CHOSEN, **wrong), TREE, program.parsed(LOCK))


PARSING = {"filter", "score"}
TRAINING = {"preflight", "train"}
MODELS = {"base", "export", "generate", "publish", *TRAINING}
PINS = [
    ("pytest ruff mypy dvc tqdm wandb tensorboard celery rich", set()),
    ("trl datasets dvclive liger-kernel pandas", TRAINING),
    ("torch transformers accelerate gguf nvidia-cudnn-cu13", MODELS),
    ("peft bitsandbytes", {"export", "publish", *TRAINING}),
    ("tree-sitter tree-sitter-python tree-sitter-c-sharp", PARSING),
    ("bandit detect-secrets stevedore", {"filter"}),
    ("rensa", {"filter", "mix"}),
    ("pyarrow", {"fetch", *TRAINING}),
    ("pydantic-core", set(STAGES)),
]


@pytest.mark.parametrize(
    ("name", "users"), [(name, users) for names, users in PINS for name in names.split()]
)
def test_a_changed_pin_changes_the_programs_that_use_the_package(name: str, users: set[str]) -> None:
    other = program.parsed(re.sub(f"(?m)^{name}==[^ ]+", f"{name}==0.0.1", LOCK))
    assert other != program.parsed(LOCK)
    programs = [
        {stage: program.described(stage, CHOSEN, TREE, lock) for stage in STAGES}
        for lock in (program.parsed(LOCK), other)
    ]
    assert {stage for stage in STAGES if programs[0][stage] != programs[1][stage]} == users


def test_an_installed_version_must_be_the_locked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"python_version == '{sys.version_info[0]}.{sys.version_info[1]}'"
    entries = [pin("a", "1.0", "python_version < '3'"), pin("a", "2.0", here)]
    lock = Lock({"a": entries, "b": [pin("b")]}, {})

    def check(**versions: str) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        program.check_installed(["b", "a"], lock)

    check()
    check(a="2.0", b="1.0+cpu")
    with pytest.raises(
        PipelineError, match=r"^a: 1\.0 installed; expected 2\.0 \(requirements\.lock; run make"
    ):
        check(a="1.0", b="1.1")
    with pytest.raises(PipelineError, match=r"^b: 1\.0\.1 installed; expected 1\.0 "):
        check(b="1.0.1")


# The stage. --------------------------------------------------------------------------------------------


def test_the_stage_writes_one_file_a_stage(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.params()
    project.run("program")
    written = {name: json.loads(text) for name, text in project.files().items() if name != "params.yaml"}
    assert sorted(written) == [f"programs/{stage}.json" for stage in STAGES]
    assert re.fullmatch(r"program: \d+ stages, \d+ packages\n", capsys.readouterr().out)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        assert written["programs/train.json"] == program.describe("train")
    again = project.files()
    project.run("program")
    assert project.files() == again


def test_the_stage_stops_at_another_installed_version(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        return {"transformers": "0.1"}.get(name, original(name))

    original = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    project.params()
    before: Any = project.files()
    assert project.command("program") == 2
    (pin,) = program.parsed(LOCK).pins["transformers"]
    said = f"error: transformers: 0.1 installed; expected {pin.version} (requirements.lock; run make setup)\n"
    assert capsys.readouterr().err == said
    assert project.files() == before
