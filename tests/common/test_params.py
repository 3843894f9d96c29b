"""Parameters: a good group becomes a frozen dataclass; a bad one gives one error that names its key."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from stages.common.errors import PipelineError, run
from stages.common.params import load, params


@params
class Origin:
    """What a list of the group holds."""

    uri: str
    digest: Annotated[str, Field(pattern="^[0-9a-f]{8}$")] | None = None


@params
class Draw:
    """A group with every form of parameter that the stages use."""

    seed: Annotated[int, Field(ge=0, le=600)]
    rows: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(ge=0, lt=1)]
    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1)]
    order: Literal["sorted", "shuffled"]
    tasks: Annotated[list[Literal["write", "fix"]], Field(min_length=1)]
    origins: Annotated[list[Origin], Field(min_length=1)]
    limit: Annotated[int, Field(ge=1)] | None = None
    strict: bool = False


DRAW = {"seed": "42", "rows": "10", "share": "0.1", "weights": "{coding: 3, fixes: 1}", "order": "sorted"}
DRAW |= {"tasks": "[fix]", "origins": "[{uri: a}, {uri: b, digest: 0123abcd}]"}


def written(folder: Path, text: str) -> Path:
    """A parameter file with this text."""
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def draw(folder: Path, **changes: str | None) -> Draw:
    """The group with some values changed; None takes a key out."""
    values = {key: value for key, value in {**DRAW, **changes}.items() if value is not None}
    text = "draw:\n  mine:\n" + "".join(f"    {key}: {value}\n" for key, value in values.items())
    return load("draw.mine", Draw, written(folder, text))


def test_good_group_is_read_and_frozen(tmp_path):
    chosen = draw(tmp_path)
    assert (chosen.seed, chosen.rows, chosen.weights) == (42, 10, {"coding": 3.0, "fixes": 1.0})
    assert chosen.origins == [Origin("a"), Origin("b", "0123abcd")]
    assert (chosen.limit, chosen.strict) == (None, False)
    assert draw(tmp_path, limit="null").limit is None and draw(tmp_path, limit="7").limit == 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.rows = 11


@pytest.mark.parametrize(
    ("changes", "key", "found"),
    [
        ({"rows": "0"}, "rows", "0"),
        ({"rows": "-3"}, "rows", "-3"),
        ({"rows": "5.5"}, "rows", "5.5"),
        ({"rows": "'5'"}, "rows", "'5'"),
        ({"rows": "true"}, "rows", "True"),
        ({"rows": "null"}, "rows", "None"),
        ({"rows": None}, "rows", "nothing"),
        ({"limit": "0"}, "limit", "0"),
        ({"strict": "1"}, "strict", "1"),
        ({"seed": "601"}, "seed", "601"),
        ({"seed": "2026-01-01"}, "seed", "2026"),
        ({"share": "1"}, "share", "1"),
        ({"share": "-0.1"}, "share", "-0.1"),
        ({"share": ".nan"}, "share", "nan"),
        ({"weights": "{}"}, "weights", "{}"),
        ({"weights": "{coding: -0.2}"}, "weights.coding", "-0.2"),
        ({"weights": "{coding: .nan}"}, "weights.coding", "nan"),
        ({"weights": "{coding: .inf}"}, "weights.coding", "inf"),
        ({"weights": "[coding]"}, "weights", "['coding']"),
        ({"order": "up"}, "order", "'up'"),
        ({"tasks": "[]"}, "tasks", "[]"),
        ({"tasks": "[fix, sing]"}, "tasks.1", "'sing'"),
        ({"origins": "[]"}, "origins", "[]"),
        ({"origins": "[{uri: a}, {digest: 0123abcd}]"}, "origins.1.uri", "nothing"),
        ({"origins": "[{uri: a, digest: abc}]"}, "origins.0.digest", "'abc'"),
        ({"origins": "[{uri: a, colour: red}]"}, "origins.0.colour", "'red'"),
        ({"colour": "red"}, "colour", "'red'"),
    ],
)
def test_bad_value_is_named_with_its_key(tmp_path, changes, key, found):
    with pytest.raises(PipelineError) as error:
        draw(tmp_path, **changes)
    message = str(error.value)
    assert message.startswith(f"draw.mine.{key}: ") and found in message
    assert "expected" in message and "params.yaml" in message and "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["not found"]),
        ("", ["draw", "nothing"]),
        ("train: {}\n", ["draw", "train"]),
        ("1: 2\n", ["draw", "1"]),
        ("draw:\n", ["draw", "None"]),
        ("draw: [1, 2]\n", ["draw", "[1, 2]"]),
        ("draw: {rows: 1\n", ["not YAML"]),
        ("draw: 1\ndraw: 2\n", ["not YAML", "duplicate"]),
        ("draw: \t1\n\tb: 2", ["not YAML"]),
    ],
)
def test_bad_file_gives_one_line(tmp_path, text, words):
    path = tmp_path / "params.yaml" if text is None else written(tmp_path, text)
    with pytest.raises(PipelineError) as error:
        load("draw", Draw, path)
    assert all(word in str(error.value) for word in [*words, "params.yaml"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "known"), [("draw: {yours: {}}\n", "yours"), ("draw: 1\n", "nothing")])
def test_missing_part_of_a_group_is_named_with_what_is_there(tmp_path, text, known):
    with pytest.raises(PipelineError, match=rf"^draw\.mine: no group 'mine'; found {known} \("):
        load("draw.mine", Draw, written(tmp_path, text))


def test_run_prints_one_line_and_exits_with_2(capsys):
    def main() -> None:
        raise PipelineError("mix.rows: 0; expected more")

    with pytest.raises(SystemExit) as stop:
        run(main)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.err == "error: mix.rows: 0; expected more\n" and printed.out == ""


def test_run_hides_no_other_error_and_lets_success_pass():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)
    run(lambda: None)
