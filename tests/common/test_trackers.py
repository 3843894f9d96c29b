"""Trackers: what DVCLive is told, once for every step however often a run was stopped, and nothing else."""

import csv
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Project, chosen
from test_train import settings, trained

from stages import train
from stages.common import trackers
from stages.common.errors import PipelineError
from stages.common.finetuning import TrainParams
from stages.common.params import validate

KEY = "0123456789abcdef" * 2
BOTH = ("tensorboard", "wandb")


def logs(*steps: int) -> list[dict[str, Any]]:
    """What a trainer logs in these steps, with a validation in every second."""
    validations = ({"step": step, "eval_fix_loss": step + 0.25} for step in steps if step % 2 == 0)
    losses = [{"step": step, "loss": 1 / step, "learning_rate": 0.5, "epoch": 0.1} for step in steps]
    return sorted([*losses, *validations], key=lambda log: log["step"])


def follow(
    entries: Sequence[dict[str, Any]], history: Sequence[dict[str, Any]] = (), first: bool = True
) -> None:
    """Let the trackers see a training that has logged `history` before it goes on with `entries`."""
    import wandb

    state = SimpleNamespace(is_world_process_zero=first, log_history=list(history))
    with trackers.tracking(BOTH, KEY, {"rank": 16}) as told:
        told.on_train_begin(None, state, None)
        for entry in entries:
            state.log_history.append(entry)
            told.on_log(None, state, None)
    wandb.teardown()  # as at the end of a process: its service writes all that it has, and ends


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard shows: steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        name: [(point.step, point.value) for point in found.Scalars(name)] for name in found.Tags()["scalars"]
    }


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run, by W&B's own reader."""
    from wandb.proto import wandb_internal_pb2 as protocol
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = protocol.Record()
        record.ParseFromString(data)
        yield record


def history(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of an offline run: steps and values by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                found.setdefault(item.nested_key[0], []).append(
                    (record.history.step.num, float(item.value_json))
                )
    return {name: points for name, points in found.items() if not name.startswith("_")}


@pytest.fixture(autouse=True)
def nobody_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, and a proxy that must not be called."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for scheme in ("http", "https", "all"):
            for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        yield
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_run_that_goes_on_is_one_run_with_every_step_once(tmp_path: Path) -> None:
    follow(logs(1, 2, 3, 4, 5))
    follow(logs(4, 5, 6), history=logs(1, 2, 3))  # stopped after 5, with a checkpoint after 3
    runs = sorted((tmp_path / "runs/wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in runs] == [f"run-{KEY}.wandb"] * 2
    assert [path.name for path in (tmp_path / "runs/tensorboard").iterdir()] == [KEY]
    expected = {
        "loss": [(step, 1 / step) for step in range(1, 7)],
        "learning_rate": [(step, 0.5) for step in range(1, 7)],
        "valid/fix": [(step, step + 0.25) for step in (2, 4, 6)],
    }
    assert history(runs[-1]) == expected
    shown = events(tmp_path / "runs/tensorboard" / KEY)
    assert {
        name: [(step, pytest.approx(value)) for step, value in points] for name, points in shown.items()
    } == (expected)


def outputs(root: Path) -> dict[str, bytes]:
    """What a training leaves for the stages after it, but for its seconds."""
    tops = ("models/sft", "reports/train")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for top in tops
        for path in (root / top).rglob("*")
        if path.is_file()
    }


def test_a_tracked_training_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path, tiny_model: Path) -> None:
    import wandb

    changes: dict[str, Any] = {"repeat": 2, "epochs": 2, "validation": {"steps": 2, "patience": None}}
    without = trained(tmp_path / "without", tiny_model, **changes, trackers=[])
    tracked = trained(tmp_path / "tracked", tiny_model, **changes, trackers=list(BOTH))
    wandb.teardown()
    assert outputs(tracked.root) == outputs(without.root)
    assert {path.name for path in tracked.root.iterdir()} - {
        path.name for path in without.root.iterdir()
    } == {"runs"}
    curves = {}
    for path in (tracked.root / "reports/train/plots/metrics").rglob("*.tsv"):
        with path.open(encoding="utf-8") as stream:
            points = [
                (int(row["step"]), float(row[path.stem])) for row in csv.DictReader(stream, delimiter="\t")
            ]
        curves[str(path.relative_to(tracked.root / "reports/train/plots/metrics").with_suffix(""))] = points
    assert {name: len(points) for name, points in curves.items()} == {
        **dict.fromkeys(("loss", "token_accuracy", "entropy", "learning_rate"), 4),
        "valid/write": 2,
    }
    (run,) = (tracked.root / "runs/wandb").glob("offline-run-*/*.wandb")
    assert history(run) == curves
    (folder,) = (tracked.root / "runs/tensorboard").iterdir()
    assert run.name == f"run-{folder.name}.wandb"
    assert {
        name: [(step, pytest.approx(value)) for step, value in points]
        for name, points in events(folder).items()
    } == (curves)


def test_nothing_of_the_machine_is_told(tmp_path: Path) -> None:
    follow(logs(1, 2))
    (path,) = (tmp_path / "runs/wandb").glob("offline-run-*/*.wandb")
    run = next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, run.run_id, run.host) == ("coder-agent", KEY[:8], KEY, "")
    config = {item.key: item.value_json for item in run.config.update if not item.key.startswith("_")}
    assert config == {"rank": "16"}
    kinds = {record.WhichOneof("record_type") for record in records(path)}
    assert kinds == {"header", "run", "telemetry", "summary", "history", "exit"}, (
        "no files, no console, no stats"
    )
    assert not list((path.parent / "files").iterdir())
    assert str(Path.home()).encode() not in path.read_bytes()
    assert str(tmp_path).encode() not in path.read_bytes()


def test_only_the_first_process_tells(tmp_path: Path) -> None:
    follow(logs(1, 2), first=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("offline", None, "coder-agent")),
        ({"WANDB_API_KEY": "x" * 40}, ("online", "allow", "coder-agent")),
        (
            {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline", "WANDB_PROJECT": "mine"},
            ("offline", None, "mine"),
        ),
    ],
)
def test_only_a_key_brings_it_online_and_a_refusal_is_one_line(
    environment: dict[str, str], expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    asked: list[Any] = []

    def init(**given: Any) -> None:
        asked.append((given["mode"], given["resume"], given["project"]))
        raise wandb.errors.CommError("no answer")

    monkeypatch.setattr(wandb, "init", init)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        PipelineError, match=r"^train\.trackers: wandb: no answer; expected .*WANDB_MODE=offline"
    ):
        follow(logs(1))
    assert asked == [expected]


@pytest.mark.parametrize("stage", ["preflight", "train"])
@pytest.mark.parametrize("name", BOTH)
def test_a_tracker_that_is_not_installed_is_named_before_all_else(
    stage: str, name: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers.check(BOTH)
    monkeypatch.setattr(trackers, "find_spec", lambda module: None if module == name else True)
    project.params(preflight=chosen("preflight"), train=settings(trackers=list(BOTH)))
    with pytest.raises(PipelineError, match=rf"^train\.trackers: {name} is not installed; expected"):
        project.run(stage)


def test_a_run_that_was_killed_goes_on_with_other_trackers() -> None:
    both, none = (validate(settings(trackers=names), "train", TrainParams) for names in (list(BOTH), []))
    assert train.settings(both) == train.settings(none)
    assert train.settings(none)["seed"] == none.seed
