"""Files: rows in, rows out, and every output whole or not at all."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.common.errors import PipelineError

Row = dict[str, Any]


def parse_row(line: str, where: str) -> Row:
    """Parse one JSON object; raises PipelineError naming `where` and what was found there."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{where}: {line[:60]!r}; expected a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise PipelineError(f"{where}: {line[:60]!r}; expected a JSON object")
    return row


def read_rows(path: Path) -> list[Row]:
    """Read a JSON lines file; raises PipelineError if it is missing, not UTF-8 or malformed."""
    return list(iter_rows(path))


def iter_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON lines file one by one, for files that may not fit into memory."""
    for number, line in iter_lines(path):
        yield parse_row(line, f"{path}:{number}")


def iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1."""
    if not path.exists():
        raise PipelineError(f"{path}: not found; expected a file (an earlier stage writes it)")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise PipelineError(
                    f"{path}:{number}: byte {error.start} is not UTF-8; expected UTF-8 text"
                ) from None
            if text.strip():
                yield number, text


def read_json(path: Path) -> Row:
    """Read one JSON object from a file."""
    try:
        value = json.loads(read_text(path), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: {error}; expected one JSON object with finite numbers") from None
    if not isinstance(value, dict):
        raise PipelineError(f"{path}: {type(value).__name__}; expected one JSON object")
    return value


def needed(path: Path, *names: str) -> Row:
    """Read one JSON object that has these keys."""
    row = read_json(path)
    for name in names:
        if name not in row:
            raise PipelineError(f"{path}: {name}: nothing; expected a value (an earlier stage writes it)")
    return row


def read_text(path: Path) -> str:
    """Read a UTF-8 file; raises PipelineError if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; expected a file (an earlier stage writes it)") from None
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: byte {error.start} is not UTF-8; expected UTF-8 text") from None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` for a file or a folder; rename it to `path` on success only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            _remove(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise PipelineError(
            f"{path}: {error.object[error.start]!r}; expected text that UTF-8 can hold"
        ) from None
    with whole(path) as temporary:
        temporary.write_bytes(data)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines, one object a line, in the order given and one at a time; returns their number."""
    return write_lines(path, map(line, rows))


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines that end in a newline, one at a time, whole or not at all; returns their number."""
    count = 0
    with whole(path) as temporary, temporary.open("wb") as stream:
        for count, text in enumerate(lines, 1):
            try:
                stream.write(text.encode())
            except UnicodeEncodeError as error:
                raise PipelineError(
                    f"{path}:{count}: {error.object[error.start]!r}; expected text that UTF-8 can hold"
                ) from None
    return count


def line(row: Mapping[str, Any]) -> str:
    """One object as a line of JSON lines."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, indented, keys in the order given."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    except ValueError:
        raise PipelineError(f"{path}: NaN or infinity among the values; expected finite numbers") from None
    write_text(path, text + "\n")


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain_name(text: str) -> str:
    """An argument that becomes part of a file's name: letters, digits, `_`, `-` and `.` only."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text):
        raise ValueError(f"{text!r}; expected letters, digits, '_', '-' and '.'")
    return text
