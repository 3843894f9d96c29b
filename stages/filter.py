"""Parse one source into samples and keep the good ones; every rejected row is listed with its reason.

In: data/raw/<source>.jsonl and its provenance. Out: data/filtered/<source>.jsonl (kept samples),
data/filtered/<source>.rejected.jsonl (the ledger) and counts in reports/filter/<source>.json.
Promise: rows in = kept + rejected.

    python -m stages.filter coding
"""

import argparse
import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.common import cwe, files, prompts, sandbox
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.records import Sample, to_row

RAW = Path("data/raw")
FILTERED = Path("data/filtered")
REPORTS = Path("reports/filter")

Name = Literal["empty", "licence", "unchanged", "length", "syntax", "unproven", "duplicate"]


@params
class FilterParams:
    """Which checks a source must pass, in order, and their thresholds."""

    checks: list[Name]
    licences: list[str]  # SPDX identifiers that may be trained on
    max_chars: Annotated[int, Field(ge=1)]  # of each side's code; the reference's limit is 2,000
    min_chars: Annotated[int, Field(ge=0)]  # of the answer


@dataclass(frozen=True)
class Rejected:
    """A row that is left out, and why."""

    id: str
    check: str
    reason: str


# Parsing: one function per upstream schema, from a raw row to the fields of a Sample. ------------------


def _function(row: Mapping[str, str]) -> dict[str, str]:
    """A documented Python function: the stub is the question, the whole function the answer."""
    stub, code = _without_body(row["code"])
    return {
        "language": "python",
        "instruction": prompts.complete(stub),
        "output": prompts.fenced(code, "python"),
    }


def _without_body(code: str) -> tuple[str, str]:
    """Signature with docstring, and the function itself, of a function's source."""
    node = ast.parse(code).body[0]
    assert isinstance(node, ast.FunctionDef)  # noqa: S101 (fetch writes nothing else)
    documentation = node.body[0]
    return "\n".join(code.split("\n")[: documentation.end_lineno]), code


def _alpaca(row: Mapping[str, str]) -> dict[str, str]:
    """Instruction, input, output; language and test where a row has them."""
    given = row["input"].strip()
    blank = given.lower().strip("<> .") in ("", "noinput", "no input", "n/a", "none")
    language = row.get("language", "")
    return {
        "language": language,
        "instruction": row["instruction"].strip(),
        "input": "" if blank else (prompts.fenced(given, language) if language else given),
        "output": prompts.fenced(row["output"], language) if language else row["output"].strip(),
        "test": row.get("test", ""),
    }


def _preference(row: Mapping[str, str]) -> dict[str, str]:
    """A question with a chosen (secure) and a rejected (vulnerable) answer."""
    return {
        "language": row["lang"].strip().lower(),
        "instruction": row["question"].strip(),
        "output": prompts.code_block(row["chosen"]).strip("\n"),
        "vulnerable": prompts.code_block(row["rejected"]).strip("\n"),
        "cwe": cwe.find(row["vulnerability"]),
        "weakness": row.get("weakness") or row["vulnerability"].strip(),
        "remedy": row.get("remedy", ""),
    }


def _fix(row: Mapping[str, str]) -> dict[str, str]:
    """Code before and after the repair of a known weakness."""
    return {
        "language": row["language"].strip().lower(),
        "instruction": "",
        "output": row["fixed_code"].strip("\n"),
        "vulnerable": row["vulnerable_code"].strip("\n"),
        "cwe": cwe.find(row["cwe_id"]),
        "weakness": row.get("weakness") or row["cwe_description"].strip(),
        "remedy": row.get("remedy", ""),
    }


PARSERS: dict[str, Callable[[Mapping[str, str]], dict[str, str]]] = {
    "functions": _function,
    "alpaca": _alpaca,
    "preferences": _preference,
    "fixes": _fix,
}


def parse(row: files.Row, schema: str, source: str, number: int, licence: str) -> Sample:
    """One raw row as a Sample; raises PipelineError naming file, row and the missing or wrong field."""
    where = f"data/raw/{source}.jsonl:{number + 1}"
    for key, value in row.items():
        if not isinstance(value, str):
            raise PipelineError(f"{where}: {key}: {value!r}; expected a string")
    try:
        parsed = PARSERS[schema](row)
    except KeyError as missing:
        raise PipelineError(f"{where}: no key {missing}; expected it in schema {schema!r}") from None
    sample = {"input": "", **parsed}
    return Sample(id=f"{source}/{number}", source=source, licence=licence, **sample)


# Checks: from a sample and the parameters to a reason for rejection, or None. --------------------------


def empty(sample: Sample, chosen: FilterParams) -> str | None:
    """No question, or no answer of the least length."""
    if not (sample.instruction or sample.vulnerable):
        return "no instruction"
    length = len(prompts.without_fences(sample.output).strip())
    return f"answer of {length} characters" if length < max(1, chosen.min_chars) else None


def licence(sample: Sample, chosen: FilterParams) -> str | None:
    """The licence is not on the list."""
    return None if sample.licence in chosen.licences else f"licence {sample.licence}"


def unchanged(sample: Sample, chosen: FilterParams) -> str | None:
    """Both sides of a pair are the same but for white space."""
    pair = sample.vulnerable, sample.output
    return "both sides are the same" if len({"".join(side.split()) for side in pair}) == 1 else None


def length(sample: Sample, chosen: FilterParams) -> str | None:
    """One side is longer than the limit."""
    longest = max(len(sample.instruction + sample.input), len(sample.output), len(sample.vulnerable))
    return f"{longest} characters" if longest > chosen.max_chars else None


def syntax(sample: Sample, chosen: FilterParams) -> str | None:
    """Python code that does not parse."""
    if sample.language != "python":
        return None
    for side in filter(None, (prompts.code_block(sample.output), sample.vulnerable)):
        try:
            ast.parse(side)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"not Python: {error}"
    return None


def unproven(sample: Sample, chosen: FilterParams) -> str | None:
    """The test that comes with the answer does not pass in the sandbox."""
    if not sample.test:
        return None
    outcome = sandbox.run(f"{prompts.code_block(sample.output)}\n\n{sample.test}")
    return None if outcome.status == "passed" else f"{outcome.status}: {outcome.reason}"


CHECKS: dict[str, Callable[[Sample, FilterParams], str | None]] = {
    "empty": empty,
    "licence": licence,
    "unchanged": unchanged,
    "length": length,
    "syntax": syntax,
    "unproven": unproven,
}


def verdict(sample: Sample, chosen: FilterParams) -> Rejected | None:
    """The first check that fails, in the order of `checks`."""
    for name in chosen.checks:
        if name in CHECKS and (reason := CHECKS[name](sample, chosen)):
            return Rejected(sample.id, name, reason)
    return None


def fingerprint(sample: Sample) -> str:
    """Equal for samples whose text is equal but for case and white space."""
    parts = (sample.instruction, sample.input, sample.output, sample.vulnerable)
    return hashlib.sha256("\0".join(" ".join(part.lower().split()) for part in parts).encode()).hexdigest()


def split(samples: Iterable[Sample], chosen: FilterParams) -> tuple[list[Sample], list[Rejected]]:
    """Kept samples and rejected ones, both in the order given; of equal samples the first is kept."""
    samples = list(samples)
    with ThreadPoolExecutor(cpu_count()) as pool:  # the sandbox waits for processes, so threads are enough
        verdicts = list(pool.map(lambda sample: verdict(sample, chosen), samples))
    kept: list[Sample] = []
    rejected: list[Rejected] = []
    first: dict[str, str] = {}
    for sample, failed in zip(samples, verdicts, strict=True):
        if failed is None and "duplicate" in chosen.checks:
            twin = first.setdefault(fingerprint(sample), sample.id)
            failed = None if twin == sample.id else Rejected(sample.id, "duplicate", f"same as {twin}")
        if failed is None:
            kept.append(sample)
        else:
            rejected.append(failed)
    return kept, rejected


def licences(provenance: files.Row, rows: int, where: Path) -> list[str]:
    """The licence of each raw row, in order; raises PipelineError when there are not `rows` of them."""
    each = [origin["licence"] for origin in provenance["origins"] for _ in range(origin["rows"])]
    if len(each) != rows:
        raise PipelineError(f"{where}: {len(each)} rows declared; expected the {rows} that were fetched")
    return each


def main() -> None:
    """Filter the source named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a key of `filter` in params.yaml")
    source = parser.parse_args().source
    chosen = load(f"filter.{source}", FilterParams)

    rows = files.read_rows(RAW / f"{source}.jsonl")
    origin = RAW / f"{source}.provenance.json"
    provenance = files.read_json(origin)
    each = licences(provenance, len(rows), origin)
    samples = [
        parse(row, provenance["schema"], source, number, each[number]) for number, row in enumerate(rows)
    ]
    kept, rejected = split(samples, chosen)
    if not kept:
        raise PipelineError(
            f"filter.{source}: 0 of {len(rows)} rows kept; expected some (see the checks' thresholds)"
        )

    files.write_rows(FILTERED / f"{source}.jsonl", map(to_row, kept))
    files.write_rows(FILTERED / f"{source}.rejected.jsonl", (vars(row) for row in rejected))
    reasons = Counter(row.check for row in rejected)
    files.write_json(
        REPORTS / f"{source}.json",
        {
            "rows": len(rows),
            "kept": len(kept),
            "rejected": len(rejected),
            "reasons": {name: reasons[name] for name in chosen.checks},
        },
    )
    dropped = ", ".join(f"{name} {count}" for name, count in sorted(reasons.items())) or "none"
    print(f"filter {source}: {len(rows)} rows, {len(kept)} kept, {len(rejected)} rejected ({dropped})")


if __name__ == "__main__":
    run(main)
