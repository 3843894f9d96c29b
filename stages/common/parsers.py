"""From an upstream row to a Sample: one function per schema, the texts as they stand."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stages.common import cwe, files, languages, prompts
from stages.common.errors import PipelineError
from stages.common.records import Sample
from stages.common.schemas import SCHEMAS, Schema

Texts = Mapping[str, str]


@dataclass(frozen=True)
class Origin:
    """What every row of one origin shares."""

    source: str
    schema: Schema
    licence: str
    revision: str


def parse(row: files.Row, number: int, origin: Origin) -> Sample:
    """Row `number` of a source, counted from 0; null counts as no text.

    Raises PipelineError naming the key that is missing or not text.
    """
    texts = {key: _text(key, value) for key, value in row.items() if key in KEYS[origin.schema]}
    missing = [key for key in SCHEMAS[origin.schema] if key not in texts]
    if missing:
        raise PipelineError(f"no key {missing[0]!r}; expected {', '.join(SCHEMAS[origin.schema])}")
    given = {"input": "", "transforms": "", **PARSERS[origin.schema](texts)}
    shared = {"source": origin.source, "licence": origin.licence, "revision": origin.revision}
    return Sample(id=f"{origin.source}/{number}", **shared, **given)


def _text(key: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PipelineError(f"{key}: {repr(value)[:60]}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PipelineError(f"{key}: {value[error.start]!r}; expected text that UTF-8 can hold") from None
    return value


def _function(row: Texts) -> dict[str, str]:
    """A documented Python function: signature and docstring are the question, all of it the answer."""
    try:
        node = ast.parse(row["code"]).body[0]
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError) as error:
        raise PipelineError(f"code: {error}; expected one Python function") from None
    if not isinstance(node, ast.FunctionDef):
        raise PipelineError(f"code: {row['code'][:60]!r}; expected one Python function")
    stub = "\n".join(row["code"].split("\n")[: node.body[0].end_lineno])
    return {
        "language": "python",
        "instruction": prompts.complete(stub),
        "output": prompts.fenced(row["code"], "python"),
    }


def _alpaca(row: Texts) -> dict[str, str]:
    """A request, what it is about, and an answer; its language is the fence's or the one asked for."""
    asked = "" if prose(row["output"]) else languages.mentioned(row["instruction"])
    language = prompts.fence(row["output"]) or asked
    return {
        "language": languages.canonical(language),
        "instruction": row["instruction"],
        "input": row["input"],
        "output": row["output"],
    }


# Words that English cannot do without and code hardly has outside comments.
ENGLISH = {"a", "an", "are", "be", "can", "has", "it", "its", "of", "should", "than", "that", "the", "these"}
ENGLISH |= {"this", "to", "was", "which", "will", "you", "your"}


def prose(answer: str) -> bool:
    """Whether an answer begins with a sentence: a capital, and two of ENGLISH among its first 15 words.

    >>> prose("The break statement is what ends a loop."), prose("SELECT name FROM users")
    (True, False)
    """
    words = answer.lstrip().partition("\n")[0].split(None, 15)[:15]
    found = sum(word.strip(".,:;").lower() in ENGLISH for word in words)
    return found >= 2 and words[0][0].isupper()


def _preference(row: Texts) -> dict[str, str]:
    """A question with a chosen (secure) and a rejected (vulnerable) answer."""
    return {
        "language": languages.canonical(row["lang"]),
        "instruction": row["question"],
        "output": row["chosen"],
        "vulnerable": row["rejected"],
        "cwe": cwe.find(row["vulnerability"]),
        "weakness": row.get("weakness") or row["vulnerability"],
        "remedy": row.get("remedy", ""),
    }


def _fix(row: Texts) -> dict[str, str]:
    """Code before and after the repair of a known weakness."""
    return {
        "language": languages.canonical(row["language"]),
        "instruction": "",
        "output": row["fixed_code"],
        "vulnerable": row["vulnerable_code"],
        "cwe": cwe.find(row["cwe_id"]),
        "weakness": row.get("weakness") or row["cwe_description"],
        "remedy": row.get("remedy", ""),
    }


def _fault(row: Texts) -> dict[str, str]:
    """A request whose answer must handle a fault, and the code that leaves it out."""
    return {
        "language": languages.canonical(row["language"]),
        "instruction": row["instruction"],
        "output": prompts.fenced(row["code"], row["language"]),
        "vulnerable": prompts.fenced(row["incomplete"], row["language"]),
        "weakness": row["missing"],
        "remedy": row["remedy"],
        "test": row["test"],
        "fault_test": row["fault_test"],
    }


PARSERS: dict[Schema, Callable[[Texts], dict[str, str]]] = {
    "functions": _function,
    "alpaca": _alpaca,
    "preferences": _preference,
    "fixes": _fix,
    "faults": _fault,
}

OPTIONAL = ("weakness", "remedy")  # what our own rows say beyond the upstream schema
KEYS = {schema: {*SCHEMAS[schema], *OPTIONAL} for schema in PARSERS}
