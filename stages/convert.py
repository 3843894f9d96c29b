"""Turn one source's samples into training examples: a question and its answer, one or more a sample.

In: data/filtered/<source>.jsonl. Out: data/converted/<source>.jsonl.
Promise: a pair is asked about on both sides with the same words, so no constant answer is right.

    python -m stages.convert preferences
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.common import cwe, files, prompts, records
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.records import Example, Sample

FILTERED = Path("data/filtered")
CONVERTED = Path("data/converted")

Task = Literal["write", "detect", "fix", "explain", "reference_write", "reference_detect", "reference_fix"]
Turn = tuple[str, str, str]  # kind, prompt, completion


@params
class ConvertParams:
    """Which examples are made of each sample of a source."""

    tasks: Annotated[list[Task], Field(min_length=1)]


def write(sample: Sample) -> list[Turn]:
    """Answer a request with the right code: of a pair, its fixed side."""
    if not sample.instruction:
        return []
    answer = prompts.fenced(sample.output, sample.language) if sample.vulnerable else sample.output
    return [("write", prompts.with_input(sample.instruction, sample.input), answer)]


def detect(sample: Sample) -> list[Turn]:
    """Judge both sides of a pair by the verdict line alone; the reason is a question of its own, `explain`.

    A reason after the verdict would be most of the answer's tokens, and so most of what is learned.
    """
    if not sample.vulnerable:
        return []
    weak = prompts.verdict_line(prompts.Verdict(True, sample.cwe))
    safe = prompts.verdict_line(prompts.Verdict(False))
    return [
        ("detect_vulnerable", prompts.detect(sample.vulnerable, sample.language), weak),
        ("detect_safe", prompts.detect(sample.output, sample.language), safe),
    ]


def fix(sample: Sample) -> list[Turn]:
    """Turn the vulnerable side of a pair into the fixed one."""
    if not sample.vulnerable:
        return []
    answer = prompts.fenced(sample.output, sample.language)
    return [("fix", prompts.fix(sample.vulnerable, sample.language), answer)]


def explain(sample: Sample) -> list[Turn]:
    """Name the weakness of the vulnerable side and what mends it."""
    if not (sample.vulnerable and sample.weakness):
        return []
    label = f"{sample.cwe} ({cwe.name(sample.cwe)}): " if sample.cwe else ""
    answer = f"{label}{sample.weakness} {sample.remedy}".strip()
    return [("explain", prompts.explain(sample.vulnerable, sample.language), answer)]


def reference_write(sample: Sample) -> list[Turn]:
    """Instruction, input and output as the reference passes them on."""
    return [("write", prompts.with_input(sample.instruction, sample.input), sample.output)]


def reference_detect(sample: Sample) -> list[Turn]:
    """The reference's review of the vulnerable side (its section 9.2); it has no safe twin."""
    question = "Review this code for security vulnerabilities. Is it safe?"
    answer = (
        "NO - SECURITY VULNERABILITY DETECTED!\n\n"
        "This code contains security issues that could be exploited.\n\n"
        f"**Secure Version:**\n```\n{sample.output}\n```\n\n"
        "Always validate inputs and follow secure coding practices."
    )
    return [("detect_vulnerable", prompts.with_input(question, sample.vulnerable), answer)]


def reference_fix(sample: Sample) -> list[Turn]:
    """The reference's repair example (its section 9.2)."""
    question = "Fix the security vulnerabilities in this code"
    return [("fix", prompts.with_input(question, sample.vulnerable), sample.output)]


CONVERTERS: dict[str, Callable[[Sample], list[Turn]]] = {
    "write": write,
    "detect": detect,
    "fix": fix,
    "explain": explain,
    "reference_write": reference_write,
    "reference_detect": reference_detect,
    "reference_fix": reference_fix,
}


def examples(sample: Sample, tasks: list[Task]) -> list[Example]:
    """All examples of one sample, in the order of `tasks`."""
    return [
        Example(f"{sample.id}/{kind}", sample.id, sample.source, sample.licence, kind, prompt, completion)
        for task in tasks
        for kind, prompt, completion in CONVERTERS[task](sample)
    ]


def main() -> None:
    """Convert the source named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a key of `convert` in params.yaml")
    source = parser.parse_args().source
    chosen = load(f"convert.{source}", ConvertParams)

    samples = records.read(Sample, FILTERED / f"{source}.jsonl")
    converted = [example for sample in samples for example in examples(sample, chosen.tasks)]
    repeated = [name for name, count in Counter(example.id for example in converted).items() if count > 1]
    if repeated:
        raise PipelineError(f"convert.{source}.tasks: two of them make {repeated[0]}; expected every id once")
    if not converted:
        tasks = ", ".join(chosen.tasks)
        raise PipelineError(
            f"convert.{source}.tasks: {tasks}; {len(samples)} samples gave no example, expected some"
        )

    files.write_rows(CONVERTED / f"{source}.jsonl", map(records.to_row, converted))
    kinds = Counter(example.kind for example in converted)
    made = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    print(f"convert {source}: {len(samples)} samples, {len(converted)} examples ({made})")


if __name__ == "__main__":
    run(main)
