"""Two branches that differ in one parameter: what DVC and `make compare` say, with a cache and without."""

import json
import re
from typing import Any

import pytest
from conftest import Clone, cloned, read_yaml, write_yaml

pytestmark = pytest.mark.smoke

RATE = "train.learning_rate"


@pytest.fixture(scope="module")
def branches(committed: Clone) -> Clone:
    """The run on main, and on the branch `faster`, which is checked out, one with another learning rate."""
    committed.checked("git", "switch", "-q", "-c", "faster")
    values = read_yaml(committed.params)
    values["train"]["learning_rate"] *= 2
    write_yaml(committed.params, values)
    said = committed.checked("dvc", "repro")
    assert re.findall(r"Running stage '([^']+)'", said)[:2] == ["preflight", "train"]
    for command in (["add", "-A"], ["commit", "-q", "-m", "Train faster"]):
        committed.checked("git", *command)
    return committed


@pytest.fixture(scope="module")
def fresh(branches: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone of the repository on `faster`, without a cache."""
    return cloned(branches, tmp_path_factory.mktemp("fresh"))


def diff(clone: Clone, what: str, *revisions: str) -> Any:
    return json.loads(clone.checked("dvc", what, "diff", "--json", *revisions))


@pytest.fixture(params=["with a cache", "in a fresh clone"])
def place(request: pytest.FixtureRequest, branches: Clone, fresh: Clone) -> tuple[Clone, str]:
    """Where the branches are compared, and what main is called there."""
    return (branches, "main") if request.param == "with a cache" else (fresh, "origin/main")


def test_params_diff_shows_the_one_parameter(place: tuple[Clone, str]) -> None:
    found = diff(place[0], "params", place[1])
    old, new = (found["params.yaml"][RATE][side] for side in ("old", "new"))
    assert (list(found), list(found["params.yaml"]), new) == (["params.yaml"], [RATE], 2 * old)


def test_metrics_diff_shows_what_training_changed_and_nothing_of_the_base(place: tuple[Clone, str]) -> None:
    found = diff(place[0], "metrics", place[1])
    headline = found["reports/metrics.json"]
    assert {"training.loss", "training.valid_loss"} <= set(headline)
    assert not [name for name in headline if name.endswith(".base") or name.startswith("data.")]
    assert not {"reports/mix.json", "reports/scores/base.json"} & set(found)


def test_plots_diff_lists_the_curves_of_both(place: tuple[Clone, str]) -> None:
    curves = diff(place[0], "plots", place[1])["data"]
    for name in ("loss", "token_accuracy", "entropy"):
        (drawn,) = curves[f"reports/train/plots/metrics/{name}.tsv"]
        assert set(drawn["revisions"]) == {"workspace", place[1]}
        values = {row["rev"]: row[name] for row in drawn["content"]["data"]["values"]}
        assert len(set(values.values())) == 2, name


def test_compare_tests_the_difference_where_the_answers_are(branches: Clone) -> None:
    found = json.loads(branches.checked("python", "-m", "tools.compare", "main", "--format", "json"))
    assert [one["name"] for one in found["params"]] == [RATE]
    assert (found["notes"], found["models"]["base"]["same"]) == ([], True)
    tuned = found["models"]["tuned"]
    reported = json.loads((branches.root / "reports/metrics.json").read_text(encoding="utf-8"))
    named = {one["name"]: one for one in tuned["measures"]}
    assert tuned["tested"] and isinstance(tuned["flips"], list)
    assert all(isinstance(one["p"], float) for one in named.values())
    for group in ("detection", "coding", "secure_coding"):
        for metric, values in reported[group].items():
            if isinstance(values, dict):
                assert named[f"{group}.{metric}"]["values"][1] == values["tuned"]
    assert "training.loss" in {one["name"] for one in found["metrics"]}
    swapped = branches.checked("python", "-m", "tools.compare", "faster", "main", "--format", "json")
    assert [one["values"][::-1] for one in json.loads(swapped)["models"]["tuned"]["measures"]] == [
        one["values"] for one in named.values()
    ]


def test_compare_says_in_a_fresh_clone_that_the_answers_are_not_there(fresh: Clone, branches: Clone) -> None:
    found = json.loads(fresh.checked("python", "-m", "tools.compare", "origin/main", "--format", "json"))
    (note,) = found["notes"]
    assert "not in DVC's cache, and no remote is set" in note
    whole = json.loads(branches.checked("python", "-m", "tools.compare", "main", "--format", "json"))
    here, there = (one["models"]["tuned"] for one in (found, whole))
    assert [one["values"] for one in here["measures"]] == [one["values"] for one in there["measures"]]
    assert (here["tested"], here["flips"], found["metrics"]) == (False, None, whole["metrics"])


def test_a_branch_of_another_run_in_the_working_tree_is_seen(branches: Clone) -> None:
    branches.checked("git", "switch", "-q", "main")  # without dvc checkout
    try:
        found = json.loads(branches.checked("python", "-m", "tools.compare", "main", "--format", "json"))
    finally:
        branches.checked("git", "switch", "-q", "faster")
    assert found["models"]["tuned"]["same"] and not found["params"] and not found["metrics"]
