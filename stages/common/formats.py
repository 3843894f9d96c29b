"""Files of rows: JSON, JSON lines, CSV, parquet and Python modules, compressed or not, become rows.

Rows come one by one, as they stand and in their order. What would change or vanish on the way to JSON lines
is refused by file and line: a key or a column that stands twice, an infinite number, text that is not UTF-8.
"""

import ast
import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from stages.common import files
from stages.common.errors import PipelineError

BATCH = 64  # rows of a parquet file at once: a row of CrossVul holds two whole source files
DEPTH = 32  # of lists and objects in a row; Python's json gives up near 1,000

Numbered = Iterator[tuple[int, str]]  # lines with their numbers, from 1

# Text: lines, JSON, CSV, Python. -----------------------------------------------------------------------


def lines(stream: BinaryIO, name: str) -> Numbered:
    """The lines of UTF-8 text with their numbers, ends included; a byte order mark is taken off."""
    start = 0
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise PipelineError(
                f"{name}: byte {start + error.start} is not UTF-8; expected UTF-8 text"
            ) from None
        start += len(line)
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def json_lines(numbered: Numbered, name: str) -> Iterator[files.Row]:
    """One object a line; blank lines are passed over."""
    for number, line in numbered:
        if line.strip():
            try:
                yield plain_row(DECODER.decode(line))
            except (ValueError, RecursionError) as error:
                raise PipelineError(
                    f"{name}:{number}: {line[:60]!r}; expected a JSON object ({error})"
                ) from None


def json_rows(numbered: Numbered, name: str) -> Iterator[files.Row]:
    """A JSON list of objects, or JSON lines, which upstream files also call `.json`."""
    blank = []
    for number, line in numbered:
        if not line.strip():
            blank.append(line)
        elif line.lstrip()[0] == "[":
            yield from json_list("".join([*blank, line, *(text for _, text in numbered)]), name)
        else:
            yield from json_lines(chain([(number, line)], numbered), name)


def json_list(text: str, name: str) -> Iterator[files.Row]:
    """The rows of a JSON list, made one at a time."""

    def skip(position: int) -> int:
        return SPACE.match(text, position).end()  # type: ignore[union-attr] # it also matches nothing

    def fault(position: int, expected: str) -> PipelineError:
        line = text.count("\n", 0, position) + 1
        return PipelineError(f"{name}:{line}: {text[position : position + 60]!r}; expected {expected}")

    position = skip(skip(0) + 1)
    more = text[position : position + 1] != "]"
    while more:
        try:
            value, after = DECODER.raw_decode(text, position)
            yield plain_row(value)
        except (ValueError, RecursionError) as error:
            raise fault(getattr(error, "pos", position), f"a JSON list of objects ({error})") from None
        position = skip(after)
        more = text[position : position + 1] == ","
        position = skip(position + 1) if more else position
    if text[position : position + 1] != "]" or skip(position + 1) != len(text):
        raise fault(position, "',' or the end of the list")


def plain_row(value: object) -> files.Row:
    """The value, if it is an object that can be written as it is; raises ValueError otherwise."""
    if not isinstance(value, dict):
        raise ValueError(f"not {type(value).__name__}")
    if not shallow(value, DEPTH):
        raise ValueError(f"nested at most {DEPTH} deep")
    return value


def shallow(value: object, levels: int) -> bool:
    """Whether lists and objects are nested at most `levels` deep."""
    if not isinstance(value, dict | list):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(shallow(part, levels - 1) for part in parts)


def unique(pairs: list[tuple[str, Any]]) -> files.Row:
    """A JSON object whose keys differ; of equal keys, Python would keep the last one in silence."""
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return row


def finite(text: str) -> float:
    """A JSON number; raises ValueError for one that no float holds, and for NaN and Infinity."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


DECODER = json.JSONDecoder(object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
SPACE = re.compile(r"[ \t\n\r]*")


def csv_rows(numbered: Numbered, name: str) -> Iterator[files.Row]:
    """The rows of a CSV file under its first row's names, every cell as text; blank lines are passed over."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader((line for _, line in numbered), strict=True)
    rows = filter(None, reader)
    try:
        header = next(rows, [])
        if len(set(header)) != len(header):
            raise PipelineError(f"{name}: columns {header}; expected names that differ")
        for row in rows:
            if len(row) != len(header):
                raise PipelineError(
                    f"{name}:{reader.line_num}: {len(row)} cells; expected {len(header)}, as in the header"
                )
            yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise PipelineError(f"{name}:{reader.line_num}: {error}; expected csv") from None


def functions(numbered: Numbered, name: str) -> Iterator[files.Row]:
    """The public, documented top-level functions of a Python module, in the order of the file."""
    text = "".join(line for _, line in numbered)
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise PipelineError(f"{name}:{line}: not Python: {error}; expected a module") from None
    source = io.StringIO(text, newline="").readlines()  # the three line ends that Python knows
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and ast.get_docstring(node):
            code = "".join(source[first_line(node) - 1 : node.end_lineno]).rstrip("\r\n")
            yield {"path": name, "name": node.name, "code": code}


def first_line(node: ast.FunctionDef) -> int:
    """Where a function begins, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


# Tables and compressed files. --------------------------------------------------------------------------


def parquet_rows(stream: BinaryIO, name: str) -> Iterator[files.Row]:
    """The rows of a parquet file, read in batches; NaN, which JSON lacks, becomes null."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        columns = table.schema_arrow
        if len(set(columns.names)) != len(columns.names):
            raise PipelineError(f"{name}: columns {columns.names}; expected names that differ")
        for column in columns:
            if not is_plain(column.type):
                raise PipelineError(f"{name}: {column.name}: {column.type}; expected text, numbers or lists")
        for batch in table.iter_batches(BATCH):
            for row in batch.to_pylist():
                yield {key: without_nan(value, f"{name}: {key}") for key, value in row.items()}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise PipelineError(f"{name}: {str(error).splitlines()[0]}; expected parquet") from None


def is_plain(kind: Any) -> bool:
    """Whether values of an Arrow type can be written as JSON and read back the same."""
    from pyarrow import types

    if types.is_map(kind):
        return False
    if types.is_dictionary(kind):
        return is_plain(kind.value_type)
    if types.is_nested(kind):
        return all(is_plain(kind.field(index).type) for index in range(kind.num_fields))
    checks = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer)
    return any(check(kind) for check in (*checks, types.is_floating, types.is_boolean, types.is_null))


def without_nan(value: Any, where: str) -> Any:
    """The value with null for every NaN; raises PipelineError for an infinity."""
    if isinstance(value, dict):
        return {key: without_nan(part, where) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part, where) for part in value]
    if isinstance(value, float) and math.isinf(value):
        raise PipelineError(f"{where}: {value}; expected finite numbers")
    return None if isinstance(value, float) and math.isnan(value) else value


def zstd_open(stream: BinaryIO) -> io.BufferedReader:
    """Open a Zstandard stream with the decoder that pyarrow brings."""
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd"))


TEXT: dict[str, Callable[[Numbered, str], Iterator[files.Row]]] = {
    ".csv": csv_rows,
    ".json": json_rows,
    ".jsonl": json_lines,
    ".py": functions,
}
COMPRESSED: dict[str, Callable[[BinaryIO], Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": zstd_open,
}


def decode(stream: BinaryIO, name: str) -> Iterator[files.Row]:
    """The rows of one file, one at a time, decoded by the suffixes of its name.

    Raises PipelineError naming the file, and the line or byte where one is known.
    """
    *_, before, suffix = ["", "", *PurePosixPath(name).suffixes]
    if suffix not in COMPRESSED:
        yield from _decode(stream, name, suffix)
        return
    try:
        opened = COMPRESSED[suffix](stream)
        if before == ".parquet":  # not read from its start to its end
            opened = io.BytesIO(opened.read())
        yield from _decode(opened, name, before)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise PipelineError(f"{name}: {error}; expected a whole {suffix} file") from None


def _decode(stream: BinaryIO, name: str, suffix: str) -> Iterator[files.Row]:
    if suffix == ".parquet":
        return parquet_rows(stream, name)
    if suffix in TEXT:
        return TEXT[suffix](lines(stream, name), name)
    raise PipelineError(
        f"{name}: suffix {suffix!r}; expected one of {', '.join(TEXT)}, .parquet, "
        f"with or without one of {', '.join(COMPRESSED)}"
    )
