"""A sweep: the same proposals whether killed or not, failures with their reasons, the best applied."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import ROOT, read_yaml, write_yaml
from test_noise import environment

from stages.common.errors import PipelineError
from tools import scatter, sweep

PARAMS = {"train": {"rate": 0.5, "rank": 8}, "mix": {"share": 0.2}, "report": {"enforce": True}}
SETTINGS = {
    "objective": {"file": "reports/train.json", "metric": "valid.*", "direction": "minimize"},
    "target": "train",
    "seed": 3,
    "startup": 2,
    "fixed": {},
    "space": {
        "train.rate": {"low": 0.01, "high": 1.0, "log": True},
        "train.rank": {"choices": [4, 8, 13]},
    },
}

# A training in miniature: a loss that is least at a rate of 0.1; rank 13 is refused, and `slow` waits.
STAGE = """
import json, pathlib, time, ruamel.yaml

chosen = ruamel.yaml.YAML(typ="safe").load(pathlib.Path("params.yaml"))["train"]
while pathlib.Path({slow!r}).exists():
    time.sleep(0.1)
if chosen["rank"] == 13:
    raise SystemExit("error: train.rank: 13; expected another")
loss = abs(chosen["rate"] - 0.1) + 1 / chosen["rank"]
pathlib.Path("reports").mkdir(exist_ok=True)
valid = {{"fix": loss, "write": 3 * loss}}
pathlib.Path("reports/train.json").write_text(json.dumps({{"valid": valid, "loss": 1.0}}))
"""
LATER = "import pathlib; pathlib.Path('reports/late.json').write_text('{\"late\": 1}')"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a committed run of two stages, of which the trials need the first."""
    root = tmp_path / "copy"
    root.mkdir()
    monkeypatch.chdir(root)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outs = [{"reports/train.json": {"cache": False}}]
    late = [{"reports/late.json": {"cache": False}}]
    stages = {
        "train": {"cmd": "python stage.py", "deps": ["stage.py"], "params": ["train"], "metrics": outs},
        "late": {"cmd": "python late.py", "deps": ["reports/train.json", "late.py"], "metrics": late},
    }
    write_yaml(root / "dvc.yaml", {"stages": stages})
    write_yaml(root / "conf/config.yaml", PARAMS)
    write_yaml(root / "conf/sweep.yaml", SETTINGS)
    write_yaml(root / "params.yaml", PARAMS)
    (root / "stage.py").write_text(STAGE.format(slow=str(tmp_path / "slow")))
    (root / "late.py").write_text(LATER)
    (root / ".gitignore").write_text("/.partial/\n")
    for command in ("git init -q -b main", "dvc init -q", "dvc config hydra.enabled true", "dvc repro -q"):
        subprocess.run(command.split(), check=True)
    commit()
    return root


def commit() -> None:
    for command in (["add", "-A"], ["commit", "-q", "-m", "Run"]):
        subprocess.run(["git", *command], check=True)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    sweep.main()


def trials(name: str = "sweep") -> list[tuple[dict[str, Any], float | None]]:
    return [(one.params, one.value) for one in sweep.counted(sweep.kept(name)[0])]


@pytest.fixture
def slow(repository: Path) -> Iterator[Path]:
    path = repository.parent / "slow"
    yield path
    path.unlink(missing_ok=True)  # lets a training that was left behind end


def test_a_killed_sweep_goes_on_as_if_it_had_not_been(
    repository: Path, slow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(monkeypatch, "--trials", "3", "--name", "whole")
    said = capsys.readouterr().out
    whole = trials("whole")
    assert len(whole) == 3 and not subprocess.check_output(["git", "status", "--porcelain"])
    refused = [place for place, (chosen, _) in enumerate(whole) if chosen["train.rank"] == 13]
    assert refused == [place for place, (_, value) in enumerate(whole) if value is None] != []
    assert said.count("failed: train.rank: 13; expected another (.partial/sweep/whole-") == 2 * len(refused)
    for chosen, value in whole:
        if value is not None:
            loss = abs(chosen["train.rate"] - 0.1) + 1 / chosen["train.rank"]
            assert value == pytest.approx(2 * loss)

    # the same again, killed while its second trial runs; what DVC knows of the trials is forgotten
    subprocess.run(["rm", "-r", ".dvc/cache"], check=True)
    main(monkeypatch, "--trials", "1")
    slow.touch()
    command = [sys.executable, "-m", "tools.sweep", "--trials", "3"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    log = Path(".partial/sweep/sweep-1.log")
    deadline = time.monotonic() + 60
    while not (log.exists() and "Running stage 'train'" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    slow.unlink()
    assert trials() == whole[:1]
    main(monkeypatch, "--trials", "3")
    assert trials() == whole
    main(monkeypatch, "--trials", "3")  # there is nothing left to do
    assert trials() == whole

    main(monkeypatch, "--apply")
    best = min((value, chosen) for chosen, value in whole if value is not None)[1]
    assert read_yaml(repository / "params.yaml")["train"] == {
        "rate": best["train.rate"],
        "rank": best["train.rank"],
    }
    assert read_yaml(repository / "params.yaml")["report"] == PARAMS["report"]
    assert Path(".partial/sweep/sweep.svg").read_text().endswith("</svg>\n")


def test_a_sweep_is_tied_to_its_commit_and_settings(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sweep, "execute", lambda name, chosen, values: (_ for _ in ()).throw(PipelineError("no"))
    )
    with pytest.raises(
        PipelineError, match=r"^sweep sweep: 5 trials in a row failed, the last: no; expected some"
    ):
        main(monkeypatch, "--trials", "9")
    assert len(trials()) == 5
    write_yaml(repository / "conf/sweep.yaml", {**SETTINGS, "seed": 4})
    with pytest.raises(PipelineError, match=r"^ M conf/sweep\.yaml: not committed; expected a clean"):
        main(monkeypatch, "--trials", "9")
    commit()
    with pytest.raises(
        PipelineError, match=r"^sweep sweep: commit: \w+ and \w+; expected what it began with"
    ):
        main(monkeypatch, "--trials", "9")
    with pytest.raises(PipelineError, match=r"^sweep sweep: no trial with a value; expected some"):
        main(monkeypatch, "--show")
    with pytest.raises(PipelineError, match=r"^sweep other: no \.partial/sweep/other\.journal; expected one"):
        main(monkeypatch, "--show", "--name", "other")
    subprocess.run(["git", "update-ref", *_reference("new-1"), "HEAD"], check=True)
    with pytest.raises(PipelineError, match=r"^new-1: an experiment of an earlier sweep; expected none"):
        main(monkeypatch, "--trials", "1", "--name", "new")


def _reference(name: str) -> list[str]:
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    return [f"refs/exps/{head[:2]}/{head[2:]}/{name}"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"space": {}}, r"^sweep\.space: \{\}; expected .* at least 1 item"),
        ({"space": {"a": {"low": 2, "high": 1}}}, r"^sweep\.space\.a.*low < high; found 2 and 1"),
        ({"space": {"a": {"low": 0, "high": 1, "log": True}}}, r"^sweep\.space\.a.*with log a low above 0"),
        ({"seed": -1}, r"^sweep\.seed: -1; expected greater than or equal to 0"),
        ({"speed": 1}, r"^sweep\.speed: 1; expected no such key"),
        ({"space": {"train.size": {"low": 1, "high": 2}}}, r"^space\.train\.size: no such parameter"),
        (
            {"objective": {**SETTINGS["objective"], "metric": "valid.none"}},
            r"^objective\.metric: valid\.none; expected numbers of reports/train\.json",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(
    changed: dict[str, Any], message: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_yaml(repository / "conf/sweep.yaml", {**SETTINGS, **changed})
    commit()
    with pytest.raises(PipelineError, match=message):
        main(monkeypatch, "--trials", "1")


def test_the_committed_settings_are_of_parameters_that_there_are() -> None:
    chosen = sweep.read(ROOT / "conf/sweep.yaml")
    flat = dict(sweep.revisions.flat(read_yaml(ROOT / "params.yaml")))
    assert chosen.space.keys() <= flat.keys()
    assert chosen.objective.file == "reports/train.json", "never a benchmark"
    report = json.loads((ROOT / "reports/train.json").read_text(encoding="utf-8"))
    assert len(sweep.measured(report, chosen.objective.metric)) == len(report["valid"]) > 1


def test_a_metric_may_stand_for_several_finite_numbers() -> None:
    report = {
        "valid": {"fix": 1.0, "write": 2, "odd": math.nan, "deep": {"fix": 3.0}},
        "name": "x",
        "yes": True,
    }
    assert sweep.measured(report, "valid.*") == {"valid.fix": 1.0, "valid.write": 2}
    assert sweep.measured(report, "valid.deep.fix") == {"valid.deep.fix": 3.0}
    assert sweep.measured(report, "*") == {}


def test_a_trial_that_comes_to_the_report_is_not_stopped_by_its_gates() -> None:
    chosen = sweep.validate(SETTINGS, "sweep", sweep.SweepParams)
    plain = sweep.command("a-1", chosen, {"train.rate": 1e-05, "train.kind": "x"})
    assert plain[-5:] == ["--set-param", "train.rate=1e-05", "--set-param", 'train.kind="x"', "train"]
    whole = sweep.validate({**SETTINGS, "target": None}, "sweep", sweep.SweepParams)
    assert sweep.command("a-1", whole, {})[-2:] == ["--set-param", "report.enforce=false"]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("Running\nerror: mix.rows: 9; expected 8\nERROR: no 'mix'\n", "mix.rows: 9; expected 8"),
        ("ERROR: disk full\n", "disk full"),
        ("Traceback\n  boom\nKilled\n\n", "Killed"),
        ("", "it said nothing"),
    ],
)  # fmt: skip
def test_the_reason_is_the_first_error(log: str, reason: str) -> None:
    assert sweep.failure(log) == reason


def test_the_picture_has_a_panel_a_parameter_and_a_mark_a_trial() -> None:
    dots = [
        scatter.Dot("a-0", {"rate": 0.001, "kind": "<x>"}, 1.0),
        scatter.Dot("a-1", {"rate": 0.1, "kind": "y"}, 0.5),
        scatter.Dot("a-2", {"rate": 0.01, "kind": "y"}, None),
    ]
    root = ElementTree.fromstring(scatter.drawn(dots, "a-1", "valid.*", ["rate"]))  # noqa: S314
    found = [one.get("class") for one in root.iter() if one.get("class") in ("best", "dot", "failed")]
    assert (found.count("best"), found.count("dot"), found.count("failed")) == (3, 3, 3)
    places, marks = scatter.scale([0.001, 0.1, 0.01], logarithmic=True)
    assert (places, [text for _, text in marks]) == ([0.0, 1.0, pytest.approx(0.5)], ["0.001", "0.01", "0.1"])
    assert scatter.scale([True, "a"], logarithmic=True)[1] == [(0.25, "True"), (0.75, "a")]
    assert scatter.drawn(dots[:1], "a-0", "m", []).count("<circle") == 3  # one trial is enough
