"""Judge a model's answers: strict verdict lines, and code that is executed in a sandbox.

In: reports/completions/<model>.jsonl and the suites; reports/mix.json tells which CWEs were trained on.
Out: reports/verdicts/<model>.jsonl, a row an answer with `passed` and the reason, and the totals with their
intervals in reports/scores/<model>.json. Keywords never decide, except in the reference's own tests, which
are kept for comparison beside ours.

    python -m stages.score tuned
    python -m stages.score mine --suite my_suite.jsonl
"""

import argparse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.common import files, judging, metrics, sandbox, suites
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.progress import progress

COMPLETIONS = Path("reports/completions")
VERDICTS = Path("reports/verdicts")
SCORES = Path("reports/scores")
MIX = Path("reports/mix.json")

Judgement = tuple[suites.Task, files.Row]  # a task and its verdict row


@params
class ScoreParams:
    """What one executed answer may use."""

    cpu_seconds: Annotated[int, Field(ge=1, le=600)]
    memory_mib: Annotated[int, Field(ge=64)]


def rate(results: Iterable[bool]) -> files.Row:
    """How many passed, as a share with Wilson's interval."""
    found = list(results)
    count = sum(found)
    return {
        "tasks": len(found),
        "passed": count,
        "pass_rate": metrics.share(count, len(found)),
        "interval": list(metrics.wilson(count, len(found))),
    }


def grouped(
    rows: list[Judgement], name: Callable[[suites.Task], str], total: Callable[[list[Judgement]], files.Row]
) -> dict[str, files.Row]:
    """The totals of each group of tasks that has a name."""
    names = sorted({name(task) for task, _ in rows} - {""})
    return {key: total([one for one in rows if name(one[0]) == key]) for key in names}


def judged(rows: list[Judgement]) -> list[metrics.Judged]:
    """Detection verdicts as the metrics take them."""
    return [
        metrics.Judged(task.pair, task.vulnerable, row["verdict"], row.get("log_odds")) for task, row in rows
    ]


def of_detection(rows: list[Judgement], trained: frozenset[str] | None) -> files.Row:
    """Every metric of detection, with intervals, against constant answers, and by group.

    Of the CWEs in `trained` the training set showed examples; without it seen and unseen are not told apart.
    """
    found = judged(rows)

    def total(part: list[Judgement]) -> files.Row:
        return {"pairs": len(part) // 2, **metrics.detection(judged(part))}

    groups = {
        "cwe": lambda task: task.cwe,
        "language": lambda task: task.language,
        "trait": lambda task: task.trait or "plain",
    }
    if trained is not None:
        groups["training"] = lambda task: "seen" if task.cwe in trained else "unseen"
    return {
        **total(rows),
        "intervals": {name: list(both) for name, both in metrics.intervals(found).items()},
        "confusion": metrics.confusion(found),
        "always_vulnerable": metrics.constant(found, True),
        "always_safe": metrics.constant(found, False),
        "groups": {name: grouped(rows, group, total) for name, group in groups.items()},
    }


def of_tests(rows: list[Judgement]) -> files.Row:
    """What the single tests say, and the shares by language and CWE."""

    def total(part: list[Judgement]) -> files.Row:
        return rate(row["passed"] for _, row in part)

    names = sorted({name for _, row in rows for name in row.get("checks", ())})
    checks = {name: rate(row["checks"][name] for _, row in rows if name in row["checks"]) for name in names}
    groups = {"cwe": lambda task: task.cwe, "language": lambda task: task.language}
    return {
        **({"checks": checks} if checks else {}),
        "groups": {name: grouped(rows, group, total) for name, group in groups.items()},
    }


def of_reference(rows: list[Judgement]) -> files.Row:
    """What our judges say of the same answers."""
    return {"ours": rate(row["ours"] for _, row in rows if row["ours"] is not None)}


def of_samples(rows: list[Judgement]) -> files.Row:
    """pass@k by the unbiased estimator, for every k from 1 to the samples of a task."""
    drawn: dict[str, list[bool]] = {}
    for task, row in rows:
        drawn.setdefault(task.id, []).append(row["passed"])
    samples = min(map(len, drawn.values()))

    def estimate(k: int) -> float:
        return sum(metrics.pass_at_k(len(one), sum(one), k) for one in drawn.values()) / len(drawn)

    return {"samples": samples, "pass_at_k": {str(k): estimate(k) for k in range(1, samples + 1)}}


def totals(rows: list[Judgement], trained: frozenset[str] | None = None) -> files.Row:
    """By suite: what was passed by the greedy answers, and by kind all that can be said beyond it."""
    result: files.Row = {}
    for suite in dict.fromkeys(task.suite for task, _ in rows):
        own = [one for one in rows if one[0].suite == suite]
        greedy = [one for one in own if one[1].get("sample", 0) == 0]
        drawn = [one for one in own if one[1].get("sample", 0) > 0]
        kind = greedy[0][0].kind
        further = of_tests(greedy)
        if kind == "detection":
            further = of_detection(greedy, trained)
        elif kind == "reference":
            further = of_reference(greedy)
        result[suite] = {
            "kind": kind,
            **rate(row["passed"] for _, row in greedy),
            "timeouts": sum(row["status"] == "timeout" for _, row in greedy),
            "cut_off": sum(row.get("ended") == "length" for _, row in greedy),
            **further,
            **(of_samples(drawn) if drawn else {}),
        }
    return result


def matched(
    tasks: list[suites.Task], rows: list[files.Row], path: Path
) -> list[tuple[suites.Task, files.Row]]:
    """Each answer with its task.

    Raises PipelineError unless every row is an answer to a known task, once, both sides of a pair are there,
    every task with drawn answers has the greedy one, and the tasks of a suite are of one kind.
    """
    known = {task.id: task for task in tasks}
    answered: dict[tuple[str, int], files.Row] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}:{number}"
        name, answer, sample = row.get("id"), row.get("completion"), row.get("sample", 0)
        if not isinstance(name, str) or name not in known:
            raise PipelineError(f"{where}: id: {name!r}; expected a task of the suites (run generate again)")
        if not isinstance(answer, str):
            raise PipelineError(f"{where}: completion: {answer!r}; expected text")
        if type(sample) is not int or sample < 0:
            raise PipelineError(f"{where}: sample: {sample!r}; expected a whole number from 0")
        if (name, sample) in answered:
            raise PipelineError(f"{where}: id: {name!r} for the second time; expected one answer a task")
        answered[name, sample] = row
    if not answered:
        raise PipelineError(f"{path}: 0 answers; expected some")
    kinds: dict[str, str] = {}
    for name, _ in answered:
        task = known[name]
        if task.kind != kinds.setdefault(task.suite, task.kind):
            given = f"kinds {kinds[task.suite]} and {task.kind}"
            raise PipelineError(f"suite {task.suite}: {given}; expected one kind a suite")
    sides = {
        f"{known[name].pair}/{side}"
        for name, _ in answered
        for side in ("vulnerable", "fixed")
        if known[name].pair
    }
    for name in sorted(sides | {name for name, _ in answered}):
        if (name, 0) not in answered:
            raise PipelineError(
                f"{path}: no answer to {name!r} (sample 0); expected one (run generate again)"
            )
    return [(known[name], row) for (name, _), row in answered.items()]


def trained_cwes(path: Path) -> frozenset[str] | None:
    """The CWEs that the training set shows, from the mix's report; None where nothing was mixed yet.

    Raises PipelineError on a report that does not count them.
    """
    if not path.exists():
        return None
    found = files.read_json(path).get("cwes")
    if not isinstance(found, dict):
        raise PipelineError(f"{path}: cwes: {found!r}; expected rows by CWE (run mix again)")
    return frozenset(found)


def main() -> None:
    """Judge the answers of the model named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", type=files.plain_name, help="base, tuned, or the name given to generate")
    parser.add_argument(
        "--suite", type=Path, help="one suite file (default: all of data/benchmarks and HumanEval)"
    )
    asked = parser.parse_args()
    chosen = load("score", ScoreParams)
    limits = sandbox.Limits(cpu_seconds=chosen.cpu_seconds, memory_bytes=chosen.memory_mib << 20)
    sandbox.require()

    path = COMPLETIONS / f"{asked.name}.jsonl"
    tasks = suites.load(asked.suite) if asked.suite else suites.load_all()
    answered = matched(tasks, files.read_rows(path), path)

    def verdict(one: tuple[suites.Task, files.Row]) -> files.Row:
        task, row = one
        kept: files.Row = {name: row[name] for name in ("sample", "ended", "log_odds") if name in row}
        return {"id": task.id, "suite": task.suite, **kept, **judging.judge(task, row["completion"], limits)}

    with ThreadPoolExecutor(cpu_count()) as pool:
        given = pool.map(verdict, answered)
        verdicts = list(progress(given, f"score {asked.name}", "answer", total=len(answered)))

    rows = [(task, verdict) for (task, _), verdict in zip(answered, verdicts, strict=True)]
    scores = totals(rows, trained_cwes(MIX))
    files.write_rows(VERDICTS / f"{asked.name}.jsonl", verdicts)
    files.write_json(SCORES / f"{asked.name}.json", scores)
    for suite, score in scores.items():
        print(f"score {asked.name} {suite}: {score['passed']} of {score['tasks']} passed")


if __name__ == "__main__":
    run(main)
