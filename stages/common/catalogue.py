"""The catalogue of all examples that may be mixed: one row of numbers an example, and no text.

A row says where the example stands in its source's file and has hashes of what it says, so that a million
examples can be compared, chosen and ordered in memory, and written from their files.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from stages.common import files, nearduplicates, overlap, parallel, records
from stages.common.errors import PipelineError
from stages.common.mixture import MixParams
from stages.common.progress import progress
from stages.common.prompts import BLOCK
from stages.common.records import Example

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

CHUNK = 1 << 22  # bytes of lines that a worker takes at a time

ROW = [
    ("source", "u2"),  # its number
    ("flags", "u1"),
    ("length", "u4"),  # bytes of the line
    ("offset", "u8"),  # of the line in its file
    ("characters", "u4"),
    *((name, "u8") for name in ("id", "group", "unit", "prompt", "content")),  # hashes
]
PREFERENCE, COPIED, REVIEW = 1, 2, 4  # flags; COPIED: the example gives a benchmark away
SIDES = ("detect_", "review_")  # kinds of which each has a twin under the same question


# Lines and examples. -------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of a JSON lines file and where it stands."""

    number: int
    offset: int
    text: bytes


def chunks(path: Path, label: str) -> Iterator[list[Line]]:
    """The lines of a file that are not blank, some CHUNK bytes at a time, with progress on a terminal."""
    if not path.exists():
        raise PipelineError(f"{path}: not found; expected a file (an earlier stage writes it)")
    yield from progress(_chunks(path), label, "chunks", path.stat().st_size // CHUNK + 1)


def _chunks(path: Path) -> Iterator[list[Line]]:
    chunk: list[Line] = []
    start = offset = 0
    with path.open("rb") as stream:
        for number, text in enumerate(stream, 1):
            if text.strip():
                chunk.append(Line(number, offset, text))
            offset += len(text)
            if offset - start >= CHUNK:
                yield chunk
                chunk, start = [], offset
    if chunk:
        yield chunk


def parse(line: Line, path: Path) -> Example:
    """One example; raises PipelineError naming file and line of what is malformed."""
    where = f"{path}:{line.number}"
    try:
        text = line.text.decode()
    except UnicodeDecodeError as error:
        raise PipelineError(f"{where}: byte {error.start} is not UTF-8; expected UTF-8 text") from None
    example = records.from_row(Example, files.parse_row(text, where), where)
    if example.kind == "preference" and not example.rejected:
        raise PipelineError(f"{where}: rejected: ''; expected the worse answer of a preference pair")
    return example


def texts(example: Example) -> tuple[str, str, str]:
    """What an example says."""
    return example.prompt, example.completion, example.rejected


def characters(example: Example) -> int:
    """Length of a prompt and its (longer) answer."""
    return len(example.prompt) + max(len(example.completion), len(example.rejected))


def unit(example: Example) -> str:
    """What both sides of a pair share; of any other example its id."""
    return example.id.rsplit("_", 1)[0] if example.kind.startswith(SIDES) else example.id


def substance(example: Example) -> str:
    """What two examples must share to be near-duplicates: the code of each text, or the text without any."""
    return "\n".join("\n".join(block[3] for block in BLOCK.finditer(text)) or text for text in texts(example))


def digest(*parts: str) -> int:
    """64 bits of some texts."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little")


# From lines to rows, checked against the benchmarks on the way. -----------------------------------------


@dataclass(frozen=True)
class Part:
    """What is kept of some lines."""

    rows: "Array"  # of ROW
    findings: overlap.Findings
    signatures: bytes  # for near-duplicates: of each example that is not too long, in order


def examine(chunk: list[Line], source: int, path: Path, chosen: MixParams, index: overlap.Index) -> Part:
    """Catalogue some lines of a source."""
    import numpy as np

    rows, findings, fitting = [], overlap.Findings(), []
    for line in chunk:
        example = parse(line, path)
        where = f"{path}:{line.number}"
        if example.source != path.stem:
            raise PipelineError(
                f"{where}: source: {example.source!r}; expected {path.stem!r}, the file's name"
            )
        length = characters(example)
        flags = PREFERENCE * (example.kind == "preference") | REVIEW * example.kind.startswith("review_")
        try:
            hashes = (
                digest(example.id),
                digest(example.group),
                digest("unit", unit(example)),
                digest(overlap.normalised(example.prompt) or example.prompt),
                digest(*texts(example)),
            )
        except UnicodeEncodeError as error:
            raise PipelineError(
                f"{where}: {error.object[error.start]!r}; expected text that UTF-8 can hold"
            ) from None
        if length <= chosen.max_chars:
            found = overlap.find(index, *texts(example))
            findings.add(found)
            flags |= COPIED * overlap.copied(found, chosen.overlap.entry_points)
            fitting.append(substance(example))
        rows.append((source, flags, len(line.text), line.offset, length, *hashes))
    signed = nearduplicates.signatures(fitting).tobytes() if chosen.near_duplicate else b""
    return Part(np.array(rows, dtype=ROW), findings, signed)


def read(
    paths: Sequence[Path], chosen: MixParams, index: overlap.Index, workers: int, signatures: IO[bytes]
) -> tuple["Array", overlap.Findings]:
    """Catalogue every source, its signatures into a file; raises PipelineError on an id that stands twice."""
    import numpy as np

    parts, findings = [np.zeros(0, dtype=ROW)], overlap.Findings()
    for number, path in enumerate(paths):
        work = partial(examine, source=number, path=path, chosen=chosen, index=index)
        for part in parallel.ordered(work, chunks(path, f"mix {path.stem}"), workers):
            parts.append(part.rows)
            findings.merge(part.findings)
            signatures.write(part.signatures)
    signatures.flush()
    rows = np.concatenate(parts)
    distinct(rows, paths)
    return rows, findings


def distinct(rows: "Array", paths: Sequence[Path]) -> None:
    """Refuse an id that stands twice."""
    import numpy as np

    order = np.argsort(rows["id"], kind="stable")
    twice = np.flatnonzero(rows["id"][order][1:] == rows["id"][order][:-1])
    if len(twice):
        row = rows[order[twice[0] + 1]]
        path = paths[row["source"]]
        with path.open("rb") as stream:
            stream.seek(int(row["offset"]))
            name = parse(Line(0, 0, stream.readline()), path).id
        raise PipelineError(f"{path}: id {name!r} occurs twice; expected every id once")


def alike(rows: "Array", chosen: MixParams, signatures: IO[bytes]) -> "Array":
    """Of each row the smallest row that it is a near-duplicate of: mostly itself."""
    import numpy as np

    labels = np.arange(len(rows), dtype=np.int64)
    fits = np.flatnonzero(rows["characters"] <= chosen.max_chars)
    if chosen.near_duplicate is not None and len(fits):  # nothing can be mapped of an empty file
        shape = (len(fits), nearduplicates.PERMUTATIONS)
        signed = np.memmap(signatures, dtype=np.uint32, mode="r", shape=shape)
        labels[fits] = fits[nearduplicates.clusters(signed, chosen.near_duplicate)]
    return labels


# And back. -----------------------------------------------------------------------------------------------


def write(path: Path, rows: "Array", copies: "Array", paths: Sequence[Path]) -> None:
    """The lines of some rows, each from where it stands in its source; a copy gets an id of its own."""
    with ExitStack() as stack, path.open("wb") as out:
        readers = [stack.enter_context(one.open("rb")).fileno() for one in paths]
        columns = [rows[name] for name in ("source", "length", "offset")]
        for source, length, offset, copy in zip(*columns, copies, strict=True):
            line = os.pread(readers[source], length, offset).strip()
            if copy:
                row = files.parse_row(line.decode(), str(path))
                line = files.line({**row, "id": f"{row['id']}@{copy + 1}"}).strip().encode()
            out.write(line + b"\n")
