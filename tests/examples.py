"""Examples to mix: harmless ones, both sides of pairs, preferences; their rows in a catalogue; parameters."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stages.common import catalogue, overlap
from stages.common.mixture import MixParams
from stages.common.params import validate
from stages.common.records import Example

GROUP: dict[str, Any] = {
    "seed": 1,
    "strategy": "weights",
    "sources": {"one": 3, "two": 1},
    "temperature": None,
    "rows": 40,
    "repeats": 1,
    "max_chars": 10_000,
    "order": "shuffled",
    "valid_share": 0.1,
    "floors": {},
    "below_floor": "fail",
    "near_duplicate": None,
    "contaminated": "drop",
    "overlap": {"ngram": 8, "share": 0.5, "entry_points": False},
}


def parameters(**changes: object) -> MixParams:
    return validate({**GROUP, **changes}, "mix", MixParams)


def example(number: int = 0, group: int | None = None, source: str = "one", **changes: str) -> Example:
    """A harmless example with a text of its own."""
    kind = changes.get("kind", "write")
    fields = {
        "id": f"{source}/{number}/{kind}",
        "group": f"{source}/{number if group is None else group}",
        "source": source,
        "licence": "MIT",
        "revision": "1.0",
        "transforms": "",
        "kind": kind,
        "prompt": f"Say the number {number} of {source}.",
        "completion": f"It is {number}.",
    }
    return Example(**{**fields, **changes})


def pair(number: int, length: int = 40, kind: str = "detect", source: str = "one") -> list[Example]:
    """Both sides of a pair."""
    sides = {
        "detect": ("detect_vulnerable", "detect_safe"),
        "review": ("review_incomplete", "review_complete"),
    }
    return [
        example(number, source=source, kind=side, prompt="x" * length + f" {source} {number} {side}")
        for side in sides[kind]
    ]


def preference(number: int, source: str = "one", **changes: str) -> Example:
    given = {"kind": "preference", "rejected": f"It is not {number}.", **changes}
    return example(number, source=source, **given)


def indexed(examples: list[Example]) -> Any:
    """The catalogue's rows of some examples of the sources "one" and "two", in their order; no benchmarks."""
    chosen = parameters()
    index = overlap.build([], chosen.overlap)
    parts = [
        catalogue.examine(
            [catalogue.Line(1, 0, json.dumps(asdict(one)).encode())],
            list(chosen.sources).index(one.source),
            Path(f"{one.source}.jsonl"),
            chosen,
            index,
        ).rows
        for one in examples
    ]
    return np.concatenate([np.zeros(0, dtype=catalogue.ROW), *parts])
