"""Training in several processes: the result of one, ended by one, written by one; two on CPUs, by gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project, chosen, write_rows
from test_train import EXAMPLES, prepare, settings

from stages import train
from stages.common import checkpoints, launching
from stages.common.errors import PipelineError
from stages.common.records import to_row

# What Python runs first in every process. It notes what each rank opens for writing in the project, and lets
# accelerate shard on CPUs: it knows FSDP on GPUs alone, so it is told that gloo's processes have some.
SITE = """
import importlib.abc, importlib.util, json, os, sys

if "LOCAL_RANK" in os.environ and "WATCHED" in os.environ:
    root = os.getcwd() + os.sep
    log = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def watch(event, arguments):
        if event == "open" and isinstance(arguments[0], str | bytes):
            written = set(arguments[1] or "") & set("wax+") or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        else:
            written = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        path = os.path.abspath(os.fsdecode(arguments[0])) if written else ""
        if path.startswith(root):
            os.write(log, (json.dumps([int(os.environ["RANK"]), path.removeprefix(root)]) + "\\n").encode())

    sys.addaudithook(watch)


def pretend(module):
    state, kinds = module.PartialState, module.DistributedType
    begin = state.__init__

    def init(self, *arguments, **options):
        fresh = not state._shared_state
        begin(self, *arguments, **options)
        if fresh and self.distributed_type == kinds.MULTI_CPU:
            self.distributed_type = kinds.MULTI_GPU

    state.__init__ = init


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "accelerate.state":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), pretend(module))
        return spec


if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a command that trains in two processes."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    paths = os.pathsep.join((str(site), str(ROOT)))
    return {**os.environ, "PYTHONPATH": paths, "NPROC_PER_NODE": "2", "WATCHED": str(site / "watched.jsonl")}


# Training. ----------------------------------------------------------------------------------------------


def prepared(root: Path, model: Path, launcher: str, dropout: float = 0.0) -> Project:
    """A project in which the tiny model is to be trained for 16 steps of 4 rows, each with a checkpoint."""
    root.mkdir()
    project = Project(root)
    adapter = {**chosen("train")["adapter"], "dropout": dropout}
    changes: dict[str, Any] = {"batch_size": 2, "accumulation": 2, "epochs": 8, "save_steps": 1, "keep": 2}
    changes |= {"validation": {"steps": 4, "patience": None}}
    changes |= {"probe": {"steps": 5, "prompts": 2, "max_new_tokens": 4}}
    prepare(project, model, launcher=launcher, adapter=adapter, **changes)
    write_rows(root / "data/mixed/train.jsonl", map(to_row, EXAMPLES * 2))
    write_rows(root / "data/mixed/valid.jsonl", map(to_row, EXAMPLES[:3]))
    return project


class Started:
    """`python -m stages.train` in a project, as DVC starts it."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        with (root / "log").open("ab") as log:
            command = [sys.executable, "-m", "stages.train"]
            self.process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)

    def after(self, step: int) -> "Started":
        """Wait until the curve has this many steps."""
        curve = self.root / "reports/.train.part/plots/metrics/loss.tsv"
        while not curve.exists() or len(curve.read_text(encoding="utf-8").splitlines()) <= step:
            assert self.process.poll() is None, log(self.root)
            time.sleep(0.02)
        return self

    def ranks(self) -> dict[int, int]:
        """The process id of each rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        named = {int(child): Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
        return {
            int(name.removeprefix(b"RANK=")): child
            for child, names in named.items()
            for name in names
            if name.startswith(b"RANK=")
        }

    def ends(self) -> int:
        return self.process.wait(timeout=120)


def log(root: Path) -> str:
    return (root / "log").read_text(encoding="utf-8")


def trained(project: Project, environment: dict[str, str]) -> Path:
    """Train to the end; returns the project's folder."""
    status = Started(project.root, environment).ends()
    assert status == 0, log(project.root)
    return project.root


def outputs(root: Path) -> dict[str, bytes]:
    """The adapter and the curves."""
    paths = [path for top in ("models/sft", "reports/train") for path in (root / top).rglob("*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


def report(root: Path) -> dict[str, Any]:
    return json.loads((root / "reports/train.json").read_text(encoding="utf-8"))


def losses(root: Path) -> list[float]:
    lines = (root / "reports/train/plots/metrics/loss.tsv").read_text(encoding="utf-8").splitlines()
    return [float(line.split("\t")[1]) for line in lines[1:]]


def adapter(root: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(root / "models/sft/adapter_model.safetensors")


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def end_together(pids: dict[int, int]) -> None:
    for _ in range(100):
        if all(gone(pid) for pid in pids.values()):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {pids}")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """One process, to compare with."""
    project = prepared(tmp_path_factory.mktemp("one") / "run", tiny_model, "single")
    project.run("train")
    return project.root


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, environment: dict[str, str]) -> Path:
    return trained(prepared(tmp_path_factory.mktemp("ddp") / "run", tiny_model, "ddp"), environment)


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, environment: dict[str, str]) -> Path:
    return trained(prepared(tmp_path_factory.mktemp("fsdp2") / "run", tiny_model, "fsdp2"), environment)


@pytest.mark.parametrize(("launcher", "near"), [("ddp", 1e-4), ("fsdp2", 5e-3)])
def test_two_processes_end_as_one_does(
    launcher: str, near: float, one: Path, request: pytest.FixtureRequest
) -> None:
    """The same rows in every optimizer step, so the same losses; FSDP2 rounds otherwise, without autocast."""
    import torch

    root: Path = request.getfixturevalue(launcher)
    assert losses(root)[:2] == pytest.approx(losses(one)[:2], rel=1e-6), "before rounding adds up"
    assert losses(root) == pytest.approx(losses(one), rel=near)
    theirs, ours = adapter(root), adapter(one)
    assert {name: one.shape for name, one in theirs.items()} == {
        name: one.shape for name, one in ours.items()
    }
    flat = [torch.cat([tensors[name].flatten() for name in sorted(ours)]) for tensors in (theirs, ours)]
    assert (flat[0] - flat[1]).norm() <= 4 * near * flat[1].norm()
    for name in ("steps", "tokens", "trainable_parameters", "truncated"):
        assert report(root)[name] == report(one)[name]
    assert report(root)["valid_loss"] == pytest.approx(report(one)["valid_loss"], rel=0.02)
    assert [report(root)["processes"], report(one)["processes"]] == [2, 1]


def test_only_the_first_process_writes(ddp: Path, environment: dict[str, str]) -> None:
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    for line in Path(environment["WATCHED"]).read_text(encoding="utf-8").splitlines():
        number, path = json.loads(line)
        seen[number].add(path.split("/checkpoint-")[0])
    assert {path for path in seen[1] if not path.startswith(".partial/train/")} == set()
    assert any(path.startswith("models/.sft.part") for path in seen[0])
    assert any(path.startswith("reports/.train.part") for path in seen[0])
    text = log(ddp)
    assert text.count("train: 8 examples") == text.count("train: loss") == 1
    assert list((ddp / train.PARTIAL).iterdir()) == []


def test_probes_are_asked_and_written_once(fsdp2: Path, one: Path) -> None:
    rows = [(root / "reports/train/probe.jsonl").read_text(encoding="utf-8") for root in (fsdp2, one)]
    shown = [
        [(json.loads(line)["step"], json.loads(line)["id"]) for line in row.splitlines()] for row in rows
    ]
    assert shown[0] == shown[1] != []


def test_killed_together_and_alone_it_ends_with_the_same_bytes(
    tmp_path: Path, tiny_model: Path, environment: dict[str, str]
) -> None:
    """With dropout, so that the random state of every rank has to come back."""
    whole = trained(prepared(tmp_path / "whole", tiny_model, "ddp", 0.1), environment)
    project = prepared(tmp_path / "killed", tiny_model, "ddp", 0.1)
    first = Started(project.root, environment).after(4)
    ranks = first.ranks()
    first.process.kill()
    assert first.ends() == -signal.SIGKILL
    end_together(ranks)
    (kept,) = (project.root / train.PARTIAL).iterdir()
    (newest, _) = checkpoints.latest(kept) or (None, None)
    assert newest and {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in newest.iterdir()}

    second = Started(project.root, environment).after(9)
    ranks = second.ranks()
    os.kill(ranks[1], signal.SIGKILL)
    assert second.ends() == 2
    end_together(ranks)
    assert "error: rank 1: ended by SIGKILL" in log(project.root)
    assert log(project.root).count("error: ") == 1 and "Traceback" not in log(project.root)
    assert not (project.root / "models/sft").exists()

    trained(project, environment)
    assert log(project.root).count("goes on from") == 2
    assert outputs(project.root) == outputs(whole)


def test_sharded_killed_and_then_stopped_it_ends_with_the_same_bytes(
    tmp_path: Path, tiny_model: Path, environment: dict[str, str], fsdp2: Path
) -> None:
    project = prepared(tmp_path / "run", tiny_model, "fsdp2")
    first = Started(project.root, environment).after(3)
    ranks = first.ranks()
    first.process.kill()
    assert first.ends() == -signal.SIGKILL
    end_together(ranks)

    second = Started(project.root, environment).after(8)
    ranks = second.ranks()
    second.process.terminate()
    assert second.ends() == 2
    end_together(ranks)
    assert "error: train: stopped by SIGTERM after step" in log(project.root)

    trained(project, environment)
    assert log(project.root).count("goes on from") == 2
    assert outputs(project.root) == outputs(fsdp2)


# The processes, without a training. ---------------------------------------------------------------------

WORK = """
import os, pathlib, signal, sys, time
from stages.common import launching
from stages.common.errors import PipelineError, run

def main():
    with launching.member("ddp"):
        number = launching.rank()
        pathlib.Path(f"begun-{number}").write_text(str(os.getpid()))
        print(f"rank {number} speaks")
        todo = sys.argv[1 + number] if len(sys.argv) > 2 else sys.argv[1]
        if todo == "refuse":
            raise PipelineError(f"rank {number}: refused; expected otherwise")
        if todo == "break":
            raise ValueError(f"rank {number} broke")
        if todo == "vanish":
            os.kill(os.getpid(), signal.SIGKILL)
        if todo == "exit":
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        if todo == "meet":
            import torch.distributed
            torch.distributed.init_process_group("gloo")
            launching.wait()
            found = launching.anyone(number == 1), launching.anyone(False)
            launching.agree("this", "value")
            pathlib.Path(f"found-{number}").write_text(repr(found))
            launching.agree("the rank", str(number))
        if todo == "save":
            signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(f"saved-{number}").touch(), sys.exit(0)))
        if todo != "end":
            time.sleep(60)

run(main)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that does in each rank what its argument says."""
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    yield tmp_path
    pids = {number: int(path.read_text()) for number, path in enumerate(tmp_path.glob("begun-*"))}
    end_together(pids)


def launched(monkeypatch: pytest.MonkeyPatch, *todo: str) -> None:
    monkeypatch.setattr(sys, "argv", ["work", *todo])
    launching.launch("ddp", "work")


def test_processes_that_end_well_end_the_launch_and_one_speaks(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launched(monkeypatch, "end")
    assert sorted(path.name for path in work.glob("begun-*")) == ["begun-0", "begun-1"]
    assert capfd.readouterr().out.splitlines() == [
        "train: 2 processes by conf/launch/ddp.yaml",
        "rank 0 speaks",
    ]


@pytest.mark.parametrize(
    ("todo", "message"),
    [
        (("wait", "refuse"), r"^rank 1: refused; expected otherwise$"),
        (("refuse", "wait"), r"^rank 0: refused; expected otherwise$"),
        (("refuse", "refuse"), r"^rank [01]: refused; expected otherwise$"),
        (("break", "refuse"), r"^rank 1: refused; expected otherwise$"),
        (("wait", "vanish"), r"^rank 1: ended by SIGKILL; expected it to run on"),
        (("break", "vanish"), r"^rank 1: ended by SIGKILL; expected it to run on"),
    ],
)
def test_one_that_fails_ends_all_with_its_message(
    todo: tuple[str, str], message: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PipelineError, match=message):
        launched(monkeypatch, *todo)


@pytest.mark.parametrize(("todo", "told"), [("break", "ValueError: rank 1 broke"), ("exit", "last words")])
def test_an_unexpected_end_is_told_with_what_was_said(
    todo: str, told: str, work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        launched(monkeypatch, "wait", todo)
    assert ended.value.code == 1
    shown = capfd.readouterr().err
    assert shown.startswith("rank 1:\n") and told in shown


@pytest.mark.parametrize(
    ("signals", "status", "saved"), [(["TERM"], 0, 2), (["INT"], 0, 2), (["KILL"], -signal.SIGKILL, 0)]
)
def test_a_signal_to_the_launcher_reaches_all(
    signals: list[str], status: int, saved: int, work: Path
) -> None:
    command = "import sys; sys.argv = ['work', 'save']; from stages.common import launching as l; "
    process = subprocess.Popen([sys.executable, "-c", command + "l.launch('ddp', 'work')"])
    while len(list(work.glob("begun-*"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)  # until both have set what a signal does
    for name in signals:
        process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(timeout=30) == status
    assert len(list(work.glob("saved-*"))) == saved


def test_launchers_of_two_machines_meet_and_their_processes_agree(work: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = "import sys; sys.argv = ['work', 'meet']; from stages.common import errors, launching as l; "
    command += "errors.run(lambda: l.launch('nodes_ddp', 'work'))"
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NPROC_PER_NODE": "1"}
    launchers = [
        subprocess.Popen(
            [sys.executable, "-c", command],
            env={**os.environ, **given, "NODE_RANK": str(node)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (1, 0)
    ]
    for process in launchers:
        told = process.communicate(timeout=60)[1].splitlines()[-1]
        assert told.startswith("error: the rank: 0 of rank 0 and 1 of rank 1; expected the same")
        assert process.returncode == 2
    assert [(work / f"found-{number}").read_text() for number in (0, 1)] == ["(True, False)"] * 2


# What may be asked for. ---------------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch, launcher: str, gpus: int, **environment: str) -> launching.Group:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    return launching.group(launcher, "stages.train", environment)


NODE = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
SHIPPED: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "ddp": ({}, {}),
    "fsdp2": ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}),
    "zero2": ({}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
    "zero3": ({}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
    "nodes_ddp": (NODE, {}),
    "nodes_fsdp2": (NODE, {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}),
}


def test_every_file_but_that_of_one_process_is_a_launcher() -> None:
    files = {path.stem for path in launching.FOLDER.glob("*.yaml")}
    assert files == {*SHIPPED, launching.SINGLE} and chosen("train")["launcher"] == launching.SINGLE


@pytest.mark.parametrize("launcher", SHIPPED)
def test_a_file_becomes_the_environment_of_accelerate(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "find_spec", lambda name: name)  # as if DeepSpeed were there
    given, expected = SHIPPED[launcher]
    found = asked(monkeypatch, launcher, 4, **given)
    assert expected.items() <= found.environment.items()
    assert ("ACCELERATE_USE_FSDP" in found.environment) == ("fsdp" in launcher)
    assert "ACCELERATE_USE_CPU" not in found.environment
    where = (8, 4, "10.0.0.1", launching.PORT) if given else (4, 0, "127.0.0.1", 0)
    assert (found.world, found.first, found.address, found.port) == where and found.local == 4


def test_without_gpus_the_processes_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "ddp", 0, NPROC_PER_NODE="2").environment["ACCELERATE_USE_CPU"] == "true"


@pytest.mark.parametrize(
    ("launcher", "gpus", "environment", "message"),
    [
        (
            "fsdp3",
            2,
            {},
            r"train\.launcher: fsdp3; expected one of conf/launch: ddp, .*zero3 \(params\.yaml\)",
        ),
        ("ddp", 0, {}, r"train\.launcher: ddp with 0 visible GPUs; expected 2 or more"),
        ("ddp", 1, {}, r"train\.launcher: ddp with 1 visible GPUs; expected 2 or more"),
        ("ddp", 2, {"NPROC_PER_NODE": "4"}, r"ddp\.yaml: 4 processes for 2 visible GPUs; expected one each"),
        ("ddp", 2, {"NPROC_PER_NODE": "two"}, r"NPROC_PER_NODE: 'two'; expected a whole number from 1"),
        ("zero3", 2, {}, r"zero3 needs deepspeed, which is not installed; .*\(pip install deepspeed\)"),
        ("nodes_ddp", 2, {"NODE_RANK": "0"}, r"2 machines; expected NODE_RANK and MASTER_ADDR"),
        ("nodes_ddp", 2, {**NODE, "NODE_RANK": "2"}, r"NODE_RANK: 2; expected less than the 2 machines"),
        ("nodes_ddp", 2, {**NODE, "MASTER_PORT": "-1"}, r"MASTER_PORT: '-1'; expected a whole number from 1"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    launcher: str, gpus: int, environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PipelineError, match=message):
        asked(monkeypatch, launcher, gpus, **environment)


@pytest.mark.parametrize(
    "text", ["distributed_type: MULTI_GPU\nspeed: 3\n", "distributed_type: SOME\n", "a: [", "", "- 1\n"]
)
def test_a_file_that_accelerate_refuses_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(launching, "FOLDER", tmp_path)
    with pytest.raises(PipelineError, match=r"^conf/launch/mine\.yaml: .+; expected"):
        asked(monkeypatch, "mine", 2)


@pytest.mark.parametrize("launcher", ["../ddp", "", "a b"])
def test_a_launcher_is_a_plain_name(launcher: str, project: Project) -> None:
    project.params(train=settings(launcher=launcher))
    with pytest.raises(PipelineError, match=r"expected letters, digits"):
        project.run("train")


def test_what_would_give_each_process_other_rows_is_refused(project: Project) -> None:
    project.params(train=settings(launcher="ddp", sampling="group_by_length"))
    with pytest.raises(PipelineError, match=r"sampling group_by_length with several processes"):
        project.run("train")


def test_an_optimizer_step_keeps_its_rows_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launching.share(3) == 3
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launching.share(4) == 2
    with pytest.raises(PipelineError, match=r"train\.accumulation: 3 for 2 processes; expected a multiple"):
        launching.share(3)


def test_several_processes_of_a_launcher_for_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = pytest.raises(PipelineError, match=r"train\.launcher: single in 2 processes")
    with refused, launching.member("single"):
        raise AssertionError("it must not begin")
