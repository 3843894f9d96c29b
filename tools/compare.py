"""Compare two runs: what `dvc metrics diff` shows, how sure it is, and which answers became others.

    python -m tools.compare main                      # main against the working tree
    python -m tools.compare v1 main --format markdown

A run is a branch, tag, commit or experiment; `workspace` is the working tree. Each metric is given with both
values and their 95 % intervals, the difference, a paired test over the tasks that both runs asked, and how
far seeds alone lie apart (data/noise.json). The verdicts on single answers are with DVC, in its cache or on
its remote. Where neither has them, values and intervals are those in git, and nothing is tested.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from stages.common import comparison, files, noise
from stages.common.errors import run
from stages.common.summary import WORDS, chance, columns, plain, table
from tools import revisions
from tools.revisions import WORKSPACE
from tools.runs import Compared, Comparison, Flip, Side, compare, read, stated

SHOWN = 20  # flipped answers of a model, and parameters, that are listed unless all are asked for
NO_NOISE = noise.Noise({}, "", "")  # a base model has no seed


@dataclass(frozen=True)
class Section:
    """A part of what is printed: a heading, and below it a table, lines, or nothing."""

    heading: str
    rows: list[list[str]] = field(default_factory=list)  # the first is the head
    lines: list[str] = field(default_factory=list)


def text(found: Comparison, limit: int | None) -> str:
    """For the terminal; at most `limit` lines a section."""
    parts = [title(found), *(f"note: {note}" for note in found.notes)]
    for one in sections(found):
        parts += ["", one.heading]
        parts += ["", columns(one.rows)] if one.rows else []
        parts += [f"  {line}" for line in shortened(one.lines, limit)]
    return "\n".join([*parts, "", *legend(found)])


def markdown(found: Comparison, limit: int | None) -> str:
    """For a pull request; at most `limit` lines a section."""
    parts = [f"## {plain(title(found))}", *(f"> {plain(note)}" for note in found.notes)]
    for one in sections(found):
        parts.append(f"### {plain(one.heading)}")
        head, *rows = [[plain(cell) for cell in row] for row in one.rows] or [[]]
        parts += [table(head, rows)] if rows else []
        parts += ["\n".join(f"- {plain(line)}" for line in shortened(one.lines, limit))] if one.lines else []
    return "\n\n".join([*parts, *map(plain, legend(found))])


def title(found: Comparison) -> str:
    """What is compared with what."""
    return " → ".join(one.revision.title for one in found.runs)


def sections(found: Comparison) -> list[Section]:
    """Parameters, what became of each model and its answers, training and data."""
    names = [one.revision.name for one in found.runs]
    result = [Section(*parameters(found))]
    for one in found.sides:
        known = found.noise if one.model == "tuned" else NO_NOISE
        head = ["measure", *(f"{name} (95 %)" for name in names), "difference (95 %)", "p", "", "seed noise"]
        rows = [measured(each, found.significance, known) for each in one.compared]
        result.append(Section(heading(one, found.significance), [] if one.level else [head, *rows]))
        if one.flips:
            result.append(Section(*flipped(one.flips)))
    if found.others:
        rows = [
            [row["name"], f"{row['then']:.4g}", f"{row['now']:.4g}", f"{row['change']:+.4g}", row["noise"]]
            for row in found.others
        ]
        result.append(Section("Training and data", [["metric", *names, "change", "seed noise"], *rows]))
    return result


def document(found: Comparison) -> str:
    """All of it as JSON."""
    names = ("before", "after")
    return json.dumps(
        {
            **{
                name: {"name": one.revision.name, "commit": one.revision.commit or None}
                for name, one in zip(names, found.runs, strict=True)
            },
            "notes": found.notes,
            "params": [dict(zip(("name", *names), row, strict=True)) for row in found.params],
            "models": {
                one.model: {
                    "same": one.same,
                    "tested": one.flips is not None,
                    "measures": [
                        entry(each, found.significance, found.noise if one.model == "tuned" else NO_NOISE)
                        for each in one.compared
                    ],
                    "flips": None if one.flips is None else [vars(flip) for flip in one.flips],
                }
                for one in found.sides
            },
            "metrics": found.others,
            "noise": found.noise.words,
            "significance": found.significance,
        },
        ensure_ascii=False,
        indent=2,
    )


def entry(compared: Compared, significance: float, known: noise.Noise) -> files.Row:
    """A measure as plain values."""
    one, tested = compared.measure, compared.tested
    return {
        "name": one.name,
        "unit": one.unit,
        "sizes": list(compared.sizes),
        "values": list(one.values),
        "intervals": [list(both) if stated(both) else None for both in one.intervals],
        "difference": one.difference,
        "difference_interval": list(one.shift) if tested else None,
        "p": one.p if tested else None,
        "test": ("mcnemar" if one.exact else "bootstrap") if tested else None,
        "change": WORDS[one.change(significance)] if tested else None,
        "noise": known.of(one),
    }


def parameters(found: Comparison) -> tuple[str, list[list[str]], list[str]]:
    """The section of parameters that differ."""
    lines = [f"{key}: {shown(before)} → {shown(after)}" for key, before, after in found.params]
    return f"Parameters that differ: {len(lines) or 'none'}", [], lines


def shown(value: object) -> str:
    """A parameter's value; a key that is not there has none."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def shortened(lines: list[str], limit: int | None) -> list[str]:
    """The first lines, and how many more there are."""
    left = len(lines) - limit if limit is not None else 0
    return lines if left <= 0 else [*lines[:limit], f"and {left} more (--all)"]


def heading(one: Side, significance: float) -> str:
    """What became of a model, in a sentence."""
    name = f"The {one.model} model"
    if one.same:
        return f"{name} gave the same answers"
    if one.flips is None:
        return f"{name}, by its metrics alone" + (": none differs" if one.level else "")
    changes = [each.measure.change(significance) for each in one.compared]
    return f"{name}: of {len(changes)} measures {changes.count(1)} better, {changes.count(-1)} worse"


def measured(compared: Compared, significance: float, known: noise.Noise) -> list[str]:
    """A measure as a row of the table."""
    measure, sizes = compared.measure, compared.sizes
    values = [f"{measure.values[place]:.3f}{_between(measure.intervals[place], '.2f')}" for place in range(2)]
    difference = f"{measure.difference:+z.3f}{_between(measure.shift, '+z.2f')}"
    mark = WORDS[measure.change(significance)]
    if sizes[0] != sizes[1]:
        mark = f"of {sizes[0]} and {sizes[1]} {measure.unit}"
    beside = noise.beside(measure.difference, known.of(measure), ".3f")
    return [measure.title, *values, difference, chance(measure.p) if compared.tested else "", mark, beside]


def _between(interval: comparison.Interval, form: str) -> str:
    return f" ({interval[0]:{form}} to {interval[1]:{form}})" if stated(interval) else ""


def flipped(flips: list[Flip]) -> tuple[str, list[list[str]], list[str]]:
    """The section of answers that flipped."""
    gained = sum(flip.passed for flip in flips)
    suites = Counter((flip.suite, flip.passed) for flip in flips)
    names = dict.fromkeys(flip.suite for flip in flips)
    counts = ", ".join(f"{name} +{suites[name, True]} -{suites[name, False]}" for name in names)
    head = f"Answers that flipped: {gained} now pass, {len(flips) - gained} no longer do ({counts})"
    return head, [], [f"{_named(flip)}: {flip.before} → {flip.after}" for flip in flips]


def _named(flip: Flip) -> str:
    return flip.id if flip.id.startswith(f"{flip.suite}/") else f"{flip.id} ({flip.suite})"


def legend(found: Comparison) -> list[str]:
    """How to read the marks."""
    tested = any(each.tested for one in found.sides for each in one.compared)
    marks = (
        f"better, worse: p < {found.significance:g} on the tasks that both were asked, by McNemar's test "
        "of shares and by a bootstrap of the rest."
    )
    return [*([marks] if tested else []), found.noise.words]


FORMATS: dict[str, Callable[[Comparison, int | None], str]] = {
    "text": text,
    "markdown": markdown,
    "json": lambda found, _: document(found),
}


def main() -> None:
    """Compare what the command line names, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", help="a branch, tag, commit or experiment")
    parser.add_argument("after", nargs="?", default=WORKSPACE, help=f"another, or {WORKSPACE} (default)")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument("--all", action="store_true", help=f"list more than {SHOWN} parameters and answers")
    asked = parser.parse_args()
    before, after = (read(revisions.revision(name)) for name in (asked.before, asked.after))
    print(FORMATS[asked.format](compare((before, after)), None if asked.all else SHOWN))


if __name__ == "__main__":
    run(main)
