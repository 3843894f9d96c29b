"""What a sample must pass: from a sample and the check's own parameter to a reason for rejection, or None."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.common import handling, languages, prompts, quality, sandbox, scanner
from stages.common.params import params
from stages.common.quality import Quality
from stages.common.records import Sample

Share = Annotated[float, Field(ge=0, le=1)]
Chars = Annotated[int, Field(ge=1)]


@params
class Checks:
    """What a sample must pass, in this order; a check that is not named is not made."""

    empty: Chars | None = None  # characters that an answer has at least
    licence: list[str] | None = None  # SPDX identifiers that may be trained on
    control_tokens: bool = False  # a text spells what opens or ends a turn to a chat model
    unchanged: bool = False  # both sides of a pair are the same
    length: Chars | None = None  # characters that each text has at most; the reference's limit is 2,000
    language: Share | None = (
        None  # declared, fenced and detected agree; above this error share it is detected
    )
    syntax: Share | None = None  # share of the code that its grammar cannot read, at most
    quality: Quality | None = None
    label: Literal["keep", "reject"] | None = None  # a scanner judges a pair: what to do with one it misses
    unproven: bool = False  # the tests that come with a sample hold in the sandbox
    duplicate: bool = False  # equal but for case and white space
    near_duplicate: Share | None = None  # MinHash similarity from which two samples are one


@dataclass(frozen=True)
class Rejected:
    """A row, or a piece of one, that is left out, and why."""

    id: str
    check: str
    reason: str


# What tokenizers of common code and chat models read as control tokens wherever it stands in a text: ChatML,
# Qwen2.5, Llama 3, Phi-3, Llama 2 and Mistral, Gemma, DeepSeek with bars of its own, StarCoder and SmolLM2.
# Names in full, since `<|` and `|>` are operators of F#, Elm and OCaml. Llama 2's `<s>`, a tag of HTML, and
# `[INST]`, which may be an index, are not among them.
CONTROL_TOKEN = re.compile(
    r"<\|(?:im_(?:start|end|sep)|endoftext|endofprompt|startoftext"
    r"|fim_(?:prefix|middle|suffix|pad)|repo_name|file_sep"
    r"|(?:object_ref|box|quad|vision)_(?:start|end)|(?:vision|image|video)_pad"
    r"|begin_of_text|end_of_text|(?:start|end)_header_id|eot_id|eom_id|python_tag|finetune_right_pad_id"
    r"|(?:reserved_special_token|placeholder|extra)_?\d+"
    r"|system|user|assistant|end|tool|tool_call|tool_response)\|>"
    r"|\[/INST\]|<</?SYS>>|</?tool_call>|</?tool_response>|<(?:start|end)_of_turn>"
    r"|<\uff5c[^<>\uff5c\n]{1,40}\uff5c>"
    r"|<fim_(?:prefix|middle|suffix|pad)>|<repo_?name>|<file_sep>|<filename>|<gh_stars>"
    r"|<issue_(?:start|comment|closed)>|<jupyter_(?:start|text|code|output|script)>|<empty_output>"
    r"|<commit_(?:before|msg|after)>"
)


def codes(sample: Sample) -> list[str]:
    """The code of each side: fixed, then vulnerable; of a lone answer its block, or all when it has none."""
    return [prompts.code_block(side) for side in (sample.output, sample.vulnerable) if side]


def empty(sample: Sample, least: int) -> str | None:
    """No question, or no answer of the least length."""
    if not (sample.instruction.strip() or sample.vulnerable.strip()):
        return "no instruction"
    if sample.vulnerable and not prompts.code_block(sample.vulnerable).strip():
        return "no vulnerable code"
    length = len(prompts.without_fences(sample.output).strip())
    return f"answer of {length} characters" if length < least else None


def licence(sample: Sample, allowed: list[str]) -> str | None:
    """The licence is not on the list."""
    return None if sample.licence in allowed else f"licence {sample.licence}"


def control_tokens(sample: Sample, _: bool) -> str | None:
    """A control token stands in a text as if it were one: whoever planted it could write the answer's end."""
    texts = (
        sample.instruction,
        sample.input,
        sample.output,
        sample.vulnerable,
        sample.weakness,
        sample.remedy,
    )
    found = next(filter(None, map(CONTROL_TOKEN.search, texts)), None)
    return found[0] if found else None


def unchanged(sample: Sample, _: bool) -> str | None:
    """Both sides of a pair are the same but for white space."""
    if not sample.vulnerable:
        return None
    sides = {"".join(side.split()) for side in codes(sample)}
    return "both sides are the same" if len(sides) == 1 else None


def length(sample: Sample, most: int) -> str | None:
    """One text is longer than the limit."""
    longest = max(len(sample.instruction + sample.input), *map(len, codes(sample)), 0)
    return f"{longest} characters" if longest > most else None


def language(sample: Sample, share: float) -> str | None:
    """The declared language is not the one on the fence, or the code reads as another one."""
    if not sample.language:
        return None
    for side in (sample.output, sample.vulnerable):
        fenced = languages.canonical(prompts.fence(side))
        if fenced and fenced != sample.language:
            return f"declared {sample.language}, fenced {fenced}"
    for code in codes(sample):
        if (languages.error_share(code, sample.language) or 0) > share:
            detected = languages.detect(code)
            if detected and detected != sample.language:
                return f"declared {sample.language}, reads as {detected}"
    return None


def syntax(sample: Sample, most: float) -> str | None:
    """Code that its grammar cannot read."""
    shares = [languages.error_share(code, sample.language) or 0 for code in codes(sample)]
    worst = max(shares, default=0)
    return f"{worst:.0%} of it is not {sample.language}" if worst > most else None


def poor(sample: Sample, chosen: Quality) -> str | None:
    """What tells careless data: see stages.common.quality."""
    question = f"{sample.instruction}\n{sample.input}".strip()
    sides = [side for side in (sample.output, sample.vulnerable) if side]
    problems = (
        quality.problem(question, side, prompts.code_block(side), sample.language, chosen) for side in sides
    )
    return next(filter(None, problems), None)


def label(sample: Sample, unflagged: str) -> str | None:
    """The scanner contradicts the label of a pair, or, where that is asked for, does not confirm it."""
    found = judged(sample)
    if found.outcome in ("mislabelled", "reversed") or (found.outcome, unflagged) == ("unflagged", "reject"):
        return f"{found.outcome}: {found.detail}"
    return None


@lru_cache(maxsize=1)  # a kept sample's label is asked for again, to be counted
def judged(sample: Sample) -> scanner.Label:
    """What the scanner says of a sample that is about a weakness."""
    if not (sample.weakness or sample.cwe):
        return scanner.Label()
    vulnerable, fixed = (prompts.code_block(side) for side in (sample.vulnerable, sample.output))
    return scanner.label(vulnerable, fixed, sample.language, sample.cwe)


def unproven(sample: Sample, _: bool) -> str | None:
    """A test that comes with the answer fails, or the fault that it is about does no harm without it."""
    if not sample.test:
        return unhandled(sample)
    good, bad = (prompts.code_block(side) for side in (sample.output, sample.vulnerable))
    expected = [("test", good, sample.test, True)]
    if sample.fault_test:
        expected += [
            ("fault_test", good, sample.fault_test, True),
            ("test of the incomplete code", bad, sample.test, True),
            ("fault_test of the incomplete code", bad, sample.fault_test, False),
        ]
    for name, code, test, passes in expected:
        outcome = sandbox.run(f"{code}\n\n{test}")
        if (outcome.status == "passed") != passes:
            return f"{name}: {outcome.status} {outcome.reason}".strip()
    return None


def unhandled(sample: Sample) -> str | None:
    """JavaScript does not run here: by its syntax the answer handles errors and its twin does not."""
    if sample.language != "javascript" or not sample.vulnerable:
        return None
    good, bad = (handling.handles(prompts.code_block(side)) for side in (sample.output, sample.vulnerable))
    if good and not bad:
        return None
    return "the incomplete code handles an error" if good else "the code handles no error"


CHECKS: dict[str, Callable[[Sample, Any], str | None]] = {
    "empty": empty,
    "licence": licence,
    "control_tokens": control_tokens,
    "unchanged": unchanged,
    "length": length,
    "language": language,
    "syntax": syntax,
    "quality": poor,
    "label": label,
    "unproven": unproven,
}


def verdict(sample: Sample, checks: Checks) -> Rejected | None:
    """The first check that fails, in the order of CHECKS."""
    for name, threshold in made(checks).items():
        if name in CHECKS and (reason := CHECKS[name](sample, threshold)):
            return Rejected(sample.id, name, reason)
    return None


def made(checks: Checks) -> dict[str, Any]:
    """The checks that are to be made, in order, each with its threshold."""
    return {name: value for name, value in vars(checks).items() if value is not None and value is not False}
