"""Selection: which rows of a catalogue are left out, which are drawn, and which of these validate.

Groups stay whole unless a count must be met exactly. Numbers are drawn for hashes, not for places, so that
the order of the rows does not change a choice.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SELECTED, DIVIDED = 1, 2  # what a number is drawn for


# What is left out: masks. --------------------------------------------------------------------------------


def sharing(rows: "Array", key: str, chosen: "Array") -> "Array":
    """The rows that have the key of a chosen one."""
    import numpy as np

    mask: Array = np.isin(rows[key], rows[key][chosen])
    return mask


def components(keys: Sequence["Array"]) -> "Array":
    """Of each row the smallest row that it hangs together with: rows with an equal value in any of the keys.

    >>> import numpy
    >>> components([numpy.array([7, 7, 8, 9]), numpy.array([1, 2, 2, 3])]).tolist()
    [0, 0, 0, 3]
    """
    import numpy as np

    parent = list(range(len(keys[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for key in keys:
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        leader = first[inverse]
        follows = np.flatnonzero(leader != np.arange(len(key)))
        for row, other in zip(follows.tolist(), leader[follows].tolist(), strict=True):
            low, high = sorted((root(row), root(other)))
            parent[high] = low
    return np.array([root(row) for row in range(len(parent))], dtype=np.int64)


def smallest(labels: "Array", *keys: "Array") -> "Array":
    """Of each row, the row of its component with the smallest keys, the first key counting most."""
    import numpy as np

    order = np.lexsort((*reversed(keys), labels))
    starts = np.concatenate(([True], labels[order][1:] != labels[order][:-1]))
    firsts = order[starts]
    best: Array = firsts[np.searchsorted(labels[firsts], labels)]
    return best


def duplicated(rows: "Array", labels: "Array") -> "Array":
    """The rows whose near-duplicate stands in another source that keeps it.

    Of groups that hang together by near-duplicates, the source of the example with the smallest hash of its
    content keeps all of its own. That depends on what the examples say, not on their order.
    """
    if not len(rows):
        return rows["source"] > 0
    together = components([rows["group"], labels])
    winner = smallest(together, rows["content"], rows["source"])
    mask: Array = rows["source"] != rows["source"][winner]
    return mask


# Which examples of a source. -----------------------------------------------------------------------------


def repeated(rows: "Array", quota: int, seed: int, exact: bool) -> tuple["Array", "Array", bool]:
    """Positions and copy numbers (from 0): every row as often as the quota holds, then a selection."""
    import numpy as np

    full, rest = divmod(quota, len(rows)) if len(rows) else (0, 0)
    some, cut = select(rows, rest, seed, exact)
    positions = np.concatenate([*[np.arange(len(rows))] * full, np.sort(some)])
    copies = np.repeat(np.arange(full + 1), [len(rows)] * full + [len(some)])
    return positions.astype(np.int64), copies, cut


def select(rows: "Array", quota: int, seed: int, exact: bool) -> tuple["Array", bool]:
    """Whole groups in a seeded order until the quota is met; positions in `rows`, and whether one was cut.

    Unless it must be exact, the last group may pass the quota. Where it must, groups that still fit fill what
    is left, and only when there is none the next group is cut, between its pairs as far as possible.
    """
    import numpy as np

    order = np.lexsort((rows["id"], rows["unit"], rows["group"], draws(rows["group"], seed, SELECTED)))
    starts = runs(rows["group"][order])
    ends = np.append(starts[1:], len(order))
    reached = int(np.searchsorted(ends, quota))  # groups that fit before the one that meets the quota
    if quota == 0:
        return order[:0], False
    if not exact or ends[reached] == quota:
        return order[: ends[reached]], False
    taken = [order[: starts[reached]]]
    left = quota - int(starts[reached])
    passed = []
    for start, end in zip(starts[reached:].tolist(), ends[reached:].tolist(), strict=True):
        if end - start <= left:
            taken.append(order[start:end])
            left -= end - start
            if not left:
                break
        else:
            passed.append((start, end))
    if left:
        taken.append(cut(rows, order[slice(*passed[0])], left))
    return np.concatenate(taken), left > 0


def cut(rows: "Array", group: "Array", room: int) -> "Array":
    """As many rows of a group as there is room for: pairs first and whole, then others, then half a pair."""
    import numpy as np

    whole = group[:0]
    for unit in sorted(np.split(group, runs(rows["unit"][group])[1:]), key=len, reverse=True):
        if len(whole) + len(unit) <= room:
            whole = np.append(whole, unit)
    rest = group[~np.isin(group, whole)]
    return np.append(whole, rest[: room - len(whole)])


def runs(values: "Array") -> "Array":
    """Where each run of equal values starts."""
    import numpy as np

    if not len(values):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))


def draws(keys: "Array", seed: int, purpose: int) -> "Array":
    """A random number for each key, which other keys do not change: splitmix64 (Steele et al., 2014)."""
    import numpy as np

    start = (seed * 0x9E3779B97F4A7C15 + purpose * 0xD1B54A32D192ED03) % 2**64
    mixed = keys.astype(np.uint64) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    result: Array = mixed ^ (mixed >> np.uint64(31))
    return result


# Which of them validate. ---------------------------------------------------------------------------------


def divide(labels: "Array", groups: "Array", share: float, seed: int) -> "Array":
    """Which rows validate: whole components in a seeded order, each that still fits into the share."""
    import numpy as np

    wanted = round(share * len(labels))
    valid = np.zeros(len(labels), dtype=bool)
    if not wanted:
        return valid
    drawn = draws(groups[smallest(labels, groups)], seed, DIVIDED)  # one number a component
    order = np.lexsort((labels, drawn))
    starts = runs(labels[order])
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        if end - start <= wanted:
            valid[order[start:end]] = True
            wanted -= end - start
            if not wanted:
                break
    return valid
