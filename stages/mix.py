"""Mix the converted sources into one training set, without a trace of any benchmark.

In: data/converted/ (the sources named in `mix.sources`), data/benchmarks/ and HumanEval; for the card also
data/raw/*.provenance.json and reports/filter/. Out: in data/mixed/ train, valid and preferences (.jsonl), the
dataset card README.md and its picture funnel.svg; the composition in reports/mix.json.
Promises: what belongs together never straddles the split; examples in = mixed + left out, each with its
reason; what was written is read again and checked against the benchmarks; same seed, same bytes. No text is
held in memory, only a catalogue: a million examples take about 700 MiB, most of it a file that
is mapped.

    python -m stages.mix
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import card, catalogue, files, overlap, parallel, suites
from stages.common.catalogue import COPIED, PREFERENCE
from stages.common.errors import PipelineError, run
from stages.common.mixture import MixParams, check, wanted
from stages.common.ordering import ORDERS
from stages.common.params import load
from stages.common.selection import components, divide, duplicated, repeated, sharing

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RAW = Path("data/raw")
FILTERED = Path("reports/filter")
CONVERTED = Path("data/converted")
MIXED = Path("data/mixed")
REPORT = Path("reports/mix.json")

FATES = ("not_chosen", "too_long", "contaminated", "near_duplicate", "mixed", "preferences")


# The plan: every example gets a fate. --------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What becomes of every row of the catalogue."""

    fates: "Array"  # of each row, a place in FATES
    touched: "Array"  # rows of groups that give a benchmark away, dropped or not
    wanted: dict[str, int]
    cut: list[str]  # sources of which a group had to be cut
    splits: dict[str, tuple["Array", "Array"]]  # rows and copy numbers, in the order of writing


def plan(rows: "Array", near: "Array", chosen: MixParams) -> Plan:
    """Leave out, choose, divide and put in order; `near` tells of each row what it is a near-duplicate of."""
    import numpy as np

    fates = np.zeros(len(rows), dtype=np.uint8)
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
    together = components([rows["group"][mixed], rows["prompt"][mixed], near[mixed]])
    valid = divide(together[: len(place)], rows["group"][place], chosen.valid_share, chosen.seed)
    pairs = pairs[~np.isin(together[len(place) :], together[: len(place)][valid])]
    fates[pairs] = FATES.index("preferences")
    if valid.all() or (chosen.valid_share and not valid.any()):
        raise PipelineError(
            f"mix.rows: {len(place)} give {(~valid).sum()} examples to train and {valid.sum()} to validate "
            f"on; expected some of both with valid_share {chosen.valid_share} (params.yaml)"
        )

    def ordered(part: "Array", numbers: "Array", order: str) -> tuple["Array", "Array"]:
        positions = ORDERS[order](rows[part], numbers, chosen.seed)
        return part[positions], numbers[positions]

    splits = {
        "train": ordered(place[~valid], copies[~valid], chosen.order),
        "valid": ordered(place[valid], copies[valid], "shuffled"),
        "preferences": ordered(pairs, np.zeros_like(pairs), "shuffled"),
    }
    return Plan(fates, touched, counts, cut, splits)


def choose(
    rows: "Array", alive: "Array", chosen: MixParams
) -> tuple["Array", "Array", dict[str, int], list[str]]:
    """The mix, source after source: rows, copy numbers, what was wanted of each source, which were cut."""
    import numpy as np

    usable = {}
    for number, source in enumerate(chosen.sources):
        own = alive[rows["source"][alive] == number]
        if not len(own):
            raise PipelineError(f"mix.sources.{source}: no example left of it; expected some (params.yaml)")
        usable[source] = own[rows["flags"][own] & PREFERENCE == 0]
    counts = wanted(chosen, {source: len(own) for source, own in usable.items()})
    places, copies, cut = [], [], []
    for source, own in usable.items():
        positions, numbers, was_cut = repeated(
            rows[own], counts[source], chosen.seed, exact=chosen.strategy == "counts"
        )
        places.append(own[positions])
        copies.append(numbers)
        cut += [source] * was_cut
    return np.concatenate(places), np.concatenate(copies), counts, cut


# What was written, read again. ---------------------------------------------------------------------------


def count(chunk: list[catalogue.Line], path: Path, index: overlap.Index, entry_points: bool) -> card.Tally:
    """What some written lines hold, and what they give away."""
    tally = card.Tally()
    for line in chunk:
        example = catalogue.parse(line, path)
        found = overlap.find(index, *catalogue.texts(example))
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
    for part in parallel.ordered(work, catalogue.chunks(path, label), workers):
        tally.merge(part)
    if tally.contaminated and chosen.contaminated == "drop":
        found = ", ".join(
            f"{suite} {check} {number}" for (suite, check), number in tally.findings.examples.items()
        )
        raise PipelineError(
            f"{label}: {tally.contaminated} rows with a benchmark's text; expected 0 ({found})"
        )
    return tally


# The report. --------------------------------------------------------------------------------------------


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
        repeats = sum(int((copies[own[part]] > 0).sum()) for part, copies in made.splits.values())
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
    parallel.add_workers(parser)
    workers = parser.parse_args().workers
    chosen = load("mix", MixParams)
    check(chosen)
    provenance = {source: told(RAW / f"{source}.provenance.json", "origins") for source in chosen.sources}
    filters = {source: told(FILTERED / f"{source}.json", *card.FILTERED) for source in chosen.sources}
    index = overlap.build(suites.load_all(), chosen.overlap)
    paths = [CONVERTED / f"{source}.jsonl" for source in chosen.sources]

    MIXED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=MIXED) as signatures:
        rows, findings = catalogue.read(paths, chosen, index, workers, signatures)
        near = catalogue.alike(rows, chosen, signatures)
    made = plan(rows, near, chosen)
    with ExitStack() as stack:  # the three files appear together, once all is known to be right
        tallies: dict[str, card.Tally] = {}
        for split, (part, copies) in made.splits.items():
            path = stack.enter_context(files.whole(MIXED / f"{split}.jsonl"))
            catalogue.write(path, rows[part], copies, paths)
            tallies[split] = audit(path, f"{MIXED}/{split}.jsonl", chosen, index, workers)
        mixed = card.merged([tallies["train"], tallies["valid"]])
        sources = balance(rows, made, chosen, mixed, tallies["preferences"])
        report: files.Row = {
            **{split: tally.total() for split, tally in tallies.items()},
            "contaminated": sum(one["contaminated"] for one in sources.values()),
            "sources": sources,
            "kinds": card.kinds(mixed),
            "cwes": dict(sorted(mixed.cwes.items())),
            "floors": floors(chosen, mixed),
            "decontamination": overlap.summary(index, findings),
        }
        notes = remarks(chosen, made, report["floors"])
    publish(
        card.Facts(
            report=report,
            provenance=provenance,
            filters=filters,
            mixed=mixed,
            preferences=tallies["preferences"],
            strategy=f"{chosen.strategy}, order {chosen.order}, seed {chosen.seed}, repeats {chosen.repeats}",
            drops=chosen.contaminated == "drop",
            overlap=chosen.overlap,
            notes=notes,
        )
    )
    for source, counts in sources.items():
        print(f"mix {source}: " + ", ".join(f"{name} {number}" for name, number in counts.items()))
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    print("mix: " + ", ".join(f"{split} {tally.total()}" for split, tally in tallies.items()))


if __name__ == "__main__":
    run(main)
