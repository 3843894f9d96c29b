"""Put base and tuned side by side: the headline metrics, and one page that works offline.

In: the reports of all other stages. Out: reports/metrics.json and reports/report.html.

    python -m stages.report            # writes both
    python -m stages.report --show     # prints the table of what was written
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from stages.common import files, metrics, suites
from stages.common.errors import run

REPORTS = Path("reports")
TEMPLATE = Path("stages/report.html")
METRICS = REPORTS / "metrics.json"
PAGE = REPORTS / "report.html"
MANIFEST = Path("models/base/manifest.json")

MODELS = ("base", "tuned")
DETECTION = ("balanced_accuracy", "recall", "specificity", "mcc", "pair_correct", "invalid_rate")
ANSWERS = 10

# Names of the headline metrics, where they differ from "<suite>.pass_rate".
HEADLINES = {suites.HUMANEVAL.stem: ("coding", "pass_at_1"), "reference_tests": ("reference_tests", "passed")}


@dataclass(frozen=True)
class Line:
    """One line of the table: a metric of both models, and of the constant judges where they apply."""

    label: str
    note: str
    values: tuple[float | None, ...]  # base, tuned, always vulnerable, always safe
    counts: tuple[int, int] | None = None  # passed by base and tuned, when a share of `tasks`
    tasks: int = 0


def headline(suite: str) -> tuple[str, str]:
    """Group and name under which a suite stands in metrics.json."""
    return HEADLINES.get(suite, (suite, "pass_rate"))


def flat(scores: dict[str, files.Row], training: files.Row, data: files.Row) -> files.Row:
    """The headline metrics: group, metric, model."""
    result: files.Row = {}
    for suite, base in scores["base"].items():
        tuned = scores["tuned"][suite]
        if "mcc" in base:
            result[suite] = {name: {"base": base[name], "tuned": tuned[name]} for name in DETECTION}
            continue
        group, name = headline(suite)
        field = "passed" if name == "passed" else "pass_rate"
        result[group] = {name: {"base": base[field], "tuned": tuned[field]}, "tasks": base["tasks"]}
    training = {name: value for name, value in training.items() if isinstance(value, int | float)}
    return {**result, "training": training, "data": data}


def lines(scores: dict[str, files.Row]) -> list[Line]:
    """The table, suite by suite."""
    table: list[Line] = []
    for suite, base in scores["base"].items():
        tuned = scores["tuned"][suite]
        if "mcc" in base:
            table += [
                Line(
                    f"{suite}: {name.replace('_', ' ')}",
                    f"{base['tasks']} snippets" if name == DETECTION[0] else "",
                    tuple(row[name] for row in (base, tuned, base["always_vulnerable"], base["always_safe"])),
                )
                for name in DETECTION
            ]
        else:
            group, name = headline(suite)
            label = f"{group.replace('_', ' ')}: {name.replace('_', ' ').replace('at 1', '@1')}"
            rates = (base["pass_rate"], tuned["pass_rate"], None, None)
            counts = (base["passed"], tuned["passed"])
            table.append(Line(label, f"{base['tasks']} tasks", rates, counts, base["tasks"]))
    return table


def cells(line: Line) -> list[dict[str, Any]]:
    """A line as the page shows it."""
    shown: list[dict[str, Any]] = []
    first, second = line.values[:2]
    for index, value in enumerate(line.values):
        interval = ""
        if line.counts is not None and index < len(MODELS):
            low, high = metrics.wilson(line.counts[index], line.tasks)
            interval = f"{line.counts[index]} of {line.tasks}; {low:.2f} to {high:.2f}"
        better = index == 1 and "invalid" not in line.label and (second or 0) > (first or 0)
        shown.append({"text": "" if value is None else f"{value:.3f}", "interval": interval, "best": better})
    return shown


def text_table(table: list[Line]) -> str:
    """The table for a terminal."""
    rows = [("", "base", "tuned", "always vulnerable", "always safe")]
    rows += [(line.label, *("" if v is None else f"{v:.3f}" for v in line.values)) for line in table]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def funnel(mix: files.Row, filters: dict[str, files.Row]) -> list[files.Row]:
    """A row a source: what came in, what was kept and why not, what was mixed."""
    result: list[files.Row] = []
    for name, counts in mix["sources"].items():
        kept = filters[name]
        reasons = ", ".join(f"{reason} {count}" for reason, count in kept["reasons"].items() if count)
        result.append(
            {"name": name, **counts, **{k: kept[k] for k in ("rows", "kept", "rejected")}, "reasons": reasons}
        )
    return result


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spaced."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def side_by_side(
    completions: dict[str, list[files.Row]], verdicts: dict[str, list[files.Row]]
) -> list[files.Row]:
    """Ten tasks, the same number of each suite as far as ten allows, with both models' answers."""
    by_suite: dict[str, list[int]] = {}
    for index, row in enumerate(completions["base"]):
        by_suite.setdefault(row["suite"], []).append(index)
    quota = [
        ANSWERS // len(by_suite) + (position < ANSWERS % len(by_suite)) for position in range(len(by_suite))
    ]
    chosen = [
        index for rows, count in zip(by_suite.values(), quota, strict=True) for index in spread(rows, count)
    ]
    return [
        {
            "id": completions["base"][index]["id"],
            "prompt": completions["base"][index]["prompt"],
            **{
                model: {
                    "completion": completions[model][index]["completion"],
                    "mark": "passed" if verdicts[model][index]["passed"] else "failed",
                    "reason": verdicts[model][index]["reason"],
                }
                for model in MODELS
            },
        }
        for index in chosen
    ]


def curve(points: Sequence[tuple[float, float]], width: int = 720, height: int = 220) -> Markup:
    """The loss over the steps as an inline SVG picture."""
    left, bottom, top = 46, 26, 12
    steps, losses = [x for x, _ in points], [y for _, y in points]
    highest, last = max(losses) * 1.05, max(steps)

    def place(step: float, loss: float) -> str:
        x = left + (width - left - 8) * step / last
        return f"{x:.1f},{top + (height - bottom - top) * (1 - loss / highest):.1f}"

    marks = "".join(
        f'<text x="{left - 8}" y="{place(0, loss).split(",")[1]}" text-anchor="end" dy="4">{loss:.2f}</text>'
        f'<line x1="{left}" x2="{width - 8}" y1="{place(0, loss).split(",")[1]}" y2="{place(0, loss).split(",")[1]}" '
        'stroke="currentColor" stroke-opacity=".15"/>'
        for loss in (0, highest / 3, 2 * highest / 3, highest)
    )
    line = " ".join(place(step, loss) for step, loss in points)
    return Markup(  # noqa: S704 (made of numbers alone)
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="training loss over {last:.0f} steps" '
        f'font-size="11" fill="currentColor">{marks}'
        f'<polyline points="{line}" fill="none" stroke="var(--tuned)" stroke-width="2"/>'
        f'<text x="{width - 8}" y="{height - 8}" text-anchor="end">step {last:.0f}</text>'
        f'<text x="{left}" y="{height - 8}">loss on the answers</text></svg>'
    )


def page(**parts: Any) -> str:
    """The template with its parts filled in; everything is escaped."""
    return Environment(autoescape=True).from_string(files.read_text(TEMPLATE)).render(**parts)


def read_curve(path: Path) -> list[tuple[float, float]]:
    """The points of a curve that DVCLive wrote: step and value."""
    rows = csv.DictReader(files.read_text(path).splitlines(), delimiter="\t")
    return [(float(row["step"]), float(row[path.stem])) for row in rows]


def main() -> None:
    """Write the report, or show what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", action="store_true", help="print the table and write nothing")
    show = parser.parse_args().show

    scores = {model: files.read_json(REPORTS / "scores" / f"{model}.json") for model in MODELS}
    table = lines(scores)
    if not show:
        mix = files.read_json(REPORTS / "mix.json")
        filters = {name: files.read_json(REPORTS / "filter" / f"{name}.json") for name in mix["sources"]}
        training = files.read_json(REPORTS / "train.json")
        rows = funnel(mix, filters)
        data = {
            key: sum(row[key] for row in rows)
            for key in ("rows", "kept", "rejected", "contaminated", "mixed")
        }
        kept = {
            kind: {model: files.read_rows(REPORTS / kind / f"{model}.jsonl") for model in MODELS}
            for kind in ("completions", "verdicts")
        }
        files.write_json(METRICS, flat(scores, training, data))
        files.write_text(
            PAGE,
            page(
                model=files.read_json(MANIFEST),
                table=[{"label": line.label, "note": line.note, "cells": cells(line)} for line in table],
                funnel=rows,
                contaminated=data["contaminated"],
                training=training,
                parity=files.read_json(REPORTS / "export.json"),
                curve=curve(read_curve(REPORTS / "train/plots/metrics/loss.tsv")),
                answers=side_by_side(kept["completions"], kept["verdicts"]),
            ),
        )
    print(f"{text_table(table)}\n\nreport: {PAGE}")


if __name__ == "__main__":
    run(main)
