"""Ask a model every task of the evaluation suites and keep its answers; judging is `score`'s work.

In: a model folder and the suites. Out: reports/completions/<model>.jsonl, one row a task with the prompt as
it was asked and the answer. Greedy and batched, so the same machine gives the same answers.

    python -m stages.generate tuned
    python -m stages.generate mine --model path/to/model --suite my_suite.jsonl
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.common import files, models, suites
from stages.common.errors import PipelineError, run
from stages.common.params import load, params

FOLDERS = {"base": Path("models/base"), "tuned": Path("models/merged")}
COMPLETIONS = Path("reports/completions")

Count = Annotated[int, Field(ge=1)]


@params
class GenerateParams:
    """How many tasks are asked, and how long answers may become."""

    batch_size: Count
    max_new_tokens: dict[str, Count]  # by kind of task
    limits: dict[str, Count]  # tasks a suite; a suite that is not named runs whole


def batches(tasks: list[suites.Task], size: int) -> Iterator[list[suites.Task]]:
    """Tasks of one kind together, longest prompts first, so that a batch has little padding."""
    for kind in sorted({task.kind for task in tasks}):
        same = sorted(
            (task for task in tasks if task.kind == kind), key=lambda task: (-len(task.prompt), task.id)
        )
        yield from (same[start : start + size] for start in range(0, len(same), size))


def answers(model: Any, tokenizer: Any, prompts: list[str], limit: int) -> list[tuple[str, int]]:
    """Greedy answers to rendered prompts, each with its number of new tokens."""
    import torch

    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    with torch.inference_mode():
        output = model.generate(
            **inputs, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    new = output[:, inputs["input_ids"].shape[1] :]
    return [
        (tokenizer.decode(row, skip_special_tokens=True), int((row != tokenizer.pad_token_id).sum()))
        for row in new
    ]


def render(tokenizer: Any, prompt: str) -> str:
    """The prompt as the model saw prompts in training, up to where its answer begins."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return text


def generate(tasks: list[suites.Task], folder: Path, chosen: GenerateParams) -> list[files.Row]:
    """Every task's row, in the order of `tasks`."""
    from tqdm import tqdm

    model, tokenizer = models.load(folder)
    tokenizer.padding_side = "left"
    rows: dict[str, files.Row] = {}
    with tqdm(total=len(tasks), desc=f"generate {folder}", unit="task") as bar:
        for batch in batches(tasks, chosen.batch_size):
            rendered = [render(tokenizer, task.prompt) for task in batch]
            given = answers(model, tokenizer, rendered, chosen.max_new_tokens[batch[0].kind])
            for task, prompt, (text, tokens) in zip(batch, rendered, given, strict=True):
                rows[task.id] = {
                    "id": task.id,
                    "suite": task.suite,
                    "prompt": prompt,
                    "completion": text,
                    "new_tokens": tokens,
                }
            bar.update(len(batch))
    return [rows[task.id] for task in tasks]


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
    asked = parser.parse_args()
    folder = asked.model or FOLDERS.get(asked.name)
    if folder is None:
        raise PipelineError(f"{asked.name}: no such model; expected base, tuned, or --model with a folder")
    chosen = load("generate", GenerateParams)
    missing = set(suites.KEYS) - set(chosen.max_new_tokens)
    if missing:
        raise PipelineError(
            f"generate.max_new_tokens.{min(missing)}: nothing; expected a value (params.yaml)"
        )
    models.require(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"

    tasks = suites.load(asked.suite) if asked.suite else suites.subset(suites.load_all(), chosen.limits)
    rows = generate(tasks, folder, chosen)
    path = COMPLETIONS / f"{asked.name}.jsonl"
    files.write_rows(path, rows)
    tokens = sum(row["new_tokens"] for row in rows)
    print(f"generate {asked.name}: {len(rows)} answers, {tokens:,} tokens, {path}")


if __name__ == "__main__":
    run(main)
