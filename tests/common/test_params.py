"""Parameters: a good group becomes a frozen dataclass; a bad one gives one error that names its key."""

import dataclasses
from pathlib import Path

import pytest

from stages.common.errors import PipelineError, run
from stages.common.params import load
from stages.convert import ConvertParams
from stages.fetch import FetchParams
from stages.filter import FilterParams
from stages.mix import MixParams
from stages.score import ScoreParams

MIX = {"seed": "42", "rows": "10", "weights": "{coding: 3, fixes: 1}", "valid_share": "0.1"}
MIX |= {"max_chars": "100", "order": "shuffled"}


def written(folder: Path, text: str) -> Path:
    """A parameter file with this text."""
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mix(folder: Path, **changes: str | None) -> MixParams:
    """The mix group with some values changed; None takes a key out."""
    values = {key: value for key, value in {**MIX, **changes}.items() if value is not None}
    text = "mix:\n" + "".join(f"  {key}: {value}\n" for key, value in values.items())
    return load("mix", MixParams, written(folder, text))


def test_good_group_is_read_and_frozen(tmp_path):
    chosen = mix(tmp_path)
    assert (chosen.seed, chosen.rows, chosen.weights) == (42, 10, {"coding": 3.0, "fixes": 1.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.rows = 11


@pytest.mark.parametrize(
    ("changes", "key", "found"),
    [
        ({"rows": "0"}, "mix.rows", "0"),
        ({"rows": "-3"}, "mix.rows", "-3"),
        ({"rows": "5.5"}, "mix.rows", "5.5"),
        ({"rows": "'5'"}, "mix.rows", "'5'"),
        ({"rows": "true"}, "mix.rows", "True"),
        ({"rows": "null"}, "mix.rows", "None"),
        ({"rows": None}, "mix.rows", "nothing"),
        ({"valid_share": "1"}, "mix.valid_share", "1"),
        ({"valid_share": "-0.1"}, "mix.valid_share", "-0.1"),
        ({"valid_share": ".nan"}, "mix.valid_share", "nan"),
        ({"weights": "{}"}, "mix.weights", "{}"),
        ({"weights": "{coding: -0.2}"}, "mix.weights.coding", "-0.2"),
        ({"weights": "{coding: .nan}"}, "mix.weights.coding", "nan"),
        ({"weights": "{coding: .inf}"}, "mix.weights.coding", "inf"),
        ({"weights": "[coding]"}, "mix.weights", "['coding']"),
        ({"seed": "2026-01-01"}, "mix.seed", "2026"),
        ({"colour": "red"}, "mix.colour", "'red'"),
    ],
)
def test_bad_value_is_named_with_its_key(tmp_path, changes, key, found):
    with pytest.raises(PipelineError) as error:
        mix(tmp_path, **changes)
    message = str(error.value)
    assert message.startswith(f"{key}: ") and found in message
    assert "expected" in message and "params.yaml" in message and "\n" not in message


@pytest.mark.parametrize(
    ("cls", "group", "text", "key"),
    [
        (FetchParams, "fetch.a", "{schema: nope, origins: [{uri: x, licence: MIT}]}", "schema: 'nope'"),
        (FetchParams, "fetch.a", "{schema: alpaca, origins: []}", "origins: []"),
        (FetchParams, "fetch.a", "{schema: alpaca, origins: [{uri: x}]}", "origins.0.licence: nothing"),
        (
            FetchParams,
            "fetch.a",
            "{schema: alpaca, origins: [{uri: x, licence: MIT, sha256: abc}]}",
            "origins.0.sha256: 'abc'",
        ),
        (
            FilterParams,
            "filter.a",
            "{checks: [nope], licences: [], max_chars: 1, min_chars: 0}",
            "checks.0: 'nope'",
        ),
        (FilterParams, "filter.a", "{checks: [], licences: [], max_chars: 0, min_chars: 0}", "max_chars: 0"),
        (
            FilterParams,
            "filter.a",
            "{checks: [], licences: [], max_chars: 1, min_chars: -1}",
            "min_chars: -1",
        ),
        (ConvertParams, "convert.a", "{tasks: []}", "tasks: []"),
        (ConvertParams, "convert.a", "{tasks: [sing]}", "tasks.0: 'sing'"),
        (ScoreParams, "score.a", "{cpu_seconds: 0, memory_mib: 64}", "cpu_seconds: 0"),
        (ScoreParams, "score.a", "{cpu_seconds: 601, memory_mib: 64}", "cpu_seconds: 601"),
        (ScoreParams, "score.a", "{cpu_seconds: 1, memory_mib: 1}", "memory_mib: 1"),
    ],
)
def test_every_stage_refuses_what_it_does_not_know(tmp_path, cls, group, text, key):
    stage, name = group.split(".")
    path = written(tmp_path, f"{stage}:\n  {name}: {text}\n")
    with pytest.raises(PipelineError) as error:
        load(group, cls, path)
    assert str(error.value).startswith(f"{group}.{key}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["not found"]),
        ("", ["mix", "nothing"]),
        ("train: {}\n", ["mix", "train"]),
        ("1: 2\n", ["mix", "1"]),
        ("mix:\n", ["mix", "None"]),
        ("mix: [1, 2]\n", ["mix", "[1, 2]"]),
        ("mix: {rows: 1\n", ["not YAML"]),
        ("mix: 1\nmix: 2\n", ["not YAML", "duplicate"]),
        ("mix: \t1\n\tb: 2", ["not YAML"]),
    ],
)
def test_bad_file_gives_one_line(tmp_path, text, words):
    path = tmp_path / "params.yaml" if text is None else written(tmp_path, text)
    with pytest.raises(PipelineError) as error:
        load("mix", MixParams, path)
    assert all(word in str(error.value) for word in [*words, "params.yaml"])
    assert "\n" not in str(error.value)


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
