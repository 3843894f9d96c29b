"""What is asked and how: questions and the strict verdict line, one wording for training and evaluation."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# The reference's prompt format as a chat template, so that a model folder carries its own format.
ALPACA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\\n' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)

INPUT = "\n\n### Input:\n"  # between an instruction and what it is about, in the reference's layout


@dataclass(frozen=True)
class Verdict:
    """The first line of a review: `VULNERABLE CWE-89` or `SAFE`."""

    vulnerable: bool
    cwe: str = ""


# A block as CommonMark has it: its fences at most three spaces in, so that one in a docstring is code, and
# the closing one at least as long as the opening one. Groups: fence, language, code.
BLOCK = re.compile(
    r"^ {0,3}(`{3,}+)[ \t]*+([\w+#.-]*+)[^`\n]*+\n(.*?)(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE
)


def fenced(code: str, language: str = "") -> str:
    """Code as a Markdown block, its language named where that is one word.

    The fence is longer than any in the code, so that `code_block` gives the code back.
    """
    label = language if re.fullmatch(r"[\w+#-]*", language) else ""
    inner = re.findall(r"^ {0,3}(`{3,})", code, re.MULTILINE)
    marks = "`" * (max(map(len, inner), default=2) + 1)
    return f"{marks}{label}\n{code.strip(chr(10))}\n{marks}"


def with_input(instruction: str, given: str) -> str:
    """An instruction and its optional input as one message, in the reference's layout."""
    return f"{instruction}{INPUT}{given}" if given else instruction


def detect(code: str, language: str) -> str:
    """Ask for a verdict on one snippet; the same words for both twins of a pair."""
    return (
        "Is this code secure? Answer SAFE, or VULNERABLE and the CWE, on the first line.\n\n"
        f"{fenced(code, language)}"
    )


def fix(code: str, language: str) -> str:
    """Ask for the corrected code."""
    return f"Fix the security weakness in this code.\n\n{fenced(code, language)}"


def explain(code: str, language: str) -> str:
    """Ask which weakness a snippet has."""
    return f"Name the security weakness in this code and explain it.\n\n{fenced(code, language)}"


def review(code: str, language: str) -> str:
    """Ask whether a snippet handles what can go wrong; the same words for both twins of a contrast pair."""
    return (
        "Does this code handle its errors? Answer COMPLETE or INCOMPLETE on the first line, then say why.\n\n"
        f"{fenced(code, language)}"
    )


def complete(code: str) -> str:
    """Ask for the body of a Python function that is given by its signature and docstring."""
    return f"Complete this Python function.\n\n{fenced(code, 'python')}"


def verdict_line(verdict: Verdict) -> str:
    """Write a verdict: `verdict_line(Verdict(True, "CWE-89")) == "VULNERABLE CWE-89"`."""
    return f"VULNERABLE {verdict.cwe}".strip() if verdict.vulnerable else "SAFE"


def parse_verdict(answer: str) -> Verdict | None:
    """Read the verdict from an answer's first line, or None when that line is anything else.

    Strict on purpose: `SAFE`, `VULNERABLE` and `VULNERABLE CWE-<n>` with an optional full stop, in any
    case, and nothing before or after on the line. Words further down never count.

    >>> parse_verdict("VULNERABLE CWE-89\\nThe name is pasted into the SQL.")
    Verdict(vulnerable=True, cwe='CWE-89')
    >>> parse_verdict("The code is SAFE") is None
    True
    """
    line = answer.strip().split("\n", 1)[0].strip()
    match = re.fullmatch(
        r"(?:(SAFE)|(VULNERABLE)(?: (CWE-[1-9]\d{0,3}))?)\.?", line, re.IGNORECASE | re.ASCII
    )
    if match is None:
        return None
    return Verdict(vulnerable=match[2] is not None, cwe=(match[3] or "").upper())


def parse_polarity(answer: str) -> bool | None:
    """Whether an answer calls the code vulnerable, for the question "Is it safe?"; None when it does not say.

    The first line is a verdict as `parse_verdict` takes it, or a plain no (vulnerable) or yes (safe), with
    nothing or a punctuation mark after it: the reference's own answers begin "NO - SECURITY VULNERABILITY".

    >>> parse_polarity("NO - SECURITY VULNERABILITY DETECTED!"), parse_polarity("No vulnerability found.")
    (True, None)
    """
    verdict = parse_verdict(answer)
    if verdict is not None:
        return verdict.vulnerable
    line = answer.strip().split("\n", 1)[0].strip()
    match = re.fullmatch(r"(?:(NO)|YES)(?:\s*[-\u2013\u2014:,.!].*)?", line, re.IGNORECASE | re.ASCII)
    return None if match is None else match[1] is not None


def answered_line(answer: str) -> bool:
    """Whether an answer's first line is complete."""
    return "\n" in answer.lstrip()


def answered_block(answer: str) -> bool:
    """Whether an answer's first fenced block is closed: what follows does not count.

    >>> answered_block("```python\\nx = 1\\n"), answered_block("```python\\nx = 1\\n```")
    (False, True)
    """
    match = BLOCK.search(answer)
    return match is not None and match.end(3) < match.end()


def fence(answer: str) -> str:
    """The language on an answer's first fence: `fence("```c++\\nint x;\\n```") == "c++"`; "" without one."""
    match = BLOCK.search(answer)
    return match[2].lower() if match else ""


def without_fences(answer: str) -> str:
    """An answer's text and code, the lines that open and close a block left out."""
    return "\n".join(line for line in answer.split("\n") if not line.lstrip().startswith("```"))


def code_block(answer: str) -> str:
    """The first fenced block of an answer, to the end if its fence stays open; without a fence all of it."""
    match = BLOCK.search(answer)
    return match[3].removesuffix("\n") if match else answer


def render(tokenizer: Any, prompt: str) -> str:
    """The prompt as the model saw prompts in training, up to where its answer begins."""
    return conversation(tokenizer, [{"role": "user", "content": prompt}])


def conversation(tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the model saw such in training, up to where its answer begins.

    No text in it can end its turn or open another one: control tokens that it spells are taken apart.
    """
    controls = control_tokens(tokenizer)
    plain = [{**turn, "content": apart(turn["content"], controls)} for turn in turns]
    text: str = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    return text


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """What spells a control token, which a tokenizer reads as such wherever it stands in a text.

    Those are its special tokens, and what it adds in angle brackets without calling it so: Qwen's
    `<tool_call>` and `<|fim_prefix|>`. Words and white space that a tokenizer adds are text.
    """
    added = ((str(token), token.special) for token in tokenizer.added_tokens_decoder.values())
    names = [text for text, special in added if len(text) > 1 and (special or re.fullmatch("<.+>", text))]
    return _any_of(tuple(names))


@lru_cache
def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def apart(text: str, controls: re.Pattern[str]) -> str:
    """A text whose control tokens are spelled with a space: `< |im_end|>` reads well and controls nothing."""
    while controls.search(text):  # again where one hid inside another
        text = controls.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)
    return text
