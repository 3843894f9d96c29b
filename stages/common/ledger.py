"""The account of a source: its pieces wait on disk until their duplicates are known, then are settled."""

import hashlib
import json
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING

from stages.common import nearduplicates
from stages.common.checks import Checks, Rejected
from stages.common.records import Sample

if TYPE_CHECKING:
    from stages.common.nearduplicates import Array


@dataclass(frozen=True)
class Piece:
    """A sample that passed every check of its own, or an entry of the ledger, on its way to the files."""

    row: int
    number: int  # of the chunk, from 1; 0 for a whole row
    line: str  # the Sample or the Rejected as a line of JSON
    digests: tuple[int, int, int] | None  # of the text, see `digests`; None: rejected


def texts(sample: Sample) -> tuple[str, ...]:
    """What makes two samples the same."""
    return sample.instruction, sample.input, sample.output, sample.vulnerable


def digests(sample: Sample) -> tuple[int, int, int]:
    """128 bits of the text without case and white space, and 64 bits of the text as it is."""
    plain = "\0".join(" ".join(part.lower().split()) for part in texts(sample))
    one, other = struct.unpack("<QQ", hashlib.sha256(plain.encode()).digest()[:16])
    (exact,) = struct.unpack("<Q", hashlib.sha256("\0".join(texts(sample)).encode()).digest()[:8])
    return one, other, exact


@dataclass(frozen=True)
class Waiting:
    """All pieces in order, on disk until their duplicates are known; 31 bytes of each stay in memory."""

    lines: IO[bytes]
    signatures: IO[bytes]  # of the kept pieces
    rows: "array[int]" = field(default_factory=partial(array, "I"))
    numbers: "array[int]" = field(default_factory=partial(array, "H"))
    kept: bytearray = field(default_factory=bytearray)
    digests: "array[int]" = field(default_factory=partial(array, "Q"))  # three a kept piece

    def add(self, pieces: Iterable[Piece], signatures: bytes) -> None:
        """Append what a worker found."""
        for piece in pieces:
            self.rows.append(piece.row)
            self.numbers.append(piece.number)
            self.kept.append(piece.digests is not None)
            self.digests.extend(piece.digests or ())
            self.lines.write(piece.line.encode())
        self.signatures.write(signatures)


def twins(waiting: Waiting, checks: Checks) -> "tuple[Array, Array]":
    """Of each kept piece, the equal and the similar one that stays for it: indexes, its own where it stays.

    Of several the one with the smallest digest stays, so that the order of the rows does not matter.
    """
    import numpy as np

    one, other, exact = np.frombuffer(waiting.digests, dtype=np.uint64).reshape(-1, 3).T
    own = np.arange(len(exact))
    same = _first(one, other, exact) if checks.duplicate else own
    if checks.near_duplicate is None or not len(own):
        return same, same
    waiting.signatures.flush()
    shape = (len(own), nearduplicates.PERMUTATIONS)
    signed = np.memmap(waiting.signatures, dtype=np.uint32, mode="r", shape=shape)
    roots = nearduplicates.clusters(signed, checks.near_duplicate)
    return same, _first(roots, roots, exact)


def _first(one: "Array", other: "Array", digest: "Array") -> "Array":
    """Of each item, the index of the smallest digest among those with the same two keys."""
    import numpy as np

    order = np.lexsort((digest, other, one))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (one[order[1:]] != one[order[:-1]]) | (other[order[1:]] != other[order[:-1]])
    found = np.empty(len(order), dtype=np.int64)
    found[order] = order[np.flatnonzero(first)[np.cumsum(first) - 1]]
    return found


def settled(
    waiting: Waiting, same: "Array", like: "Array", source: str
) -> Iterator[tuple[int, Rejected | None, str]]:
    """Every piece in order: its row, why it is left out if it is, and its line."""
    import numpy as np

    places = np.flatnonzero(np.frombuffer(waiting.kept, dtype=np.uint8))  # of the kept pieces among all

    def name(piece: int) -> str:
        chunk = waiting.numbers[piece]
        return f"{source}/{waiting.rows[piece]}" + (f"#{chunk}" if chunk else "")

    waiting.lines.seek(0)
    index = -1  # of the kept piece
    for piece, (row, text) in enumerate(zip(waiting.rows, waiting.lines, strict=True)):
        line = text.decode()
        failed = None
        index += waiting.kept[piece]
        if not waiting.kept[piece]:
            failed = Rejected(**json.loads(line))
        elif same[index] != index:
            failed = Rejected(name(piece), "duplicate", f"same as {name(places[same[index]])}")
        elif like[index] != index:
            failed = Rejected(name(piece), "near_duplicate", f"like {name(places[like[index]])}")
        yield row, failed, line


@dataclass(frozen=True)
class Tally:
    """How many rows and pieces there were, and what became of them."""

    rows: int
    kept: int  # rows of which at least one piece stays
    pieces: int
    kept_pieces: int
    reasons: Counter[str]  # entries of the ledger by check


def tally(pieces: Iterator[tuple[int, Rejected | None, str]]) -> Tally:
    """Count the pieces of every row."""
    reasons: Counter[str] = Counter()
    rows = kept = total = 0
    last, last_kept = -1, -1
    for row, failed, _ in pieces:
        total += 1
        rows += row != last
        last = row
        if failed is not None:
            reasons[failed.check] += 1
        elif row != last_kept:
            kept += 1
            last_kept = row
    return Tally(rows, kept, total, total - reasons.total(), reasons)
