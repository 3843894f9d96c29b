"""Two runs side by side: metrics with intervals and tests, answers that flipped, parameters that differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages import score
from stages.common import comparison, files, noise, suites
from stages.common.answers import Answer, Task
from stages.common.comparison import MODELS, Measure
from stages.common.errors import PipelineError
from stages.report import changes
from tools import revisions
from tools.revisions import LOCK, METRICS, MIX, PARAMS, Revision

ELSE = tuple(f"{name}." for name in comparison.TAKEN)  # what metrics.json has beside the measures
Rows = dict[str, list[files.Row]]  # verdict rows by suite


@dataclass(frozen=True)
class Run:
    """What git holds of a run."""

    revision: Revision
    lock: files.Row
    params: files.Row
    metrics: files.Row
    mix: files.Row
    scores: dict[str, files.Row]  # by model


@dataclass(frozen=True)
class Compared:
    """A metric of two runs, which stand where a Measure has base and tuned."""

    measure: Measure
    sizes: tuple[int, int]
    tested: bool  # on the same tasks; otherwise `shift` and `p` of the measure say nothing


def stated(interval: comparison.Interval) -> bool:
    """Whether an interval is known."""
    return not math.isnan(interval[0])


@dataclass(frozen=True)
class Flip:
    """A task of which one run's answer passed and the other's did not."""

    suite: str
    id: str
    passed: bool  # by the second run
    before: str
    after: str


@dataclass(frozen=True)
class Side:
    """One model in both runs."""

    model: str
    same: bool  # all that is compared is the same
    compared: list[Compared]
    flips: list[Flip] | None  # None: the answers are not here

    @property
    def level(self) -> bool:
        """Whether there is nothing to tell: no metric differs, no answer flipped."""
        return not self.flips and all(one.measure.difference == 0 for one in self.compared)


@dataclass(frozen=True)
class Comparison:
    """All that is said of two runs."""

    runs: tuple[Run, Run]
    notes: list[str]
    params: list[tuple[str, object, object]]
    sides: list[Side]
    others: list[files.Row]  # training and data, as report.changes gives them
    noise: noise.Noise
    significance: float


def read(revision: Revision) -> Run:
    """What git holds of a run; raises PipelineError where the revision has none."""
    commit, name = revision.commit, revision.title

    def mapping(path: str) -> files.Row:
        return revisions.mapping(commit, path, name)

    result = mapping(METRICS)
    scores = {model: mapping(path) for model, path in score_files().items()}
    lock = mapping(LOCK)
    if not isinstance(lock.get("stages"), dict):
        raise PipelineError(f"{name}: {LOCK}: no stages; expected a whole run (make repro)")
    return Run(revision, lock, mapping(PARAMS), result, mapping(MIX), scores)


def score_files() -> dict[str, str]:
    """Where each model's scores lie."""
    return {model: str(score.SCORES / f"{model}.json") for model in MODELS}


def differing(before: Mapping[str, object], after: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """The keys whose values differ, with both; None stands for a key that is not there.

    >>> differing({"mix.seed": 1, "mix.rows": 9}, {"mix.seed": 2, "mix.rows": 9})
    [('mix.seed', 1, 2)]
    """
    keys = sorted(before.keys() | after.keys())
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


# Answers. ----------------------------------------------------------------------------------------------


def answers(runs: tuple[Run, Run], model: str) -> tuple[list[Rows], str]:
    """The verdicts of a model in both runs, or why there are none."""
    path = str(score.VERDICTS / f"{model}.jsonl")
    hashes = [revisions.outputs(one.lock).get(path) for one in runs]
    found, why = revisions.cached({key: path for key in hashes if key})
    absent = [one.revision.title for one, key in zip(runs, hashes, strict=True) if key not in found]
    if absent:
        return [], f"the answers of {' and '.join(absent)} are not compared: {why or f'no {path} in {LOCK}'}"
    return [by_suite(found[key].decode(), path) for key in hashes if key], ""


def by_suite(text: str, path: str) -> Rows:
    """Verdict rows by suite."""
    result: Rows = {}
    for number, line in enumerate(filter(str.strip, text.split("\n")), 1):
        row = files.parse_row(line, f"{path}:{number}")
        result.setdefault(str(row.get("suite")), []).append(row)
    return result


def unit(row: files.Row, kind: str) -> str:
    """The row of a suite's file that a verdict belongs to."""
    name = str(row["id"])
    return name.rpartition("/")[0] if kind == "detection" else name


def changed(runs: tuple[Run, Run], suite: str) -> set[str] | None:
    """The rows of a suite's file that are not the same in both runs; None: it cannot be told which."""
    path = f"{suites.BENCHMARKS}/{suite}.jsonl"
    if suite == suites.HUMANEVAL.stem:
        hashes = {revisions.outputs(one.lock).get(str(suites.HUMANEVAL)) for one in runs}
        return set() if len(hashes) == 1 else None
    texts = [revisions.content(one.revision.commit, path) for one in runs]
    if texts[0] == texts[1]:
        return set()
    if None in texts:
        return None
    rows = [
        {
            row.get("id"): row
            for line in filter(str.strip, (text or "").split("\n"))
            for row in [files.parse_row(line, path)]
        }
        for text in texts
    ]
    return {str(key) for key in rows[0].keys() | rows[1].keys() if rows[0].get(key) != rows[1].get(key)}


def common(runs: tuple[Run, Run], model: str, both: Sequence[Rows]) -> tuple[list[Rows], list[str]]:
    """The verdicts on tasks that both runs asked, in the same order, and a note on what is left out."""
    kept: list[Rows] = [{}, {}]
    notes = []
    for suite in dict.fromkeys([*both[0], *both[1]]):
        mine = [rows.get(suite, []) for rows in both]
        kinds = [one.scores[model].get(suite, {}).get("kind") for one in runs]
        other = changed(runs, suite)
        if not all(mine):
            notes.append(f"{suite}: only {runs[0 if mine[0] else 1].revision.title} was asked")
            continue
        if kinds[0] != kinds[1] or other is None:
            notes.append(f"{suite}: the suites are not the same, so they are left out")
            continue
        keys = [{(row["id"], row.get("sample", 0)): row for row in rows} for rows in mine]
        shared = [key for key in keys[0] if key in keys[1] and unit(keys[0][key], kinds[0]) not in other]
        asked = [len({key[0] for key in one}) for one in keys]
        count = len({key[0] for key in shared})
        if count < max(asked):
            notes.append(f"{suite}: {count} tasks are the same in both, of {asked[0]} and {asked[1]}")
        for place in range(2):
            if shared:
                kept[place][suite] = [keys[place][key] for key in shared]
    return kept, notes


def answer(row: files.Row, where: str) -> Answer:
    """A verdict row as the comparison takes it; texts are not needed."""
    names = ("id", "suite", "passed", "status", "reason", "log_odds", "verdict", "checks", "ours")
    given = {name: row[name] for name in names if name in row}
    try:
        return Answer(
            sample=row.get("sample", 0),
            prompt="",
            completion="",
            new_tokens=0,
            ended=row.get("ended", "stop"),
            **given,
        )
    except TypeError as error:
        raise PipelineError(
            f"{where}: {row.get('id')}: {error}; expected a verdict (run score again)"
        ) from None


def recounted(rows: Rows, kinds: Mapping[str, str]) -> files.Row:
    """The scores of these verdicts, as `score` counts them."""

    def task(row: files.Row, kind: str) -> suites.Task:
        pair, _, side = str(row["id"]).rpartition("/")
        if kind != "detection":
            return suites.Task(row["id"], row["suite"], kind, "")
        return suites.Task(row["id"], row["suite"], kind, "", pair=pair, vulnerable=side == "vulnerable")

    return score.totals([(task(row, kinds[suite]), row) for suite, mine in rows.items() for row in mine])


def tested(runs: tuple[Run, Run], model: str, both: Sequence[Rows]) -> tuple[list[Compared], list[Flip]]:
    """Every metric on the same tasks, with its test, and the answers that flipped."""
    kinds = {suite: runs[0].scores[model][suite]["kind"] for suite in both[0]}
    scores = dict(zip(MODELS, (recounted(rows, kinds) for rows in both), strict=True))
    given = {
        place: [answer(row, str(score.VERDICTS)) for mine in rows.values() for row in mine]
        for place, rows in zip(MODELS, both, strict=True)
    }
    tasks: dict[str, list[Task]] = {}
    for before, after in zip(given["base"], given["tuned"], strict=True):
        if before.sample == 0:
            tasks.setdefault(before.suite, []).append(Task(before, after))
    found = comparison.measures(scores, tasks, given)
    flips = [
        Flip(suite, one.base.id, one.tuned.passed, told(one.base), told(one.tuned))
        for suite, mine in tasks.items()
        for one in mine
        if one.base.passed != one.tuned.passed
    ]
    return [Compared(measure, (measure.size, measure.size), True) for measure in found], flips


def told(answer: Answer) -> str:
    """A verdict in words: `passed (right)`."""
    return f"{answer.status} ({answer.reason})" if answer.reason not in ("", answer.status) else answer.status


# Without answers. --------------------------------------------------------------------------------------

NOWHERE = (math.nan, math.nan)  # the ends of an interval that is not known


@dataclass(frozen=True)
class Given:
    """One metric of one model, as its scores have it."""

    value: float
    interval: comparison.Interval
    size: int
    unit: str


def untested(runs: tuple[Run, Run], model: str) -> list[Compared]:
    """Every metric that both runs have, by their scores alone."""
    first, second = (one.scores[model] for one in runs)
    result = []
    for suite in filter(second.__contains__, first):
        group = comparison.GROUPS.get(suite, suite)
        then, now = (given(group, row[suite]) for row in (first, second))
        for metric in filter(now.__contains__, then):
            both = (then[metric], now[metric])
            measure = Measure(
                group,
                metric,
                suite,
                both[1].size,
                both[1].unit,
                (both[0].value, both[1].value),
                (both[0].interval, both[1].interval),
                shift=NOWHERE,
                p=1.0,
                exact=False,
                counted=metric.startswith("passed"),
            )
            result.append(Compared(measure, (both[0].size, both[1].size), tested=False))
    return result


def given(group: str, row: files.Row) -> dict[str, Given]:
    """The headline metrics of a suite by name."""

    def share(part: files.Row) -> Given:
        return Given(part["pass_rate"], tuple(part["interval"]), part["tasks"], "tasks")

    if row["kind"] == "detection":
        names = [name for name in comparison.DETECTION if name in row]
        return {
            name: Given(row[name], tuple(row["intervals"][name]), row["pairs"], "pairs") for name in names
        }
    if row["kind"] == "reference":
        return {"passed": share(row), "passed_ours": share(row["ours"])}
    found = {"pass_at_1" if group == "coding" else "pass_rate": share(row)}
    if len(row.get("checks", {})) > 1 and "functional" in row["checks"]:
        found["functional_rate"] = share(row["checks"]["functional"])
    drawn = {
        int(k): chance for k, chance in row.get("pass_at_k", {}).items() if int(k) in comparison.CUSTOMARY
    }
    return found | {f"pass_at_{k}": Given(one, NOWHERE, row["tasks"], "tasks") for k, one in drawn.items()}


# Together. ---------------------------------------------------------------------------------------------


def side(runs: tuple[Run, Run], model: str) -> tuple[Side, list[str]]:
    """One model in both runs, with notes on suites and tasks that are not common."""
    path = str(score.VERDICTS / f"{model}.jsonl")
    hashes = {revisions.outputs(one.lock).get(path) for one in runs}
    if len(hashes) == 1 and runs[0].scores[model] == runs[1].scores[model]:
        return Side(model, True, [], []), []
    both, why = answers(runs, model)
    if why:
        return Side(model, False, untested(runs, model), None), [why]
    shared, notes = common(runs, model, both)
    return Side(model, False, *tested(runs, model, shared)), notes


def compare(runs: tuple[Run, Run]) -> Comparison:
    """All that can be said of two runs."""
    notes = []
    for one in runs:
        reports = [METRICS, *score_files().values()]
        if odd := revisions.unfinished(one.revision.commit, one.lock, one.params, reports):
            notes.append(f"{one.revision.title} is not one finished run: {odd} (dvc repro, then commit)")
    sides = []
    for model in reversed(MODELS):
        found, more = side(runs, model)
        sides.append(found)
        notes += [note for note in more if note not in notes]
    seen = [noise.known(noise.FILE, noise.facts(one.metrics, one.mix)) for one in reversed(runs)]
    known = next((one for one in seen if one.floors), seen[0])
    before, after = (
        {name: number for name, number in comparison.leaves(one.metrics).items() if name.startswith(ELSE)}
        for one in runs
    )
    params = differing(*(revisions.ran_with(one.lock) for one in runs))
    significance = runs[1].params["report"]["significance"]
    return Comparison(runs, notes, params, sides, changes(after, before, known.floors), known, significance)
