"""Prove that every stage reads, writes and connects to what dvc.yaml names, and to nothing else.

    python -m tools.hermetic                     # the whole pipeline at a tiny size, three minutes
    python -m tools.hermetic mix filter@fixes    # these stages as they are, on the files that are there

All is done in a copy in a temporary folder. The kernel tells what a stage does, native code and other
programs included (`tools.watching` says how, and what it cannot see). Allowed beside `deps` and `outs` are
params.yaml (its keys are DVC's to watch), what is installed (Python, its packages, the system), the folder
for temporary files, a file beside an out that is gone at the end, and what `KEPT` names. Exit status: 1 where
a stage does anything else, 2 where it could not be run.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from stages.common import integrity, program
from stages.common.errors import PipelineError, run
from stages.common.params import load
from tools import tiny, watching

PARAMS, LOG = "params.yaml", "watched.jsonl"
SHOWN = 20  # violations of a stage that are listed

SYSTEM = {"/bin", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/sbin", "/sys", "/usr"}
DEVICES = {"/dev", "/proc"}  # which keep nothing
NAMES = {"/run/nscd", "/run/systemd", "/var/run/nscd"}  # sockets that tell names of users and hosts
PACKAGES = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
INSTALLED = {os.path.realpath(place) for place in (sys.prefix, sys.base_prefix)}

NETWORK = ("fetch", "base")  # may connect, and read outside the project: the origins that params.yaml names
CACHE = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
HUB = os.environ.get("HF_HOME") or f"{CACHE}/huggingface"
COMPILED = ("~/.triton", "~/.nv")  # kernels for the GPU, by a key of their source
# What a stage may read and write beside its deps and outs, and why that does not change what it makes.
KEPT = {
    "fetch": [HUB],  # files by their hash
    "base": [HUB],
    "filter": [f"{CACHE}/python-entrypoints"],  # bandit's plugins, by a key of all that is installed
    "preflight": [*COMPILED],
    "train": [
        *(
            ".partial",
            "runs",
            *COMPILED,
        ),  # checkpoints by a key of all that they depend on; curves for people
        *(".git", ".gitignore", ".dvc", ".dvcignore"),  # DVCLive asks which repository it is in
    ],
    "export": [*COMPILED],
    "generate": [".partial", *COMPILED],  # answers by a key of all that they depend on
    "report": [".git", ".mailmap"],  # the last committed run, for comparison; DVC has no way to name it
}
# torch's build for CUDA looks for its libraries in every folder of Python's path, the project's too, and the
# loader for the driver's there.
LIBRARIES = re.compile(r"(nvidia|(cu|nccl|nv)\w*/lib)(/.*)?|(.*/)?libcuda\.so\.1")

Doings = dict[str, dict[str, set[str]]]  # by stage, what it did to which names


@dataclass(frozen=True)
class Stage:
    """A stage as DVC resolves it, with absolute paths."""

    name: str
    deps: frozenset[str]
    outs: frozenset[str]

    @property
    def kind(self) -> str:
        """Its name without the item that it is repeated for."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Places:
    """Where a pipeline runs: the project's folder, and folders in which every stage may do what it likes."""

    root: str
    free: frozenset[str]  # for temporary files, and of DVC's own index


@dataclass(frozen=True)
class Violation:
    """Something that a stage does, and what was expected."""

    stage: str
    what: str
    name: str
    expected: str


def below(path: str, places: Iterable[str]) -> bool:
    """Whether a path is one of these places, or lies in one."""
    return any(integrity.below(path, place) for place in places)


def above(path: str, places: Iterable[str]) -> bool:
    """Whether one of these places lies in the folder `path`."""
    return any(place.startswith(f"{path}/") for place in places)


def folder(path: str) -> str:
    """The folder in which a path lies."""
    return path.rpartition("/")[0]


def module(path: str) -> str:
    """The source of a file of bytecode; any other path as it is."""
    above, cache, name = path.rpartition("__pycache__/")
    return f"{above}{name.partition('.')[0]}.py" if cache and name.endswith(".pyc") else path


def pipeline(root: Path) -> list[Stage]:
    """The stages of a project, each after those that it depends on."""
    import networkx  # type: ignore[import-untyped]
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            ordered = list(networkx.dfs_postorder_nodes(repo.index.graph))
            return [
                Stage(
                    stage.name,
                    frozenset(dep.fs_path for dep in stage.deps if dep.protocol == "local"),
                    frozenset(out.fs_path for out in stage.outs if out.protocol == "local"),
                )
                for stage in ordered
                if stage.cmd
            ]
    except DvcException as error:
        raise PipelineError(f"dvc.yaml: {error}; expected a pipeline that DVC can resolve") from None


def noted(log: Path) -> Doings:
    """What the log of `tools.watching` says."""
    found: Doings = defaultdict(lambda: defaultdict(set))
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            stage, what, name = json.loads(line)
            found[stage][what].add(name)
    return found


def imports(done: Mapping[str, set[str]]) -> set[str]:
    """The modules of installed packages that a stage loaded, by the files that it read."""
    found = set()
    for path in map(module, done["reads"]):
        for place in PACKAGES:
            if path.startswith(f"{place}/") and path.endswith((".py", ".so")):
                name = re.sub(r"(/__init__)?(\.[^/]*)?$", "", path.removeprefix(f"{place}/"), count=1)
                found.add(name.replace("/", "."))
    return found


def code(stage: Stage, root: str) -> set[str]:
    """What a stage's program file would stand for now: modules, harmless ones too, and the lock."""
    names = [Path(dep).stem for dep in stage.deps if folder(dep) == f"{root}/programs"]
    if not names:
        return set()
    there = program.tree(Path(root))
    harmless = load("program", program.ProgramParams, Path(root, PARAMS)).harmless
    found = {program.LOCK, *(path for name in harmless for path in there.get(name, ()))}
    for name in names:
        found |= set(program.reached(f"{program.LOCAL}.{name}", there, harmless))
    return {f"{root}/{path}" for path in found}


Right = Callable[[str], bool]


def rules(stage: Stage, made: set[str], places: Places) -> dict[str, Right]:
    """For all that a stage can do: whether it may."""
    kept = {os.path.join(places.root, os.path.expanduser(path)) for path in KEPT.get(stage.kind, ())}  # noqa: PTH111, PTH118
    passing = {path for path in made if folder(path) in set(map(folder, stage.outs))}
    written = {*stage.outs, *kept, *passing, *DEVICES, *places.free}
    named = {*stage.deps, *written, *code(stage, places.root), f"{places.root}/{PARAMS}"}
    readable = {*named, *INSTALLED, *SYSTEM}
    networked = stage.kind in NETWORK

    def reads(path: str) -> bool:
        return below(module(path), readable) or (networked and not below(path, [places.root]))

    def lists(path: str) -> bool:
        return reads(path) or above(path, named)

    def writes(path: str) -> bool:
        return below(path, written) or above(path, stage.outs)

    def connects(name: str) -> bool:
        return below(name, written | NAMES) if name.startswith("/") else networked

    return {
        **dict.fromkeys(("reads", "runs"), reads),
        "lists": lists,
        **dict.fromkeys(("writes", "makes", "removes"), writes),
        **dict.fromkeys(("connects", "binds"), connects),
        "leaves": lambda _: False,
    }


def expected(what: str, name: str, places: Places) -> str:
    """What should have been instead of a violation."""
    if what in ("connects", "binds"):
        return f"that only {' and '.join(NETWORK)} talk to others"
    if what == "leaves":
        return "that it ends with the stage"
    if not below(name, [places.root]):
        return "nothing outside the project, but what `KEPT` names (tools/hermetic.py)"
    return f"it among the stage's {'outs' if what in ('writes', 'makes', 'removes') else 'deps'} (dvc.yaml)"


def violations(stage: Stage, done: Mapping[str, set[str]], places: Places) -> list[Violation]:
    """What a stage did that dvc.yaml does not name; what it only opened for writing counts as read."""
    right = rules(stage, done.get("gone", set()), places)
    kept = done.get("kept", set())
    did = {**done, "reads": done.get("reads", set()) | kept, "writes": done.get("writes", set()) - kept}
    return [
        Violation(stage.name, what, name, expected(what, name, places))
        for what in right
        for name in sorted(did.get(what, ()))
        if not right[what](name)
    ]


def sought(stage: Stage, done: Mapping[str, set[str]], places: Places) -> list[str]:
    """The files that a stage would read if they were there, of the project and not named in dvc.yaml."""
    right = rules(stage, set(), places)["reads"]
    return [
        name
        for name in sorted(done.get("seeks", ()))
        if below(name, [places.root])
        and not right(name)
        and not LIBRARIES.fullmatch(os.path.relpath(name, places.root))
    ]


def idle(stage: Stage, done: Mapping[str, set[str]]) -> list[str]:
    """What a stage names, but for its program file, and does not touch."""
    touched = set().union(*done.values())
    named = (path for path in stage.deps | stage.outs if "/programs/" not in path)
    return sorted(path for path in named if not any(below(name, [path]) for name in touched))


def table(stages: list[Stage], did: Doings, places: Places) -> str:
    """How much each stage did: files of the project, packages, programs, connections."""
    rows: list[tuple[str, ...]] = [
        ("stage", "reads", "writes", "packages", "programs", "network", "violations")
    ]
    for stage in stages:
        done = did[stage.name]
        own = {path for path in done["reads"] if below(path, [places.root]) and not below(path, INSTALLED)}
        written = (done["writes"] | done["makes"]) - done["gone"]
        loaded = {name.partition(".")[0] for name in imports(done)}
        talks = {name for name in done["connects"] | done["binds"] if not name.startswith("/")}
        counts = (own, {name for name in written if below(name, stage.outs)}, loaded, done["runs"], talks)
        rows.append((stage.name, *map(str, map(len, counts)), str(len(violations(stage, done, places)))))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])] for row in rows)
    return "\n".join("  ".join(line) for line in lines)


def verdict(stages: list[Stage], did: Doings, places: Places, failed: bool = False) -> tuple[str, int]:
    """The table, and each violation with what was expected; and how many there are.

    Of a run that `failed`, nobody can say what it would not have touched.
    """

    def shown(name: str) -> str:
        return os.path.relpath(name, places.root) if below(name, [places.root]) else name

    lines = [table(stages, did, places), ""]
    count = 0
    for stage in stages:
        done = did[stage.name]
        found = violations(stage, done, places)
        count += len(found)
        lines += [
            f"{each.stage} {each.what} {shown(each.name)}; expected {each.expected}" for each in found[:SHOWN]
        ]
        if len(found) > SHOWN:
            lines.append(f"{stage.name}: {len(found) - SHOWN} more")
        lines += [
            f"note: {stage.name} looks for {shown(name)}, which is no dep"
            for name in sought(stage, done, places)
        ]
        if not failed:
            lines += [
                f"note: {stage.name} names {shown(name)}, and does not touch it" for name in idle(stage, done)
            ]
        if done["hides"]:
            lines.append(
                f"note: {stage.name}: the sandbox's own processes hide what they open (run as root to see)"
            )
    lines.append(
        f"hermetic: {len(stages)} stages, {count} violations"
        + (" (mend dvc.yaml or the stage)" if count else "")
    )
    return "\n".join(lines), count


def resolved(root: Path, names: list[str]) -> list[Stage]:
    """The stages of these names, or all; raises PipelineError for a name that is none."""
    stages = pipeline(root)
    known = {stage.name for stage in stages} | {stage.kind for stage in stages}
    for name in names:
        if name not in known:
            raise PipelineError(
                f"{name}: no such stage; expected one of {', '.join(sorted(known))} (dvc.yaml)"
            )
    return [stage for stage in stages if not names or {stage.name, stage.kind} & set(names)]


def supply(stages: list[Stage], source: Path, root: Path) -> None:
    """Copy what the stages depend on and git does not have; raises PipelineError where it is not there."""
    made = {out for stage in stages for out in stage.outs}
    for dep in sorted({dep for stage in stages for dep in stage.deps}):
        path = Path(dep).relative_to(source) if below(dep, [str(source)]) else Path(dep)
        if path.is_absolute():
            continue
        if not (source / path).exists():
            if not below(dep, made) and not above(dep, made):
                raise PipelineError(
                    f"{path}: not found; expected what an earlier stage makes (make repro, dvc pull)"
                )
        elif (source / path).is_dir():
            shutil.copytree(source / path, root / path, dirs_exist_ok=True)
        elif not (root / path).exists():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, root / path)


def reproduce(arguments: list[str], root: Path, environment: Mapping[str, str], total: int) -> str:
    """Run `dvc repro`, naming the stages as they begin; returns why it failed, or nothing."""
    begun, said = 0, [""]
    command = ["dvc", "repro", *arguments]
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as running:
        for line in running.stdout or ():
            said.append(line)
            if found := re.match(r"Running stage '(.+)':", line):
                begun += 1
                print(f"hermetic: {begun} of {total}: {found[1]}", flush=True)
    if running.returncode == 0:
        return ""
    print("".join(said[-SHOWN:]), file=sys.stderr)
    return f"dvc repro: status {running.returncode}; expected 0 (it says why above)"


def watched(root: Path, scratch: Path, environment: Mapping[str, str]) -> tuple[dict[str, str], Places]:
    """The variables with which `dvc repro` in `root` is watched, and what its stages may use; see `LOG`."""
    temporary = scratch / "temporary"
    temporary.mkdir()
    free = {str(temporary), environment.get("DVC_SITE_CACHE_DIR", "/var/tmp/dvc")}  # noqa: S108 (DVC's own)
    made = {**environment, **watching.install(scratch, root, scratch / LOG), "TMPDIR": str(temporary)}
    return made, Places(str(root), frozenset(free))


def copied(
    stages: list[Stage], whole: bool, source: Path, scratch: Path, environment: Mapping[str, str]
) -> Path:
    """A copy of the working tree: at a tiny size, or with all that the stages depend on."""
    root = scratch / "copy"
    tiny.copy_repository(source, root)
    if whole:
        params = YAML(typ="safe").load(root / PARAMS)
        tiny.shrink(root, params, tiny.model(scratch / "model"))
    else:
        supply(stages, source, root)
    tiny.commit(root, environment)
    return root


def main() -> None:
    """Run under watch, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="*", help="as `dvc stage list` names them; `filter` is all of filter@..."
    )
    names = parser.parse_args().stages
    source = Path.cwd().resolve()
    stages = resolved(source, names)
    with tempfile.TemporaryDirectory(prefix="hermetic-") as folder:
        scratch = Path(folder).resolve()
        environment = tiny.environment(scratch)
        root = copied(stages, not names, source, scratch, environment)
        environment, places = watched(root, scratch, environment)
        one = ["--single-item", "--force", "--no-commit", *(stage.name for stage in stages)]
        failure = reproduce(one if names else [], root, environment, len(stages))
        did = noted(scratch / LOG)
        ran = [stage for stage in resolved(root, []) if stage.name in did]
        text, count = verdict(ran, did, places, failed=bool(failure))
    print(text)
    if failure:
        raise PipelineError(failure)
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    run(main)
