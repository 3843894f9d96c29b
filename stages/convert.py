"""Turn one source's samples into training examples: a question and its answer, one or more a sample.

In: data/filtered/<source>.jsonl. Out: data/converted/<source>.jsonl.
Promise: a pair is asked about on both sides with the same words, so no constant answer is right.

    python -m stages.convert preferences
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from stages.common import cwe, files, parallel, prompts, records
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.progress import progress
from stages.common.records import Example, Sample

FILTERED = Path("data/filtered")
CONVERTED = Path("data/converted")

CHUNK = 1000  # samples a worker takes at a time

Task = Literal[
    "write",
    "handle",
    "verdict",
    "detect",
    "fix",
    "explain",
    "review",
    "prefer",
    "reference_write",
    "reference_detect",
    "reference_fix",
]


class Turn(NamedTuple):
    """A question and its answer; of a preference also the answer that is worse."""

    kind: str
    prompt: str
    completion: str
    rejected: str = ""


@params
class ConvertParams:
    """Which examples are made of each sample of a source."""

    tasks: Annotated[list[Task], Field(min_length=1)]


def side(text: str, language: str) -> str:
    """One side of a pair as a block of code."""
    return prompts.fenced(prompts.code_block(text), language)


def requested(sample: Sample) -> bool:
    """Whether there is a request that the sample answers; a piece of a row answers a part of one."""
    return bool(sample.instruction.strip()) and "#" not in sample.id


def asked(sample: Sample) -> str:
    """The request of a sample, with what it is about."""
    return prompts.with_input(sample.instruction.strip(), sample.input.strip())


def write(sample: Sample) -> list[Turn]:
    """Answer a request with the right code: of a pair, its fixed side."""
    if not requested(sample):
        return []
    answer = side(sample.output, sample.language) if sample.vulnerable else sample.output.strip()
    return [Turn("write", asked(sample), answer)]


def handle(sample: Sample) -> list[Turn]:
    """Answer a request with code that handles its faults."""
    return [turn._replace(kind="handle") for turn in write(sample)]


def verdict(sample: Sample) -> list[Turn]:
    """Judge both sides of a pair by the verdict line alone.

    For short trainings: a reason would be most of the answer's tokens, and so most of what is learned.
    """
    weak = prompts.verdict_line(prompts.Verdict(True, sample.cwe))
    return _verdicts(sample, weak, prompts.verdict_line(prompts.Verdict(False)))


def detect(sample: Sample) -> list[Turn]:
    """Judge both sides of a pair: the verdict line, then the reason."""
    weak = prompts.verdict_line(prompts.Verdict(True, sample.cwe))
    safe = prompts.verdict_line(prompts.Verdict(False))
    reason = sample.remedy.strip() or f"It is not open to {cwe.name(sample.cwe)}."
    return _verdicts(sample, f"{weak}\n\n{reasoned(sample)}".strip(), f"{safe}\n\n{reason}")


def _verdicts(sample: Sample, weak: str, safe: str) -> list[Turn]:
    if not sample.vulnerable:
        return []
    return [
        Turn(kind, prompts.detect(prompts.code_block(text), sample.language), answer)
        for kind, text, answer in (
            ("detect_vulnerable", sample.vulnerable, weak),
            ("detect_safe", sample.output, safe),
        )
    ]


def reasoned(sample: Sample) -> str:
    """What is wrong with the vulnerable side, its CWE named first where it is known."""
    named = f"{sample.cwe} ({cwe.name(sample.cwe)}): " if sample.cwe else ""
    return f"{named}{sample.weakness.strip()}" if sample.weakness.strip() else ""


def fix(sample: Sample) -> list[Turn]:
    """Turn the vulnerable side of a pair into the fixed one."""
    if not sample.vulnerable:
        return []
    question = prompts.fix(prompts.code_block(sample.vulnerable), sample.language)
    return [Turn("fix", question, side(sample.output, sample.language))]


def explain(sample: Sample) -> list[Turn]:
    """Name the weakness of the vulnerable side and what mends it."""
    if not (sample.vulnerable and sample.weakness.strip()):
        return []
    question = prompts.explain(prompts.code_block(sample.vulnerable), sample.language)
    return [Turn("explain", question, f"{reasoned(sample)} {sample.remedy.strip()}".strip())]


def review(sample: Sample) -> list[Turn]:
    """Judge how both sides of a contrast pair handle errors: what is missing, then the code that has it."""
    if not sample.vulnerable:
        return []
    good, bad = (prompts.code_block(text) for text in (sample.output, sample.vulnerable))
    block = prompts.fenced(good, sample.language)
    return [
        Turn(kind, prompts.review(code, sample.language), "\n\n".join(filter(None, answer)))
        for kind, code, answer in (
            ("review_incomplete", bad, ("INCOMPLETE", sample.weakness.strip(), block)),
            ("review_complete", good, ("COMPLETE", sample.remedy.strip())),
        )
    ]


def prefer(sample: Sample) -> list[Turn]:
    """Both sides of a pair as answers to its request, the better one first; for preference optimisation."""
    if not (sample.vulnerable and requested(sample)):
        return []
    better, worse = (side(text, sample.language) for text in (sample.output, sample.vulnerable))
    return [Turn("preference", asked(sample), better, worse)] if better != worse else []


def reference_write(sample: Sample) -> list[Turn]:
    """Instruction, input and output as the reference passes them on."""
    return [Turn("write", prompts.with_input(sample.instruction, sample.input), sample.output)]


def reference_detect(sample: Sample) -> list[Turn]:
    """The reference's review of the vulnerable side (its section 9.2); it has no safe twin."""
    question = "Review this code for security vulnerabilities. Is it safe?"
    answer = (
        "NO - SECURITY VULNERABILITY DETECTED!\n\n"
        "This code contains security issues that could be exploited.\n\n"
        f"**Secure Version:**\n```\n{sample.output}\n```\n\n"
        "Always validate inputs and follow secure coding practices."
    )
    return [Turn("detect_vulnerable", prompts.with_input(question, sample.vulnerable), answer)]


def reference_fix(sample: Sample) -> list[Turn]:
    """The reference's repair example (its section 9.2)."""
    question = "Fix the security vulnerabilities in this code"
    return [Turn("fix", prompts.with_input(question, sample.vulnerable), sample.output)]


CONVERTERS: dict[Task, Callable[[Sample], list[Turn]]] = {
    "write": write,
    "handle": handle,
    "verdict": verdict,
    "detect": detect,
    "fix": fix,
    "explain": explain,
    "review": review,
    "prefer": prefer,
    "reference_write": reference_write,
    "reference_detect": reference_detect,
    "reference_fix": reference_fix,
}


def examples(sample: Sample, tasks: list[Task]) -> list[Example]:
    """All examples of one sample, in the order of `tasks`; raises PipelineError when two are of one kind."""
    made = [(task, turn) for task in tasks for turn in CONVERTERS[task](sample)]
    repeated = [kind for kind, count in Counter(turn.kind for _, turn in made).items() if count > 1]
    if repeated:
        raise PipelineError(
            f"convert.{sample.source}.tasks: {', '.join(tasks)}; two of them make {repeated[0]!r} examples, "
            "expected each kind once (params.yaml)"
        )
    return [
        Example(
            id=f"{sample.id}/{turn.kind}",
            group=sample.id.partition("#")[0],
            source=sample.source,
            licence=sample.licence,
            revision=sample.revision,
            transforms="; ".join(filter(None, (sample.transforms, f"convert {task}"))),
            cwe=sample.cwe,
            **turn._asdict(),
        )
        for task, turn in made
    ]


def converted(lines: list[tuple[int, str]], path: Path, tasks: list[Task]) -> tuple[list[str], Counter[str]]:
    """The examples of some lines of `path` as lines, and how many there are of each kind."""
    made = [
        example
        for number, line in lines
        for where in (f"{path}:{number}",)
        for example in examples(records.from_row(Sample, files.parse_row(line, where), where), tasks)
    ]
    return [files.line(records.to_row(example)) for example in made], Counter(
        example.kind for example in made
    )


def main() -> None:
    """Convert the source named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a key of `convert` in params.yaml")
    parallel.add_workers(parser)
    arguments = parser.parse_args()
    source, chosen = arguments.source, load(f"convert.{arguments.source}", ConvertParams)

    path = FILTERED / f"{source}.jsonl"
    lines = progress(files.iter_lines(path), f"convert {source}", "samples")
    work = partial(converted, path=path, tasks=chosen.tasks)
    kinds: Counter[str] = Counter()

    def made() -> Iterator[str]:
        for part, counts in parallel.ordered(work, parallel.chunked(lines, CHUNK), arguments.workers):
            kinds.update(counts)
            yield from part
        if not kinds:
            raise PipelineError(
                f"convert.{source}.tasks: {', '.join(chosen.tasks)}; they made no example of the samples of "
                f"{path}, expected some (params.yaml)"
            )

    count = files.write_lines(CONVERTED / f"{source}.jsonl", made())
    listed = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
    print(f"convert {source}: {count} examples ({listed})")


if __name__ == "__main__":
    run(main)
