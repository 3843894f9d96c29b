"""Corruption is found before use, and `dvc.lock` tells the truth: what DVC leaves open, around every stage.

DVC believes a file whose size and times are as they were, and it records a stage's dependencies as they are
*after* its command. So, where DVC runs a stage (it says which in DVC_STAGE), `stages.common.errors.run`

- hashes, before `main`, every dependency that another stage wrote, and compares it with what dvc.lock says of
  that output; DVC writes dvc.lock after each stage, so it is current;
- compares the stage's code with programs/<stage>.json, on which it depends;
- finds, after `main`, whether a dependency, a module or a parameter of the stage changed while it ran; if so
  the stage fails, and DVC records nothing. (Comments and layout of modules may change.)

Whoever runs a stage by hand is not hindered. What is not there is not judged: the stage says what it misses.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common.errors import PipelineError

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
PARAMS = Path("params.yaml")
IGNORED = Path(".dvcignore")

STAGE = "DVC_STAGE"  # set by dvc/stage/run.py: the stage's name, behind its file's where that is elsewhere
MEMBER = "LOCAL_RANK"  # one of the processes of a training: who started them has checked

USUAL = Path(".dvc/cache")
OBJECTS = "files/md5"  # in the cache's folder: what DVC 3 names by the md5 of its bytes
FOLDER = ".dir"  # the end of a folder's md5

CURE = "python -m tools.verify --mend"  # not `dvc repro -f`, which would bring a damaged object back
AGAIN = "dvc repro runs the stage again; or put it back and run dvc commit -f"

PROGRAM = re.compile(r"programs/(\w+)\.json")  # written by the stage `program`

Mark = tuple[int, ...]  # of a file: it has not been written to while this stays the same


@dataclass(frozen=True)
class Out:
    """An output as dvc.lock has it."""

    path: str
    md5: str  # of its bytes; that of a folder is the md5 of the list of its files, and ends in .dir
    stage: str


@dataclass(frozen=True)
class Inputs:
    """What dvc.yaml says that a stage reads."""

    deps: tuple[str, ...]
    params: tuple[str, ...]  # dotted groups of params.yaml


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was recorded."""

    path: str
    found: str
    expected: str
    stage: str  # that wrote it

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; expected {self.expected}, as {self.stage} wrote it"


# What DVC's files say. ----------------------------------------------------------------------------------


def parse(path: Path) -> dict[str, Any]:
    """A mapping out of a YAML file whose scalars stay text; an empty one where there is no file.

    By libyaml: it reads a dvc.lock of 2,000 lines in 0.02 s, ruamel.yaml in 0.28 s (two cores, 2026-11).
    """
    import yaml

    if not path.exists():
        return {}
    try:
        value = yaml.load(path.read_bytes(), yaml.CBaseLoader)  # noqa: S506 - it makes text, lists and mappings
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise PipelineError(f"{path}: {type(value).__name__}; expected a mapping")
    return value


def lookup(dotted: str, values: object) -> object:
    """A value by its dotted name; None where there is none."""
    for part in dotted.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def filled(text: str, values: Mapping[str, Any]) -> str:
    """A line of dvc.yaml with its `${...}` replaced.

    >>> filled("data/${key}.jsonl", {"key": "coding"})
    'data/coding.jsonl'
    """

    def value(match: re.Match[str]) -> str:
        found = lookup(match[1], values)
        if found is None or isinstance(found, Mapping | list):
            raise PipelineError(f"{PIPELINE}: {match[0]}: {found}; expected the name of one value ({PARAMS})")
        return str(found)

    return re.sub(r"\$\{([^}]+)\}", value, text)


def stages(pipeline: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Inputs]:
    """The stages of dvc.yaml by the names that DVC gives them, those under `foreach` one by one."""
    found = {}
    for name, entry in pipeline.get("stages", {}).items():
        each: list[tuple[str, Any, Mapping[str, Any]]] = [(name, entry, values)]
        if "foreach" in entry:
            items = entry["foreach"]
            if isinstance(items, str):
                items = lookup(items[2:-1], values)
            pairs = items.items() if isinstance(items, Mapping) else ((item, item) for item in items or ())
            each = [
                (f"{name}@{key}", entry["do"], {**values, "key": key, "item": item}) for key, item in pairs
            ]
        for full, definition, known in each:
            deps, groups = (
                tuple(filled(text, known) for text in definition.get(kind, ())) for kind in ("deps", "params")
            )
            found[full] = Inputs(deps, groups)
    return found


def outs(lock: Mapping[str, Any], known: Iterable[str]) -> list[Out]:
    """What dvc.lock says of the outputs of the stages that dvc.yaml has; it keeps others, too."""
    found = []
    for stage in sorted(set(lock.get("stages", ())) & set(known)):
        for out in lock["stages"][stage].get("outs", ()):
            if out.get("hash") != "md5":
                raise PipelineError(f"{LOCK}: {out['path']}: hash {out.get('hash')}; expected md5 (DVC 3)")
            found.append(Out(out["path"], out["md5"], stage))
    return found


def cache_folder() -> Path:
    """DVC's cache, by its configuration."""
    from dvc.config import Config

    here = next(
        (path / ".dvc" for path in (Path.cwd(), *Path.cwd().parents) if (path / ".dvc").is_dir()), None
    )
    if here is None:
        raise PipelineError(".dvc: not found here or above; expected a DVC repository")
    return Path(Config(str(here))["cache"].get("dir") or here / "cache")


# Files. -------------------------------------------------------------------------------------------------


def below(path: str, folder: str) -> bool:
    """Whether a path is a folder's or lies in it."""
    return path == folder or path.startswith(f"{folder}/")


def listed(place: str) -> list[str]:
    """The files of a folder, or the file itself, that are there and that DVC does not ignore."""
    if not Path(place).is_dir():
        return [place] if Path(place).is_file() else []
    found = sorted(Path(root, name).as_posix() for root, _, names in os.walk(place) for name in names)
    return [path for path in found if not ignored(path)]


def ignored(path: str) -> bool:
    """Whether .dvcignore names a file."""
    return bool(patterns(IGNORED.read_text(encoding="utf-8") if IGNORED.exists() else "").match_file(path))


@cache
def patterns(text: str) -> Any:
    """A .dvcignore, which is written like a .gitignore."""
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(text.splitlines())


def mark(path: str) -> Mark | None:
    """What changes whenever a file is written to, put back with its times or replaced; None without one."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def md5(path: str) -> str:
    """The md5 of a file's bytes, or why they cannot be read: that is nothing that anybody recorded."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, plain_md5).hexdigest()
    except OSError as error:
        return f"not readable ({error.strerror})"


def plain_md5(data: bytes = b"") -> Any:
    """An md5 where a policy forbids it for security, too: here it finds accidents, as DVC uses it."""
    return hashlib.md5(data, usedforsecurity=False)


def hashes(paths: Iterable[str], seen: Callable[[Iterable[str]], Iterable[str]] = iter) -> dict[str, str]:
    """The md5 of every file, by as many threads as there are cores: hashlib lets them run side by side.

    The largest come first, so that no thread is left alone with one. Every md5 passes through `seen`, so that
    one can watch.
    """
    names = sorted(set(paths), key=lambda path: (-(mark(path) or (0,))[-1], path))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, seen(pool.map(md5, names)), strict=True))


# Outputs against dvc.lock. ------------------------------------------------------------------------------


def folder_list(folder: str, files: Mapping[str, str]) -> bytes:
    """What DVC keeps of a folder, given the md5 of each of its files (dvc_data/hashfile/tree.py).

    >>> folder_list("a", {"a/b.txt": "900150983cd24fb0d6963f7d28e17f72"})
    b'[{"md5": "900150983cd24fb0d6963f7d28e17f72", "relpath": "b.txt"}]'
    """
    relative = {path.removeprefix(f"{folder}/"): value for path, value in files.items()}
    entries = [{"md5": relative[name], "relpath": name} for name in sorted(relative)]
    return json.dumps(entries, sort_keys=True).encode()


def folder_md5(folder: str, files: Mapping[str, str]) -> str:
    """What DVC records of it."""
    return f"{plain_md5(folder_list(folder, files)).hexdigest()}{FOLDER}"


def whole(out: Out, there: Mapping[str, str]) -> bool:
    """Whether an output's files have, all in all, the md5 that was recorded."""
    if out.md5.endswith(FOLDER):
        return folder_md5(out.path, there) == out.md5
    return there == {out.path: out.md5}


def caches() -> Iterator[Path]:
    """Where an object may lie; DVC is asked where it has to be, since to load it takes 0.1 s."""
    yield USUAL
    yield cache_folder()


def recorded(out: Out) -> dict[str, str] | None:
    """The md5 of an output's files by path; None for a folder of which the cache has no sound list."""
    if not out.md5.endswith(FOLDER):
        return {out.path: out.md5}
    for folder in caches():
        path = folder / OBJECTS / out.md5[:2] / out.md5[2:]
        data = path.read_bytes() if path.exists() else b""
        if f"{plain_md5(data).hexdigest()}{FOLDER}" == out.md5:
            return {f"{out.path}/{entry['relpath']}": entry["md5"] for entry in json.loads(data)}
    return None


def damages(
    out: Out,
    hashed: Mapping[str, str],
    part: str = "",
    lists: Callable[[Out], Mapping[str, str] | None] = recorded,
) -> list[Damage]:
    """How an output differs from what was recorded of it, by the md5 of every file that is there.

    With `part` only that file or folder of it is looked at. Where `lists` knows nothing of the single files
    of a folder all of it must be there, and the folder is named.
    """
    there = {path: value for path, value in hashed.items() if below(path, out.path)}
    if not there or whole(out, there):
        return []
    wanted = lists(out)
    if wanted is None:
        return [Damage(out.path, f"md5 {folder_md5(out.path, there)}", out.md5, out.stage)]
    return [
        Damage(
            path,
            f"md5 {there[path]}" if path in there else "missing",
            wanted.get(path, "no such file"),
            out.stage,
        )
        for path in sorted(set(there) | set(wanted))
        if below(path, part or out.path) and there.get(path) != wanted.get(path)
    ]


def parts(dep: str, known: Iterable[Out]) -> list[tuple[Out, str]]:
    """The outputs that a dependency is or holds, or the one that holds it, with itself as the part."""
    found = [(out, "") for out in known if below(out.path, dep)]
    return found or [(out, dep) for out in known if below(dep, out.path)]


# Around a stage. ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Begun:
    """What a stage began with."""

    stage: str
    inputs: Inputs
    marks: Mapping[str, Mark | None]
    hashes: Mapping[str, str]
    params: bytes  # params.yaml


def running(environment: Mapping[str, str]) -> str | None:
    """The stage as which DVC runs this process; None where it does not.

    >>> running({"DVC_STAGE": "../dvc.yaml:fetch@coding"})
    'fetch@coding'
    """
    if STAGE not in environment or MEMBER in environment:
        return None
    return environment[STAGE].rpartition(":")[2]


def parameters() -> bytes:
    """The text of params.yaml."""
    return PARAMS.read_bytes() if PARAMS.exists() else b""


def typed(params: bytes) -> object:
    """The parameters in it, with their types."""
    try:
        return YAML(typ="safe").load(params)
    except YAMLError as error:
        raise PipelineError(f"{PARAMS}: not YAML: {' '.join(str(error).split())}") from None


def modules() -> list[str]:
    """The files of this project's modules, imported or not."""
    here = Path(__file__).parents[1]
    return [os.path.relpath(path) for path in here.rglob("*.py")]


def loaded() -> list[str]:
    """The files of those that are imported."""
    names = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    here = str(Path(__file__).parents[1])
    return [os.path.relpath(name) for name in names if name and below(name, here)]


def begin(stage: str) -> Begun:
    """Check what a stage is about to read; raises PipelineError naming what is not as it was written."""
    known = stages(parse(PIPELINE), parse(PARAMS))
    if stage not in known:
        raise PipelineError(f"{STAGE}: {stage}; expected a stage of {PIPELINE}")
    inputs, params = known[stage], parameters()
    written = outs(parse(LOCK), known)
    read = [pair for dep in inputs.deps for pair in parts(dep, written)]
    places = {*inputs.deps, *(out.path for out, part in read if part and recorded(out) is None)}
    paths = {*loaded(), *(path for place in places for path in listed(place))}
    marks = {path: mark(path) for path in {*paths, *modules()}}
    hashed = hashes(paths)
    if found := [damage for out, part in read for damage in damages(out, hashed, part)]:
        raise PipelineError(f"{found[0]}{more(found)} ({CURE})")
    if said := rewritten(inputs):
        raise PipelineError(f"{said}, before the code was edited (dvc repro)")
    return Begun(stage, inputs, marks, hashed, params)


def program_of(inputs: Inputs) -> re.Match[str] | None:
    """The dependency that says what the stage is made of; None where its modules are named instead."""
    return next(filter(None, map(PROGRAM.fullmatch, inputs.deps)), None)


def rewritten(inputs: Inputs) -> str:
    """How a stage's code differs from what its program says of it; "" where it does not."""
    if (found := program_of(inputs)) is None:
        return ""
    from stages.common import program

    said = json.loads(Path(found[0]).read_bytes())
    return different(said, program.describe(found[1]), found[0])


def end(begun: Begun) -> None:
    """Raise PipelineError where what the stage read is no longer what it began with."""
    deps = begun.inputs.deps
    given = {path for path in begun.hashes if any(below(path, dep) for dep in deps)}
    given |= {path for dep in deps for path in listed(dep)}
    touched = {path for path in {*given, *loaded()} if mark(path) != begun.marks.get(path)}
    now = hashes(path for path in touched if Path(path).is_file())
    changed = {path for path in touched if now.get(path) != begun.hashes.get(path)}
    if not changed <= given and program_of(begun.inputs) and not rewritten(begun.inputs):
        changed &= given  # comments and layout of modules
    if first := sorted(changed):
        raise PipelineError(
            f"{first[0]}{more(first)}: changed while the stage ran; expected the file it began with "
            f"({AGAIN} {begun.stage})"
        )
    if (params := parameters()) != begun.params:
        then, values = map(typed, (begun.params, params))
        for group in begun.inputs.params:
            if found := different(lookup(group, then), lookup(group, values), group):
                raise PipelineError(f"{found}, with which the stage began ({PARAMS}; {AGAIN} {begun.stage})")


def different(before: object, now: object, key: str) -> str:
    """The first value of a group that is not the same, and how; "" where all are.

    >>> different({"seed": 42, "rows": {"a": 1}}, {"seed": 42, "rows": {"a": 2}}, "mix")
    'mix.rows.a: 2; expected 1'
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        each = (different(before.get(name), now.get(name), f"{key}.{name}") for name in {**before, **now})
        return next(filter(None, each), "")
    return "" if before == now else f"{key}: {now}; expected {before}"


def more(found: list[Any]) -> str:
    """How many there are beside the first."""
    return f" (and {len(found) - 1} more)" if found[1:] else ""


@contextmanager
def checked() -> Iterator[None]:
    """Around the `main` of a stage that DVC runs."""
    stage = running(os.environ)
    if stage is None:
        yield
        return
    begun = begin(stage)
    yield
    end(begun)
