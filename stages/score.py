"""Judge a model's answers: strict verdict lines, and code that is executed in a sandbox.

In: reports/completions/<model>.jsonl and the suites. Out: reports/verdicts/<model>.jsonl, a row a task with
`passed` and the reason, and the totals in reports/scores/<model>.json. Keywords never decide, except in the
reference's own tests, which are kept for comparison.

    python -m stages.score tuned
    python -m stages.score mine --suite my_suite.jsonl
"""

import argparse
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.common import files, metrics, prompts, sandbox, suites
from stages.common.errors import PipelineError, run
from stages.common.params import load, params

COMPLETIONS = Path("reports/completions")
VERDICTS = Path("reports/verdicts")
SCORES = Path("reports/scores")


@params
class ScoreParams:
    """What one executed answer may use."""

    cpu_seconds: Annotated[int, Field(ge=1, le=600)]
    memory_mib: Annotated[int, Field(ge=64)]


def judge_detection(task: suites.Task, answer: str, limits: sandbox.Limits) -> files.Row:
    """Whether the verdict line is there and right."""
    verdict = prompts.parse_verdict(answer)
    if verdict is None:
        return {"passed": False, "verdict": None, "cwe": "", "reason": "no verdict line"}
    right = verdict.vulnerable == task.vulnerable
    reason = "right" if right else ("missed" if task.vulnerable else "false alarm")
    return {"passed": right, "verdict": verdict.vulnerable, "cwe": verdict.cwe, "reason": reason}


def program(task: suites.Task, answer: str) -> str:
    """The answer's first code block, with the given head where the answer continues it, and the test."""
    code = prompts.code_block(answer)
    defines = re.search(rf"^\s*(?:async )?def {re.escape(task.entry_point)}\b", code, re.MULTILINE)
    if task.code:  # a head with imports and helpers: a function defined again replaces its stub
        code = f"{task.code}\n    pass\n\n{code}" if defines else task.code + code
    return f"{code}\n\n{task.test}\n\n{task.call}\n"


def judge_code(task: suites.Task, answer: str, limits: sandbox.Limits) -> files.Row:
    """Whether the code passes the task's test in the sandbox."""
    outcome = sandbox.run(program(task, answer), limits)
    return {"passed": outcome.status == "passed", "reason": outcome.reason or outcome.status}


def judge_keywords(task: suites.Task, answer: str, limits: sandbox.Limits) -> files.Row:
    """The reference's own grader: of every group of keywords one occurs, as a substring in any case."""
    missing = [group for group in task.all_of if not any(word in answer.lower() for word in group)]
    return {"passed": not missing, "reason": f"none of {missing[0]}" if missing else "keywords found"}


JUDGES: dict[str, Callable[[suites.Task, str, sandbox.Limits], files.Row]] = {
    "detection": judge_detection,
    "code": judge_code,
    "keywords": judge_keywords,
}


def judge(task: suites.Task, answer: str, limits: sandbox.Limits) -> files.Row:
    """The verdict row of one answer."""
    return {"id": task.id, "suite": task.suite, **JUDGES[task.kind](task, answer, limits)}


def totals(tasks: list[suites.Task], verdicts: list[files.Row]) -> files.Row:
    """For each suite its number of tasks and what was passed; for detection suites every metric."""
    result: files.Row = {}
    for suite in dict.fromkeys(task.suite for task in tasks):
        rows = [(task, row) for task, row in zip(tasks, verdicts, strict=True) if task.suite == suite]
        passed = sum(row["passed"] for _, row in rows)
        result[suite] = {"tasks": len(rows), "passed": passed, "pass_rate": passed / len(rows)}
        judged = [
            metrics.Judged(task.pair, task.vulnerable, row["verdict"])
            for task, row in rows
            if task.kind == "detection"
        ]
        if judged:
            result[suite] |= metrics.detection(judged) | {
                "always_vulnerable": metrics.constant(judged, True),
                "always_safe": metrics.constant(judged, False),
            }
    return result


def matched(tasks: list[suites.Task], rows: list[files.Row], path: Path) -> list[tuple[suites.Task, str]]:
    """Each answer with its task; raises PipelineError unless every row answers another known task."""
    known = {task.id: task for task in tasks}
    answered: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}:{number}"
        name, answer = row.get("id"), row.get("completion")
        if not isinstance(name, str) or name not in known:
            raise PipelineError(f"{where}: id: {name!r}; expected a task of the suites (run generate again)")
        if not isinstance(answer, str):
            raise PipelineError(f"{where}: completion: {answer!r}; expected text")
        if name in answered:
            raise PipelineError(f"{where}: id: {name!r} for the second time; expected one answer a task")
        answered[name] = answer
    if not answered:
        raise PipelineError(f"{path}: 0 answers; expected some")
    return [(known[name], answer) for name, answer in answered.items()]


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
    from tqdm import tqdm

    path = COMPLETIONS / f"{asked.name}.jsonl"
    tasks = suites.load(asked.suite) if asked.suite else suites.load_all()
    answered = matched(tasks, files.read_rows(path), path)
    with ThreadPoolExecutor(cpu_count()) as pool:
        judging = pool.map(lambda pair: judge(pair[0], pair[1], limits), answered)
        verdicts = list(tqdm(judging, total=len(answered), desc=f"score {asked.name}", unit="task"))

    scores = totals([task for task, _ in answered], verdicts)
    files.write_rows(VERDICTS / f"{asked.name}.jsonl", verdicts)
    files.write_json(SCORES / f"{asked.name}.json", scores)
    for suite, score in scores.items():
        print(f"score {asked.name} {suite}: {score['passed']} of {score['tasks']} passed")


if __name__ == "__main__":
    run(main)
