"""The two row types that travel through the data stages, and their way in and out of JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from stages.common import files
from stages.common.errors import PipelineError

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One row of a source after parsing, whatever its upstream schema was.

    A sample with `vulnerable` code is a pair: `output` is its fixed twin.
    """

    id: str  # "<source>/<row number in data/raw, from 0>", with "#<n>" for a piece of a row
    source: str
    licence: str  # SPDX identifier
    revision: str  # of the source: a commit, a package's version or "sha256:..." of a file
    transforms: str  # what was done to the row, in order: "chunk 1 of 2; redact EMAIL 1", "" for nothing
    language: str  # canonical name of stages.common.languages, "" when unknown
    instruction: str
    input: str
    output: str
    vulnerable: str = ""  # of error handling: the code that does not handle its fault
    cwe: str = ""  # "CWE-89", "" when unknown
    weakness: str = ""  # one sentence: what is wrong with `vulnerable`
    remedy: str = ""  # one sentence: why `output` is right
    test: str = ""  # Python that runs to its end after `output`: the usual case works
    fault_test: str = ""  # Python that runs to its end after `output` and not after `vulnerable`


@dataclass(frozen=True)
class Example:
    """One training example: a user's message and the assistant's answer."""

    id: str  # "<sample id>/<kind>"
    group: str  # "<source>/<row number>": examples of one row never straddle a split
    source: str
    licence: str
    revision: str
    transforms: str
    kind: str  # the converter's name, with the side for pairs
    prompt: str
    completion: str
    rejected: str = ""  # of a preference pair: the answer that is worse than `completion`
    cwe: str = ""  # of the sample, also where the texts do not name it


def to_row(record: Sample | Example) -> dict[str, Any]:
    """A record as a plain dictionary, keys in field order."""
    return dict(vars(record))


def read(cls: type[T], path: Path) -> list[T]:
    """The records of a JSON lines file, in order."""
    return [
        from_row(cls, files.parse_row(line, f"{path}:{number}"), f"{path}:{number}")
        for number, line in files.iter_lines(path)
    ]


def from_row(cls: type[T], row: Mapping[str, Any], where: str) -> T:
    """Rebuild a record, whose fields are all text; raises PipelineError on other keys or types."""
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    if set(row) != names:
        raise PipelineError(f"{where}: keys {sorted(row)}; expected {sorted(names)}")
    for name, value in row.items():
        if not isinstance(value, str):
            raise PipelineError(f"{where}: {name}: {repr(value)[:60]}; expected text")
    return cls(**row)
