"""Parameters: one group of `params.yaml` becomes one frozen dataclass, or an error that names the key."""

import json
import math
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
        # strict JSON, unlike strict Python, takes a mapping for a dataclass
        return TypeAdapter(cls).validate_json(json.dumps(plain(values, group, path)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join([group, *_place(first["loc"], values)])
        found = "nothing" if first["type"].startswith("missing") else repr(first["input"])
        raise PipelineError(f"{key}: {found}; expected {_expectation(first)} ({path})") from None
    except (TypeError, ValueError) as error:
        raise PipelineError(
            f"{group}: {error}; expected text, finite numbers, lists and mappings ({path})"
        ) from None


def plain(value: object, key: str, path: Path) -> object:
    """The same value, if it is made of what JSON can hold; otherwise a PipelineError names the key."""
    if isinstance(value, Mapping):
        return {str(name): plain(part, f"{key}.{name}", path) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part, f"{key}.{index}", path) for index, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise PipelineError(f"{key}: {value}; expected a finite number ({path})")
    if value is not None and not isinstance(value, str | int | float):
        raise PipelineError(f"{key}: {value}; expected text, a number, a list or a mapping ({path})")
    return value


def _place(location: tuple[int | str, ...], values: object) -> list[str]:
    """Where an error lies, by the keys of the file; pydantic names the chosen one of several classes, too."""
    found = []
    for number, part in enumerate(location, 1):
        if isinstance(values, Mapping) and part not in values and number < len(location):
            continue
        found.append(str(part))
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
    return found


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
            known = ", ".join(map(str, node)) if isinstance(node, Mapping) else "nothing"
            raise PipelineError(f"{group}: no group {part!r}; found {known} ({path})")
        node = node[part]
    return node
