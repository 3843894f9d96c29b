"""What a stage is made of: its modules by what they say, its packages by their versions.

A module's digest is that of its syntax tree, written down in a form of our own: comments, docstrings and
layout are not in it, and Python 3.11 and 3.12 give the same. Everything is found without running anything:
imports in functions count, those for type checkers alone do not, and a text that names a locked package is
taken for its import, since import_module and find_spec are called with such. A file beside a module that has
its name (report.html, javascript.js) belongs to it, byte by byte. Versions, and which package needs which,
are read from requirements.lock: whatever is installed, and wherever, two clones of a commit say the same.
"""

import ast
import gc
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from stages.common import files
from stages.common.errors import PipelineError
from stages.common.params import load, params

ROOT = Path(__file__).parents[2]
LOCK = "requirements.lock"
LOCAL = "stages"  # the one package of ours

Tree = Mapping[str, Mapping[str, Path]]  # the files of a module, by its dotted name and by their path in git


@params
class ProgramParams:
    """What neither the code nor the lock says."""

    harmless: list[str]  # locked packages, and modules of ours, that cannot change what a stage writes
    brings: dict[str, list[str]]  # locked packages that another imports where they are installed
    imports: dict[str, str | None]  # import to package where they differ; None for one beside the lock


@dataclass(frozen=True)
class Pin:
    """An entry of a lock."""

    name: str  # in canonical form: lower case, dashes
    version: str
    marker: str  # where it holds, as in PEP 508; "" for everywhere
    hashes: tuple[str, ...]  # "sha256:..." of the files that pip may take


@dataclass(frozen=True)
class Lock:
    """The packages of a lock by name: their pins, and the packages that each needs."""

    pins: Mapping[str, list[Pin]]
    needs: Mapping[str, set[str]]


@dataclass(frozen=True)
class Source:
    """What a module says."""

    digest: str  # SHA-256, in hexadecimal
    imports: frozenset[str]  # dotted; `from a import b` gives a and a.b, since b may be a module
    texts: frozenset[str]


def describe(stage: str) -> files.Row:
    """What programs/<stage>.json should hold now: digests of `modules`, versions of `packages`."""
    return described(stage, load("program", ProgramParams), tree(ROOT), lock(ROOT))


def described(stage: str, chosen: ProgramParams, there: Tree, locked: Lock) -> files.Row:
    """The same from these parameters, files and pins.

    Raises PipelineError for an import whose package is not known, and for parameters that name no package.
    """
    named = [*chosen.brings, *chain(*chosen.brings.values()), *filter(None, chosen.imports.values())]
    for name in [*(name for name in chosen.harmless if name not in there), *named]:
        if name not in locked.pins:
            raise PipelineError(f"program: {name}; expected a package of {LOCK} (params.yaml)")
    modules: dict[str, str] = {}
    wanted: set[str] = set()
    for path, file in sorted(reached(f"{LOCAL}.{stage}", there, chosen.harmless).items()):
        if file.suffix == ".py":
            source = read(file)
            modules[path] = source.digest
            wanted |= packages(source, path, locked, chosen.imports)
        else:
            modules[path] = files.sha256(file)
    needs = {name: [*locked.needs.get(name, ()), *chosen.brings.get(name, ())] for name in locked.pins}
    needed = closure(wanted, needs, chosen.harmless)
    return {"modules": modules, "packages": {name: version(locked.pins[name]) for name in sorted(needed)}}


# Modules. -----------------------------------------------------------------------------------------------


def tree(root: Path) -> Tree:
    """Every module of ours under `root` with its files; a package is its __init__.py."""
    found: dict[str, dict[str, Path]] = {}
    for file in (root / LOCAL).rglob("*"):
        path = file.relative_to(root)
        if file.is_file() and file.suffix != ".pyc" and not file.name.startswith("."):
            name = ".".join(path.parent.parts if file.stem == "__init__" else path.with_suffix("").parts)
            found.setdefault(name, {})[path.as_posix()] = file
    return found


def stages(there: Tree) -> list[str]:
    """The stages that have a program: all but the one that writes them down."""
    paths = (Path(path) for found in there.values() for path in found)
    names = {path.stem for path in paths if path.parent == Path(LOCAL) and path.suffix == ".py"}
    return sorted(names - {"__init__", "program"})


def reached(module: str, there: Tree, harmless: Iterable[str] = ()) -> dict[str, Path]:
    """The files of a module and of all modules that it imports, directly or not, by path."""
    found: dict[str, Path] = {}
    seen = set(harmless)
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += [name.rpartition(".")[0]]  # importing a module runs the packages that it lies in
        for path, file in there.get(name, {}).items():
            found[path] = file
            waiting += read(file).imports if file.suffix == ".py" else ()
    return found


def read(file: Path) -> Source:
    """What the module in a file says; raises PipelineError where it is no Python."""
    return scan(file.read_bytes(), file.as_posix())


@cache
def scan(code: bytes, where: str = "<code>") -> Source:
    """The digest, the imports and the texts of a module.

    >>> scan(b"a = f('x')  # comment").digest == scan(b'\"\"\"Doc.\"\"\"\\na = f(\\n    "x",\\n)').digest
    True
    >>> scan(b"a = 1").digest == scan(b"a = True").digest
    False
    """
    told: list[str] = []
    imports: set[str] = set()
    texts: set[str] = set()
    with _uncollected():
        try:
            _tell(ast.parse(code), told.append, imports, texts)
        except SyntaxError as error:
            raise PipelineError(f"{where}:{error.lineno}: {error.msg}; expected Python") from None
    return Source(hashlib.sha256("\n".join(told).encode()).hexdigest(), frozenset(imports), frozenset(texts))


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage meanwhile: a syntax tree has none, and many objects (half of the time)."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _tell(node: Any, say: Callable[[str], None], imports: set[str], texts: set[str]) -> None:
    """Write a node down: its class, its fields that are not empty, by name, and an end.

    Left out are positions, what follows from the place (`ctx`) and what is only spelling (`kind`). It is
    ascii() and not repr(), whose escapes depend on Python's version of Unicode.
    """
    kind = node.__class__
    say(kind.__name__)
    if kind is ast.Constant:
        say(ascii(node.value))
        if node.value.__class__ is str:
            texts.add(node.value)
        return
    if kind is ast.Import:
        imports.update(alias.name for alias in node.names)
    elif kind is ast.ImportFrom:
        module = "." * node.level + (node.module or "")
        imports.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    for name in kind._fields:
        value = getattr(node, name, None)
        if value.__class__ is list:
            if kind is ast.JoinedStr:
                value = list(_joined(value))
            elif name in _BLOCKS:
                value = list(_run(value))
            if value:
                say(name)
                say("[")
                for part in value:
                    _tell(part, say, imports, texts) if isinstance(part, ast.AST) else say(ascii(part))
                say("]")
        elif value is not None and name != "ctx":
            say(name)
            _tell(value, say, imports, texts) if isinstance(value, ast.AST) else say(ascii(value))
    say(")")


_BLOCKS = ("body", "orelse", "finalbody")


def _run(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that do something: no docstring, `...` or `pass`, nothing for type checkers alone."""
    for statement in statements:
        if isinstance(statement, ast.If) and _for_types(statement.test):
            yield from _run(statement.orelse)
        elif not isinstance(statement, ast.Pass) and not (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        ):
            yield statement


def _for_types(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _joined(parts: list[Any]) -> Iterator[Any]:
    """The parts of an f-string, texts side by side as one: versions of Python cut them differently."""
    for constant, group in groupby(parts, lambda part: isinstance(part, ast.Constant)):
        if not constant:
            yield from group
        elif text := "".join(part.value for part in group):
            yield ast.Constant(text)


# Packages. ----------------------------------------------------------------------------------------------


def lock(root: Path) -> Lock:
    """The lock of the project under `root`."""
    return parsed(files.read_text(root / LOCK))


PIN = re.compile(r"([a-z0-9-]+)==([^\s;,]+)(?: ; (.+?))?(?: \\)?")
HASH = re.compile(r"    --hash=(sha256:[0-9a-f]{64})(?: \\)?")


@cache
def parsed(text: str, where: str = LOCK) -> Lock:
    """What `uv pip compile` writes: pins, and below each its hashes and the packages that it is there for.

    >>> found = parsed("a==1\\nb==2 ; python_version < '3.12'\\n    # via\\n    #   -r in\\n    #   a\\n")
    >>> found.pins["b"], found.needs
    ([Pin(name='b', version='2', marker="python_version < '3.12'", hashes=())], {'a': {'b'}})

    Raises PipelineError on a line that is neither.
    """
    entries: list[tuple[re.Match[str], list[str]]] = []  # and the hashes of each
    needs: dict[str, set[str]] = {}
    name = ""
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("    # "):
            user = line.removeprefix("    # ").removeprefix("via").strip()
            if user and not user.startswith("-"):
                needs.setdefault(user, set()).add(name)
        elif entries and (match := HASH.fullmatch(line)):
            entries[-1][1].append(match[1])
        elif line and not line.startswith("#"):
            if not (match := PIN.fullmatch(line)):
                raise PipelineError(f"{where}:{number}: {line[:60]}; expected name==version (run make lock)")
            name = match[1]
            entries.append((match, []))
    pins: dict[str, list[Pin]] = {}
    for match, hashes in entries:
        pins.setdefault(match[1], []).append(Pin(match[1], match[2], match[3] or "", tuple(hashes)))
    return Lock(pins, needs)


def packages(source: Source, path: str, locked: Lock, imports: Mapping[str, str | None]) -> set[str]:
    """The locked packages that a module names; raises PipelineError for an import of which none is known."""
    found = {normal(text) for text in source.texts if re.fullmatch(r"[a-z0-9_.-]+", text)}
    for name in sorted(source.imports):
        parts = name.split(".")
        if parts[0] == LOCAL or parts[0] in sys.stdlib_module_names:
            continue
        known = imports.get(parts[0], "")
        given = {normal(".".join(parts[:end])) for end in range(1, len(parts) + 1)}  # ruamel.yaml is one
        given = {known} if known else given & set(locked.pins)
        if not given and known is not None:
            raise PipelineError(
                f"{path}: imports {name}; expected a package of {LOCK} by that name, or program.imports to "
                f"say which it is: {{{parts[0]}: package}} (params.yaml)"
            )
        found |= given
    return found & set(locked.pins)


def normal(name: str) -> str:
    """A package's name as the lock writes it: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: Iterable[str], needs: Mapping[str, Iterable[str]], harmless: Iterable[str]) -> set[str]:
    """These packages and all that they need, but for the harmless ones and what only these need."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in harmless:
            found.add(name)
            waiting += needs[name]
    return found


def version(pins: list[Pin]) -> str:
    """One version, or, where it depends on the Python, all of them: the same text on every machine."""
    return pins[0].version if len(pins) == 1 else ", ".join(f"{pin.version} ({pin.marker})" for pin in pins)


def check_installed(names: Iterable[str], locked: Lock) -> None:
    """Raise PipelineError for an installed package that is not of the locked version; `+cpu` is no other."""
    import importlib.metadata

    from packaging.markers import Marker

    for name in sorted(names):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or a GPU
        here = [pin.version for pin in locked.pins[name] if not pin.marker or Marker(pin.marker).evaluate()]
        if here and found != here[0] and found.partition("+")[0] != here[0]:
            raise PipelineError(f"{name}: {found} installed; expected {here[0]} ({LOCK}; run make setup)")
