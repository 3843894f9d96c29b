"""Cut a long pair of vulnerable and fixed code into short ones around its changes, along functions.

A chunk is a run of whole lines of each side: the same changes with the same unchanged lines around them. What
may stand for itself (functions, statements, members) is the grammar's to say, on either side; its bounds are
carried to the other side through the unchanged lines.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate

from stages.common import languages
from stages.common.languages import Unit

MAX_CHANGED = 2_000  # lines: a pair that differs in more is a rewrite; no piece of it shows the repair
_MAX_CELLS = 40_000  # lines times lines: difflib's time grows with the square, more lines go to anchors first


@dataclass(frozen=True)
class Region:
    """Lines `v0` to before `v1` of the vulnerable side, and `f0` to before `f1` of the fixed one."""

    v0: int
    v1: int
    f0: int
    f1: int

    def swapped(self) -> "Region":
        """The same with the sides exchanged."""
        return Region(self.f0, self.f1, self.v0, self.v1)

    def joined(self, other: "Region") -> "Region":
        """The least region around both."""
        starts = min(self.v0, other.v0), min(self.f0, other.f0)
        return Region(starts[0], max(self.v1, other.v1), starts[1], max(self.f1, other.f1))

    def contains(self, other: "Region") -> bool:
        """Whether the other lies inside."""
        return self.joined(other) == self

    def overlaps(self, other: "Region") -> bool:
        """Whether the two share a line on either side."""
        return (self.v0 < other.v1 and other.v0 < self.v1) or (self.f0 < other.f1 and other.f0 < self.f1)


@dataclass(frozen=True)
class Side:
    """One side of a pair, and what the grammar says of it."""

    lines: list[str]
    errors: list[int] | None  # bytes that could not be read before each line, and in all
    blocks: list[list[Unit]]
    starts: list[int]  # of the blocks, by line
    parents: list[int]  # of each block the one around it, -1 for none


@dataclass(frozen=True)
class Run:
    """Units side by side in one block, from `first` to `last`, of the side that is `fixed` or not."""

    fixed: bool
    units: list[Unit]
    first: int
    last: int

    @property
    def lines(self) -> range:
        """From the first line to the last."""
        return range(self.units[self.first].lines.start, self.units[self.last].lines.stop)


@dataclass(frozen=True)
class Pair:
    """What is cut, and how long the pieces may be."""

    sides: tuple[Side, Side]  # vulnerable, fixed
    changes: tuple[list[Region], list[Region]]  # as each side sees them: its own are the `v` lines
    language: str
    max_chars: int


def chunks(vulnerable: str, fixed: str, language: str, max_chars: int) -> list[tuple[str, str]]:
    """The pieces of a pair that hold its changes, each at most `max_chars` characters a side, in order.

    Each change is widened to the outermost functions around it, outside functions to whole statements; where
    that is too long, to the largest run of statements that fits. Both sides of a piece are lines of the
    originals without their common indentation; they differ in more than white space, and parse no worse than
    they did in place. A change for which nothing fits is left out. Empty when the sides differ in white space
    alone or in more than `MAX_CHANGED` lines. Without a grammar only a whole pair can fit.

    Measured at 2,000 characters on SVEN's and SafeCoder's 309 longer pairs that differ: each gives a chunk,
    1.3 on average, half of them over 1,600 characters, one in ten under 360; 2 % have an error share over
    0.02. A pair of 20,000 lines takes about half a second, with 1,000 changes in it 2 s.
    """
    if _squeezed([vulnerable]) == _squeezed([fixed]):
        return []
    changes = _changes(vulnerable.split("\n"), fixed.split("\n"))
    if sum(max(change.v1 - change.v0, change.f1 - change.f0) for change in changes) > MAX_CHANGED:
        return []
    sides = _side(vulnerable, language), _side(fixed, language)
    pair = Pair(sides, (changes, [change.swapped() for change in changes]), language, max_chars)
    found: list[Region] = []
    for index, change in enumerate(changes):
        if any(region.contains(change) for region in found[-1:]) or _same(pair, change):
            continue
        for candidate in _candidates(pair, index, found[-1:]):
            region = candidate
            for other in reversed(found):
                if not region.overlaps(other):
                    break
                region = region.joined(other)
            if not _short(pair, region):
                continue
            if _same(pair, region):  # lines that only moved past blank ones
                break
            if _sound(pair, region):
                found = [*(other for other in found if not region.contains(other)), region]
                break
    return [_texts(pair, region) for region in found]


def _side(code: str, language: str) -> Side:
    errors = languages.errors_per_line(code, language)
    blocks = languages.blocks(code, language)
    blocks.sort(key=lambda units: (units[0].lines.start, -units[-1].lines.stop))
    parents: list[int] = []
    for index, units in enumerate(blocks):
        parent = index - 1
        while parent >= 0 and blocks[parent][-1].lines.stop < units[-1].lines.stop:
            parent = parents[parent]
        parents.append(parent)
    return Side(
        lines=code.split("\n"),
        errors=None if errors is None else [0, *accumulate(errors)],
        blocks=blocks,
        starts=[units[0].lines.start for units in blocks],
        parents=parents,
    )


# What changed -----------------------------------------------------------------------------------------


def _changes(vulnerable: list[str], fixed: list[str]) -> list[Region]:
    """The changed regions, in order; at least one line that both sides share lies between two of them.

    White space at the end of a line does not count. Lines that each side has once are matched first, so that
    difflib sees small tables only; a large one without such lines is one change.
    """
    v, f = [line.rstrip() for line in vulnerable], [line.rstrip() for line in fixed]
    result: list[Region] = []
    todo = [Region(0, len(v), 0, len(f))]
    while todo:
        region = _trimmed(v, f, todo.pop())
        v0, v1, f0, f1 = region.v0, region.v1, region.f0, region.f1
        if v0 == v1 and f0 == f1:
            continue
        if (v1 - v0) * (f1 - f0) <= _MAX_CELLS:
            matcher = SequenceMatcher(None, v[v0:v1], f[f0:f1], autojunk=False)
            opcodes = matcher.get_opcodes()
            result += (
                Region(v0 + a0, v0 + a1, f0 + b0, f0 + b1)
                for tag, a0, a1, b0, b1 in opcodes
                if tag != "equal"
            )
        elif anchors := _anchors(v, f, region):
            bounds = [(v0, f0), *((a + 1, b + 1) for a, b in anchors)]
            ends = [*anchors, (v1, f1)]
            todo += (Region(a, c, b, d) for (a, b), (c, d) in zip(bounds, ends, strict=True))
        else:
            result.append(region)
    return sorted(result, key=lambda region: (region.v0, region.f0))


def _trimmed(v: list[str], f: list[str], region: Region) -> Region:
    """A region without the lines that are the same at its two ends."""
    v0, v1, f0, f1 = region.v0, region.v1, region.f0, region.f1
    while v0 < v1 and f0 < f1 and v[v0] == f[f0]:
        v0, f0 = v0 + 1, f0 + 1
    while v0 < v1 and f0 < f1 and v[v1 - 1] == f[f1 - 1]:
        v1, f1 = v1 - 1, f1 - 1
    return Region(v0, v1, f0, f1)


def _anchors(v: list[str], f: list[str], region: Region) -> list[tuple[int, int]]:
    """Pairs of equal lines that stand once in each side's part, as many as keep one order (patience)."""
    where = _single(f, region.f0, region.f1)
    pairs = [(a, where[line]) for line, a in _single(v, region.v0, region.v1).items() if line in where]
    tops: list[int] = []  # the least end of an ascending run of each length, and which pair it is
    at: list[int] = []
    before: list[int] = []
    for index, (_, b) in enumerate(pairs):
        length = bisect_left(tops, b)
        tops[length : length + 1], at[length : length + 1] = [b], [index]
        before.append(at[length - 1] if length else -1)
    chain: list[tuple[int, int]] = []
    index = at[-1] if at else -1
    while index >= 0:
        chain.append(pairs[index])
        index = before[index]
    return chain[::-1]


def _single(lines: list[str], start: int, stop: int) -> dict[str, int]:
    """The lines of a part that it has once, with their numbers, in order."""
    seen: dict[str, int] = {}
    for index in range(start, stop):
        seen[lines[index]] = -1 if lines[index] in seen else index
    return {line: index for line, index in seen.items() if index >= 0}


# How far to widen it ------------------------------------------------------------------------------------


def _candidates(pair: Pair, index: int, taken: list[Region]) -> Iterator[Region]:
    """The regions to try for a change, the largest first, but the whole pair last."""
    runs = [run for fixed in (False, True) for run in _runs(pair, index, fixed)]
    regions = {_region(pair, index, run): run for run in reversed(runs)}
    ordered = sorted(regions, key=lambda region: region.v0 - region.v1 + region.f0 - region.f1)
    for number, region in enumerate(ordered):
        if number:  # the function is too long: take from it as much as fits
            yield _grown(pair, index, regions[region], taken)
        yield region
    yield Region(0, len(pair.sides[0].lines), 0, len(pair.sides[1].lines))


def _runs(pair: Pair, index: int, fixed: bool) -> list[Run]:
    """The runs of units around a change on one side, one or two in each block around it, outer first.

    Where functions are among them, what is around the outermost functions is left out.
    """
    side, change = pair.sides[fixed], pair.changes[fixed][index]
    start, stop = change.v0, change.v1
    while start < stop and not side.lines[start].strip():
        start += 1
    while start < stop and not side.lines[stop - 1].strip():
        stop -= 1
    if start == stop:  # between two lines: where the text before it ends, or else where the text begins
        while start and not side.lines[start - 1].strip():
            start -= 1
        while not start and stop < len(side.lines) and not side.lines[stop].strip():
            stop += 1
        start = stop = start or stop
    runs: list[Run] = []
    block = bisect_right(side.starts, start) - 1
    while block >= 0:
        units, parent = side.blocks[block], side.parents[block]
        # what is new after a block, as its text ends where the block around it goes on, is none of its own
        after = (
            start == stop == units[-1].lines.stop and parent >= 0 and not _inside(side.blocks[parent], start)
        )
        if not after:
            runs += (Run(fixed, units, first, last) for first, last in _around(units, start, stop))
        block = parent
    runs.reverse()
    outermost = (
        number
        for number, run in enumerate(runs)
        if any(u.function for u in run.units[run.first : run.last + 1])
    )
    return runs[next(outermost, 0) :]


def _around(units: list[Unit], start: int, stop: int) -> list[tuple[int, int]]:
    """The first and last of the units that hold the lines from `start` to before `stop`, if they do.

    Between two units, where nothing stands, it is either neighbour.
    """
    first = bisect_right(units, start, key=lambda unit: unit.lines.stop)
    last = bisect_left(units, max(stop, start + 1), key=lambda unit: unit.lines.start) - 1
    if start == stop and not _inside(units, start):
        inside = units[0].lines.start <= start <= units[-1].lines.stop
        return [(near, near) for near in (first, first - 1) if inside and 0 <= near < len(units)]
    if first > last or units[first].lines.start > start or units[last].lines.stop < stop:
        return []
    return [(first, last)]


def _inside(units: list[Unit], line: int) -> bool:
    """Whether the point before a line is inside a unit, and not between two."""
    at = bisect_right(units, line, key=lambda unit: unit.lines.stop)
    return at < len(units) and units[at].lines.start < line


def _region(pair: Pair, index: int, run: Run) -> Region:
    """The region of one change and the lines of a run, with every other change that they cut into."""
    changes, lines = pair.changes[run.fixed], run.lines
    first = min(index, bisect_right(changes, lines.start, key=lambda change: change.v1))
    last = max(index, bisect_left(changes, lines.stop, key=lambda change: change.v0) - 1)
    start, stop = min(lines.start, changes[first].v0), max(lines.stop, changes[last].v1)
    before, after = changes[first].v0 - start, stop - changes[last].v1  # unchanged: as many on the other side
    region = Region(start, stop, changes[first].f0 - before, changes[last].f1 + after)
    return region.swapped() if run.fixed else region


def _grown(pair: Pair, index: int, run: Run, taken: list[Region]) -> Region:
    """The region of a run and of as many units after and before it, in turn, as are short and not taken."""
    region = _region(pair, index, run)
    first, last = run.first, run.last
    steps = [(0, 1), (-1, 0)]
    while steps:
        for step in list(steps):
            ends = first + step[0], last + step[1]
            if ends[0] < 0 or ends[1] == len(run.units):
                steps.remove(step)
                continue
            wider = _region(pair, index, Run(run.fixed, run.units, *ends))
            if _short(pair, wider) and not any(wider.overlaps(other) for other in taken):
                region, (first, last) = wider, ends
            else:
                steps.remove(step)
    return region


# What a piece must be -------------------------------------------------------------------------------------


def _sound(pair: Pair, region: Region) -> bool:
    """Whether no side of a region is empty, but where all of it is, or parses worse than it did in place."""
    parts = (range(region.v0, region.v1), range(region.f0, region.f1))
    for side, text, part in zip(pair.sides, _texts(pair, region), parts, strict=True):
        if not text and any(line.strip() for line in side.lines):
            return False
        errors = languages.errors_per_line(text, pair.language) or [0]
        if side.errors and sum(errors) > side.errors[part.stop] - side.errors[part.start]:
            return False
    return True


def _short(pair: Pair, region: Region) -> bool:
    if max(region.v1 - region.v0, region.f1 - region.f0) > pair.max_chars:  # a line is a character at least
        return False
    return max(map(len, _texts(pair, region))) <= pair.max_chars


def _texts(pair: Pair, region: Region) -> tuple[str, str]:
    """The lines of both sides without the indentation that all of them share, and without blank ends."""
    parts = _parts(pair, region)
    full = [line for part in parts for line in part if line.strip()]
    indents = [line[: len(line) - len(line.lstrip())] for line in full]
    margin = os.path.commonprefix(indents)  # noqa: RUF071 (of characters, not of paths)
    cut = [
        [line[len(margin) :] if line.strip() else line.removeprefix(margin) for line in part]
        for part in parts
    ]
    return "\n".join(_unpadded(cut[0])), "\n".join(_unpadded(cut[1]))


def _parts(pair: Pair, region: Region) -> tuple[list[str], list[str]]:
    """The lines of a region, on both sides."""
    vulnerable, fixed = pair.sides
    return vulnerable.lines[region.v0 : region.v1], fixed.lines[region.f0 : region.f1]


def _unpadded(lines: list[str]) -> list[str]:
    """Lines without the blank ones at both ends."""
    full = [index for index, line in enumerate(lines) if line.strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def _same(pair: Pair, change: Region) -> bool:
    """Whether a region's sides differ in white space alone."""
    vulnerable, fixed = _parts(pair, change)
    return _squeezed(vulnerable) == _squeezed(fixed)


def _squeezed(lines: list[str]) -> str:
    return "".join("".join(line.split()) for line in lines)
