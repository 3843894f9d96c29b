"""Put base and tuned side by side: the headline metrics, and one page that works offline.

In: the reports of all other stages. Out: reports/metrics.json and reports/report.html.

    python -m stages.report            # writes both
    python -m stages.report --show     # prints the table of what was written
"""

import argparse
import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from stages.common import files, metrics, suites
from stages.common.errors import PipelineError, run

REPORTS = Path("reports")
TEMPLATE = Path("stages/report.html")
METRICS = REPORTS / "metrics.json"
PAGE = REPORTS / "report.html"
CURVE = REPORTS / "train/plots/metrics/loss.tsv"
MANIFEST = Path("models/base/manifest.json")

MODELS = ("base", "tuned")
DETECTION = ("balanced_accuracy", "recall", "specificity", "mcc", "pair_correct", "invalid_rate")
ANSWERS, SEED = 10, 1

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
        if group in result or group in ("training", "data"):
            raise PipelineError(
                f"{suites.BENCHMARKS}: suite {suite!r} would overwrite the metrics of {group}; rename it"
            )
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
    rows = [["", "base", "tuned", "always vulnerable", "always safe"]]
    rows += [
        [line.label, *("" if value is None else f"{value:.3f}" for value in line.values)] for line in table
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
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


def drawn(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, drawn with a fixed seed, in their order."""
    places = random.Random(SEED).sample(range(len(items)), min(count, len(items)))
    return [items[place] for place in sorted(places)]


def side_by_side(answers: dict[str, list[files.Row]]) -> list[files.Row]:
    """Ten tasks, the same number of each suite as far as ten allows, with both models' answers.

    `answers` holds for each model the rows of completions and verdicts joined.
    """
    given = {model: {row["id"]: row for row in rows} for model, rows in answers.items()}
    if set(given["base"]) != set(given["tuned"]):
        path = REPORTS / "completions/tuned.jsonl"
        found = len(given["tuned"])
        raise PipelineError(f"{path}: {found} answers; expected one to each task of base.jsonl")
    suites_: dict[str, list[str]] = {}
    for row in answers["base"]:
        suites_.setdefault(row["suite"], []).append(row["id"])
    quota = [ANSWERS // len(suites_) + (place < ANSWERS % len(suites_)) for place in range(len(suites_))]
    chosen = [
        name for names, count in zip(suites_.values(), quota, strict=True) for name in drawn(names, count)
    ]
    return [
        {
            "id": name,
            "prompt": given["base"][name]["prompt"],
            **{model: given[model][name] for model in MODELS},
        }
        for name in chosen
    ]


def joined(model: str) -> list[files.Row]:
    """A model's completions, each with its verdict."""
    path = REPORTS / "verdicts" / f"{model}.jsonl"
    verdicts = {row["id"]: row for row in files.read_rows(path)}
    completions = files.read_rows(REPORTS / "completions" / f"{model}.jsonl")
    missing = [row["id"] for row in completions if row["id"] not in verdicts]
    if missing:
        raise PipelineError(f"{path}: no verdict on {missing[0]!r}; expected one for every answer")
    return [{**row, **verdicts[row["id"]]} for row in completions]


def curve(points: Sequence[tuple[float, float]]) -> files.Row:
    """Loss over steps for the template's picture, whose plot area is 100 wide and 100 high from the top."""
    if not points:
        raise PipelineError(f"{CURVE}: no point; expected the losses of a training run")
    highest = 1.05 * max(loss for _, loss in points) or 1.0
    last = max(step for step, _ in points) or 1.0
    return {
        "line": " ".join(
            f"{100 * step / last:.2f},{100 - 100 * loss / highest:.2f}" for step, loss in points
        ),
        "ticks": [
            {"y": round(100 - 100 * part), "loss": highest * part} for part in (0.0, 0.25, 0.5, 0.75, 1.0)
        ],
        "steps": last,
    }


def page(**parts: Any) -> str:
    """The template with its parts filled in; everything is escaped."""
    return Environment(autoescape=True).from_string(files.read_text(TEMPLATE)).render(**parts)


def read_curve(path: Path) -> list[tuple[float, float]]:
    """The points of a curve that DVCLive wrote: step and value."""
    rows = csv.DictReader(files.read_text(path).split("\n"), delimiter="\t")
    return [(float(row["step"]), float(row[path.stem])) for row in rows]


def write(scores: dict[str, files.Row], table: list[Line]) -> None:
    """Read the other reports and write metrics and page; nothing is written before all is read."""
    mix = files.read_json(REPORTS / "mix.json")
    filters = {name: files.read_json(REPORTS / "filter" / f"{name}.json") for name in mix["sources"]}
    training = files.read_json(REPORTS / "train.json")
    rows = funnel(mix, filters)
    columns = ("rows", "kept", "rejected", "contaminated", "mixed")
    data = {column: sum(row[column] for row in rows) for column in columns}
    html = page(
        model=files.read_json(MANIFEST),
        table=[{"label": line.label, "note": line.note, "cells": cells(line)} for line in table],
        funnel=rows,
        contaminated=data["contaminated"],
        training=training,
        parity=files.read_json(REPORTS / "export.json"),
        curve=curve(read_curve(CURVE)),
        answers=side_by_side({model: joined(model) for model in MODELS}),
    )
    files.write_json(METRICS, flat(scores, training, data))
    files.write_text(PAGE, html)


def main() -> None:
    """Write the report, or show what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", action="store_true", help="print the table and write nothing")
    show = parser.parse_args().show

    scores = {model: files.read_json(REPORTS / "scores" / f"{model}.json") for model in MODELS}
    if set(scores["base"]) != set(scores["tuned"]):
        found = " and ".join(", ".join(scores[model]) for model in MODELS)
        raise PipelineError(f"{REPORTS}/scores: {found}; expected the same suites of base and tuned")
    table = lines(scores)
    if not show:
        write(scores, table)
    print(f"{text_table(table)}\n\nreport: {PAGE}")


if __name__ == "__main__":
    run(main)
