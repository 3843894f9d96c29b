"""Let the model judge code function by function, in the very question of its training.

    python -m tools.review src/ server.py              # files and folders
    python -m tools.review --diff                      # functions that differ from HEAD; or --diff main
    git diff main... | python -m tools.review --diff -
    python -m tools.review --format sarif src/ > review.sarif

Findings go to stdout, all else to stderr. Read them as hints: how often the model is wrong, as measured, is
said at the end. Lines outside of functions are not asked about where a file has functions.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stages.common import cwe, decoding, files, modelcard, prompts
from stages.common.answers import visible
from stages.common.errors import PipelineError, run
from stages.common.progress import progress
from tools import loading, sources
from tools.sources import Piece, Skipped

SCORES = Path("reports/scores/tuned.json")
NEW_TOKENS = 96  # of an answer: a verdict line, and a reason of some 60 where training gave one


@dataclass(frozen=True)
class Finding:
    """A piece that the model calls vulnerable."""

    piece: Piece
    cwe: str  # "" where it names none
    reason: str

    @property
    def title(self) -> str:
        """The weakness by number and name."""
        return f"{self.cwe} ({cwe.name(self.cwe)})" if self.cwe in cwe.NAMES else self.cwe or "no CWE named"


@dataclass(frozen=True)
class Review:
    """What came out."""

    asked: int
    findings: list[Finding]
    invalid: list[Piece]  # answered without a verdict line
    skipped: list[Skipped]
    measured: list[str]  # how far the verdicts can be trusted, in sentences


# Asking. -------------------------------------------------------------------------------------------------


def ended(answer: str) -> bool:
    """Whether an answer is complete: the line of a verdict, and after `VULNERABLE` the line of its reason.

    >>> ended("SAFE\\n"), ended("VULNERABLE CWE-89\\n"), ended("VULNERABLE CWE-89\\n\\nPasted SQL.\\n")
    (True, False, True)
    """
    lines = [line for line in answer.split("\n")[:-1] if line.strip()]
    verdict = prompts.parse_verdict(lines[0]) if lines else None
    return len(lines) > (1 if verdict is not None and verdict.vulnerable else 0)


def read(piece: Piece, answer: str) -> Finding | None:
    """The finding in an answer, None for a safe verdict; raises ValueError where there is no verdict line."""
    verdict = prompts.parse_verdict(answer)
    if verdict is None:
        raise ValueError("no verdict line")
    if not verdict.vulnerable:
        return None
    lines = [line.strip() for line in answer.split("\n") if line.strip()]
    reason = " ".join(lines[1].split()) if len(lines) > 1 else ""
    return Finding(piece, verdict.cwe, reason)


def answers(model: Any, tokenizer: Any, pieces: Sequence[Piece], size: int) -> Iterator[tuple[Piece, str]]:
    """Each piece with the model's answer; greedy, long ones first, `size` at a time."""
    ordered = sorted(pieces, key=lambda piece: -len(piece.code))
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        asked = [decoding.Prompt(question(tokenizer, piece), NEW_TOKENS, ended) for piece in batch]
        replies = decoding.answer(model, tokenizer, asked)
        for piece, reply in zip(batch, replies, strict=True):
            yield piece, tokenizer.decode(reply.tokens, skip_special_tokens=True)


def question(tokenizer: Any, piece: Piece) -> str:
    """The rendered prompt, as training and evaluation have it."""
    return prompts.render(tokenizer, prompts.detect(piece.code, piece.language))


def review(model: Any, tokenizer: Any, found: sources.Found, size: int, measured: list[str]) -> Review:
    """Ask about every piece that the model can read."""
    pieces, skipped = found
    room = loading.longest(model) - NEW_TOKENS
    lengths = {
        piece: len(tokenizer(question(tokenizer, piece), add_special_tokens=False)["input_ids"])
        for piece in pieces
    }
    short = [piece for piece in pieces if lengths[piece] <= room]
    long = [
        Skipped(
            f"{piece.path}:{piece.start}", f"{lengths[piece]:,} tokens, more than the model reads ({room:,})"
        )
        for piece in pieces
        if lengths[piece] > room
    ]
    findings, invalid = [], []
    for piece, answer in progress(
        answers(model, tokenizer, short, size), "review", "functions", total=len(short)
    ):
        try:
            finding = read(piece, answer)
        except ValueError:
            invalid.append(piece)
            continue
        findings += [finding] if finding else []
    place = {piece: number for number, piece in enumerate(pieces)}
    findings.sort(key=lambda one: place[one.piece])
    invalid.sort(key=place.__getitem__)
    return Review(len(short), findings, invalid, [*skipped, *long], measured)


def measured(path: Path) -> list[str]:
    """What the scores of a model say of its verdicts; empty where there are none."""
    if not path.is_file():
        return []
    scores = files.read_json(path).values()
    try:
        return [line for one in scores if one["kind"] == "detection" for line in modelcard.judge(one)]
    except (KeyError, TypeError) as error:
        raise PipelineError(f"{path}: {error}; expected what `score` writes") from None


# Telling. ------------------------------------------------------------------------------------------------


def as_text(made: Review) -> str:
    """A line a finding: path:line, the weakness, the reason."""
    return "".join(
        printable(
            f"{one.piece.path}:{one.piece.start}: {one.title}" + (f": {one.reason}" if one.reason else "")
        )
        + "\n"
        for one in made.findings
    )


def printable(line: str) -> str:
    """A line that does to a terminal nothing but to be read: names of files and answers may hold anything."""
    return visible(line).replace("\n", "⟨U+000A⟩")


def as_json(made: Review) -> str:
    """One object with the findings, and with what was not asked or not answered."""
    found = [
        {**_place(one.piece), "language": one.piece.language, "cwe": one.cwe, "reason": one.reason}
        for one in made.findings
    ]
    value = {
        "asked": made.asked,
        "findings": found,
        "invalid": list(map(_place, made.invalid)),
        "skipped": [vars(one) for one in made.skipped],
        "measured": made.measured,
    }
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _place(piece: Piece) -> dict[str, Any]:
    return {"path": piece.path, "start": piece.start, "end": piece.end}


def as_sarif(made: Review) -> str:
    """A log in SARIF 2.1.0, as code scanners exchange it (OASIS standard, 2020)."""
    rules = sorted({one.cwe for one in made.findings})
    notes = [f"{one.where}: {one.reason}" for one in made.skipped]
    notes += [f"{piece.path}:{piece.start}: no verdict line in the answer" for piece in made.invalid]
    log = {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "coder-agent review", "rules": list(map(_rule, rules))}},
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": [
                            {"level": "note", "message": {"text": note}} for note in [*made.measured, *notes]
                        ],
                    }
                ],
                "results": [
                    _result(one, rules.index(one.cwe), print_)
                    for one, print_ in zip(made.findings, fingerprints(made.findings), strict=True)
                ],
            }
        ],
    }
    return json.dumps(log, ensure_ascii=False, indent=2) + "\n"


def _rule(number: str) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "id": number or "VULNERABLE",
        "shortDescription": {"text": cwe.name(number)},
        "properties": {"tags": ["security"]},
    }
    if number:
        digits = number.removeprefix("CWE-")
        rule["helpUri"] = f"https://cwe.mitre.org/data/definitions/{digits}.html"
        rule["properties"]["tags"].append(f"external/cwe/cwe-{int(digits):03d}")
    return rule


def _result(finding: Finding, rule: int, fingerprint: str) -> dict[str, Any]:
    piece = finding.piece
    region = {"startLine": piece.start, "endLine": piece.end}
    message = finding.title + (f": {finding.reason}" if finding.reason else "")
    return {
        "ruleId": finding.cwe or "VULNERABLE",
        "ruleIndex": rule,
        "level": "warning",
        "message": {"text": f"The model calls this function vulnerable: {message}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri(piece.path)}, "region": region}}],
        "partialFingerprints": {"functionHash/v1": fingerprint},
    }


def uri(path: str) -> str:
    """A path as a URI: `uri("a b.py") == "a%20b.py"`; an absolute one with its scheme."""
    return f"file://{quote(path)}" if path.startswith("/") else quote(path)


def fingerprints(findings: Sequence[Finding]) -> list[str]:
    """What each finding is known by from run to run, wherever its function moves to in its file."""
    seen: dict[str, int] = {}
    result = []
    for one in findings:
        digest = hashlib.sha256("\0".join((one.piece.path, one.cwe, one.piece.code)).encode()).hexdigest()[
            :32
        ]
        seen[digest] = seen.get(digest, 0) + 1
        result.append(f"{digest}:{seen[digest]}")
    return result


FORMATS: dict[str, Callable[[Review], str]] = {"text": as_text, "json": as_json, "sarif": as_sarif}


def told(made: Review) -> str:
    """What was skipped, what came out, and what that is worth; for stderr."""
    lines = [f"skipped: {one.where}: {one.reason}" for one in made.skipped]
    lines += [f"no verdict: {piece.path}:{piece.start}" for piece in made.invalid]
    lines.append(
        f"review: {made.asked} functions asked about, {len(made.findings)} called vulnerable, "
        f"{len(made.invalid)} without a verdict, {len(made.skipped)} skipped"
    )
    lines += made.measured or ["How far this model's verdicts can be trusted was not measured."]
    return "\n".join(map(printable, lines))


def chosen(given: argparse.Namespace) -> sources.Found:
    """What the command line asks for."""
    if bool(given.paths) == (given.diff is not None):
        raise PipelineError("the command line: expected either paths or --diff (see --help)")
    if given.diff is None:
        return sources.of_paths(given.paths, given.max_chars)
    if given.diff == "-":
        diff, root = sys.stdin.buffer.read().decode("utf-8", "replace"), sources.git_root()
    else:
        diff, root = sources.git_diff(given.diff)
    return sources.of_diff(diff, root, given.max_chars)


def main() -> None:
    """Review what the command line names; status 1 with --fail-on-findings where there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders")
    parser.add_argument(
        "--diff", nargs="?", const="HEAD", help="what differs from a revision (default: HEAD); - reads a diff"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the findings (default: text)")
    parser.add_argument("--fail-on-findings", action="store_true", help="status 1 where there are any")
    parser.add_argument(
        "--model", type=Path, default=loading.MODEL, help="a model folder (default: %(default)s)"
    )
    parser.add_argument("--scores", type=Path, help=f"of that model (default: {SCORES} for {loading.MODEL})")
    parser.add_argument("--batch-size", type=int, default=16, help="functions at a time (default: 16)")
    parser.add_argument(
        "--max-chars", type=int, default=4_000, help="longer functions are skipped (default: 4000)"
    )
    given = parser.parse_args()
    if min(given.batch_size, given.max_chars) < 1:
        raise PipelineError("--batch-size, --max-chars: expected 1 at least")
    scores = given.scores or (SCORES if given.model == loading.MODEL else None)
    known = measured(scores) if scores else []
    found = chosen(given)
    made = Review(0, [], [], found[1], known)
    if found[0]:
        made = review(*loading.load(given.model), found, given.batch_size, known)
    sys.stdout.write(FORMATS[given.format](made))
    print(told(made), file=sys.stderr)
    if given.fail_on_findings and made.findings:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
