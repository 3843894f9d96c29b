"""Parse one source into samples and keep the good ones; every rejected row is listed with its reason.

In: data/raw/<source>.jsonl and its provenance. Out, in data/filtered/: <source>.jsonl (kept samples),
<source>.rejected.jsonl (the ledger), <source>.suspects.jsonl (kept, but perhaps poisoned); and counts in
reports/filter/<source>.json. Promise: rows in = kept + rejected. Rows are streamed over all cores; what comes
out depends neither on the number of cores nor, but for ids, on the order of the rows.

    python -m stages.filter coding
"""

import argparse
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from operator import index
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

from pydantic import Field

from stages.common import files, ledger, nearduplicates, parallel, parsers, suspects
from stages.common.checks import Checks, Rejected, judged, made, verdict
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.progress import progress
from stages.common.records import Sample, to_row
from stages.common.transforms import Transforms, transformed

RAW = Path("data/raw")
FILTERED = Path("data/filtered")
REPORTS = Path("reports/filter")

CHUNK = 256  # rows a worker takes at a time
LONGEST = 4_000_000  # characters of a raw row; what is longer is no example, and slow to search
PROVEN_CHUNK = 16  # where each row runs programs in the sandbox


@params
class FilterParams:
    """How a source is cleaned."""

    checks: Checks
    transforms: Transforms
    first: Annotated[int, Field(ge=1)] | None = None  # rows taken from its top; None for all
    trigger_rows: Annotated[int, Field(ge=2)] | None = None  # rows that share a string before it is suspected


@dataclass(frozen=True)
class Part:
    """What became of some rows."""

    pieces: list[ledger.Piece] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    hidden: list[files.Row] = field(default_factory=list)
    signatures: bytes = b""  # of the kept pieces, in order
    triggers: suspects.Summary = field(default_factory=lambda: suspects.summary(()))

    def reject(self, row: int, chunk: int, rejected: Rejected) -> None:
        """Add an entry of the ledger."""
        self.pieces.append(ledger.Piece(row, chunk, files.line(vars(rejected)), None))


@dataclass(frozen=True)
class Work:
    """What a worker needs to know beside its rows."""

    chosen: FilterParams
    origins: list[parsers.Origin]
    ends: list[int]  # of each origin, the number of the first row that is not its own

    def origin(self, number: int) -> parsers.Origin:
        """The origin of a row by its number."""
        return self.origins[bisect_right(self.ends, number)]

    def name(self, number: int) -> str:
        """The id of a row by its number."""
        return f"{self.origins[0].source}/{number}"


def samples(line: str, number: int, work: Work) -> tuple[list[Sample], Counter[str]]:
    """One raw line as samples, and what was redacted; raises PipelineError when it is malformed."""
    if len(line) > LONGEST:
        raise PipelineError(f"a row of {len(line)} characters; expected at most {LONGEST}")
    sample = parsers.parse(files.parse_row(line, "row"), number, work.origin(number))
    return transformed(sample, work.chosen.transforms)


def judge(rows: list[tuple[int, str]], work: Work) -> Part:
    """Every row of a chunk as kept samples or entries of the ledger."""
    part = Part()
    kept: list[Sample] = []
    for number, text in rows:
        if work.chosen.first is not None and number >= work.chosen.first:
            part.reject(number, 0, Rejected(work.name(number), "first", f"after row {work.chosen.first}"))
            continue
        try:
            found, redacted = samples(text, number, work)
        except PipelineError as error:
            part.reject(number, 0, Rejected(work.name(number), "malformed", str(error)))
            continue
        part.counts.update({f"redacted.{kind}": count for kind, count in redacted.items()})
        for sample in found:
            chunk = int(sample.id.partition("#")[2] or 0)
            part.counts["chunks"] += chunk > 0
            part.counts["blank_inputs"] += "blank input" in sample.transforms
            if failed := verdict(sample, work.chosen.checks):
                part.reject(number, chunk, failed)
                continue
            kept.append(sample)
            line = files.line(to_row(sample))
            part.pieces.append(ledger.Piece(number, chunk, line, ledger.digests(sample)))
            if names := suspects.hidden("\n".join(ledger.texts(sample))):
                part.hidden.append({"id": sample.id, "kind": "hidden", "found": ", ".join(names)})
            if work.chosen.checks.label and (status := judged(sample).outcome):
                part.counts[f"label.{status}"] += 1
    if work.chosen.checks.near_duplicate is not None:
        joined = ("\n".join(ledger.texts(sample)) for sample in kept)
        part = replace(part, signatures=nearduplicates.signatures(joined).tobytes())
    if work.chosen.trigger_rows:
        asked = ((sample.id, f"{sample.instruction}\n{sample.input}", sample.output) for sample in kept)
        part = replace(part, triggers=suspects.summary(asked))
    return part


def origins(path: Path, source: str) -> tuple[list[parsers.Origin], list[int]]:
    """The origins of a source, and for each the number of the first row that is not its own."""
    provenance = files.read_json(path)
    try:
        schema, each = provenance["schema"], provenance["origins"]
        found = [parsers.Origin(source, schema, origin["licence"], origin["revision"]) for origin in each]
        ends = list(accumulate(index(origin["rows"]) for origin in each))
    except (KeyError, TypeError) as error:
        raise PipelineError(f"{path}: {error}; expected what `fetch` writes") from None
    if not found or schema not in parsers.PARSERS:
        raise PipelineError(f"{path}: schema {schema!r}, {len(found)} origins; expected what `fetch` writes")
    return found, ends


def report(tally: ledger.Tally, counts: Counter[str], found: list[files.Row], checks: Checks) -> files.Row:
    """The counts of a source, as metrics."""
    names = ["malformed", "first", *made(checks)]
    groups = {
        group: {
            name.partition(".")[2]: count for name, count in sorted(counts.items()) if name.startswith(group)
        }
        for group in ("redacted.", "label.")
    }
    return {
        "rows": tally.rows,
        "kept": tally.kept,
        "rejected": tally.rows - tally.kept,
        "chunks": counts["chunks"],
        "blank_inputs": counts["blank_inputs"],
        "samples": tally.kept_pieces,
        "reasons": {name: tally.reasons[name] for name in names},
        "redacted": groups["redacted."],
        "label": groups["label."],
        "suspects": dict(sorted(Counter(row["kind"] for row in found).items())),
    }


def numbered(raw: Path, provenance: Path, rows: int) -> Iterator[tuple[int, str]]:
    """The raw lines with their numbers from 0; raises PipelineError unless there are `rows` of them."""
    count = 0
    for count, (_, line) in enumerate(files.iter_lines(raw), 1):
        if count <= rows:
            yield count - 1, line
    if count != rows:
        raise PipelineError(f"{provenance}: {rows} rows declared; expected the {count} of {raw}")


def gather(
    parts: Iterator[Part], waiting: ledger.Waiting, chosen: FilterParams
) -> tuple[Counter[str], list[files.Row]]:
    """Put the parts into the waiting line; returns what was counted and what may be poisoned."""
    counts: Counter[str] = Counter()
    found: list[files.Row] = []
    seen = suspects.summary(())
    for part in parts:
        waiting.add(part.pieces, part.signatures)
        counts.update(part.counts)
        found += part.hidden
        seen = suspects.merge(seen, part.triggers)
    for trigger in suspects.triggers(seen, chosen.trigger_rows) if chosen.trigger_rows else ():
        found.append(
            {"id": trigger.example, "kind": "trigger", "found": f"{trigger.text} ({trigger.rows} rows)"}
        )
    return counts, found


def main() -> None:
    """Filter the source named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a key of `filter` in params.yaml")
    parallel.add_workers(parser)
    arguments = parser.parse_args()
    source, chosen = arguments.source, load(f"filter.{arguments.source}", FilterParams)
    raw, provenance = RAW / f"{source}.jsonl", RAW / f"{source}.provenance.json"
    work = Work(chosen, *origins(provenance, source))

    chunk = PROVEN_CHUNK if chosen.checks.unproven else CHUNK
    lines = progress(
        numbered(raw, provenance, work.ends[-1]), f"filter {source}", "rows", total=work.ends[-1]
    )
    parts = parallel.ordered(partial(judge, work=work), parallel.chunked(lines, chunk), arguments.workers)
    FILTERED.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=FILTERED) as pieces, TemporaryFile(dir=FILTERED) as signatures:
        waiting = ledger.Waiting(pieces, signatures)
        counts, found = gather(parts, waiting, chosen)
        same, like = ledger.twins(waiting, chosen.checks)
        result = ledger.tally(ledger.settled(waiting, same, like, source))
        if result.rows != work.ends[-1]:
            raise PipelineError(f"{raw}: {work.ends[-1]} rows in; expected as many out, found {result.rows}")
        if not result.kept:
            most = ", ".join(f"{name} {count}" for name, count in result.reasons.most_common(3))
            raise PipelineError(f"filter.{source}: 0 of {result.rows} rows kept; expected some ({most})")
        files.write_lines(
            FILTERED / f"{source}.jsonl",
            (line for _, failed, line in ledger.settled(waiting, same, like, source) if failed is None),
        )
        files.write_rows(
            FILTERED / f"{source}.rejected.jsonl",
            (
                vars(failed)
                for _, failed, _ in ledger.settled(waiting, same, like, source)
                if failed is not None
            ),
        )
    files.write_rows(FILTERED / f"{source}.suspects.jsonl", found)
    files.write_json(REPORTS / f"{source}.json", report(result, counts, found, chosen.checks))
    dropped = ", ".join(f"{name} {count}" for name, count in sorted(result.reasons.items())) or "none"
    print(
        f"filter {source}: {result.rows} rows, {result.kept} kept as {result.kept_pieces} samples, "
        f"{result.rows - result.kept} rejected ({dropped})"
    )


if __name__ == "__main__":
    run(main)
