"""Parameters: one group of `params.yaml` becomes one frozen dataclass, or an error that names the key."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common.errors import PipelineError

T = TypeVar("T")

FILE = Path("params.yaml")


def params(cls: type[T]) -> type[T]:
    """Decorate a parameter dataclass: frozen, no unknown key, no silent conversion of types."""
    return pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))(cls)  # type: ignore[return-value]


def load(group: str, cls: type[T], path: Path = FILE) -> T:
    """Read the dotted `group` of the YAML file `path` into `cls`.

    Raises PipelineError naming the dotted key, the value found and what is allowed, for the first
    key that is missing, unknown, of the wrong type or out of range.
    """
    return validate(_group(_read(path), group, path), group, cls, path)


def validate(values: object, group: str, cls: type[T], path: Path = FILE) -> T:
    """Turn plain `values` into `cls`; `group` and `path` only name the place in the error."""
    try:
        return TypeAdapter(cls).validate_json(
            json.dumps(values)
        )  # strict JSON takes mappings for dataclasses
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join([group, *(str(part) for part in first["loc"])])
        found = "nothing" if first["type"].startswith("missing") else repr(first["input"])
        raise PipelineError(f"{key}: {found}; expected {_expectation(first)} ({path})") from None


def _expectation(error: Mapping[str, Any]) -> str:
    if error["type"].startswith("missing"):
        return "a value"
    if error["type"].startswith("unexpected"):
        return "no such key: it is unknown"
    message: str = error["msg"]
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _read(path: Path) -> object:
    if not path.exists():
        raise PipelineError(f"{path}: not found; expected the composed parameters (run `make params`)")
    try:
        return YAML(typ="safe").load(path)
    except YAMLError as error:
        raise PipelineError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def _group(tree: object, group: str, path: Path) -> object:
    node = tree
    for part in group.split("."):
        if not isinstance(node, Mapping) or part not in node:
            known = ", ".join(node) if isinstance(node, Mapping) else "nothing"
            raise PipelineError(f"{group}: no group {part!r}; found {known} ({path})")
        node = node[part]
    return node
