"""What several tests share: a tiny model, a project folder, parameters, and one run of the pipeline."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tools import hermetic, tiny
from tools.tiny import END, PAD, START, TEXTS
from tools.tiny import model as make_tiny_model
from tools.tiny import tokenizer as tiny_tokenizer

__all__ = ["END", "PAD", "START", "TEXTS", "make_tiny_model", "tiny_tokenizer"]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # a tiny model gains nothing by threads that wait for each other

ROOT = Path(__file__).resolve().parents[1]


PIPED = {f"tests/test_{name}.py" for name in ("smoke", "contracts", "branches", "remotes")}  # use `clone`


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process gets all tests of the whole pipeline's run, and one each file's others."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "pipeline" if file in PIPED else file

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in PIPED)


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def write_yaml(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    YAML(typ="safe").dump(value, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@cache
def composed(recipe: str = "v4", scale: str = "demo") -> str:
    """The parameters of a recipe at a scale, as YAML text, composed as DVC does it."""
    import tempfile

    from dvc.utils.hydra import compose_and_dump

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        compose_and_dump(path, str(ROOT / "conf"), None, "config", "", [f"recipe={recipe}", f"scale={scale}"])
        return path.read_text(encoding="utf-8")


def chosen(group: str) -> dict[str, Any]:
    """A fresh copy of one group of the default parameters."""
    return YAML(typ="safe").load(composed())[group]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


class Project:
    """A project folder in which a stage's `main` can be run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def params(self, **groups: Any) -> None:
        write_yaml(self.root / "params.yaml", {"program": chosen("program"), **groups})

    def base(self, model: Path) -> Path:
        """Put a model where `base` leaves it."""
        folder = self.root / "models/base"
        shutil.copytree(model, folder)
        manifest = {"uri": f"file:{model}", "licence": "Apache-2.0", "files": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    def run(self, stage: str, *arguments: str) -> None:
        """Run the stage's `main`; a PipelineError comes through."""
        self._call(importlib.import_module(f"stages.{stage}").main, stage, arguments)

    def command(self, stage: str, *arguments: str) -> int:
        """Run the stage as the command line does and return the exit status."""
        from stages.common.errors import run

        main = importlib.import_module(f"stages.{stage}").main
        try:
            self._call(lambda: run(main), stage, arguments)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def _call(self, function: Callable[[], None], stage: str, arguments: tuple[str, ...]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.root)
            patch.setattr(sys, "argv", [stage, *arguments])
            function()

    def files(self) -> dict[str, bytes]:
        """Every file and its content, hidden ones too."""
        paths = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# The whole pipeline at a tiny size. --------------------------------------------------------------------


class Clone:
    """A copy of this repository, with a tiny model and few rows, in which DVC can be run."""

    places: hermetic.Places  # where its stages were watched

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        self.scratch = scratch
        nowhere = "http://127.0.0.1:9"  # nothing listens there: whoever tries the network fails at once
        self.environment = tiny.environment(scratch) | {
            f"{scheme}_proxy": nowhere for scheme in ("http", "https", "all")
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)

    def checked(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"


@cache
def unwatched() -> str:
    """Why no stage can be watched on this machine; "" where it can be. A container may refuse it."""
    code = "import os; from tools import watching; watching.listen(); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def watched_or_skipped() -> None:
    """For tests of what stages did: skip them, with the reason, where nothing saw it."""
    if reason := unwatched():
        pytest.skip(f"the kernel watches nobody here: {reason}")


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The copy after its first `dvc repro`, whose stages were watched where the kernel can."""
    scratch = tmp_path_factory.mktemp("smoke")
    made = Clone(scratch / "copy", scratch)
    tiny.copy_repository(ROOT, made.root)
    tiny.shrink(made.root, YAML(typ="safe").load(composed()), make_tiny_model(scratch / "model"))
    tiny.commit(made.root, made.environment)
    usual = made.environment
    watched, made.places = hermetic.watched(made.root, scratch, usual)
    made.environment = usual if unwatched() else watched
    made.checked("dvc", "repro")
    made.environment = usual
    return made


@pytest.fixture(scope="session")
def committed(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the clone, with the run committed on the branch main."""
    scratch = tmp_path_factory.mktemp("shared")
    shutil.copytree(clone.root, scratch / "copy", symlinks=True)
    made = Clone(scratch / "copy", scratch)
    for command in (["branch", "-M", "main"], ["add", "-A"], ["commit", "-q", "-m", "Run"]):
        made.checked("git", *command)
    return made


def cloned(origin: Clone, scratch: Path) -> Clone:
    """What git gives to somebody else: no cache and no outputs."""
    origin.checked("git", "clone", "-q", str(origin.root), str(scratch / "copy"))
    return Clone(scratch / "copy", scratch)
