"""Training that is killed: whenever it happens, the next run ends with the bytes of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Project, write_rows
from test_train import EXAMPLES, prepare

from stages import train
from stages.common import checkpoints
from stages.common.records import to_row

# A process that has imported everything once, and forks a training for each line that it reads: "end" lets it
# come to its end, a number of seconds kills it then; KILL and TERM do so after three steps, FULL lets it
# write small files only. It answers with the exit status.
NURSERY = """
import os, pathlib, resource, signal, sys, time
import datasets, dvclive, peft, trl
from transformers import AutoTokenizer
from trl import SFTTrainer
from stages import train
from stages.common import callbacks, errors, finetuning

for line in sys.stdin:
    folder, moment = line.split()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.argv = ["train"]
        output = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 0
        if moment == "FULL":
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # less than a checkpoint's adapter
        try:
            errors.run(train.main)
        except SystemExit as end:
            status = end.code
        finally:
            sys.stdout.flush()
            os._exit(status)
    if moment in ("TERM", "KILL"):
        curve = pathlib.Path(folder, "reports/.train.part/plots/metrics/loss.tsv")
        while not curve.exists() or len(curve.read_text().splitlines()) < 4:
            time.sleep(0.01)
        os.kill(child, getattr(signal, "SIG" + moment))
    elif moment not in ("end", "FULL"):
        time.sleep(float(moment))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Trainings in processes of their own, which start without importing anything."""

    def __init__(self) -> None:
        # one thread: a pool of them does not survive a fork
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def train(self, root: Path, moment: str = "end") -> int:
        """Run a training, to its end or for some seconds; returns the exit status, -9 when killed."""
        assert self.process.stdin and self.process.stdout
        print(root, moment, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Any:
    made = Nursery()
    yield made
    made.process.communicate()


def prepared(root: Path, model: Path, **changes: Any) -> Project:
    """A project in which the tiny model is to be trained for 16 steps, with a checkpoint after each."""
    root.mkdir()
    project = Project(root)
    validation = {"steps": 4, "patience": None}
    changes = {"epochs": 8, "save_steps": 1, "keep": 2, "validation": validation, **changes}
    changes |= {"probe": {"steps": 5, "prompts": 2, "max_new_tokens": 4}}
    prepare(project, model, **changes)
    write_rows(root / "data/mixed/train.jsonl", map(to_row, EXAMPLES * 2))
    write_rows(root / "data/mixed/valid.jsonl", map(to_row, EXAMPLES[:3]))
    return project


def outputs(root: Path) -> dict[str, bytes]:
    """The adapter and the curves."""
    paths = [path for top in ("models/sft", "reports/train") for path in (root / top).rglob("*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


def timeless(root: Path) -> dict[str, Any]:
    """What training reports, without what the machine's speed decides."""
    report = json.loads((root / "reports/train.json").read_text(encoding="utf-8"))
    return {name: value for name, value in report.items() if name not in TIMINGS}


TIMINGS = ("seconds", "tokens_per_second", "peak_memory_mib")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, nursery: Nursery) -> Path:
    """A run that nothing disturbed, as the default recipe trains: quantised, with dropout and validations."""
    project = prepared(tmp_path_factory.mktemp("whole") / "run", tiny_model)
    assert nursery.train(project.root) == 0
    return project.root


def points(root: Path) -> list[Path]:
    """The complete checkpoints of the one run that has some, the newest first."""
    (folder,) = (root / train.PARTIAL).iterdir()
    return checkpoints.complete(folder)


def log(root: Path) -> str:
    return (root / "log").read_text(encoding="utf-8")


KILLS = 20


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, nursery: Nursery) -> float:
    """How long a run takes on this machine, as busy as it is."""
    project = prepared(tmp_path_factory.mktemp("timed") / "run", tiny_model)
    start = time.perf_counter()
    assert nursery.train(project.root) == 0
    return time.perf_counter() - start


def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    tmp_path: Path, tiny_model: Path, nursery: Nursery, whole: Path, seconds: float
) -> None:
    moments = random.Random(7)
    runs = kills = resumed = 0
    while kills < KILLS or resumed <= KILLS / 4:  # some are killed before their first checkpoint
        runs += 1
        project = prepared(tmp_path / str(runs), tiny_model)
        while nursery.train(project.root, f"{moments.uniform(0, seconds):.2f}") == -signal.SIGKILL:
            kills += 1
        assert outputs(project.root) == outputs(whole)
        assert timeless(project.root) == timeless(whole)
        assert list((project.root / train.PARTIAL).iterdir()) == []
        resumed += log(project.root).count("goes on from")


@pytest.fixture
def stopped(tmp_path: Path, tiny_model: Path, nursery: Nursery) -> Project:
    """A run that was killed when it had two checkpoints."""
    project = prepared(tmp_path / "run", tiny_model)
    assert nursery.train(project.root, "KILL") == -signal.SIGKILL
    assert len(points(project.root)) == 2
    return project


DAMAGES = {
    "a flipped bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "nothing": lambda path: path.unlink(),
}
HURT = ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "manifest.json")


def test_a_damaged_checkpoint_is_skipped_with_a_word(stopped: Project, nursery: Nursery, whole: Path) -> None:
    newest, older = points(stopped.root)
    for name in HURT:
        for damage, hurt in DAMAGES.items():
            content = (newest / name).read_bytes()
            hurt(newest / name)
            found = checkpoints.latest(newest.parent)
            assert found and found[0] == older, f"{damage} of {name}"
            (newest / name).write_bytes(content)
    DAMAGES["a flipped bit"](newest / "rng_state.pth")
    assert nursery.train(stopped.root) == 0
    assert f"{newest.name} is skipped" in log(stopped.root) and f"/{older.name}" in log(stopped.root)
    assert outputs(stopped.root) == outputs(whole)


@pytest.mark.parametrize("change", ["data", "parameter", "base"])
def test_what_has_changed_is_not_resumed(change: str, stopped: Project, nursery: Nursery) -> None:
    mixed = stopped.root / "data/mixed/train.jsonl"
    if change == "data":
        mixed.write_text(
            mixed.read_text(encoding="utf-8").replace("Say hello.", "Say hallo."), encoding="utf-8"
        )
    elif change == "base":
        manifest = stopped.root / "models/base/manifest.json"
        manifest.write_text(manifest.read_text(encoding="utf-8") + " ", encoding="utf-8")
    else:
        parameters = stopped.root / "params.yaml"
        text = parameters.read_text(encoding="utf-8")
        parameters.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.02"), encoding="utf-8")
        assert parameters.read_text(encoding="utf-8") != text
    before = log(stopped.root).count("goes on from")
    assert nursery.train(stopped.root) == 0
    assert log(stopped.root).count("goes on from") == before
    assert len(list((stopped.root / train.PARTIAL).iterdir())) == 1, "the other run's checkpoints stay"


def test_sigterm_saves_and_ends_and_the_next_run_goes_on(
    tmp_path: Path, tiny_model: Path, nursery: Nursery, whole: Path
) -> None:
    project = prepared(tmp_path / "run", tiny_model, save_steps=1000)
    status = nursery.train(project.root, "TERM")
    assert status == 2 and "stopped by SIGTERM after step" in log(project.root)
    assert len(points(project.root)) == 1
    assert nursery.train(project.root) == 0
    assert "goes on from" in log(project.root)
    assert outputs(project.root) == outputs(whole)


def test_a_full_disk_is_told_and_costs_nothing(
    tmp_path: Path, tiny_model: Path, nursery: Nursery, whole: Path
) -> None:
    project = prepared(tmp_path / "run", tiny_model)
    assert nursery.train(project.root, "FULL") == 2
    assert "expected a writable folder with room for a checkpoint" in log(project.root)
    assert "Traceback" not in log(project.root)
    assert not (project.root / "models/sft").exists()
    assert [path.name for path in (project.root / "reports").iterdir()] == ["preflight.json"]
    assert nursery.train(project.root) == 0
    assert outputs(project.root) == outputs(whole)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, tiny_model: Path, nursery: Nursery) -> None:
    project = prepared(tmp_path / "run", tiny_model)
    (project.root / ".partial").write_text("a file", encoding="utf-8")
    assert nursery.train(project.root) == 2
    assert "expected a writable folder" in log(project.root) and "Traceback" not in log(project.root)


DEMO = ("models/base", "data/mixed", "params.yaml", "conf", "reports/preflight.json")


@pytest.mark.full
def test_the_demo_s_own_training_killed_three_times_ends_with_the_same_adapter(tmp_path: Path) -> None:
    if not (ROOT / "models/sft").exists() or not (ROOT / "data/mixed").exists():
        pytest.skip("NOT TESTED ON THE DEMO MODEL: models/sft is absent; run the pipeline first (make repro)")
    for name in DEMO:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    report = json.loads((ROOT / "reports/train.json").read_text(encoding="utf-8"))
    steps, threads = report["steps"], report["environment"]["threads"]  # another number sums in another order
    save_steps = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["train"]["save_steps"]
    assert 3 * save_steps + 1 < steps, "a checkpoint before each of three kills, and another one between them"
    moments = random.Random(11)
    for checkpoint in (save_steps, 2 * save_steps, 3 * save_steps):
        step = moments.randrange(checkpoint + 1, min(checkpoint + save_steps, steps))
        with trained(tmp_path, threads) as process:
            while process.poll() is None and logged(tmp_path) < step:
                time.sleep(0.05)
            time.sleep(moments.uniform(0, 5))  # in the middle of what a step does
            process.kill()
        assert process.returncode == -signal.SIGKILL
    with trained(tmp_path, threads) as process:
        assert process.wait() == 0
    assert log(tmp_path).count("goes on from") == 3
    name = "models/sft/adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def trained(root: Path, threads: int) -> subprocess.Popen[bytes]:
    """The stage's own process in a folder, which writes to `log` there."""
    with (root / "log").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "stages.train"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
            stdout=output,
            stderr=output,
        )


def logged(root: Path) -> int:
    """How many steps a run has told the loss of."""
    curve = root / "reports/.train.part/plots/metrics/loss.tsv"
    return len(curve.read_text(encoding="utf-8").splitlines()) - 1 if curve.exists() else 0
