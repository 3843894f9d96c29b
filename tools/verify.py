"""Hash all that a run left behind, and name what is not as it was written.

    python -m tools.verify            # make verify
    python -m tools.verify --mend     # make verify MEND=1

DVC believes a file whose size and times are as they were; here every byte is read. Looked at are

- what dvc.lock records: outputs, and the inputs that no stage wrote (these may also be as git has them, since
  an input that was edited and committed is not damaged, only newer than the run);
- every object in DVC's cache, whether dvc.lock names it or not, and the entries of its run cache, but for the
  sizes in these, which DVC leaves out of their names;
- checkpoints of trainings that were killed, by their manifests. (Answers of a generation that was killed have
  none.)

What is not here is counted, and is no damage: `dvc pull` or `dvc repro` brings it. Exit status: 1 where
something is damaged.

With --mend whatever is damaged is replaced by the right bytes, where the cache, the working tree or git has
them, and otherwise removed, so that `dvc repro` makes it again. (As long as a damaged object lies in the
cache DVC puts it in the place even of what a stage has just written.) Inputs are left to you.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stages.common import checkpoints, files, integrity
from stages.common.errors import PipelineError, run
from stages.common.integrity import FOLDER, Out
from stages.common.progress import progress

CHECKPOINTS = Path(".partial/train")
READ_ONLY = 0o444  # of an object in the cache (dvc_data/hashfile/db/local.py)
READABLE = 0o644  # of other files

OBJECT = re.compile(r"(files/md5/)?([0-9a-f]{2})/([0-9a-f]{30})(\.dir)?")  # in the cache's folder
ENTRY = re.compile(r"runs/[0-9a-f]{2}/([0-9a-f]{64})/([0-9a-f]{64})")


@dataclass(frozen=True)
class Fault:
    """Something damaged."""

    path: Path
    said: str  # what was found, and expected
    md5: str = ""  # that its bytes should have; "" where it can only be removed
    ours: bool = True  # made by the pipeline, so that it may be replaced or removed


@dataclass(frozen=True)
class Place:
    """A repository with what lies in it, everything hashed."""

    outs: list[Out]
    given: Mapping[str, set[str]]  # inputs that no stage wrote, with the md5s that were recorded of each
    cache: Path
    hashed: Mapping[str, str]  # md5 by path: outputs, inputs and objects


# What is there. -----------------------------------------------------------------------------------------


def inputs(lock: Mapping[str, Any], known: Iterable[str], outs: Iterable[Out]) -> dict[str, set[str]]:
    """The inputs that no stage wrote, each with the md5s that stages recorded of it."""
    found: dict[str, set[str]] = {}
    for stage in sorted(set(lock.get("stages", ())) & set(known)):
        for dep in lock["stages"][stage].get("deps", ()):
            if not integrity.parts(dep["path"], outs):
                found.setdefault(dep["path"], set()).add(dep["md5"])
    return found


def look() -> Place:
    """Read everything but the checkpoints; raises PipelineError where there is no pipeline."""
    if not integrity.PIPELINE.exists():
        raise PipelineError(f"{integrity.PIPELINE}: not found; expected to be in the project's folder")
    known = integrity.stages(integrity.parse(integrity.PIPELINE), integrity.parse(integrity.PARAMS))
    lock = integrity.parse(integrity.LOCK)
    outs = integrity.outs(lock, known)
    given = inputs(lock, known, outs)
    cache = integrity.cache_folder()
    cache = cache.relative_to(Path.cwd()) if cache.is_relative_to(Path.cwd()) else cache
    paths = {path for place in [*given, *(out.path for out in outs)] for path in integrity.listed(place)}
    paths |= {str(path) for path in cache.rglob("*") if path.is_file()}
    bar = partial(progress, label="verify", unit="files", total=len(paths))
    return Place(outs, given, cache, integrity.hashes(paths, bar))


def tracked(place: str) -> dict[str, bytes]:
    """The files of a folder, or the file, as git's index has them; nothing where there is no git."""
    listed = git("--literal-pathspecs", "ls-files", "-z", "--", place).decode()
    return {name: git("cat-file", "blob", f":./{name}") for name in filter(None, listed.split("\0"))}


def git(*arguments: str) -> bytes:
    """What git says; nothing where there is none, or no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return b""


def md5s(texts: Mapping[str, bytes]) -> dict[str, str]:
    """The md5 of each."""
    return {name: str(integrity.plain_md5(text).hexdigest()) for name, text in texts.items()}


def recorded(out: Out) -> dict[str, str] | None:
    """The files of an output by the list in the cache, or by git where that has the very folder."""
    if found := integrity.recorded(out):
        return found
    committed = md5s(tracked(out.path))
    return committed if committed and integrity.whole(out, committed) else None


# What is damaged. ---------------------------------------------------------------------------------------


def outputs(place: Place) -> list[Fault]:
    """Outputs that are not as their stage wrote them."""
    kept = {md5 for path, md5 in place.hashed.items() if integrity.below(path, str(place.cache))}
    others = {f"md5 {md5}" for md5 in kept - set(holders(place.outs))}
    found = [damage for out in place.outs for damage in integrity.damages(out, place.hashed, lists=recorded)]
    hints = [" (these bytes are another run's: dvc checkout)" * (one.found in others) for one in found]
    return [
        Fault(Path(one.path), f"{one}{hint}", one.expected) for one, hint in zip(found, hints, strict=True)
    ]


def edited(place: Place) -> list[Fault]:
    """Inputs that are neither as they were when a stage read them, nor as git has them."""
    found = []
    for path, known in sorted(place.given.items()):
        there = {name: md5 for name, md5 in place.hashed.items() if integrity.below(name, path)}
        if not there or any(integrity.whole(Out(path, md5, ""), there) for md5 in known):
            continue
        committed = md5s(tracked(path))
        for name in sorted(name for name in committed if there.get(name, committed[name]) != committed[name]):
            said = (
                f"{name}: md5 {there[name]}; expected {committed[name]}, as git has it, or an edit of yours"
            )
            found.append(Fault(Path(name), said, ours=False))
        if not committed:
            said = f"{path}: changed; expected md5 {' or '.join(sorted(known))}, as it was read"
            found.append(Fault(Path(path), said, ours=False))
    return found


def holders(outs: Iterable[Out]) -> dict[str, str]:
    """What the objects of the cache hold that dvc.lock needs, by their names."""
    found = {}
    for out in outs:
        for path, md5 in {out.path: out.md5, **(integrity.recorded(out) or {})}.items():
            found[md5] = f"{path} of {out.stage}"
    return found


def objects(place: Place) -> list[Fault]:
    """Objects of the cache that are not what their names say."""
    held = holders(place.outs)
    found = []
    for path in sorted(Path(name) for name in place.hashed if integrity.below(name, str(place.cache))):
        name = path.relative_to(place.cache).as_posix()
        if match := OBJECT.fullmatch(name):
            expected, md5 = match[2] + match[3], place.hashed[str(path)]
            if md5 != expected and not (match[1] is None and unix_md5(path) == expected):
                full = expected + (match[4] or "")
                whose = held.get(full, "of no output in dvc.lock")
                found.append(Fault(path, f"{path}: md5 {md5}; expected {expected}, its name ({whose})", full))
        elif (match := ENTRY.fullmatch(name)) and (digests := entry(path)) != match.groups():
            said = f"{path}: SHA-256 {digests[1]}; expected {match[2]}, its name (of the run cache)"
            found.append(Fault(path, said))
    return found


def unix_md5(path: Path) -> str:
    """The name of an object as DVC 2 gave it, and DVC 3 gives it to what the run cache alone keeps."""
    from dvc_data.hashfile.hash import file_md5

    return str(file_md5(str(path), name="md5-dos2unix"))


def entry(path: Path) -> tuple[str, str]:
    """What an entry of the run cache should be named: by its command and inputs, and by all of it."""
    from dvc.utils import dict_sha256
    from dvc.utils.serialize import ParseError, load_yaml

    try:
        said = load_yaml(str(path))
        brief = {**said, "outs": [out["path"] for out in said["outs"]]}
    except (ParseError, TypeError, KeyError, ValueError):  # the last by an impossible date
        return "", "of no entry"
    key, value = (dict_sha256(one, exclude=["size", "nfiles"]) for one in (brief, said))
    return str(key), str(value)


def unfinished() -> list[Fault]:
    """Checkpoints that are not as they were sealed."""
    found = []
    points = [point for folder in sorted(CHECKPOINTS.glob("*")) for point in checkpoints.complete(folder)]
    for point in progress(points, "verify", "checkpoints"):
        try:
            checkpoints.manifest(point)
        except (PipelineError, OSError) as error:
            found.append(Fault(point, str(error)))
    return found


def faults(place: Place) -> list[Fault]:
    """Everything that is damaged."""
    return [*outputs(place), *edited(place), *objects(place), *unfinished()]


# What is mended. ----------------------------------------------------------------------------------------


def supply(place: Place, damaged: Iterable[Fault]) -> dict[str, bytes | Path]:
    """Where the bytes of an md5 are to be had: sound files, and lists of folders that are whole."""
    paths = {str(fault.path) for fault in damaged}
    found: dict[str, bytes | Path] = {
        md5: Path(path) for path, md5 in sorted(place.hashed.items()) if path not in paths
    }
    for out in place.outs:
        there = {path: md5 for path, md5 in place.hashed.items() if integrity.below(path, out.path)}
        if out.md5.endswith(FOLDER) and integrity.whole(out, there):
            found[out.md5] = integrity.folder_list(out.path, there)
    return found


def mended(fault: Fault, place: Place, there: Mapping[str, bytes | Path]) -> str:
    """Put the right bytes in place, or none; says what was done."""
    if not fault.ours:
        return "left to you: git restore, or dvc repro if you edited it"
    path, where = fault.path, "what is there"
    source = there.get(fault.md5)
    if source is None:
        source, where = tracked(str(path)).get(str(path), b""), "git"
    if isinstance(source, Path):
        source, where = source.read_bytes(), str(source)
    if integrity.plain_md5(source).hexdigest() != fault.md5.removesuffix(FOLDER):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return "removed; dvc repro makes what is needed again"
    with files.whole(path) as temporary:
        temporary.write_bytes(source)
        temporary.chmod(READ_ONLY if path.is_relative_to(place.cache) else READABLE)
    return f"taken from {where}"


def main() -> None:
    """Look, name and perhaps mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mend", action="store_true", help="replace or remove what is damaged")
    mend = parser.parse_args().mend
    place = look()
    found = faults(place)
    there = supply(place, found) if mend else {}
    for fault in found:
        print(f"{fault.said}: {mended(fault, place, there)}" if mend else fault.said)
    absent = [out.path for out in place.outs if not integrity.listed(out.path)]
    if absent:
        print(f"verify: {len(absent)} of {len(place.outs)} outputs are not here (dvc pull, or dvc repro)")
    left = sum(not (mend and fault.ours) for fault in found)
    cure = f" ({integrity.CURE})" if left and not mend else f", {left} left" if mend else ""
    print(f"verify: {len(place.hashed)} files read, {len(found)} not as recorded{cure}")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    run(main)
