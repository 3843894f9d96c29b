"""Mix the converted sources into one training set, without a trace of any benchmark.

In: data/converted/ (the sources named in `mix.sources`), data/benchmarks/ and HumanEval; for the card also
data/raw/*.provenance.json and reports/filter/. Out: in data/mixed/ train, valid and preferences (.jsonl), the
dataset card README.md and its picture funnel.svg; the composition in reports/mix.json.
Promises: what belongs together never straddles the split; examples in = mixed + left out, each with its
reason; what was written is read again and checked against the benchmarks; same seed, same bytes. No text is
held in memory, only an index: a million examples take about 1 GiB, half of it a file that is mapped.

    python -m stages.mix
"""

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from stages.common import card, files, nearduplicates, overlap, parallel, records, suites
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.records import Example

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RAW = Path("data/raw")
FILTERED = Path("reports/filter")
CONVERTED = Path("data/converted")
MIXED = Path("data/mixed")
REPORT = Path("reports/mix.json")
SPLITS = ("train", "valid", "preferences")

BLOCK = 8  # examples side by side in paired order
WINDOW = 8  # blocks that are sorted by length among themselves
CHUNK = 1 << 22  # bytes of lines that a worker takes at a time

# One entry an example: where it stands, and hashes instead of texts; both sides of a pair share their `unit`.
ROW = [
    ("source", "u2"),
    ("flags", "u1"),
    ("length", "u4"),
    ("offset", "u8"),
    ("characters", "u4"),
    *((name, "u8") for name in ("id", "group", "unit", "prompt", "content")),
]
PREFERENCE, COPIED, REVIEW = 1, 2, 4  # flags; COPIED: the example gives a benchmark away
SIDES = ("detect_", "review_")  # kinds of which each has a twin under the same question

Strategy = Literal["counts", "weights", "proportional", "equal", "temperature"]
VALUED = ("counts", "weights")  # strategies that need a value for every source


# Parameters. -------------------------------------------------------------------------------------------


@params
class MixParams:
    """How much of each source, in which order, and what is left out."""

    seed: Annotated[int, Field(ge=0)]
    strategy: Strategy  # how `sources` is read: see `wanted`
    sources: Annotated[dict[str, Annotated[float, Field(ge=0)] | None], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0)] | None  # shares ~ size ** (1 / temperature); 1 is proportional
    rows: Annotated[int, Field(ge=1)] | None  # examples in all; null: as many as the shares allow
    repeats: Annotated[int, Field(ge=1)]  # how often an example may stand in the mix
    max_chars: Annotated[int, Field(ge=1)]  # of prompt and answer; longer examples are left out, not cut
    order: Literal["shuffled", "paired", "curriculum"]  # see the functions of these names
    valid_share: Annotated[float, Field(ge=0, lt=1)]  # of the examples
    floors: dict[str, Annotated[float, Field(gt=0, lt=1)]]  # least share of a kind or of a source
    below_floor: Literal["warn", "fail"]
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | None  # MinHash similarity across sources
    contaminated: Literal["drop", "report"]
    overlap: overlap.Overlap


def check(chosen: MixParams) -> None:
    """Refuse a value that the strategy does not use, and the lack of one that it needs."""

    def refuse(key: str, value: object, expected: str) -> None:
        found = int(value) if isinstance(value, float) and value.is_integer() else value
        shown = "null" if found is None else found
        raise PipelineError(
            f'mix.{key}: {shown}; expected {expected} with strategy "{chosen.strategy}" (params.yaml)'
        )

    for source, value in chosen.sources.items():
        if (value is None) == (chosen.strategy in VALUED):
            refuse(f"sources.{source}", value, "a number" if value is None else "null")
        if chosen.strategy == "counts" and value is not None and not value.is_integer():
            refuse(f"sources.{source}", value, "a whole number")
    if (chosen.temperature is None) == (chosen.strategy == "temperature"):
        refuse("temperature", chosen.temperature, "a number" if chosen.temperature is None else "null")
    if chosen.strategy == "counts" and chosen.rows is not None:
        refuse("rows", chosen.rows, "null")
    if chosen.strategy in VALUED and not any(chosen.sources.values()):
        refuse("sources", 0, "a sum of more than 0")


# Reading: from lines to an index, checked against the benchmarks on the way. ----------------------------


class Line(NamedTuple):
    """A line of a JSON lines file and where it stands."""

    number: int
    offset: int
    text: bytes


@dataclass(frozen=True)
class Part:
    """What is kept of some lines."""

    rows: "Array"  # of ROW
    findings: overlap.Findings


def lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank."""
    if not path.exists():
        raise PipelineError(f"{path}: not found; expected a file (an earlier stage writes it)")
    offset = 0
    with path.open("rb") as stream:
        for number, text in enumerate(stream, 1):
            if text.strip():
                yield Line(number, offset, text)
            offset += len(text)


def chunks(path: Path, label: str) -> Iterator[list[Line]]:
    """The lines of a file, some CHUNK bytes at a time, with a progress bar on a terminal."""
    from tqdm import tqdm

    total = path.stat().st_size if path.exists() else 0
    with tqdm(
        total=total,
        desc=label,
        unit="B",
        unit_scale=True,
        delay=2,
        leave=False,
        disable=None,
        file=sys.stderr,
    ) as bar:
        chunk: list[Line] = []
        size = 0
        for line in lines(path):
            chunk.append(line)
            size += len(line.text)
            if size >= CHUNK:
                bar.update(size)
                yield chunk
                chunk, size = [], 0
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


def given_away(index: overlap.Index, example: Example) -> list[overlap.Finding]:
    """What an example gives away of the benchmarks."""
    return overlap.find(index, example.prompt, example.completion, example.rejected)


def characters(example: Example) -> int:
    """Length of a prompt and its (longer) answer."""
    return len(example.prompt) + max(len(example.completion), len(example.rejected))


def unit(example: Example) -> str:
    """What both sides of a pair share; of any other example its id."""
    return example.id.rsplit("_", 1)[0] if example.kind.startswith(SIDES) else example.id


def digest(*texts: str) -> int:
    """64 bits of some texts."""
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest(), "little")


def substance(example: Example) -> str:
    """What two examples must share to be near-duplicates: the code of each text, or the text without any."""
    texts = (example.prompt, example.completion, example.rejected)
    return "\n".join("\n".join(overlap.FENCE.split(text)[1::2]) or text for text in texts)


def examine(chunk: list[Line], source: int, path: Path, chosen: MixParams, index: overlap.Index) -> Part:
    """Index some lines of a source."""
    import numpy as np

    rows, findings = [], overlap.Findings()
    for line in chunk:
        example = parse(line, path)
        if example.source != path.stem:
            raise PipelineError(
                f"{path}:{line.number}: source: {example.source!r}; expected {path.stem!r}, the file's name"
            )
        length = characters(example)
        flags = PREFERENCE * (example.kind == "preference") | REVIEW * example.kind.startswith("review_")
        try:
            hashes = (
                digest(example.id),
                digest(example.group),
                digest("unit", unit(example)),
                digest(overlap.normalised(example.prompt) or example.prompt),
                digest(example.prompt, example.completion, example.rejected),
            )
        except UnicodeEncodeError as error:
            raise PipelineError(
                f"{path}:{line.number}: {error.object[error.start]!r}; expected text that UTF-8 can hold"
            ) from None
        if length <= chosen.max_chars:
            found = given_away(index, example)
            findings.add(found)
            flags |= COPIED * overlap.copied(found, chosen.overlap.entry_points)
        rows.append((source, flags, len(line.text), line.offset, length, *hashes))
    return Part(np.array(rows, dtype=ROW), findings)


def read(chosen: MixParams, index: overlap.Index, workers: int) -> tuple["Array", overlap.Findings]:
    """Index every source."""
    import numpy as np

    parts, findings = [np.zeros(0, dtype=ROW)], overlap.Findings()
    for number, source in enumerate(chosen.sources):
        path = CONVERTED / f"{source}.jsonl"
        work = partial(examine, source=number, path=path, chosen=chosen, index=index)
        for part in parallel.ordered(work, chunks(path, f"mix {source}"), workers):
            parts.append(part.rows)
            findings.merge(part.findings)
    rows = np.concatenate(parts)
    distinct(rows, list(chosen.sources))
    return rows, findings


def sign(chosen: MixParams, out: IO[bytes]) -> "Array":
    """A MinHash signature of every example that is not too long, in order; they stay in the file `out`.

    rensa has threads of its own, and a process that is forked after its first use would wait for them for
    ever: only this process may call it.
    """
    import numpy as np

    for source in chosen.sources:
        path = CONVERTED / f"{source}.jsonl"
        for chunk in chunks(path, f"mix {source}: near-duplicates"):
            examples = (parse(line, path) for line in chunk)
            texts = [substance(one) for one in examples if characters(one) <= chosen.max_chars]
            out.write(nearduplicates.signatures(texts).tobytes())
    out.flush()
    shape = (out.tell() // (4 * nearduplicates.PERMUTATIONS), nearduplicates.PERMUTATIONS)
    if not shape[0]:  # nothing can be mapped of an empty file
        return np.zeros(shape, dtype=np.uint32)
    return np.memmap(out, dtype=np.uint32, mode="r", shape=shape)


def distinct(rows: "Array", sources: list[str]) -> None:
    """Refuse an id that stands twice."""
    import numpy as np

    order = np.argsort(rows["id"], kind="stable")
    twice = np.flatnonzero(rows["id"][order][1:] == rows["id"][order][:-1])
    if len(twice):
        row = rows[order[twice[0] + 1]]
        path = CONVERTED / f"{sources[row['source']]}.jsonl"
        with path.open("rb") as stream:
            stream.seek(int(row["offset"]))
            name = parse(Line(0, 0, stream.readline()), path).id
        raise PipelineError(f"{path}: id {name!r} occurs twice; expected every id once")


# What is left out: masks over the index. ----------------------------------------------------------------


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


# How much of each source. --------------------------------------------------------------------------------


def quotas(shares: Mapping[str, Fraction], rows: int) -> dict[str, int]:
    """Split `rows` by share, rounded by largest remainder so that the sum is exact.

    >>> quotas({"coding": Fraction(3), "fixes": Fraction(1)}, 10)
    {'coding': 8, 'fixes': 2}
    """
    total = sum(shares.values())
    exact = {source: rows * share / total for source, share in shares.items()}
    counts = {source: int(share) for source, share in exact.items()}
    by_remainder = sorted(exact, key=lambda source: (counts[source] - exact[source], source))
    for source in by_remainder[: rows - sum(counts.values())]:
        counts[source] += 1
    return counts


def shares(chosen: MixParams, sizes: Mapping[str, int]) -> dict[str, Fraction]:
    """The relative share of each source, exact."""
    if chosen.strategy in VALUED:
        return {source: Fraction(str(value)) for source, value in chosen.sources.items()}
    if chosen.strategy == "equal":
        return {source: Fraction(sizes[source] > 0) for source in chosen.sources}
    power = 1 / (chosen.temperature or 1)
    return {
        source: Fraction(sizes[source]) if power == 1 else Fraction(sizes[source] ** power)
        for source in chosen.sources
    }


def wanted(chosen: MixParams, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many examples of each source stand in the mix, given how many there are of each.

    counts        exactly the number given
    weights       in proportion to the number given
    proportional  in proportion to the source's size
    equal         the same of each
    temperature   in proportion to size ** (1 / temperature)

    Raises PipelineError when a source has fewer than its share, taken `repeats` times.
    """
    parts = shares(chosen, sizes)
    most = {source: sizes[source] * chosen.repeats for source in chosen.sources}
    advice = ""
    if chosen.strategy == "counts":
        counts = {source: int(part) for source, part in parts.items()}
    else:
        total = sum(parts.values())
        limit, scarce = min(
            ((int(most[source] * total / part), source) for source, part in parts.items() if part),
            default=(0, min(sizes)),
        )
        if not limit:
            raise PipelineError(f"mix.sources.{scarce}: no example left to mix; expected some (params.yaml)")
        counts = quotas(parts, limit if chosen.rows is None else chosen.rows)
        advice = f"; {limit} would do for mix.rows"
    for source, count in counts.items():
        if count > most[source]:
            raise PipelineError(
                f"mix.sources.{source}: {count} wanted; expected at most {most[source]}, its {sizes[source]} "
                f"examples {chosen.repeats} times each{advice} (params.yaml)"
            )
    return counts


# Which examples of a source. -----------------------------------------------------------------------------


def draws(keys: "Array", seed: int, purpose: int) -> "Array":
    """A random number for each key, which other keys do not change: splitmix64 (Steele et al., 2014)."""
    import numpy as np

    start = (seed * 0x9E3779B97F4A7C15 + purpose * 0xD1B54A32D192ED03) % 2**64
    mixed = keys.astype(np.uint64) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    result: Array = mixed ^ (mixed >> np.uint64(31))
    return result


SELECTED, DIVIDED = 1, 2  # what a number is drawn for


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


def repeated(rows: "Array", quota: int, seed: int, exact: bool) -> tuple["Array", "Array", bool]:
    """Positions and copy numbers (from 0): every row as often as the quota holds, then a selection."""
    import numpy as np

    full, rest = divmod(quota, len(rows)) if len(rows) else (0, 0)
    some, cut = select(rows, rest, seed, exact)
    positions = np.concatenate([*[np.arange(len(rows))] * full, np.sort(some)])
    copies = np.repeat(np.arange(full + 1), [len(rows)] * full + [len(some)])
    return positions.astype(np.int64), copies, cut


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


# In which order: from the chosen rows to their positions. ------------------------------------------------


def shuffled(rows: "Array", copies: "Array", seed: int) -> "Array":
    """The order that `datasets.Dataset.shuffle(seed)` gives the rows, which stand source after source."""
    import numpy as np

    return np.random.default_rng(seed).permutation(len(rows))


def paired(rows: "Array", copies: "Array", seed: int) -> "Array":
    """Blocks of BLOCK examples of like length: whole pairs of verdicts, whole pairs of reviews, or others.

    With a batch that divides BLOCK, both sides of a pair meet in one step. What they share then cancels out
    of the gradient, and what is left is the difference that the verdict depends on. Other answers are
    longer and would outweigh a verdict's few tokens, so they have blocks of their own.
    """
    import numpy as np

    draw = np.random.default_rng(seed)
    units: dict[tuple[int, int], list[int]] = {}
    names, numbers = rows["unit"].tolist(), copies.tolist()
    for row in draw.permutation(len(rows)).tolist():
        units.setdefault((names[row], numbers[row]), []).append(row)
    lengths, ids = rows["characters"].tolist(), rows["id"].tolist()
    reviews = (rows["flags"] & REVIEW > 0).tolist()
    kinds: list[list[list[int]]] = [[], [], []]
    for unit in units.values():
        kinds[0 if len(unit) == 1 else 1 + reviews[unit[0]]].append(unit)
    parts = [part for kind in kinds if kind for part in blocks(kind, BLOCK // len(kind[0]), lengths, ids)]
    full = [part for part in parts if len(part) == BLOCK]
    full = [full[place] for place in draw.permutation(len(full)).tolist()]
    ordered = [row for part in full + [part for part in parts if len(part) < BLOCK] for row in part]
    return np.array(ordered, dtype=np.int64)


def blocks(units: list[list[int]], count: int, lengths: list[int], ids: list[int]) -> list[list[int]]:
    """`count` units a block, sorted by length within some blocks so that each needs little padding."""

    def size(unit: list[int]) -> tuple[int, int]:
        return max(lengths[row] for row in unit), ids[unit[0]]

    window = count * WINDOW
    starts = range(0, len(units), window)
    near = [unit for start in starts for unit in sorted(units[start : start + window], key=size)]
    taken = (near[start : start + count] for start in range(0, len(near), count))
    return [[row for unit in part for row in unit] for part in taken]


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


# The plan: every example gets a fate. --------------------------------------------------------------------

FATES = ("not_chosen", "too_long", "contaminated", "near_duplicate", "mixed", "preferences")


@dataclass(frozen=True)
class Plan:
    """What becomes of every row of the index."""

    fates: "Array"  # of each row, a place in FATES
    touched: "Array"  # rows of groups that give a benchmark away, dropped or not
    wanted: dict[str, int]
    cut: list[str]  # sources of which a group had to be cut
    splits: dict[str, tuple["Array", "Array"]]  # rows and copy numbers, in the order of writing


def plan(rows: "Array", signed: "Array | None", chosen: MixParams) -> Plan:
    """Leave out, choose, divide and put in order."""
    import numpy as np

    fates = np.zeros(len(rows), dtype=np.uint8)
    near = np.arange(len(rows), dtype=np.int64)  # of each row, what it is a near-duplicate of
    fits = np.flatnonzero(rows["characters"] <= chosen.max_chars)
    if signed is not None and chosen.near_duplicate is not None:
        near[fits] = fits[nearduplicates.clusters(signed, chosen.near_duplicate)]
    fates[sharing(rows, "unit", rows["characters"] > chosen.max_chars)] = FATES.index("too_long")
    alive = fates == 0
    touched = alive & sharing(rows, "group", alive & (rows["flags"] & COPIED > 0))
    if chosen.contaminated == "drop":
        fates[touched] = FATES.index("contaminated")
    if chosen.near_duplicate is not None:
        alive = np.flatnonzero(fates == 0)
        fates[alive[duplicated(rows[alive], near[alive])]] = FATES.index("near_duplicate")

    place, copies, counts, cut = choose(rows, np.flatnonzero(fates == 0), chosen)
    fates[place] = FATES.index("mixed")
    pairs = np.flatnonzero((fates == 0) & (rows["flags"] & PREFERENCE > 0))
    mixed = np.concatenate([place, pairs])
    together = components([rows[name][mixed] for name in ("group", "prompt")] + [near[mixed]])
    valid = divide(together[: len(place)], rows["group"][place], chosen.valid_share, chosen.seed)
    pairs = pairs[~np.isin(together[len(place) :], together[: len(place)][valid])]
    fates[pairs] = FATES.index("preferences")
    if valid.all() or (chosen.valid_share and not valid.any()):
        raise PipelineError(
            f"mix.rows: {len(place)} give {(~valid).sum()} examples to train and {valid.sum()} to validate "
            f"on; expected some of both with valid_share {chosen.valid_share} (params.yaml)"
        )
    return Plan(
        fates,
        touched,
        counts,
        cut,
        {
            "train": ordered(rows, place[~valid], copies[~valid], chosen.order, chosen.seed),
            "valid": ordered(rows, place[valid], copies[valid], "shuffled", chosen.seed),
            "preferences": ordered(rows, pairs, np.zeros(len(pairs), dtype=int), "shuffled", chosen.seed),
        },
    )


def choose(
    rows: "Array", alive: "Array", chosen: MixParams
) -> tuple["Array", "Array", dict[str, int], list[str]]:
    """The mix, source after source: rows, copy numbers, what was wanted of each source, which were cut."""
    import numpy as np

    usable = alive[rows["flags"][alive] & PREFERENCE == 0]
    of = {source: usable[rows["source"][usable] == number] for number, source in enumerate(chosen.sources)}
    for number, source in enumerate(chosen.sources):
        if not (rows["source"][alive] == number).any():
            raise PipelineError(f"mix.sources.{source}: no example left of it; expected some (params.yaml)")
    counts = wanted(chosen, {source: len(part) for source, part in of.items()})
    parts = {
        source: repeated(rows[part], counts[source], chosen.seed, chosen.strategy == "counts")
        for source, part in of.items()
    }
    place = np.concatenate([of[source][positions] for source, (positions, _, _) in parts.items()])
    copies = np.concatenate([numbers for _, numbers, _ in parts.values()])
    return place, copies, counts, [source for source, (_, _, cut) in parts.items() if cut]


def ordered(rows: "Array", place: "Array", copies: "Array", order: str, seed: int) -> tuple["Array", "Array"]:
    """Rows and copy numbers in the order asked for."""
    positions = ORDERS[order](rows[place], copies, seed)
    return place[positions], copies[positions]


# Writing, and reading again what was written. ------------------------------------------------------------


def write(path: Path, rows: "Array", copies: "Array", sources: Iterable[str]) -> None:
    """The lines of some rows, each from where it stands in its source; a copy gets an id of its own."""
    with ExitStack() as stack, path.open("wb") as out:
        readers = [stack.enter_context((CONVERTED / f"{name}.jsonl").open("rb")) for name in sources]
        columns = [rows[name].tolist() for name in ("source", "length", "offset")]
        for source, length, offset, copy in zip(*columns, copies.tolist(), strict=True):
            line = os.pread(readers[source].fileno(), length, offset).strip()
            if copy:
                row = files.parse_row(line.decode(), str(path))
                line = files.line({**row, "id": f"{row['id']}@{copy + 1}"}).strip().encode()
            out.write(line + b"\n")


def count(chunk: list[Line], path: Path, index: overlap.Index, entry_points: bool) -> card.Tally:
    """What some written lines hold, and what they give away."""
    tally = card.Tally()
    for line in chunk:
        example = parse(line, path)
        found = given_away(index, example)
        tally.add(example)
        tally.findings.add(found)
        tally.contaminated += overlap.copied(found, entry_points)
    return tally


def audit(path: Path, label: str, chosen: MixParams, index: overlap.Index, workers: int) -> card.Tally:
    """Read a written file again, knowing nothing of how it came about.

    Raises PipelineError when a benchmark's text stands in it although contaminated examples are dropped.
    """
    tally = card.Tally()
    work = partial(count, path=path, index=index, entry_points=chosen.overlap.entry_points)
    for part in parallel.ordered(work, chunks(path, label), workers):
        tally.merge(part)
    if tally.contaminated and chosen.contaminated == "drop":
        found = ", ".join(
            f"{suite} {check} {number}" for (suite, check), number in tally.findings.examples.items()
        )
        raise PipelineError(
            f"{label}: {tally.contaminated} rows with a benchmark's text; expected 0 ({found})"
        )
    return tally


def balance(rows: "Array", made: Plan, chosen: MixParams, mixed: card.Tally, pairs: card.Tally) -> files.Row:
    """The account of every source: what was read against what was written.

    Raises PipelineError unless examples = mixed, each once + preferences + left out for each reason.
    """
    import numpy as np

    result: files.Row = {}
    for number, source in enumerate(chosen.sources):
        own = rows["source"] == number
        fates = np.bincount(made.fates[own], minlength=len(FATES)).tolist()
        lost = {name: fates[FATES.index(name)] for name in ("too_long", "contaminated", "near_duplicate")}
        repeats = sum(
            int((numbers[rows["source"][part] == number] > 0).sum()) for part, numbers in made.splits.values()
        )
        written = sum(number for (name, _), number in mixed.rows.items() if name == source)
        preferences = sum(number for (name, _), number in pairs.rows.items() if name == source)
        examples = int(own.sum())
        if examples != sum(lost.values()) + fates[0] + preferences + written - repeats:
            raise PipelineError(
                f"{CONVERTED}/{source}.jsonl: {examples} examples; expected {written - repeats} mixed + "
                f"{preferences} preferences + {fates[0]} not chosen + {lost}"
            )
        result[source] = {
            "examples": examples,
            **lost,
            "contaminated": int((made.touched & own).sum()),
            "not_chosen": fates[0],
            "wanted": made.wanted[source],
            "mixed": written,
            "repeated": repeats,
            "preferences": preferences,
        }
    return result


def floors(chosen: MixParams, mixed: card.Tally) -> dict[str, dict[str, float]]:
    """The share of each kind or source that has a floor; raises PipelineError on a name that is both."""
    result = {}
    for name, floor in chosen.floors.items():
        by_source, by_kind = (
            sum(number for key, number in mixed.rows.items() if key[place] == name) for place in (0, 1)
        )
        if by_source and by_kind:
            raise PipelineError(f"mix.floors.{name}: both a source and a kind; expected one (params.yaml)")
        result[name] = {"share": round((by_source + by_kind) / mixed.total(), 6), "floor": floor}
    return result


def remarks(chosen: MixParams, made: Plan, shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the reader should know of this mix; raises PipelineError on a floor that must hold."""
    below = [
        f"mix.floors.{name}: {one['share']:.4f} of the mix; expected at least {one['floor']} (params.yaml)"
        for name, one in shares.items()
        if one["share"] < one["floor"]
    ]
    if below and chosen.below_floor == "fail":
        raise PipelineError(below[0])
    cut = [
        f"mix.sources.{source}: a group was cut to meet {made.wanted[source]} exactly" for source in made.cut
    ]
    kept = int(made.touched.sum()) if chosen.contaminated == "report" else 0
    found = [f"mix.contaminated: {kept} examples give a benchmark away and were not dropped"] if kept else []
    return below + cut + found


def told(path: Path, *keys: str) -> files.Row:
    """What an earlier stage reported; raises PipelineError when it lacks a key."""
    row = files.read_json(path)
    missing = [key for key in keys if key not in row]
    if missing:
        raise PipelineError(f"{path}: no key {missing[0]!r}; expected {', '.join(keys)}")
    return row


def compose(
    rows: "Array", made: Plan, chosen: MixParams, tallies: Mapping[str, card.Tally], found: files.Row
) -> files.Row:
    """The composition, as metrics; `found` is the account of decontamination."""
    mixed = card.merged([tallies["train"], tallies["valid"]])
    sources = balance(rows, made, chosen, mixed, tallies["preferences"])
    return {
        **{split: tally.total() for split, tally in tallies.items()},
        "contaminated": sum(one["contaminated"] for one in sources.values()),
        "sources": sources,
        "kinds": card.kinds(mixed),
        "floors": floors(chosen, mixed),
        "decontamination": found,
    }


def publish(facts: card.Facts) -> None:
    """Write the card, its picture and the report."""
    counts = facts.report["sources"]
    bars = {source: card.bars(facts.filters[source], counts[source], facts.drops) for source in counts}
    files.write_text(MIXED / "README.md", card.readme(facts))
    files.write_text(MIXED / "funnel.svg", card.funnel(bars))
    files.write_json(REPORT, facts.report)


def main() -> None:
    """Mix all sources of `mix.sources`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers", type=int, default=parallel.cores(), help="processes (default: all cores)"
    )
    workers = max(1, parser.parse_args().workers)
    chosen = load("mix", MixParams)
    check(chosen)
    provenance = {source: told(RAW / f"{source}.provenance.json", "origins") for source in chosen.sources}
    filters = {source: told(FILTERED / f"{source}.json", *card.FILTERED) for source in chosen.sources}
    index = overlap.build(suites.load_all(), chosen.overlap)

    MIXED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=MIXED) as signed:
        rows, findings = read(chosen, index, workers)
        made = plan(rows, sign(chosen, signed) if chosen.near_duplicate else None, chosen)
    with ExitStack() as stack:  # the three files appear together, once all is known to be right
        tallies: dict[str, card.Tally] = {}
        for split, (part, copies) in made.splits.items():
            path = stack.enter_context(files.whole(MIXED / f"{split}.jsonl"))
            write(path, rows[part], copies, chosen.sources)
            tallies[split] = audit(path, f"{MIXED}/{split}.jsonl", chosen, index, workers)
        report = compose(rows, made, chosen, tallies, overlap.summary(index, findings))
        notes = remarks(chosen, made, report["floors"])
    publish(
        card.Facts(
            report=report,
            provenance=provenance,
            filters=filters,
            mixed=card.merged([tallies["train"], tallies["valid"]]),
            preferences=tallies["preferences"],
            strategy=f"{chosen.strategy}, order {chosen.order}, seed {chosen.seed}, repeats {chosen.repeats}",
            drops=chosen.contaminated == "drop",
            overlap=chosen.overlap,
            notes=notes,
        )
    )
    for source, counts in report["sources"].items():
        print(f"mix {source}: " + ", ".join(f"{name} {number}" for name, number in counts.items()))
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    print("mix: " + ", ".join(f"{split} {tally.total()}" for split, tally in tallies.items()))


if __name__ == "__main__":
    run(main)
