"""Pin what comes from the Hub: a commit in place of every branch or tag, and a sha256 beside every file.

    python -m conf.pin            edit conf/source/*/*.yaml and conf/scale/*.yaml, comments and layout kept
    python -m conf.pin --check    only list what is not pinned, asking nobody; the status is 1 if there is any

An origin with `allow_moving: true` is left alone. Either everything is pinned or no file is touched.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common import files, uris
from stages.common.errors import PipelineError, run

CONF = Path("conf")


def read(path: Path) -> Any:
    """A configuration file with its comments and layout."""
    try:
        return yaml().load(files.read_text(path))
    except YAMLError as error:
        raise PipelineError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def yaml() -> YAML:
    """A reader and writer that keeps comments, quotes and this project's layout."""
    both = YAML()
    both.preserve_quotes = True
    both.width = 1_000_000  # no line is folded
    both.indent(mapping=2, sequence=4, offset=2)
    both.representer.add_representer(type(None), _null)
    return both


def _null(representer: Any, _value: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def documents() -> list[Path]:
    """The files that may name a place on the Hub."""
    return sorted([*CONF.glob("source/*/*.yaml"), *CONF.glob("scale/*.yaml")])


def entries(tree: Any) -> Iterator[Any]:
    """Every mapping inside `tree` with a `uri` of the Hub that is to stay where it is."""
    if isinstance(tree, dict):
        if str(tree.get("uri", "")).startswith("hf:") and not tree.get("allow_moving"):
            yield tree
        parts = list(tree.values())
    else:
        parts = tree if isinstance(tree, list) else []
    for part in parts:
        yield from entries(part)


def open_keys(entry: Any) -> list[str]:
    """Which of `uri` and `sha256` are still open: a revision that can move, a file without digest."""
    where = uris.place(entry["uri"])
    moving = ["uri"] if not uris.COMMIT.fullmatch(where.revision) else []
    return moving + (["sha256"] if where.path and entry.get("sha256") is None else [])


@cache
def commit(kind: str, repo: str, revision: str) -> str:
    """The commit of a branch or tag, the same for every file of a repository."""
    uri = f"hf://{'datasets/' if kind == 'dataset' else ''}{repo}@{revision}"
    return uris.commit(uris.Place(uri, kind, repo, revision, ""))


def digest(where: uris.Place, revision: str) -> str:
    """The sha256 of a file at a commit: what the Hub says of an LFS object, else of the downloaded bytes."""
    uris.prepare()
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    found = uris.ask(
        where.uri,
        lambda: HfApi().get_paths_info(where.repo, [where.path], revision=revision, repo_type=where.kind),
    )
    if not (found and isinstance(found[0], RepoFile)):
        raise PipelineError(f"{where.uri}: no such file; expected a path in the repository at this revision")
    if found[0].lfs is not None:
        return found[0].lfs.sha256
    return uris.sha256(uris.hub_path(where, revision))


def pin(entry: Any) -> Iterator[str]:
    """Pin one mapping in place; says what was changed. Raises PipelineError when a given sha256 is wrong."""
    uri = entry["uri"]
    keys = open_keys(entry)
    if not keys:
        return
    where = uris.place(uri)
    revision = commit(where.kind, where.repo, where.revision)
    if where.path:
        found = digest(where, revision)
        if entry.get("sha256") not in (None, found):
            raise PipelineError(f"{uri}: sha256 {found} at {revision}; expected {entry['sha256']}")
        if "sha256" in keys:
            if "sha256" not in entry:
                entry.insert(list(entry).index("uri") + 1, "sha256", found)
            entry["sha256"] = found
            yield f"{uri}: sha256 {found}"
    if "uri" in keys:
        start, end = uris.HF.fullmatch(uri).span("revision")  # type: ignore[union-attr]
        entry["uri"] = type(uri)(uri[:start] + revision + uri[end:])  # a quoted text stays quoted
        yield f"{uri}: {where.revision} is {revision}"


def main() -> None:
    """Pin, or with --check list what is open."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only list what is not pinned")
    check = parser.parse_args().check

    texts = {}
    said = []
    for path in documents():
        tree = read(path)
        if check:
            said += [f"{path}: {entry['uri']}: {key}" for entry in entries(tree) for key in open_keys(entry)]
            continue
        changes = [f"{path}: {change}" for entry in entries(tree) for change in pin(entry)]
        if changes:
            stream = io.StringIO()
            yaml().dump(tree, stream)
            texts[path] = stream.getvalue()
            said += changes
    for path, text in texts.items():
        files.write_text(path, text)
    print("\n".join(said) if said else "pin: everything from the Hub is pinned")
    if check and said:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
