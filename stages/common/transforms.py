"""What is done to a sample before it is checked: from a sample to one or more, each change noted in it."""

from collections import Counter
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from stages.common import chunks, prompts, redaction
from stages.common.params import params
from stages.common.records import Sample

BLANKS = {"noinput", "no input", "no-input", "none", "n/a", "na", "nil", "null", "not applicable"}
TEXTS = ("instruction", "input", "output", "vulnerable", "weakness", "remedy", "test", "fault_test")


@params
class Transforms:
    """What is done to a row before it is checked, in this order."""

    blank_input: bool = False  # "N/A", "<noinput>" and the like become no input
    redact: bool = False  # secrets and personal data become typed placeholders
    chunk: Annotated[int, Field(ge=1)] | None = (
        None  # a pair with a longer side is cut to its changed functions
    )


def transformed(sample: Sample, chosen: Transforms) -> tuple[list[Sample], Counter[str]]:
    """The sample, or its pieces, after the chosen transforms, and how much of each kind was redacted."""
    found: Counter[str] = Counter()
    if chosen.blank_input:
        sample = blank_input(sample)
    if chosen.redact:
        sample, found = redact(sample)
    return (cut(sample, chosen.chunk) if chosen.chunk else [sample]), found


def blank_input(sample: Sample) -> Sample:
    """An input that only says that there is none, left out."""
    if sample.input.strip().lower().strip("<>[](). ") not in BLANKS:
        return sample
    return replace(sample, input="", transforms=_added(sample, "blank input"))


def redact(sample: Sample) -> tuple[Sample, Counter[str]]:
    """Every text with its secrets and personal data replaced, and how many of each kind there were."""
    redacted = {name: redaction.redact(getattr(sample, name)) for name in TEXTS}
    found: Counter[str] = sum((count for _, count in redacted.values()), Counter())
    if not found:
        return sample, found
    texts = {name: text for name, (text, _) in redacted.items()}
    what = " ".join(f"{kind} {count}" for kind, count in sorted(found.items()))
    return replace(sample, **texts, transforms=_added(sample, f"redact {what}")), found


def cut(sample: Sample, max_chars: int) -> list[Sample]:
    """A pair with a side beyond the limit as its changed functions; any other sample as it is.

    So is a pair with tests, which are about all of it.
    """
    sides = [prompts.code_block(side) for side in (sample.vulnerable, sample.output)]
    if not sample.vulnerable or sample.test or max(map(len, sides)) <= max_chars:
        return [sample]
    pieces = chunks.chunks(sides[0], sides[1], sample.language, max_chars)
    return [
        replace(
            sample,
            id=f"{sample.id}#{number}",
            vulnerable=vulnerable,
            output=fixed,
            transforms=_added(sample, f"chunk {number} of {len(pieces)}"),
        )
        for number, (vulnerable, fixed) in enumerate(pieces, 1)
    ] or [sample]


def _added(sample: Sample, transform: str) -> str:
    return "; ".join(filter(None, (sample.transforms, transform)))
