"""The comparison as text: a table for the terminal, and a Markdown page for a pull request."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.common.comparison import CONSTANTS, Measure
from stages.common.gates import Gate
from stages.common.history import Earlier
from stages.common.noise import Noise, beside

WORDS = {1: "better", -1: "worse", 0: ""}


def value(measure: Measure, place: int) -> str:
    """What base (0) or tuned (1) got: a share, or a count of how many."""
    if measure.counted and measure.counts:
        return f"{measure.counts[place]} of {measure.size}"
    return f"{measure.values[place]:.3f}"


def chance(p: float) -> str:
    """A p-value as it is usually written: `chance(0.0004) == "<0.001"`."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def terminal(found: Iterable[Measure], noise: Noise, significance: float) -> str:
    """The headline table in columns, and what it says of noise; differences are of shares."""
    constant = [name.replace("_", " ") for name in CONSTANTS]
    rows = [["", "base", "tuned", "difference", "", "seed noise", *constant]]
    for measure in found:
        constants = [f"{number:.3f}" for number in measure.constants] or ["", ""]
        mark = WORDS[measure.change(significance)]
        rows.append(
            [
                measure.title,
                value(measure, 0),
                value(measure, 1),
                f"{measure.difference:+z.3f}",
                mark,
                beside(measure.difference, noise.of(measure), ".3f"),
                *constants,
            ]
        )
    return "\n".join([columns(rows), "", noise.words])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    return "\n".join(lines)


def markdown(
    found: Sequence[Measure],
    gates: Sequence[Gate],
    noise: Noise,
    sentences: Sequence[str],
    significance: float,
    earlier: Earlier | str,
    changes: Sequence[Mapping[str, Any]],
    cost: str,
) -> str:
    """The summary for a pull request."""
    rows = [
        (
            plain(measure.title),
            value(measure, 0),
            value(measure, 1),
            f"{measure.difference:+z.3f} ({measure.shift[0]:+z.3f} to {measure.shift[1]:+z.3f})",
            {1: "▲ better", -1: "▼ worse", 0: ""}[measure.change(significance)],
            beside(measure.difference, noise.of(measure), ".3f") or noise.brief,
        )
        for measure in found
    ]
    parts = [
        "## Base against tuned",
        plain(" ".join(sentences)),
        table(("measure", "base", "tuned", "difference (95 %)", f"p < {significance:g}", "seed noise"), rows),
        plain(noise.words),
        "### Gates",
        "\n".join(f"- {'pass' if gate.held else '**FAIL**'}: {plain(str(gate))}" for gate in gates)
        or "No gate is set.",
        "### Since the last committed run",
    ]
    if isinstance(earlier, str):
        parts.append(f"Nothing to compare with: {plain(earlier)}.")
    else:
        parts.append(f"Against {earlier.commit} of {earlier.date}:")
        shown = [
            (
                plain(row["name"]),
                *(f"{row['then']:.4g}", f"{row['now']:.4g}", f"{row['change']:+.4g}"),
                row["noise"] or noise.brief,
            )
            for row in changes
        ]
        parts.append(
            table(("metric", "then", "now", "change", "seed noise"), shown)
            if shown
            else "No shared metric changed."
        )
    return "\n\n".join([*parts, plain(cost)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """A text that Markdown and HTML leave as it is, on one line: `plain("a|<b>") == r"a\\|\\<b\\>"`."""
    return re.sub(r"([\\`*\[\]<>|&#!~])", r"\\\1", " ".join(text.split()))
