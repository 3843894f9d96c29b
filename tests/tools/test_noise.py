"""Seed noise: what is measured is trainings that differ in their seed alone, each once, and never another."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import read_yaml, write_yaml

from stages.common import files, noise
from stages.common.errors import PipelineError
from tools import noise as tool

PARAMS = {"train": {"seed": 42, "rate": 0.1}, "generate": {"limits": {"coding": 41}}}
PARAMS["report"] = {"enforce": True}
MIX = {"kinds": {"write": {"rows": 3}, "fix": {"rows": 2}}}

# A run in miniature: metrics that follow from the seed.
STAGE = """
import json, pathlib, ruamel.yaml

seed = ruamel.yaml.YAML(typ="safe").load(pathlib.Path("params.yaml"))["train"]["seed"]
if seed == 13:
    raise SystemExit("13 is refused")
training = {"loss": seed / 100, "steps": 67, "seconds": seed * 2.5}
metrics = {"coding": {"pass_at_1": {"base": 0.5, "tuned": seed / 1000}, "tasks": 41}, "training": training}
pathlib.Path("reports/metrics.json").write_text(json.dumps(metrics))
"""


def metrics(seed: int, **changes: Any) -> dict[str, Any]:
    """What the run in miniature says."""
    return {
        "coding": {"pass_at_1": {"base": 0.5, "tuned": seed / 1000}, "tasks": 41},
        "training": {"loss": seed / 100, "steps": 67, "seconds": seed * 2.5},
        **changes,
    }


class Repository:
    """A repository whose commit is the run of seed 42."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "-q")
        self.write({"params.yaml": PARAMS, "reports/metrics.json": metrics(42), "reports/mix.json": MIX})
        self.write({"dvc.lock": lock()})
        self.head = self.commit()

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True, env=environment()
        )
        return done.stdout.strip()

    def write(self, named: Mapping[str, Any]) -> None:
        for name, value in named.items():
            path = self.root / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(value, str):
                path.write_text(value)
            elif name.endswith(".json"):
                path.write_text(json.dumps(value))
            else:
                write_yaml(path, value)

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Run")
        return self.git("rev-parse", "HEAD")

    def experiment(self, name: str, **changed: Any) -> None:
        """What DVC leaves of an experiment: a commit on top of the one it starts from, under a reference."""
        self.write({file.replace("__", "/").replace("_", ".", 1): value for file, value in changed.items()})
        made = self.commit()
        self.git("update-ref", f"refs/exps/{self.head[:2]}/{self.head[2:]}/{name}", made)
        self.git("reset", "-q", "--hard", self.head)

    def seed(self, seed: int, **changed: Any) -> None:
        params = {**PARAMS, "train": {**PARAMS["train"], "seed": seed}}
        given = {"params_yaml": params, "reports__metrics_json": metrics(seed), **changed}
        self.experiment(f"seed-{seed}", **given)


def environment() -> dict[str, str]:
    names = {
        f"GIT_{who}_{what}": "tester@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **names, "PATH": path, "GIT_CONFIG_GLOBAL": os.devnull}


def lock(**code: str) -> dict[str, Any]:
    """A lock of two stages: the second reads what the first wrote, which the seed may change.

    Comments in the code may change, too: they are in no program.
    """
    deps = [{"path": path, "md5": md5} for path, md5 in {"programs/train.json": "0", **code}.items()]
    wrote = [{"path": "reports/preflight.json", "md5": os.urandom(4).hex()}]
    told = {"deps": [{"path": "stages", "md5": os.urandom(4).hex()}], "outs": deps[:1]}
    stages = {"preflight": {"deps": deps, "outs": wrote}, "train": {"deps": [*deps, *wrote]}}
    return {"stages": {"program": told, **stages}}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    return Repository(tmp_path)


@pytest.fixture
def unrun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs are noted instead of made."""
    asked: list[int] = []
    monkeypatch.setattr(tool, "repeat", lambda seed, name: asked.append(seed))
    return asked


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["noise", *arguments])
    tool.main()


def test_values_by_seed_are_those_that_a_seed_moves(
    repository: Repository,
    unrun: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repository.seed(43)
    repository.seed(40, dvc_lock=lock(**{"data/noise.json": "1"}))
    main(monkeypatch, "--seeds", "43", "40")
    assert (unrun, capsys.readouterr().out.count("is there")) == ([], 2)
    found = files.read_json(noise.FILE)
    assert found == {
        "revision": repository.head,
        "seeds": [42, 43, 40],
        "facts": {
            "kinds": ["fix", "write"],
            "steps": 67,
            "trainable_parameters": None,
            "sizes": {"coding": 41},
        },
        "values": {"coding.pass_at_1.tuned": [0.042, 0.043, 0.04], "training.loss": [0.42, 0.43, 0.4]},
    }
    known = noise.known(noise.FILE, found["facts"])
    assert known.floors == {
        "coding.pass_at_1.tuned": pytest.approx(0.003),
        "training.loss": pytest.approx(0.03),
    }
    assert (
        "3 trainings" in known.words and "42, 43, 40" in known.words and repository.head[:10] in known.words
    )


def test_dvc_makes_the_experiment_and_leaves_the_tree_as_it_is(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [{"reports/metrics.json": {"cache": False}}]
    stage = {"cmd": "python stage.py", "deps": ["stage.py"], "params": ["train.seed"], "metrics": outs}
    repository.write({"dvc.yaml": {"stages": {"run": stage}}, "stage.py": STAGE, "conf/config.yaml": PARAMS})
    (repository.root / "dvc.lock").unlink()
    for command in ("init -q", "config hydra.enabled true", "repro -q"):
        subprocess.run(["dvc", *command.split()], check=True)
    repository.head = repository.commit()
    main(monkeypatch, "--seeds", "43")
    assert files.read_json(noise.FILE)["values"]["training.loss"] == [0.42, 0.43]
    assert "1 of 1: seed-43 is run" in capsys.readouterr().out
    assert repository.git("status", "--porcelain") == "?? data/"
    assert read_yaml(repository.root / "params.yaml") == PARAMS
    main(monkeypatch, "--seeds", "43")  # what is there is not run, so the tree need not be clean
    assert "1 of 1: seed-43 is there" in capsys.readouterr().out
    before = noise.FILE.read_bytes()
    with pytest.raises(
        PipelineError, match=r"^seed-13: dvc exp run .*train\.seed=13 .* ended with \d+; expected 0"
    ):
        main(monkeypatch, "--seeds", "43", "13")  # our own file does not make the tree unclean
    assert noise.FILE.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"params_yaml": PARAMS}, r"seed-43: train\.seed: 42; expected that of its name"),
        (
            {"params_yaml": {**PARAMS, "train": {"seed": 43, "rate": 0.2}}},
            r"seed-43: train\.rate: 0\.1 and 0\.2; expected another train\.seed",
        ),
        ({"dvc_lock": lock(**{"programs/train.json": "1"})}, r"seed-43: programs/train\.json: 0 and 1"),
        ({"dvc_lock": lock(**{"data/benchmarks": "1"})}, r"seed-43: data/benchmarks: None and 1; expected"),
        ({"reports__mix_json": {"kinds": {}}}, r"seed-43: kinds: \['fix', 'write'\] and \[\]; expected"),
        (
            {"reports__metrics_json": metrics(43, coding={"pass_at_1": {"tuned": 0.1}, "tasks": 9})},
            r"seed-43: sizes\.coding: 41 and 9; expected",
        ),
        (
            {"reports__metrics_json": metrics(43, coding={"tasks": 41})},
            r"seed 43: coding\.pass_at_1\.tuned is not in every reports/metrics\.json",
        ),
        ({"reports__metrics_json": "[1]"}, r"seed-43: reports/metrics\.json is '\[1\]'; expected one"),
        ({"dvc_lock": "a: [b"}, r"seed-43: dvc\.lock is 'a: \[b'; expected one mapping"),
    ],
)  # fmt: skip
def test_another_training_is_refused(
    changed: dict[str, Any], message: str, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.seed(43, **changed)
    with pytest.raises(PipelineError, match=message):
        main(monkeypatch, "--seeds", "43")
    assert not noise.FILE.exists()


def test_a_run_starts_from_what_is_committed_alone(
    repository: Repository, unrun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PipelineError, match=r"--seeds: 42; expected other seeds"):
        main(monkeypatch, "--seeds", "43", "42")
    with pytest.raises(PipelineError, match=r"^seed-43: no such experiment"):
        main(monkeypatch, "--seeds", "43")
    assert unrun == [43]
    repository.write({"stage.py": "1"})
    with pytest.raises(PipelineError, match=r"^\?\? stage\.py: not committed; expected a clean working tree"):
        main(monkeypatch, "--seeds", "43")
    assert unrun == [43]


def test_experiments_of_another_commit_do_not_count(
    repository: Repository, unrun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.seed(43)
    repository.write({"more": "1"})
    repository.commit()
    with pytest.raises(PipelineError, match=r"^seed-43: no such experiment"):
        main(monkeypatch, "--seeds", "43")
    assert unrun == [43]


def test_without_a_committed_run_nothing_is_measured(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository.root / "reports/metrics.json").unlink()
    repository.head = repository.commit()
    repository.seed(43)
    with pytest.raises(PipelineError, match=r"^HEAD: no reports/metrics\.json; expected a whole run"):
        main(monkeypatch, "--seeds", "43")


def test_outside_of_a_repository_git_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(PipelineError, match="git rev-parse: not a git repository"):
        main(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PipelineError, match="git: not found"):
        main(monkeypatch)
