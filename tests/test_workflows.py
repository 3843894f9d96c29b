"""The workflows for GitHub: pinned, with the least they need, and open to nobody's text."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, read_yaml

FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    return dict(read_yaml(path)["jobs"])


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


def triggers(path: Path) -> set[str]:
    return set(read_yaml(path)["on"])


def test_both_are_there() -> None:
    assert [path.name for path in FILES] == ["ci.yml", "gpu.yml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_say_which_version(path: Path) -> None:
    used = re.findall(r"uses: (.*)", path.read_text())
    assert len(used) == sum("uses" in step for step in steps(path)) > 0
    for text in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", text), text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_permissions_are_to_read_alone(path: Path) -> None:
    assert read_yaml(path)["permissions"] == {}
    assert all(job["permissions"] == {"contents": "read"} for job in jobs(path).values())
    checkouts = [step for step in steps(path) if "checkout" in step.get("uses", "")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_expression_stands_in_a_script(path: Path) -> None:
    assert all("${{" not in step.get("run", "") for step in steps(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_job_ends_and_none_runs_twice_for_one_branch(path: Path) -> None:
    assert all(job["timeout-minutes"] > 0 for job in jobs(path).values())
    assert read_yaml(path)["concurrency"]["group"]


def test_a_pull_request_meets_no_secret_and_no_machine_of_ours() -> None:
    (ci, gpu) = FILES
    assert triggers(ci) == {"push", "pull_request", "schedule"}
    assert "secrets." not in ci.read_text()
    assert all(job["runs-on"].startswith("ubuntu-") for job in jobs(ci).values())
    assert triggers(gpu) == {"workflow_dispatch"}


def test_every_target_that_a_workflow_makes_is_there() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in FILES:
        for line in re.findall(
            r"^make (.*)", "\n".join(step.get("run", "") for step in steps(path)), re.MULTILINE
        ):
            wanted = {word for word in line.partition("<<")[0].split() if "=" not in word}
            assert wanted and wanted <= rules, line
