"""Near-duplicates by MinHash: texts whose runs of five words mostly agree belong to one cluster.

rensa computes the signatures; hashing, banding, verification and clusters are numpy, so that a million
signatures may lie in a memory-mapped file. The clusters depend on the texts alone, never on their order.
"""

import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from stages.common import parallel

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PERMUTATIONS = 128
SHINGLE = 5  # words, as StarCoder's data were compared (Li et al. 2023, arXiv:2305.06161, section 3.3)
# 32 bands of 4 rows find a pair of similarity 0.7 with probability 0.9998 and one of 0.3 with 0.23; what is
# found is then compared over the whole signature.
BAND_ROWS = 4
BATCH = 200  # texts; from 256 on rensa starts threads, and a process forked after that would wait for ever
BLOCK = 1 << 13  # pairs compared at once: 8 MiB
MIX = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: Knuth's multiplier for hashing

# What separates words: every ASCII byte but letters, digits and the underscore.
SPACES = bytes(byte if byte > 127 or chr(byte).isalnum() or byte == ord("_") else 32 for byte in range(256))


def words(text: str) -> list[bytes]:
    """The words of a text: case, layout and punctuation left out.

    >>> words("x = Add(1,\\n  y_2)")
    [b'x', b'add', b'1', b'y_2']
    """
    return text.lower().encode(errors="surrogatepass").translate(SPACES).split()


def shingles(texts: Iterable[str]) -> "tuple[Array, Array]":
    """The hashed runs of SHINGLE words of all texts one after another, and where each text begins and ends.

    A text of fewer words is one run of its own, so that only equal ones agree.
    """
    import numpy as np

    short = SHINGLE * [b"\0"]  # no word holds one: what has no run of its own agrees only with its like
    padded = [found if len(found) >= SHINGLE else (found + short)[:SHINGLE] for found in map(words, texts)]
    counts = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
    total = int(counts.sum())
    flat = np.fromiter(map(zlib.crc32, chain.from_iterable(padded)), dtype=np.uint64, count=total)
    runs = np.zeros(max(0, total - SHINGLE + 1), dtype=np.uint64)
    for place in range(SHINGLE):
        runs = (runs ^ flat[place : place + len(runs)]) * np.uint64(MIX)
    ends = np.cumsum(counts)
    inside = np.ones(len(runs), dtype=bool)  # not across the border of two texts
    for place in range(1, SHINGLE):
        inside[ends[:-1] - place] = False
    offsets = np.concatenate(([0], ends - (SHINGLE - 1) * np.arange(1, len(counts) + 1)))
    return runs[inside], offsets.astype(np.uint64)


def signatures(texts: Iterable[str]) -> "Array":
    """One MinHash signature a text: uint32 of shape (texts, PERMUTATIONS)."""
    import numpy as np

    parts = [_signed(batch) for batch in parallel.chunked(texts, BATCH)]
    return np.concatenate([np.zeros((0, PERMUTATIONS), dtype=np.uint32), *parts])


def _signed(texts: list[str]) -> "Array":
    import numpy as np
    from rensa import RMinHash

    runs, offsets = shingles(texts)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(runs, offsets, PERMUTATIONS, 0).to_rows()
    return np.array(rows, dtype=np.uint32)


def clusters(signed: "Array", threshold: float) -> "Array":
    """Of each signature, the smallest index in its cluster: int64 of shape (texts,).

    Two texts are neighbours when at least `threshold` of their signatures agree, which estimates the Jaccard
    similarity of their shingles with a standard error of at most 0.044; a cluster is a connected component.
    """
    import numpy as np

    parent = np.arange(len(signed), dtype=np.int64)
    if len(signed) < 2:
        return parent
    by_content = np.argsort(_hashes(signed, slice(None)), kind="stable")
    for start in range(0, PERMUTATIONS - BAND_ROWS + 1, BAND_ROWS):
        band = _hashes(signed, slice(start, start + BAND_ROWS))
        order = by_content[np.argsort(band[by_content], kind="stable")]
        for first, second in _candidates(order, band):
            apart = parent[first] != parent[second]  # most pairs of a band were joined in an earlier one
            first, second = first[apart], second[apart]
            alike = _agreement(signed, first, second) >= threshold
            _join(parent, first[alike], second[alike])
    for index in range(len(parent)):  # parents point down, so that one pass settles them
        parent[index] = parent[parent[index]]
    return parent


def _hashes(signed: "Array", columns: slice) -> "Array":
    """A 64-bit hash of some columns of each signature, computed block by block."""
    import numpy as np

    mixed = np.empty(len(signed), dtype=np.uint64)
    for start in range(0, len(signed), BLOCK):
        part = np.zeros(len(signed[start : start + BLOCK]), dtype=np.uint64)
        for column in np.ascontiguousarray(signed[start : start + BLOCK, columns].T):
            part = (part ^ column) * np.uint64(MIX)
            part ^= part >> np.uint64(29)
        mixed[start : start + BLOCK] = part
    return mixed


def _candidates(order: "Array", band: "Array") -> Iterator[tuple["Array", "Array"]]:
    """Pairs that share a band: each row with the first of its run and with the one before it.

    `order` sorts a run by content: which pairs are compared does not depend on the order of the texts.
    """
    import numpy as np

    ordered = band[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1  # positions that continue a run
    if not len(same):
        return
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    leaders = starts[np.searchsorted(starts, same, side="right") - 1]
    for begin in range(0, len(same), BLOCK):
        here = same[begin : begin + BLOCK]
        lead = leaders[begin : begin + BLOCK]
        yield order[lead], order[here]
        apart = here - 1 != lead
        yield order[here[apart] - 1], order[here[apart]]


def _agreement(signed: "Array", first: "Array", second: "Array") -> "Array":
    """The share of equal entries of each pair of signatures."""
    shares: Array = (signed[first] == signed[second]).mean(axis=1)
    return shares


def _join(parent: "Array", first: "Array", second: "Array") -> None:
    """Put each pair into one cluster, whose root is its smallest index."""
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        low, high = sorted((_root(parent, one), _root(parent, other)))
        parent[high] = low


def _root(parent: "Array", index: int) -> int:
    while (above := int(parent[index])) != index:
        parent[index] = parent[above]
        index = above
    return index
