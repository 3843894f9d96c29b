"""Damage a finished pipeline in 300 ways, one after the other, and count who finds each.

The pipeline is the real one at a tiny size, run in a temporary folder, or in `--at`, where it stays for the
next time. A fault is put into one file of the outputs, DVC's cache or a checkpoint; every other one gets its
times and mode back, as a fault of the disk leaves them. Asked are

    verify      tools.verify: does it name the file?
    start       stages.common.integrity: does a stage that reads the file refuse to begin?
    status      dvc status: does it say that anything changed?
    repro       dvc repro --dry: would it run anything?
    checkout    dvc checkout --force: does it report the file? (An object: while its output is brought back.)

DVC is asked in this process, by a new Repo for every fault, with the state database that its commands use.

    python -m bench.faults
"""

import argparse
import logging
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from ruamel.yaml import YAML

from stages.common import checkpoints, integrity
from stages.common.errors import PipelineError
from stages.common.progress import progress
from tools import tiny, verify

SEED = 0
FOLDERS = ("data", "models", "reports", "programs", ".partial", ".dvc/cache")  # where there are faults
BLOCK = 512  # bytes: a sector of a disk

FINDERS = ("verify", "start", "status", "repro", "checkout")


# Faults. ------------------------------------------------------------------------------------------------


def flip(data: bytes, chance: random.Random) -> bytes:
    """One bit is the other."""
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def truncate(data: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data))]


def blank(data: bytes, chance: random.Random) -> bytes:
    """A block is zeros."""
    start = chance.randrange(len(data)) // BLOCK * BLOCK
    end = min(start + BLOCK, len(data))
    return data[:start] + bytes(end - start) + data[end:]


def drop(data: bytes, chance: random.Random) -> bytes:
    """A row is missing."""
    rows = data.splitlines(keepends=True)
    del rows[chance.randrange(len(rows))]
    return b"".join(rows)


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flipped": flip,
    "truncated": truncate,
    "block zeroed": blank,
    "row dropped": drop,
}
SWAP = "swapped"  # with another file of the same place


@dataclass(frozen=True)
class Fault:
    """One way to damage one place: the new bytes of each file."""

    place: str
    kind: str
    quiet: bool  # times and mode are put back
    bytes: dict[Path, bytes]


def plan(places: dict[str, list[Path]], count: int, seed: int) -> Iterator[Fault]:
    """Faults in turn over the places and the kinds, the files drawn."""
    chance = random.Random(seed)
    kinds = [*KINDS, SWAP]
    for number in range(count):
        place = list(places)[number % len(places)]
        kind = kinds[number // len(places) % len(kinds)]
        quiet = number // len(places) // len(kinds) % 2 == 0
        made: dict[Path, bytes] = {}
        while not made or any(path.read_bytes() == new for path, new in made.items()):
            path, other = chance.sample(places[place], 2)
            data = path.read_bytes()
            if kind == SWAP:
                made = {path: other.read_bytes(), other: data}
            elif data:
                made = {path: KINDS[kind](data, chance)}
        yield Fault(place, kind, quiet, made)


def put(fault: Fault) -> None:
    """Write the damage in place."""
    for path, data in fault.bytes.items():
        before = path.stat()
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.write(data)
            stream.truncate()
        if fault.quiet:
            path.chmod(before.st_mode)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# A pipeline to damage. ----------------------------------------------------------------------------------


def build(scratch: Path) -> Path:
    """Run the whole pipeline at a tiny size; returns its folder, which is there at once the next time."""
    root = scratch / "copy"
    scratch.mkdir(exist_ok=True)
    made = tiny.environment(scratch)
    made["DVC_SITE_CACHE_DIR"] = mkdtemp(dir=scratch)  # so that DVC believes nothing since another time
    os.environ.update(made)
    if (root / "dvc.lock").exists():
        return root
    here = Path.cwd()
    tiny.copy_repository(here, root)
    tiny.shrink(root, YAML(typ="safe").load(Path("params.yaml")), tiny.model(scratch / "model"))
    tiny.commit(root, made)
    print("faults: the pipeline runs at a tiny size (a minute or two)", flush=True)
    subprocess.run(["dvc", "repro", "--quiet"], cwd=root, env=made, check=True, stdout=subprocess.DEVNULL)
    for step in (1, 2):
        point = root / f".partial/train/killed/checkpoint-{step}"
        shutil.copytree(root / "models/sft", point)
        checkpoints.seal(point, step, {})
    return root


def places(outs: list[integrity.Out], kept: set[str]) -> dict[str, list[Path]]:
    """What may be damaged, by what it is; `kept` are the outputs that DVC's cache has."""
    found: dict[str, list[Path]] = {}
    for out in outs:
        name = "reports in git" if out.path not in kept else out.path.split("/")[0]
        name = {"reports": "answers and verdicts"}.get(name, name)
        found.setdefault(name, []).extend(map(Path, integrity.listed(out.path)))
    found["cache"] = sorted(path for path in Path(".dvc/cache").rglob("*") if path.is_file())
    found["checkpoints"] = sorted(path for path in verify.CHECKPOINTS.rglob("*") if path.is_file())
    return found


State = dict[Path, tuple[bytes, os.stat_result]]


def state() -> State:
    """All that a fault or DVC can change."""
    paths = (path for folder in FOLDERS for path in Path(folder).rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat()) for path in paths}


def restore(then: State) -> None:
    """Put everything back as it was."""
    for path in set(state()) - set(then):
        path.unlink()
    for path, (data, stat) in then.items():
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(data)
        path.chmod(stat.st_mode)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# Who finds it. ------------------------------------------------------------------------------------------


def by_verify(fault: Fault) -> bool:
    """Whether every damaged file is named, or the folder or checkpoint that it lies in."""
    named = {str(one.path) for one in verify.faults(verify.look())}
    return all(any(integrity.below(str(path), name) for name in named) for path in fault.bytes)


def by_start(fault: Fault) -> bool | None:
    """Whether the first stage that reads a damaged file refuses to; None where none reads one."""
    known = integrity.stages(integrity.parse(integrity.PIPELINE), integrity.parse(integrity.PARAMS))
    for path in map(str, fault.bytes):
        for stage, inputs in known.items():
            if any(integrity.below(path, dep) for dep in inputs.deps):
                try:
                    integrity.begin(stage)
                except PipelineError as error:
                    named = str(error).partition(":")[0].partition(" ")[0]
                    return any(integrity.below(str(one), named) for one in fault.bytes)
                return False
    return None


def by_dvc(fault: Fault, holders: dict[str, str], then: State) -> dict[str, bool]:
    """What status, repro and checkout of a new Repo say; in the end it sees everything restored."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo() as repo:
        found = {"status": bool(repo.status()), "repro": bool(repo.reproduce(dry=True))}
        names = {"".join(path.parts[-2:]) for path in fault.bytes}  # of objects
        brought = {holders[name] for name in names & set(holders)}
        for path in brought:
            shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
        try:
            done = repo.checkout(force=True)
            told = {*done["modified"], *done["deleted"]} | (set(done["added"]) - brought)
            found["checkout"] = bool(told)
        except DvcException:
            found["checkout"] = True
        restore(then)
        if said := repo.status():  # asked so that the state database knows the sound files, too
            raise PipelineError(f"dvc status: {said}; expected nothing, after all was put back")
    return found


def hasten() -> None:
    """Let DVC remember what it has parsed: it spends four fifths of its time on the same four YAML files."""
    from dvc.utils import strictyaml
    from dvc.utils.serialize import _yaml

    parse = cache(_yaml.parse_yaml)
    for module in (strictyaml, _yaml):
        module.parse_yaml = lambda *given, **named: deepcopy(parse(*given, **named))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With a folder as the one that we are in."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def measure(count: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """How many faults of each place and kind were put, and how many each finder was asked for and found."""
    from dvc.repo import Repo

    logging.disable(logging.CRITICAL)
    hasten()
    known = integrity.stages(integrity.parse(integrity.PIPELINE), integrity.parse(integrity.PARAMS))
    outs = integrity.outs(integrity.parse(integrity.LOCK), known)
    with Repo() as repo:
        kept = {out.def_path for stage in repo.index.stages for out in stage.outs if out.use_cache}
        repo.status()
    then = state()
    holders = {
        md5: out.path
        for out in outs
        if out.path in kept
        for md5 in (out.md5, *(integrity.recorded(out) or {}).values())
    }
    if odd := [out.path for out in outs if not any(integrity.below(out.path, one) for one in FOLDERS)]:
        raise PipelineError(f"{odd[0]}: an output; expected it below one of {', '.join(FOLDERS)}")
    counts: dict[str, Counter[str]] = {}
    faults = list(plan(places(outs, kept), count, seed))
    try:
        for fault in progress(faults, "faults", "faults"):
            put(fault)
            found = {"verify": by_verify(fault), "start": by_start(fault), **by_dvc(fault, holders, then)}
            times = "times put back" if fault.quiet else "times changed"
            for name in (fault.place, fault.kind, times, "all"):
                row = counts.setdefault(name, Counter())
                row["faults"] += 1
                for finder, yes in found.items():
                    row[finder] += bool(yes)
                    row[f"{finder} asked"] += yes is not None
    finally:
        restore(then)
    return counts, list(dict.fromkeys(fault.place for fault in faults))


def table(counts: dict[str, Counter[str]], places: list[str]) -> str:
    """The counts as Markdown."""
    kinds = [*KINDS, SWAP, "times changed", "times put back"]
    lines = [f"| | faults | {' | '.join(FINDERS)} |", f"|---|{'---:|' * (1 + len(FINDERS))}"]
    for name in [*places, *kinds, "all"]:
        row = counts.get(name, Counter())
        cells = [
            ""
            if not (asked := row[f"{one} asked"])
            else str(row[one]) + f" of {asked}" * (asked < row["faults"])
            for one in FINDERS
        ]
        lines.append(f"| {name} | {row['faults']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Build, damage, count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"which (default: {SEED})")
    parser.add_argument("--at", type=Path, help="a folder in which the pipeline stays")
    given = parser.parse_args()
    with (
        TemporaryDirectory(prefix="faults-") as scratch,
        inside(build((given.at or Path(scratch)).resolve())),
    ):
        counts, order = measure(given.faults, given.seed)
    print(table(counts, order))


if __name__ == "__main__":
    main()
