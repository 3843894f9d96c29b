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

MAX_CHANGED = 2_000  # lines: a pair that differs in more is a rewrite, of which no piece shows the repair
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


def chunks(vulnerable: str, fixed: str, language: str, max_chars: int) -> list[tuple[str, str]]:
    """The pieces of a pair that hold its changes, each at most `max_chars` characters a side, in order.

    Each change is widened to the outermost functions around it, outside functions to whole statements; where
    that is too long, to the largest run of statements that fits. Both sides of a piece are lines of the
    originals without their common indentation; they differ in more than white space, and parse no worse than
    they did in place. A change for which nothing fits is left out. Empty when the sides differ in white space
    alone or in more than `MAX_CHANGED` lines. Without a grammar only a whole pair can fit.
    """
    if _squeezed([vulnerable]) == _squeezed([fixed]):
        return []
    pair = vulnerable.split("\n"), fixed.split("\n")
    changes = _changes(*pair)
    if sum(max(change.v1 - change.v0, change.f1 - change.f0) for change in changes) > MAX_CHANGED:
        return []
    sides = _side(vulnerable, language), _side(fixed, language)
    found: list[Region] = []
    for index, change in enumerate(changes):
        if any(region.contains(change) for region in found[-1:]) or _same(sides, change):
            continue
        for candidate in _candidates(sides, changes, index, found[-1:], max_chars):
            region = candidate
            while found and region.overlaps(found[-1]) and not region.contains(found[-1]):
                region = region.joined(found[-1])
            if _fits(sides, region, language, max_chars):
                found = [*(other for other in found if not region.contains(other)), region]
                break
    return [_texts(sides, region) for region in found]


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


def _candidates(
    sides: tuple[Side, Side], changes: list[Region], index: int, taken: list[Region], max_chars: int
) -> Iterator[Region]:
    """The regions to try for a change, the largest first, but the whole pair last."""
    runs = [*_runs(sides[0], changes[index], False), *_runs(sides[1], changes[index].swapped(), True)]
    regions = {_region(changes, index, run.fixed, run.lines): run for run in reversed(runs)}
    ordered = sorted(regions, key=lambda region: region.v0 - region.v1 + region.f0 - region.f1)
    for number, region in enumerate(ordered):
        if number:  # the function is too long: take from it as much as fits
            yield _grown(sides, changes, index, regions[region], taken, max_chars)
        yield region
    yield Region(0, len(sides[0].lines), 0, len(sides[1].lines))


def _runs(side: Side, change: Region, fixed: bool) -> list[Run]:
    """The runs of units around the `v` lines of a change, one or two in each block around it, outer first.

    Where functions are among them, what is around the outermost functions is left out.
    """
    start, stop = change.v0, change.v1
    while start < stop and not side.lines[start].strip():
        start += 1
    while start < stop and not side.lines[stop - 1].strip():
        stop -= 1
    runs: list[Run] = []
    block = bisect_right(side.starts, start) - 1
    while block >= 0:
        units = side.blocks[block]
        runs += (Run(fixed, units, first, last) for first, last in _around(units, start, stop))
        block = side.parents[block]
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
    if start == stop and (first == len(units) or units[first].lines.start >= start):
        inside = units[0].lines.start <= start <= units[-1].lines.stop
        return [(near, near) for near in (first, first - 1) if inside and 0 <= near < len(units)]
    if first > last or units[first].lines.start > start or units[last].lines.stop < stop:
        return []
    return [(first, last)]


def _region(changes: list[Region], index: int, fixed: bool, lines: range) -> Region:
    """The region of one change and these lines of one side, with every change that they cut into."""
    if fixed:
        return _region([change.swapped() for change in changes], index, False, lines).swapped()
    first = min(index, bisect_right(changes, lines.start, key=lambda change: change.v1))
    last = max(index, bisect_left(changes, lines.stop, key=lambda change: change.v0) - 1)
    v0, v1 = min(lines.start, changes[first].v0), max(lines.stop, changes[last].v1)
    return Region(
        v0, v1, changes[first].f0 - (changes[first].v0 - v0), changes[last].f1 + (v1 - changes[last].v1)
    )


def _grown(
    sides: tuple[Side, Side], changes: list[Region], index: int, run: Run, taken: list[Region], max_chars: int
) -> Region:
    """The region of a run and of as many units after and before it, in turn, as are short and not taken."""
    region = _region(changes, index, run.fixed, run.lines)
    first, last = run.first, run.last
    steps = [(0, 1), (-1, 0)]
    while steps:
        for step in list(steps):
            ends = first + step[0], last + step[1]
            if ends[0] < 0 or ends[1] == len(run.units):
                steps.remove(step)
                continue
            wider = _region(changes, index, run.fixed, Run(run.fixed, run.units, *ends).lines)
            if _short(sides, wider, max_chars) and not any(wider.overlaps(other) for other in taken):
                region, (first, last) = wider, ends
            else:
                steps.remove(step)
    return region


# What a piece must be -------------------------------------------------------------------------------------


def _fits(sides: tuple[Side, Side], region: Region, language: str, max_chars: int) -> bool:
    """Whether a region can be a chunk: short, different, not empty, and no worse to parse than in place."""
    if not _short(sides, region, max_chars):
        return False
    texts = _texts(sides, region)
    if _squeezed([texts[0]]) == _squeezed([texts[1]]):
        return False
    parts = (range(region.v0, region.v1), range(region.f0, region.f1))
    for side, text, part in zip(sides, texts, parts, strict=True):
        if not text and any(line.strip() for line in side.lines):
            return False
        errors = languages.errors_per_line(text, language)
        if (
            errors is not None
            and side.errors
            and sum(errors) > side.errors[part.stop] - side.errors[part.start]
        ):
            return False
    return True


def _short(sides: tuple[Side, Side], region: Region, max_chars: int) -> bool:
    if max(region.v1 - region.v0, region.f1 - region.f0) > max_chars + 1:
        return False
    return max(map(len, _texts(sides, region))) <= max_chars


def _texts(sides: tuple[Side, Side], region: Region) -> tuple[str, str]:
    """The lines of both sides without the indentation that all of them share, and without blank ends."""
    parts = sides[0].lines[region.v0 : region.v1], sides[1].lines[region.f0 : region.f1]
    full = [line for part in parts for line in part if line.strip()]
    indents = [line[: len(line) - len(line.lstrip())] for line in full]
    margin = os.path.commonprefix(indents)  # noqa: RUF071 (of characters, not of paths)
    cut = [
        [line[len(margin) :] if line.strip() else line.removeprefix(margin) for line in part]
        for part in parts
    ]
    return "\n".join(_unpadded(cut[0])), "\n".join(_unpadded(cut[1]))


def _unpadded(lines: list[str]) -> list[str]:
    """Lines without the blank ones at both ends."""
    full = [index for index, line in enumerate(lines) if line.strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def _same(sides: tuple[Side, Side], change: Region) -> bool:
    """Whether a change is one of white space alone."""
    parts = sides[0].lines[change.v0 : change.v1], sides[1].lines[change.f0 : change.f1]
    return _squeezed(parts[0]) == _squeezed(parts[1])


def _squeezed(lines: list[str]) -> str:
    return "".join("".join(line.split()) for line in lines)
