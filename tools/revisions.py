"""What git and DVC keep of a run: files of a commit, experiments, the parameters it ran with, cached outputs.

The commit "" stands for the working tree.
"""

import io
import json
import logging
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common import files, integrity
from stages.common.errors import PipelineError

METRICS = "reports/metrics.json"
MIX = "reports/mix.json"
PARAMS = "params.yaml"
LOCK = "dvc.lock"
WORKSPACE = "workspace"


@dataclass(frozen=True)
class Revision:
    """A commit, or the working tree, and how it is called in what the user reads."""

    name: str
    commit: str = ""

    @property
    def title(self) -> str:
        """The name, and the commit where the name does not show it."""
        if not self.commit or self.commit.startswith(self.name):
            return self.name
        return f"{self.name} ({self.commit[:10]})"


def git(*arguments: str) -> str:
    """What git says; raises PipelineError with its reason."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except FileNotFoundError:
        raise PipelineError("git: not found; expected it on the path") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().removeprefix("fatal: ").split("\n")[0]
        raise PipelineError(f"git {arguments[0]}: {said}") from None
    return done.stdout.decode("utf-8", "replace")


def clean(*ours: str) -> None:
    """Raise PipelineError where anything but these files is not committed."""
    changed = git("status", "--porcelain", "--", ".", *(f":!{path}" for path in ours)).rstrip()
    if changed:
        raise PipelineError(
            f"{changed.splitlines()[0]}: not committed; expected a clean working tree, since each run starts "
            "from a commit"
        )


def experiments(head: str) -> dict[str, str]:
    """The experiments of a commit by name: DVC's references are refs/exps/<2 digits>/<the others>/<name>."""
    return _named(f"refs/exps/{head[:2]}/{head[2:]}/")


def _named(pattern: str) -> dict[str, str]:
    form = "--format=%(refname:lstrip=4) %(objectname)"
    listed = git("for-each-ref", "--sort=creatordate", form, pattern).splitlines()
    return {name: commit for name, _, commit in (line.partition(" ") for line in listed)}


def revision(name: str) -> Revision:
    """The working tree, a branch, tag, commit or experiment; raises PipelineError where there is none."""
    if name == WORKSPACE:
        return Revision(name)
    git("rev-parse", "--git-dir")
    try:
        return Revision(
            name, git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").strip()
        )
    except PipelineError:
        commit = _named("refs/exps/*/*/*").get(name)
    if commit is None:
        raise PipelineError(
            f"{name}: no such revision; expected a branch, tag, commit or experiment (git fetch)"
        )
    return Revision(name, commit)


def content(commit: str, path: str) -> str | None:
    """The text of a file; None where it is not there."""
    if not commit:
        return files.read_text(Path(path)) if Path(path).is_file() else None
    try:
        return git("show", f"{commit}:./{path}")
    except PipelineError:
        return None


def mapping(commit: str, path: str, name: str) -> dict[str, Any]:
    """A JSON or YAML file; raises PipelineError, calling the revision `name`, where it is no mapping."""
    text = content(commit, path)
    if text is None:
        asked = "a whole run (make repro), committed" if commit else "a whole run (make repro)"
        raise PipelineError(f"{name}: no {path}; expected {asked}")
    try:
        value = json.loads(text) if path.endswith(".json") else YAML(typ="safe").load(io.StringIO(text))
    except (ValueError, RecursionError, YAMLError):
        value = None
    if not isinstance(value, dict):
        raise PipelineError(f"{name}: {path} is {text[:40]!r}; expected one mapping")
    return value


# What a lock knows. ------------------------------------------------------------------------------------


def flat(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested mappings by dotted key.

    >>> list(flat({"train": {"seed": 42, "trackers": []}}))
    [('train.seed', 42), ('train.trackers', [])]
    """
    if isinstance(tree, Mapping) and tree:
        for name, part in tree.items():
            yield from flat(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


def ran_with(lock: Mapping[str, Any]) -> dict[str, object]:
    """The parameters of a run by dotted key, as its stages were given them."""
    return {
        name: value
        for stage in lock["stages"].values()
        for key, group in stage.get("params", {}).get(PARAMS, {}).items()
        for name, value in flat(group, key)
    }


def outputs(lock: Mapping[str, Any]) -> dict[str, str]:
    """What the stages of a run wrote: path and MD5."""
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}


def unfinished(
    commit: str, lock: Mapping[str, Any], params: Mapping[str, Any], reports: Iterable[str]
) -> str:
    """The first sign that the files of a revision are not of one run: what was found, or "".

    Looked at: the parameters of each stage, the outputs that it read of other stages, and these reports.
    """
    given, wrote = dict(flat(params)), outputs(lock)
    for name, stage in lock["stages"].items():
        for key, group in stage.get("params", {}).get(PARAMS, {}).items():
            for dotted, value in flat(group, key):
                if dotted not in given or given[dotted] != value:
                    return f"{name} ran with {dotted} {value}, and {PARAMS} says {given.get(dotted)}"
        for dep in stage.get("deps", []):
            if dep["path"] in wrote and dep.get("md5") != wrote[dep["path"]]:
                return f"{name} ran with another {dep['path']}"
    for path in reports:
        if md5((content(commit, path) or "").encode()) != wrote.get(path):
            return f"{path} is not the one of {LOCK}"
    return ""


def md5(data: bytes) -> str:
    """The hash by which DVC knows a file."""
    return str(integrity.plain_md5(data).hexdigest())


# What the cache holds. ---------------------------------------------------------------------------------


def cached(wanted: Mapping[str, str]) -> tuple[dict[str, bytes], str]:
    """Outputs by MD5, and why some are missing.

    `wanted` gives each hash its path. They come from the working tree where it has them, from DVC's cache, or
    from its remote. Raises PipelineError on a cached object that is damaged.
    """
    found = {}
    for key, path in wanted.items():
        if Path(path).is_file() and md5(data := Path(path).read_bytes()) == key:
            found[key] = data
    missing = [key for key in wanted if key not in found]
    if not missing:
        return found, ""
    more, why = _of_dvc(missing)
    return found | more, why


def _of_dvc(wanted: list[str]) -> tuple[dict[str, bytes], str]:
    from dvc.repo import Repo

    why = ""
    with Repo() as repo:
        places = {key: Path(repo.cache.local.oid_to_path(key)) for key in wanted}
        if absent := [key for key, place in places.items() if not place.exists()]:
            why = _pulled(repo, absent)
    found = {key: place.read_bytes() for key, place in places.items() if place.exists()}
    for key, data in found.items():
        if md5(data) != key:
            raise PipelineError(
                f"{places[key]}: damaged; expected MD5 {key} (delete it, then dvc pull or dvc repro)"
            )
    return found, why if len(found) < len(wanted) else ""


def _pulled(repo: Any, wanted: list[str]) -> str:
    """Bring objects from the remote into the cache; returns why some may be missing still."""
    from dvc.config import NoRemoteError
    from dvc_data.hashfile.hash_info import HashInfo

    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns of what we say ourselves
    try:
        repo.cloud.pull([HashInfo("md5", key) for key in wanted])
    except NoRemoteError:
        return "they are not in DVC's cache, and no remote is set (dvc remote add --default)"
    except Exception as error:  # noqa: BLE001  (every kind of remote raises errors of its own)
        return f"DVC's remote does not answer: {type(error).__name__}: {' '.join(str(error).split())}"
    return "they are neither in DVC's cache nor on its remote (dvc push, where they were made)"
