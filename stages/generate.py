"""Ask a model every task of the evaluation suites and keep its answers; judging is `score`'s work.

In: a model folder and the suites. Out: reports/completions/<model>.jsonl, a row an answer, with the prompt as
it was asked. Greedy answers come first (sample 0); where `generate.samples` asks for more of a suite they are
drawn at a temperature, each from its own seeded stream. Every batch is kept in .partial/ as soon as it is
answered, so a run that was killed goes on where it stopped and ends with the same rows.

    python -m stages.generate tuned
    python -m stages.generate mine --model path/to/model --suite my_suite.jsonl
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.common import decoding, files, models, program, prompts, suites
from stages.common.errors import PipelineError, run
from stages.common.params import load, params

FOLDERS = {"base": Path("models/base"), "tuned": Path("models/merged")}
COMPLETIONS = Path("reports/completions")
PARTIAL = Path(".partial")

# Where an answer ends before the model says so: what the judge reads is complete. Other kinds run on.
ENDED: dict[str, decoding.Ended] = {
    "detection": prompts.answered_line,
    "code": prompts.answered_block,
    "fixing": prompts.answered_block,
}
VERDICTS = (prompts.Verdict(True), prompts.Verdict(False))

Count = Annotated[int, Field(ge=1)]


@params
class GenerateParams:
    """How many tasks are asked, and how long answers may become."""

    batch_size: Count
    max_new_tokens: dict[str, Count]  # by kind of task
    limits: dict[str, Count]  # rows a suite; a suite that is not named runs whole
    samples: dict[str, Count]  # drawn answers a task, by suite, beside the greedy one
    temperature: Annotated[float, Field(gt=0, le=2)]  # of the drawn answers
    seed: int  # likewise


Asked = tuple[suites.Task, int]  # a task and which answer to it: 0 the greedy one, then the drawn ones


def questions(tasks: list[suites.Task], chosen: GenerateParams) -> list[Asked]:
    """Every answer that is wanted, in the order of the tasks."""
    return [(task, sample) for task in tasks for sample in range(1 + chosen.samples.get(task.suite, 0))]


def batches(asked: list[Asked], chosen: GenerateParams) -> Iterator[list[Asked]]:
    """Verdicts together, and whatever takes longer, longest prompts first: a batch has little padding.

    Verdicts' prompts begin alike, which is read once a batch. Of the others a batch should hold as many as it
    can: the few that go on to their limit are waited for once.
    """
    groups: dict[object, list[Asked]] = {}
    for task, sample in asked:
        groups.setdefault((task.kind == "detection", sample > 0), []).append((task, sample))
    for same in groups.values():
        same.sort(key=lambda one: (-len(one[0].prompt), one[0].id, one[1]))
        yield from (
            same[start : start + chosen.batch_size] for start in range(0, len(same), chosen.batch_size)
        )


def verdict_tokens(tokenizer: Any) -> tuple[int, int]:
    """The first tokens of the two verdicts; raises PipelineError where they are the same."""
    vulnerable, safe = (
        tokenizer(prompts.verdict_line(verdict), add_special_tokens=False)["input_ids"][0]
        for verdict in VERDICTS
    )
    if vulnerable == safe:
        raise PipelineError(
            f"tokenizer: both verdicts begin with token {safe}; expected different ones, to read log-odds"
        )
    return vulnerable, safe


def answers(
    model: Any,
    tokenizer: Any,
    batch: list[Asked],
    chosen: GenerateParams,
    done: Callable[[int], object] = lambda count: None,
) -> list[files.Row]:
    """The rows of one batch; `done` is told how many answers have ended whenever some have.

    `log_odds` of a detection: log p(VULNERABLE) - log p(SAFE) where the verdict begins, in nats.
    """
    pick: decoding.Pick = decoding.greedy
    if batch[0][1] > 0:
        keys = [f"{chosen.seed} {task.id} {sample}" for task, sample in batch]
        pick = decoding.sampled(keys, chosen.temperature)
    texts = [prompts.render(tokenizer, task.prompt) for task, _ in batch]
    asked = [
        decoding.Prompt(text, chosen.max_new_tokens[task.kind], ENDED.get(task.kind, decoding.never))
        for text, (task, _) in zip(texts, batch, strict=True)
    ]
    replies = decoding.answer(model, tokenizer, asked, pick, done)
    rows = []
    for (task, sample), text, reply in zip(batch, texts, replies, strict=True):
        row = {
            "id": task.id,
            "suite": task.suite,
            "sample": sample,
            "prompt": text,
            "completion": tokenizer.decode(reply.tokens, skip_special_tokens=True),
            "new_tokens": len(reply.tokens),
            "ended": "stop" if reply.complete else "length",
        }
        if task.kind == "detection":
            vulnerable, safe = verdict_tokens(tokenizer)
            row["log_odds"] = round(float(reply.first[vulnerable] - reply.first[safe]), 4)
        rows.append(row)
    return rows


def key(asked: list[Asked], folder: Path, chosen: GenerateParams) -> str:
    """What the answers depend on, as a hash: model, questions, parameters, code, packages and device."""
    import torch

    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.name} {files.sha256(path)}\n".encode())
    settings = {name: value for name, value in vars(chosen).items() if name not in ("limits", "samples")}
    facts = [
        [[task.id, task.suite, task.kind, task.prompt, sample] for task, sample in asked],
        settings,
        program.describe("generate"),
        [torch.__version__, models.device(), str(models.compute_dtype()), torch.get_num_threads()],
    ]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:32]


def generate(asked: list[Asked], folder: Path, chosen: GenerateParams, kept: Path) -> list[files.Row]:
    """Every answer's row, in the order of `asked`; batches that an earlier run left in `kept` stay."""
    from tqdm import tqdm

    plan = list(enumerate(batches(asked, chosen)))
    missing = [(number, batch) for number, batch in plan if not (kept / f"{number}.jsonl").exists()]
    if missing:
        if len(missing) < len(plan):
            print(f"generate: {len(plan) - len(missing)} of {len(plan)} batches are in {kept}")
        model, tokenizer = models.load(folder)
        with tqdm(total=len(asked), desc=f"generate {folder}", unit="answer") as bar:
            bar.update(len(asked) - sum(len(batch) for _, batch in missing))
            for number, batch in missing:
                files.write_rows(
                    kept / f"{number}.jsonl", answers(model, tokenizer, batch, chosen, bar.update)
                )
    rows = {
        (row["id"], row["sample"]): row
        for number, _ in plan
        for row in files.read_rows(kept / f"{number}.jsonl")
    }
    return [rows[task.id, sample] for task, sample in asked]


def check_lengths(tasks: list[suites.Task], chosen: GenerateParams) -> None:
    """Raise PipelineError on a kind of task without a limit, and on a limit for no kind."""
    for kind in sorted({task.kind for task in tasks} - set(chosen.max_new_tokens)):
        raise PipelineError(f"generate.max_new_tokens.{kind}: nothing; expected a value (params.yaml)")
    for kind in sorted(set(chosen.max_new_tokens) - set(suites.KEYS)):
        raise PipelineError(
            f"generate.max_new_tokens.{kind}: no such kind; expected {', '.join(suites.KEYS)} (params.yaml)"
        )


def check_samples(tasks: list[suites.Task], chosen: GenerateParams) -> None:
    """Raise PipelineError on samples for no suite."""
    for suite in sorted(set(chosen.samples) - {task.suite for task in tasks}):
        raise PipelineError(
            f"generate.samples.{suite}: no such suite; expected a file of {suites.BENCHMARKS}"
        )


def main() -> None:
    """Answer the suites with the model named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", type=files.plain_name, help="base, tuned, or a name of your own with --model")
    parser.add_argument("--model", type=Path, help="a model folder (default: the folder of base or tuned)")
    parser.add_argument(
        "--suite", type=Path, help="one suite file (default: all of data/benchmarks and HumanEval)"
    )
    given = parser.parse_args()
    folder = given.model or FOLDERS.get(given.name)
    if folder is None:
        raise PipelineError(f"{given.name}: no such model; expected base, tuned, or --model with a folder")
    chosen = load("generate", GenerateParams)
    models.require(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"

    tasks = suites.load(given.suite) if given.suite else suites.load_all()
    check_lengths(tasks, chosen)
    if not given.suite:
        check_samples(tasks, chosen)
        tasks = suites.subset(tasks, chosen.limits)
    asked = questions(tasks, chosen)
    kept = PARTIAL / "generate" / key(asked, folder, chosen)
    rows = generate(asked, folder, chosen, kept)
    path = COMPLETIONS / f"{given.name}.jsonl"
    files.write_rows(path, rows)
    shutil.rmtree(kept)
    tokens = sum(row["new_tokens"] for row in rows)
    print(f"generate {given.name}: {len(rows)} answers, {tokens:,} tokens, {path}")


if __name__ == "__main__":
    run(main)
