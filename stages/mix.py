"""Mix the converted sources into one training set, without a trace of any benchmark.

In: data/converted/ (the sources named in `mix.weights`), data/benchmarks/ and HumanEval. Out:
data/mixed/train.jsonl, data/mixed/valid.jsonl and the composition in reports/mix.json.
Promises: a group never straddles the split; every removed example is counted; same seed, same bytes.

    python -m stages.mix
"""

import argparse
import random
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.common import files, records, suites
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.records import Example

CONVERTED = Path("data/converted")
MIXED = Path("data/mixed")
REPORT = Path("reports/mix.json")

BLOCK = 8  # examples of one kind side by side in paired order
WINDOW = 8  # blocks that are sorted by length among themselves
SHORTEST = 20  # characters of a normalised benchmark text that is also looked for inside longer texts

Groups = dict[str, list[Example]]


@params
class MixParams:
    """How much of each source, and in which order."""

    seed: int
    rows: Annotated[int, Field(ge=1)]  # examples wanted in all, training and validation together
    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1)]  # relative, by source
    max_chars: Annotated[int, Field(ge=1)]  # of prompt and answer; longer examples are left out, not cut
    order: Literal["shuffled", "paired"]  # paired: see the function
    valid_share: Annotated[float, Field(gt=0, lt=1)]  # of the examples; export compares models on them


def quotas(weights: dict[str, float], rows: int) -> dict[str, int]:
    """Split `rows` by weight, rounded by largest remainder so that the sum is exact.

    >>> quotas({"coding": 3.0, "fixes": 1.0}, 10)
    {'coding': 8, 'fixes': 2}
    """
    total = sum(weights.values())
    if total <= 0:
        raise PipelineError(f"mix.weights: they sum to {total}; expected more than 0 (params.yaml)")
    exact = {source: rows * weight / total for source, weight in weights.items()}
    counts = {source: int(share) for source, share in exact.items()}
    by_remainder = sorted(exact, key=lambda source: (counts[source] - exact[source], source))
    for source in by_remainder[: rows - sum(counts.values())]:
        counts[source] += 1
    return counts


def normalised(text: str) -> str:
    """Letters, digits and what separates them: case, punctuation and layout do not hide a copy."""
    return " ".join(re.findall(r"[a-z0-9_]+", text.lower()))


def benchmark_texts(tasks: list[suites.Task]) -> set[str]:
    """The normalised texts that training must not contain: each task's question, code, test and solution."""
    texts = (
        text
        for task in tasks
        for text in (task.prompt, _snippet(task.prompt), task.code, task.test, task.solution)
    )
    return {text for text in map(normalised, texts) if text}


def _snippet(prompt: str) -> str:
    """The code inside a prompt, which is what a training row would repeat."""
    blocks = re.findall(r"```\w*\n(.*?)```", prompt, re.DOTALL)
    return "\n".join(blocks)


def contaminated(example: Example, texts: set[str], long_texts: list[str]) -> bool:
    """Whether a benchmark text equals one of the example's texts, or stands inside them when long enough."""
    parts = (example.prompt, _snippet(example.prompt), example.completion, _snippet(example.completion))
    if any(normalised(part) in texts for part in parts if part):
        return True
    whole = normalised(example.prompt + "\n" + example.completion)
    return any(text in whole for text in long_texts)


def decontaminate(groups: Groups, tasks: list[suites.Task]) -> tuple[Groups, list[str]]:
    """Groups without any contaminated example, and the ids of the groups taken out."""
    texts = benchmark_texts(tasks)
    long_texts = sorted(text for text in texts if len(text) >= SHORTEST)
    dirty = {
        group for group, rows in groups.items() if any(contaminated(row, texts, long_texts) for row in rows)
    }
    return {group: rows for group, rows in groups.items() if group not in dirty}, sorted(dirty)


def short(examples: list[Example], max_chars: int) -> list[Example]:
    """The examples within the limit; of a pair's two sides both or none, so that verdicts stay balanced."""
    long = [example for example in examples if len(example.prompt) + len(example.completion) > max_chars]
    halved = {example.group for example in long if example.kind.startswith("detect_")}
    out = {example.id for example in long}
    return [
        example
        for example in examples
        if example.id not in out and not (example.group in halved and example.kind.startswith("detect_"))
    ]


def take(groups: Groups, quota: int, random_: random.Random) -> list[list[Example]]:
    """Whole groups in a seeded order until the quota is met; the last group may pass it."""
    order = sorted(groups)
    random_.shuffle(order)
    taken: list[list[Example]] = []
    count = 0
    for group in order:
        if count >= quota:
            break
        taken.append(groups[group])
        count += len(groups[group])
    return taken


def divide(
    taken: list[list[Example]], share: float, random_: random.Random
) -> tuple[list[Example], list[Example]]:
    """Whole groups into training and validation, then each shuffled."""
    groups = taken[:]
    random_.shuffle(groups)
    wanted = round(share * sum(map(len, groups)))
    valid: list[Example] = []
    while groups and len(valid) < wanted:
        valid += groups.pop()
    train = [example for group in groups for example in group]
    random_.shuffle(train)
    random_.shuffle(valid)
    return train, valid


def paired(examples: list[Example], random_: random.Random) -> list[Example]:
    """The same examples in blocks of BLOCK: whole pairs of verdicts, or other examples, of like length.

    With a batch that divides BLOCK, both sides of a pair meet in one step. What they share then cancels out
    of the gradient, and what is left is the difference that the verdict depends on. Other answers are
    longer and would outweigh a verdict's few tokens, so they have blocks of their own.
    """
    sides: dict[str, list[Example]] = {}
    for example in examples:
        if example.kind.startswith("detect_"):
            sides.setdefault(example.group, []).append(example)
    pairs = [pair for pair in sides.values() if len(pair) == 2]
    together = {example.id for pair in pairs for example in pair}
    singles = [[example] for example in examples if example.id not in together]
    parts = blocks(pairs, BLOCK // 2) + blocks(singles, BLOCK)
    full = [part for part in parts if len(part) == BLOCK]
    random_.shuffle(full)
    return [example for part in full + [part for part in parts if len(part) < BLOCK] for example in part]


def blocks(units: list[list[Example]], count: int) -> list[list[Example]]:
    """`count` units a block, sorted by length within some blocks so that each needs little padding."""

    def size(unit: list[Example]) -> tuple[int, str]:
        return max(len(example.prompt) + len(example.completion) for example in unit), unit[0].id

    window = count * WINDOW
    starts = range(0, len(units), window)
    near = [unit for start in starts for unit in sorted(units[start : start + window], key=size)]
    taken = (near[start : start + count] for start in range(0, len(near), count))
    return [[example for unit in part for example in unit] for part in taken]


def grouped(examples: list[Example]) -> Groups:
    """Examples by their group."""
    groups: Groups = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    return groups


def main() -> None:
    """Mix all sources of `mix.weights`."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    chosen = load("mix", MixParams)
    tasks = suites.load_all()

    taken: list[list[Example]] = []
    sources: dict[str, dict[str, int]] = {}
    wanted = quotas(chosen.weights, chosen.rows)
    for source in chosen.weights:
        converted = records.read(Example, CONVERTED / f"{source}.jsonl")
        available = grouped(short(converted, chosen.max_chars))
        clean, dirty = decontaminate(available, tasks)
        part = take(clean, wanted[source], random.Random(f"{chosen.seed}/{source}"))
        taken += part
        sources[source] = {
            "examples": len(converted),
            "too_long": len(converted) - sum(map(len, available.values())),
            "contaminated": sum(len(available[group]) for group in dirty),
            "wanted": wanted[source],
            "mixed": sum(map(len, part)),
        }
    train, valid = divide(taken, chosen.valid_share, random.Random(chosen.seed))
    if chosen.order == "paired":
        train = paired(train, random.Random(chosen.seed))
    if not (train and valid):
        raise PipelineError(
            f"mix.rows: {chosen.rows}; it gave {len(train)} training and {len(valid)} validation examples, "
            "expected some of both (params.yaml)"
        )

    files.write_rows(MIXED / "train.jsonl", map(records.to_row, train))
    files.write_rows(MIXED / "valid.jsonl", map(records.to_row, valid))
    files.write_json(
        REPORT,
        {
            "train": len(train),
            "valid": len(valid),
            "contaminated": sum(counts["contaminated"] for counts in sources.values()),
            "sources": sources,
            "kinds": dict(sorted(Counter(example.kind for example in train + valid).items())),
        },
    )
    for source, counts in sources.items():
        print(f"mix {source}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"mix: {len(train)} training and {len(valid)} validation examples")


if __name__ == "__main__":
    run(main)
