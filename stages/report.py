"""Put base and tuned side by side, say what changed and what did not, and hold the tuned model to its gates.

In: the reports of all other stages. Out: reports/metrics.json, the page reports/report.html, which works
offline, and reports/summary.md for a pull request. A missed gate fails the stage after all is written.

    python -m stages.report            # writes all three
    python -m stages.report --show     # prints the table and missed gates, writes nothing
"""

import argparse
import base64
import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.common import answers, comparison, files, gates, history, noise, panels, pictures, summary
from stages.common.answers import Answer, Task
from stages.common.comparison import MODELS, Measure
from stages.common.errors import PipelineError, run
from stages.common.params import load, params

REPORTS = Path("reports")
TEMPLATE = Path("stages/report.html")
METRICS = REPORTS / "metrics.json"
PAGE = REPORTS / "report.html"
SUMMARY = REPORTS / "summary.md"
CURVES = REPORTS / "train/plots/metrics"
MANIFEST = Path("models/base/manifest.json")

TITLES = {"loss": "Loss", "token_accuracy": "Token accuracy", "entropy": "Entropy of the next token (nats)"}
NUMBERS = ("loss", "token_accuracy", "entropy", "tokens", "steps", "seconds")
COLUMNS = ("rows", "kept", "rejected", "contaminated", "mixed")
ANSWER_BYTES = (
    2_300_000  # of the page; with the rest it stays below 2.5 MB, which a phone still opens quickly
)
SEED = 1
FEW = 12  # pairs; of fewer, the 95 % interval of a share of a half is wider than 0.5 (Wilson)


@params
class ReportParams:
    """What counts as a difference, and the limits that the tuned model must keep."""

    significance: Annotated[float, Field(gt=0, lt=1)]  # p below which a difference is marked
    no_drop: list[str]  # metrics ("coding.pass_at_1") that must not get significantly worse than the base's
    floors: dict[str, float]  # metric: least value
    ceilings: dict[str, float]  # metric: greatest value
    enforce: bool  # whether a missed gate stops the pipeline; it is shown either way


@dataclass(frozen=True)
class Evaluation:
    """Both models' answers and scores, and what follows from them."""

    scores: dict[str, files.Row]
    given: dict[str, list[Answer]]
    tasks: dict[str, list[Task]]
    measures: list[Measure]
    gates: list[gates.Gate]
    noise: noise.Noise


def evaluation(chosen: ReportParams) -> Evaluation:
    """Read completions, verdicts and scores, check that they belong together, and compare."""
    scores = {model: files.read_json(REPORTS / "scores" / f"{model}.json") for model in MODELS}
    given = {
        model: answers.read(
            REPORTS / "completions" / f"{model}.jsonl", REPORTS / "verdicts" / f"{model}.jsonl"
        )
        for model in MODELS
    }
    tasks = answers.paired(given["base"], given["tuned"], REPORTS / "completions/tuned.jsonl")
    comparison.check(scores, tasks, REPORTS / "scores")
    found = comparison.measures(scores, tasks, given)
    checked = gates.gates(found, chosen.significance, chosen.no_drop, chosen.floors, chosen.ceilings)
    facts = noise.facts({**comparison.flat(found), "training": trained()}, sources()[0])
    return Evaluation(scores, given, tasks, found, checked, noise.known(noise.FILE, facts))


def read_curve(path: Path) -> list[pictures.Point]:
    """The points of a curve that DVCLive wrote: step and value."""
    points = []
    for number, row in enumerate(csv.DictReader(files.read_text(path).split("\n"), delimiter="\t"), 2):
        try:
            point = float(row["step"]), float(row[path.stem])
        except (KeyError, TypeError, ValueError):
            raise PipelineError(f"{path}:{number}: {row}; expected a step and a {path.stem}") from None
        if not all(map(math.isfinite, point)):
            raise PipelineError(f"{path}:{number}: {point[1]}; expected finite numbers")
        points.append(point)
    if not points:
        raise PipelineError(f"{path}: no point; expected those of a training run")
    return points


def curve(points: Sequence[pictures.Point]) -> pictures.Plot:
    """A curve over its steps, from zero."""
    values = [value for _, value in points]
    return pictures.plot({"tuned": points}, (0, points[-1][0]), (min(0.0, *values), max(values)))


def changes(
    now: Mapping[str, float], then: Mapping[str, float], floors: Mapping[str, float]
) -> list[files.Row]:
    """The metrics of both runs that are not the same, with the noise of each."""
    return [
        {
            "name": name,
            "then": then[name],
            "now": value,
            "change": value - then[name],
            "noise": noise.beside(value - then[name], floors.get(name), ".4g"),
        }
        for name, value in now.items()
        if name in then and then[name] != value
    ]


def page(**parts: Any) -> str:
    """The template with its parts filled in; everything is escaped."""
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "chance": summary.chance,
        "visible": answers.visible,
        "digest": lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
        "signed": lambda value: f"{value:+z.3f}".replace("-", "\u2212"),
    }
    return made.from_string(files.read_text(TEMPLATE)).render(**parts)


def sources() -> tuple[files.Row, list[files.Row]]:
    """What the mix wrote, and the funnel of each of its sources."""
    path = REPORTS / "mix.json"
    mix = files.needed(path, "sources", "cwes", "kinds")
    filters = {}
    for name, counts in mix["sources"].items():
        for column in ("examples", "contaminated", "mixed"):
            if column not in counts:
                raise PipelineError(f"{path}: sources.{name}.{column}: nothing; expected a number")
        filters[name] = files.needed(
            REPORTS / "filter" / f"{name}.json", "rows", "kept", "rejected", "reasons"
        )
    return mix, panels.funnel(mix, filters)


def trained() -> files.Row:
    """What training wrote of itself."""
    path = REPORTS / "train.json"
    training = files.needed(path, *NUMBERS, "device", "dtype")
    for name in NUMBERS:
        if type(training[name]) not in (int, float):
            raise PipelineError(f"{path}: {name}: {training[name]!r}; expected a number")
    return training


def write(made: Evaluation, chosen: ReportParams) -> None:
    """Read the other reports and write ours; nothing is written before all is read."""
    mix, rows = sources()
    training = trained()
    data = {column: sum(row[column] for row in rows) for column in COLUMNS}
    numbers = {name: value for name, value in training.items() if type(value) in (int, float)}
    now = {**comparison.flat(made.measures), "training": numbers, "data": data}
    leaves = comparison.leaves(now)
    earlier = history.differing(METRICS, leaves, comparison.leaves)
    then = {} if isinstance(earlier, str) else comparison.leaves(earlier.value)
    changed = changes(leaves, then, made.noise.floors)
    tokens = {model: sum(answer.new_tokens for answer in made.given[model]) for model in MODELS}
    shown = answers.sample(made.tasks, ANSWER_BYTES, SEED)
    html = page(
        model=files.needed(MANIFEST, "uri"),
        training=training,
        parity=files.needed(REPORTS / "export.json", "agreement"),
        chosen=chosen,
        made=made,
        sentences=gates.verdict(made.measures, made.gates, chosen.significance),
        measures={suite: [one for one in made.measures if one.suite == suite] for suite in made.tasks},
        bound=max([0.1, *(abs(end) for one in made.measures for end in one.shift)]),
        value=summary.value,
        beside=noise.beside,
        delivery=panels.delivery(made.scores, made.tasks),
        detections=panels.detections(made.scores, made.tasks, mix["cwes"]),
        code=panels.code(made.scores, made.tasks),
        few=FEW,
        funnel=rows,
        data=data,
        curves={title: curve(read_curve(CURVES / f"{name}.tsv")) for name, title in TITLES.items()},
        tokens=tokens,
        earlier=earlier,
        changes=changed,
        appeared=[name for name in leaves if then and name not in then],
        vanished=[name for name in then if name not in leaves],
        unchanged=len(set(leaves) & set(then)) - len(changed),
        answers=shown,
        left_out=sum(len(tasks) - len(shown[suite]) for suite, tasks in made.tasks.items()),
    )
    words = [gates.overall(made.measures, chosen.significance), *gates.against_constants(made.measures)]
    cost = (
        f"Cost: {training['seconds']:,.0f} s of training on {training['device']} ({training['dtype']}), "
        f"{training['tokens']:,} tokens; {len(made.given['tuned']):,} answers a model, "
        f"{tokens['base']:,} and {tokens['tuned']:,} tokens long."
    )
    text = summary.markdown(
        made.measures, made.gates, made.noise, words, chosen.significance, earlier, changed, cost
    )
    files.write_json(METRICS, now)
    files.write_text(PAGE, html)
    files.write_text(SUMMARY, text)


def main() -> None:
    """Write the report, or show what it would say; a missed gate fails it where gates are enforced."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", action="store_true", help="print table and missed gates, write nothing")
    show = parser.parse_args().show

    chosen = load("report", ReportParams)
    made = evaluation(chosen)
    if not show:
        write(made, chosen)
    print(summary.terminal(made.measures, made.noise, chosen.significance))
    missed = [str(gate) for gate in made.gates if not gate.held]
    if missed and chosen.enforce and not show:
        raise PipelineError("\n".join(missed))
    print("\n".join(["", *missed] if missed else ["", f"{len(made.gates)} gates, none missed"]))


if __name__ == "__main__":
    run(main)
