"""Base against tuned in numbers and in words: measures with intervals and tests, gates, and the verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common import files, metrics
from stages.common.answers import Answer, Task
from stages.common.errors import PipelineError

MODELS = ("base", "tuned")
CONSTANTS = ("always_vulnerable", "always_safe")
DETECTION = ("balanced_accuracy", "recall", "specificity", "mcc", "pair_correct", "invalid_rate", "auc")
OUTCOMES = ("correct", "vulnerable", "safe", "reversed")  # of a pair; the rest has an invalid side
PAIRS = tuple(f"pair_{name}" for name in OUTCOMES)
CUSTOMARY = (5, 10, 25, 50, 100)  # of pass@k; arXiv:2107.03374 gives 1, 10 and 100
LOWER = "invalid_rate"  # the one metric of which less is better

# Suites whose metrics stand under another name in metrics.json, and names that are taken.
GROUPS = {"humaneval": "coding", "reference": "reference_tests"}
TAKEN = ("training", "data")

NEEDED = ("kind", "tasks", "passed", "pass_rate", "interval", "timeouts", "cut_off")
NEEDED_BY_KIND = {
    "detection": ("pairs", "intervals", "confusion", *CONSTANTS, "groups", *DETECTION[:-1], *PAIRS),
    "code": ("checks",),
    "fixing": ("checks",),
    "reference": ("ours",),
}

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """One metric of both models, and how sure the difference is."""

    group: str  # and `metric`: where it stands in metrics.json
    metric: str
    suite: str
    size: int
    unit: str  # what the bootstrap draws: "pairs" or "tasks"
    values: tuple[float, float]  # base and tuned, as shares (mcc: -1..1)
    intervals: tuple[Interval, Interval]  # 95 %
    shift: Interval  # 95 %, of tuned minus base, bootstrap over tasks or pairs
    p: float  # two-sided, that there is no difference
    exact: bool  # `p` is McNemar's; otherwise of the bootstrap
    constants: tuple[float, ...] = ()  # what the two constant judges get
    counts: tuple[int, int] | None = None  # passed, where the values are shares of `size`
    counted: bool = False  # metrics.json holds the counts, not the shares

    @property
    def name(self) -> str:
        """The dotted name that gates use: "detection.recall"."""
        return f"{self.group}.{self.metric}"

    @property
    def label(self) -> str:
        """The metric in words."""
        words = {"mcc": "MCC", "auc": "AUC", "passed_ours": "passed by our judge"}
        return words.get(self.metric, self.metric.replace("_at_", "@").replace("_", " "))

    @property
    def title(self) -> str:
        """Group and metric in words."""
        return f"{self.group.replace('_', ' ')} {self.label}"

    @property
    def difference(self) -> float:
        """Tuned minus base."""
        return self.values[1] - self.values[0]

    @property
    def reported(self) -> tuple[float, float]:
        """The values as metrics.json has them."""
        return self.counts if self.counted and self.counts else self.values

    def change(self, significance: float) -> int:
        """1: significantly better, -1: significantly worse, 0: neither."""
        if self.p >= significance or self.difference == 0:
            return 0
        return 1 if (self.difference > 0) != (self.metric == LOWER) else -1


def check(scores: Mapping[str, files.Row], tasks: Mapping[str, Sequence[Task]], folder: Path) -> None:
    """Raise PipelineError, naming the file, unless the scores are of these answers and complete."""
    for place, model in enumerate(MODELS):
        path = folder / f"{model}.json"
        if set(scores[model]) != set(tasks):
            names, expected = (", ".join(sorted(one)) or "nothing" for one in (scores[model], tasks))
            raise PipelineError(f"{path}: suites {names}; expected {expected}, as answered (run score again)")
        for suite, row in scores[model].items():
            _complete(row, suite, path)
            given = _columns(tasks[suite])[place]
            counts = {"tasks": (row["tasks"], len(given))}
            counts["passed"] = (row["passed"], sum(answer.passed for answer in given))
            for name, part in row.get("checks", {}).items():
                passed = sum(answer.checks.get(name, False) for answer in given)
                counts[f"checks.{name}.passed"] = (part["passed"], passed)
            for name, (found, counted) in counts.items():
                if found != counted:
                    raise PipelineError(
                        f"{path}: {suite}.{name}: {found}; expected {counted}, as in the verdicts"
                    )
    shapes = [{suite: _shape(row) for suite, row in scores[model].items()} for model in MODELS]
    for suite in tasks:
        if shapes[0][suite] != shapes[1][suite]:
            raise PipelineError(
                f"{folder}: {suite}: kind or groups differ between base and tuned (run score again)"
            )


def _shape(row: files.Row) -> tuple[str, dict[str, list[str]]]:
    return row["kind"], {by: sorted(groups) for by, groups in row.get("groups", {}).items()}


def _complete(row: object, suite: str, path: Path) -> None:
    """Raise PipelineError unless one suite's scores have every key that its kind needs."""
    if not isinstance(row, dict):
        raise PipelineError(f"{path}: {suite}: {row!r}; expected an object (run score again)")
    kind = str(row.get("kind"))
    parts = {suite: (row, (*NEEDED, *NEEDED_BY_KIND.get(kind, ())))}
    for by, groups in row.get("groups", {}).items():
        for name, group in groups.items():
            needed = ("pairs", *DETECTION[:-1], *PAIRS) if kind == "detection" else ("tasks", "pass_rate")
            parts[f"{suite}.groups.{by}.{name}"] = (group, needed)
    for where, (part, names) in parts.items():
        for name in names:
            if name not in part:
                raise PipelineError(f"{path}: {where}.{name}: nothing; expected a value (run score again)")


def measures(
    scores: Mapping[str, files.Row],
    tasks: Mapping[str, Sequence[Task]],
    drawn: Mapping[str, Sequence[Answer]],
) -> list[Measure]:
    """Every headline metric, suite by suite; `drawn` holds each model's answers, sampled ones as well."""
    found: list[Measure] = []
    for suite, mine in tasks.items():
        group = GROUPS.get(suite, suite)
        if group in TAKEN or group in {measure.group for measure in found}:
            raise PipelineError(f"suite {suite!r} would overwrite the metrics of {group}; rename its file")
        both = (scores["base"][suite], scores["tuned"][suite])
        found += BUILDERS.get(both[0]["kind"], _tested)(group, suite, both, mine)
        found += _sampled(group, suite, both, drawn)
    return found


Both = tuple[files.Row, files.Row]


def _detection(group: str, suite: str, both: Both, tasks: Sequence[Task]) -> list[Measure]:
    shifts = shifted(judged(tasks, 0), judged(tasks, 1))
    sides = pairs(tasks)
    weak, fixed = _passes([one for one, _ in sides]), _passes([other for _, other in sides])
    right = [[a and b for a, b in zip(weak[place], fixed[place], strict=True)] for place in range(2)]
    exact = {"recall": weak, "specificity": fixed, "pair_correct": (right[0], right[1])}
    result = []
    for metric in DETECTION:
        if any(metric not in row for row in both):
            continue
        shift, p = shifts[metric]
        constants = tuple(both[0][name][metric] for name in CONSTANTS if metric in both[0][name])
        result.append(
            Measure(
                group,
                metric,
                suite,
                both[0]["pairs"],
                "pairs",
                (both[0][metric], both[1][metric]),
                _two(row["intervals"][metric] for row in both),
                shift,
                metrics.mcnemar(*exact[metric]) if metric in exact else p,
                metric in exact,
                constants,
            )
        )
    return result


def pairs(tasks: Sequence[Task]) -> list[tuple[Task, Task]]:
    """The vulnerable side of every pair with the fixed one; raises PipelineError on half a pair."""
    sides = {task.base.side(): task for task in tasks}
    halves = [pair for pair, side in sides if (pair, not side) not in sides]
    if halves:
        raise PipelineError(f"{halves[0]}: an answer to one side only; expected both (run generate again)")
    return [(task, sides[pair, False]) for (pair, side), task in sides.items() if side]


def _tested(group: str, suite: str, both: Both, tasks: Sequence[Task]) -> list[Measure]:
    result = [_share(group, "pass_rate" if group != "coding" else "pass_at_1", suite, both, _passes(tasks))]
    tested = [
        task for task in tasks if "functional" in task.base.checks and "functional" in task.tuned.checks
    ]
    if tested and all(len(row.get("checks", {})) > 1 for row in both):
        works = [[answer.checks["functional"] for answer in column] for column in _columns(tested)]
        result.append(_share(group, "functional_rate", suite, both, (works[0], works[1])))
    return result


def _reference(group: str, suite: str, both: Both, tasks: Sequence[Task]) -> list[Measure]:
    graded = [task for task in tasks if task.base.ours is not None and task.tuned.ours is not None]
    result = [_share(group, "passed", suite, both, _passes(tasks))]
    if graded:
        ours = tuple([bool(answer.ours) for answer in answers] for answers in _columns(graded))
        result.append(_share(group, "passed_ours", suite, both, (ours[0], ours[1])))
    return result


BUILDERS: dict[str, Callable[[str, str, Both, Sequence[Task]], list[Measure]]] = {
    "detection": _detection,
    "reference": _reference,
}


def _share(
    group: str, metric: str, suite: str, both: Both, passed: tuple[Sequence[bool], Sequence[bool]]
) -> Measure:
    counts, of = (sum(passed[0]), sum(passed[1])), len(passed[0])
    return Measure(
        group,
        metric,
        suite,
        of,
        "tasks",
        (counts[0] / of, counts[1] / of),
        _two(metrics.wilson(count, of) for count in counts),
        metrics.difference(*passed),
        metrics.mcnemar(*passed),
        exact=True,
        counts=counts,
        counted=metric.startswith("passed"),
    )


def _sampled(group: str, suite: str, both: Both, drawn: Mapping[str, Sequence[Answer]]) -> list[Measure]:
    """pass@k for the customary k and the greatest; pass@1 is the greedy answer's."""
    known = sorted(int(k) for k in both[0].get("pass_at_k", {}) if k in both[1].get("pass_at_k", {}))
    names = [k for k in known if k in CUSTOMARY or k == known[-1] > 1]
    result = []
    for k in names:
        chances = [_chances(drawn[model], suite, k) for model in MODELS]
        order = sorted(chances[0])
        draws = metrics.draws(len(order)) / len(order)
        before, after = (draws @ [chance[name] for name in order] for chance in chances)
        shift, p = _doubt(after - before)
        values = (both[0]["pass_at_k"][str(k)], both[1]["pass_at_k"][str(k)])
        spread = (_doubt(before)[0], _doubt(after)[0])
        result.append(
            Measure(group, f"pass_at_{k}", suite, len(order), "tasks", values, spread, shift, p, exact=False)
        )
    return result


def _chances(answers: Sequence[Answer], suite: str, k: int) -> dict[str, float]:
    """For each task of a suite the chance that one of k drawn answers passes."""
    passed: dict[str, list[bool]] = {}
    for answer in answers:
        if answer.suite == suite and answer.sample:
            passed.setdefault(answer.id, []).append(answer.passed)
    try:
        return {name: metrics.pass_at_k(len(one), sum(one), k) for name, one in passed.items()}
    except ValueError as error:
        raise PipelineError(f"{suite}: {error} (run score again)") from None


def _columns(tasks: Sequence[Task]) -> tuple[list[Answer], list[Answer]]:
    return [task.base for task in tasks], [task.tuned for task in tasks]


def _passes(tasks: Sequence[Task]) -> tuple[list[bool], list[bool]]:
    return [task.base.passed for task in tasks], [task.tuned.passed for task in tasks]


def _two(intervals: Any) -> tuple[Interval, Interval]:
    first, second = ((float(low), float(high)) for low, high in intervals)
    return first, second


def judged(tasks: Sequence[Task], place: int) -> list[metrics.Judged]:
    """The verdicts of one model (0: base, 1: tuned) on a detection suite."""
    answers = _columns(tasks)[place]
    return [metrics.Judged(*answer.side(), answer.verdict, answer.log_odds) for answer in answers]


def shifted(
    first: Sequence[metrics.Judged], second: Sequence[metrics.Judged]
) -> dict[str, tuple[Interval, float]]:
    """Of every detection metric the 95 % interval of second minus first, and its p: pairs are resampled."""
    before, after = (metrics.resampled(sorted(rows, key=lambda row: row.pair)) for rows in (first, second))
    return {name: _doubt(after[name] - before[name]) for name in before if name in after}


def _doubt(differences: Any) -> tuple[Interval, float]:
    """The 95 % interval of resampled differences, and twice the share on the smaller side of zero."""
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return metrics.interval(differences), min(1.0, 2 * (int(tail) + 1) / (len(differences) + 1))


def flat(found: Sequence[Measure]) -> files.Row:
    """The measures as metrics.json has them: group, metric, model; and how many tasks or pairs."""
    result: files.Row = {}
    for measure in found:
        group = result.setdefault(measure.group, {})
        group[measure.metric] = dict(zip(MODELS, measure.reported, strict=True))
        group.setdefault(measure.unit, measure.size)
    return result


TIMINGS = ("seconds", "tokens_per_second", "peak_memory_mib")  # differ from run to run of the same code


def leaves(report: files.Row) -> dict[str, float]:
    """The evaluated numbers of a metrics.json by dotted name, without how long training took."""
    return {
        name: value
        for name, value in _dotted(report)
        if name not in {f"training.{timing}" for timing in TIMINGS}
    }


def _dotted(tree: Mapping[str, Any], before: str = "") -> list[tuple[str, float]]:
    result: list[tuple[str, float]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            result += _dotted(value, f"{before}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            result.append((f"{before}{name}", value))
    return result
