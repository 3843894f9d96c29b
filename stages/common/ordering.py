"""Ordering: from chosen rows of a catalogue to their positions in the training set."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stages.common.catalogue import REVIEW

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BLOCK = 8  # examples side by side in paired order
WINDOW = 8  # blocks that are sorted by length among themselves


def shuffled(rows: "Array", copies: "Array", seed: int) -> "Array":
    """The order that `datasets.Dataset.shuffle(seed)` gives the rows, which stand source after source."""
    import numpy as np

    return np.random.default_rng(seed).permutation(len(rows))


def paired(rows: "Array", copies: "Array", seed: int) -> "Array":
    """Blocks of BLOCK examples of like length: whole pairs of verdicts, whole pairs of reviews, or others.

    With a batch that divides BLOCK, both sides of a pair meet in one step. What they share then cancels out
    of the gradient, and what is left is the difference that the verdict depends on. Other answers are
    longer and would outweigh a verdict's few tokens, so they have blocks of their own. Blocks that are not
    full stand at the end.
    """
    import numpy as np

    draw = np.random.default_rng(seed)
    drawn = draw.permutation(len(rows))
    unit, first, sizes = units(rows["unit"][drawn], copies[drawn])
    leader = drawn[first]  # of each unit, the row that was drawn first
    kind = np.where(sizes == 1, 0, 1 + (rows["flags"][leader] & REVIEW > 0))
    length = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(length, unit, rows["characters"][drawn])

    count = np.where(kind == 0, BLOCK, BLOCK // 2)  # units a block
    window = inside(np.lexsort((first, kind)), kind) // (count * WINDOW)
    near = np.lexsort((first, rows["id"][leader], length, window, kind))
    place = inside(near, kind)
    block = np.zeros(len(first), dtype=np.int64)
    block[near] = np.cumsum((place % count == 0)[near]) - 1

    full = np.bincount(block, weights=sizes) == BLOCK
    rank = np.concatenate([draw.permutation(np.flatnonzero(full)), np.flatnonzero(~full)]).argsort()
    return drawn[np.lexsort((place[unit], rank[block][unit]))]


def units(names: "Array", copies: "Array") -> tuple["Array", "Array", "Array"]:
    """The unit of each row, numbered from 0; of each unit its first row and its size.

    Every copy of a pair is a pair of its own.
    """
    import numpy as np

    order = np.lexsort((copies, names))
    new = np.ones(len(names), dtype=bool)
    new[1:] = (np.diff(names[order]) != 0) | (np.diff(copies[order]) != 0)
    unit = np.empty(len(names), dtype=np.int64)
    unit[order] = np.cumsum(new) - 1
    return unit, order[new], np.bincount(unit)


def inside(order: "Array", kind: "Array") -> "Array":
    """The place of each unit within its kind, in an order that has one kind after the other."""
    import numpy as np

    starts = np.cumsum(np.bincount(kind)) - np.bincount(kind)
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - starts[kind[order]]
    return places


def curriculum(rows: "Array", copies: "Array", seed: int) -> "Array":
    """From easy to hard: by characters of prompt and answer, a pair by its longer side and side by side.

    Examples of one length stand in the order of their ids' hashes, copies of one example next to each other.
    """
    import numpy as np

    _, names = np.unique(rows["unit"], return_inverse=True)
    longest = np.zeros(names.max(initial=-1) + 1, dtype=np.int64)
    np.maximum.at(longest, names, rows["characters"])
    return np.lexsort((rows["id"], copies, rows["unit"], longest[names]))


ORDERS: dict[str, Callable[["Array", "Array", int], "Array"]] = {
    "shuffled": shuffled,
    "paired": paired,
    "curriculum": curriculum,
}
