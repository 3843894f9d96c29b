"""What is to be reviewed: files and git diffs, cut into functions.

A function is what the grammar calls one, with its decorators; of nested ones the outermost. A file without
any is one piece. Whatever cannot be reviewed is named with the reason, never left out in silence.
"""

import os
import re
import subprocess
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.common import languages
from stages.common.errors import PipelineError

PASSED_OVER = ("__pycache__", "node_modules", "site-packages", "vendor")  # folders of others' code
TEXTUAL = ("css", "html")  # languages that a grammar reads and nobody writes functions in


@dataclass(frozen=True)
class Piece:
    """A function, or a file without any."""

    path: str  # as it is printed: with slashes, relative to the current folder where it lies below it
    start: int  # its first line, from 1
    end: int  # its last line
    language: str
    code: str  # without the indentation that all of its lines share


@dataclass(frozen=True)
class Skipped:
    """Something that is not reviewed."""

    where: str
    reason: str


Found = tuple[list[Piece], list[Skipped]]


def language(path: Path) -> str:
    """The language of a file by its suffix, "" where there is no grammar that knows functions."""
    name = languages.canonical(path.suffix) if path.suffix else ""
    return name if name in languages.GRAMMARS and name not in TEXTUAL else ""


def text(path: Path) -> str:
    """The text of a file with plain line ends; raises ValueError with the reason when it is none."""
    if not path.is_file():
        raise ValueError("no regular file")
    try:
        size = path.stat().st_size
        if size > languages.MAX_BYTES:
            raise ValueError(f"{size:,} bytes, more than {languages.MAX_BYTES:,}")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or "unreadable") from None
    if b"\0" in data:
        raise ValueError("binary")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def shown(path: Path) -> str:
    """A path as it is printed: relative to the current folder where it lies below it."""
    full = Path(os.path.abspath(path))  # noqa: PTH100 (resolve would follow links)
    here = Path.cwd()
    short = full.relative_to(here) if full.is_relative_to(here) else full
    return os.fsencode(short).decode("utf-8", "replace")


def outermost(ranges: Iterable[range]) -> list[range]:
    """Ranges of lines without those that begin inside another: of 0-9, 2-4 and 9-12 the first and last."""
    kept: list[range] = []
    for one in sorted(ranges, key=lambda lines: (lines.start, -lines.stop)):
        if not kept or one.start >= kept[-1].stop:
            kept.append(one)
    return kept


def pieces(path: Path, max_chars: int, changed: frozenset[int] | None = None) -> Found:
    """The functions of a file; with `changed` those alone that hold one of these lines, counted from 0."""
    name, known = shown(path), language(path)
    if not known:
        return [], [Skipped(name, f"{path.suffix or 'no suffix'}: no supported language")]
    try:
        code = text(path)
    except ValueError as error:
        return [], [Skipped(name, str(error))]
    if languages.parsed(code, known) is None:
        return [], [Skipped(name, f"the grammar of {known} could not read it in time")]
    lines = code.split("\n")
    found, skipped = [], []
    whole = range(len(lines) - (not lines[-1]))
    functions = outermost(languages.functions(code, known))
    for part in functions or [whole]:
        piece = textwrap.dedent("\n".join(lines[part.start : part.stop])).strip("\n")
        if not piece.strip() or (changed is not None and changed.isdisjoint(part)):
            continue
        if len(piece) > max_chars:
            what = "a function" if functions else "a file without functions"
            reason = f"{what} of {len(piece):,} characters, more than {max_chars:,} (--max-chars)"
            skipped.append(Skipped(f"{name}:{part.start + 1}", reason))
            continue
        found.append(Piece(name, part.start + 1, part.stop, known, piece))
    return found, skipped


# Paths. --------------------------------------------------------------------------------------------------


def below(folder: Path) -> Iterator[Path]:
    """Every file below a folder in order; hidden ones, links and others' code are passed over."""
    for here, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name[0] != "." and name not in PASSED_OVER)
        for name in sorted(files):
            path = Path(here, name)
            if name[0] != "." and not path.is_symlink():
                yield path


def of_paths(paths: Iterable[Path], max_chars: int) -> Found:
    """The functions of files and folders. In folders, files of no supported language are only counted."""
    found: list[Piece] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for path in paths:
        if not path.exists():
            raise PipelineError(f"{path}: not found; expected a file or a folder")
        others: Counter[str] = Counter()
        for one in below(path) if path.is_dir() else [path]:
            if shown(one) in seen:
                continue
            seen.add(shown(one))
            if path.is_dir() and not language(one):
                others[one.suffix or "no suffix"] += 1
                continue
            more, less = pieces(one, max_chars)
            found += more
            skipped += less
        if others:
            kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
            skipped.append(Skipped(shown(path), f"{others.total()} files of no supported language ({kinds})"))
    return found, skipped


# Diffs. --------------------------------------------------------------------------------------------------

HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass
class Change:
    """What a diff says of one file: its new lines, and the lines (from 0) that it touches."""

    added: dict[int, str]
    lines: set[int]


def parse(diff: str) -> dict[str, Change]:
    """The changes of a git diff by the new name of each file; deleted files are left out.

    Hunks are counted out by their heads, so that no line of code is taken for one. Raises PipelineError for
    a diff of a merge, and where the text ends inside a hunk.
    """
    changes: dict[str, Change] = {}
    change: Change | None = None
    old = new = number = 0  # lines of the hunk that are to come, and where we are in the new file
    for line in diff.removesuffix("\n").split("\n"):
        if old > 0 or new > 0:
            mark = line[:1] or " "
            if mark == "+" and change is not None:
                change.added[number] = line[1:]
                change.lines.add(number)
            elif mark == "-" and change is not None:
                change.lines |= {number - 1, number}  # around what was taken out
            if mark not in "+- \\":
                raise PipelineError(f"the diff: {line[:60]!r} inside a hunk; expected +, - or a space first")
            old, new, number = old - (mark in "- "), new - (mark in "+ "), number + (mark in "+ ")
        elif line.startswith("@@@"):
            raise PipelineError("the diff: of a merge (@@@); expected a diff between two versions")
        elif line.startswith("+++ "):
            name = new_name(line[4:])
            change = changes.setdefault(name, Change({}, set())) if name else None
        elif hunk := HUNK.match(line):
            old, new = (int(count or 1) for count in (hunk[1], hunk[3]))
            number = int(hunk[2]) - (new > 0)
    if old > 0 or new > 0:
        raise PipelineError("the diff: ends inside a hunk; expected a whole one")
    return changes


def new_name(name: str) -> str:
    r"""The path in a head `+++ `, "" for a deleted file: `new_name("\"b/a\\303\\244.py\"") == "aä.py"`."""
    name = name.rstrip("\r").split("\t")[0]
    if name.startswith('"'):
        octal = re.sub(
            r"\\(?:([0-7]{3})|(.))",
            lambda one: chr(int(one[1], 8)) if one[1] else ESCAPES.get(one[2], one[2]),
            name[1:].rpartition('"')[0].encode().decode("latin-1"),
        )
        name = octal.encode("latin-1").decode("utf-8", "replace")
    return "" if name == "/dev/null" else re.sub(r"^[biwco]/", "", name)


def of_diff(diff: str, root: Path, max_chars: int) -> Found:
    """The functions that a diff touches, as they stand in the files below `root`."""
    found: list[Piece] = []
    skipped: list[Skipped] = []
    for name, change in parse(diff).items():
        path = root / name
        if ".." in PurePosixPath(name).parts or not path.is_file():
            skipped.append(Skipped(name, f"no such file below {root}"))
            continue
        if language(path) and not stands(path, change.added):
            skipped.append(Skipped(shown(path), "the file is not what the diff leads to"))
            continue
        more, less = pieces(path, max_chars, frozenset(change.lines))
        found += more
        skipped += less
    return found, skipped


def stands(path: Path, added: Mapping[int, str]) -> bool:
    """Whether a file has the lines that a diff adds, where it adds them; a file that is no text has."""
    try:
        lines = text(path).split("\n")
    except ValueError:
        return True  # `pieces` tells why
    return all(
        number < len(lines) and lines[number] == line.removesuffix("\r") for number, line in added.items()
    )


def git_diff(revision: str) -> tuple[str, Path]:
    """What changed in the working tree since a revision, and the root of the repository."""
    root = _git("rev-parse", "--show-toplevel").strip()
    options = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    return _git("-C", root, "diff", *options, "--unified=0", "--end-of-options", revision, "--"), Path(root)


def git_root() -> Path:
    """The root of the repository around the current folder; without one, that folder."""
    try:
        return Path(_git("rev-parse", "--show-toplevel").strip())
    except PipelineError:
        return Path.cwd()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except OSError as error:
        raise PipelineError(f"git: {error.strerror}; expected git") from None
    except subprocess.CalledProcessError as error:
        told = error.stderr.decode("utf-8", "replace").strip().split("\n")[0]
        raise PipelineError(f"git {arguments[-2]}: {told}; expected a revision of this repository") from None
    return done.stdout.decode("utf-8", "replace")
