"""What is damaged is named and mended; what is absent, edited or of another run is told apart."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pipeline
import pytest
from conftest import Clone
from pipeline import flipped, quietly

from bench import faults
from stages.common import checkpoints, integrity
from stages.common.errors import PipelineError
from tools import verify

SAID = " not as recorded"
Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The pipeline after its first run, and a training that was killed."""
    made = pipeline.finish(tmp_path_factory.mktemp("verify"))
    point = made.root / verify.CHECKPOINTS / "key/checkpoint-3"
    point.mkdir(parents=True)
    for name in ("weights", "state.json"):
        (point / name).write_text(name * 100, encoding="utf-8")
    checkpoints.seal(point, 3, {})
    (made.root / ".gitignore").write_text("used.txt\n.partial\n", encoding="utf-8")
    made.checked("git", "commit", "-q", "-a", "-m", "Ignore")
    return made


@pytest.fixture
def clone(finished: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A copy of it, in which we are."""
    made = pipeline.copied(finished, tmp_path)
    monkeypatch.chdir(made.root)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def command(clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m tools.verify`: its exit status, and what it says."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["verify", *arguments])
        with pytest.raises(SystemExit) as end:
            verify.main()
        return int(end.value.code or 0), capsys.readouterr().out

    return run


def locked(path: str) -> str:
    """The md5 that dvc.lock has of an output."""
    known = integrity.stages(integrity.parse(integrity.PIPELINE), integrity.parse(integrity.PARAMS))
    return next(out.md5 for out in integrity.outs(integrity.parse(integrity.LOCK), known) if out.path == path)


def stored(md5: str) -> Path:
    """Where the cache has an object."""
    return Path(".dvc/cache/files/md5", md5[:2], md5[2:])


PLACES: dict[str, tuple[Callable[[], Path], str]] = {
    "output": (lambda: Path("data/one.txt"), "as write@one wrote it"),
    "file of a folder": (lambda: Path("models/base/deep/more"), "as base wrote it"),
    "output in git": (lambda: Path("card.txt"), "as card wrote it"),
    "object": (lambda: stored(locked("data/two.txt")), "its name (data/two.txt of write@two)"),
    "object of a file of a folder": (
        lambda: stored(integrity.md5("models/base/weights")),
        "its name (models/base/weights of base)",
    ),
    "list of a folder": (lambda: stored(locked("models/base")), "its name (models/base of base)"),
    "checkpoint": (lambda: verify.CHECKPOINTS / "key/step-3/weights", "bytes have changed"),
    "entry of the run cache": (
        lambda: min(path for path in Path(".dvc/cache/runs").rglob("*") if path.is_file()),
        "of the run cache",
    ),
}


def test_a_sound_run_has_nothing_to_say(command: Command) -> None:
    status, said = command()
    assert status == 0
    assert said.count("\n") == 1 and f" 0{SAID}" in said


@pytest.mark.parametrize("place", PLACES)
def test_damage_is_named_and_mended(place: str, clone: Clone, command: Command) -> None:
    find, words = PLACES[place]
    path = find()
    sound = path.read_bytes()
    quietly(path, flipped)
    status, said = command()
    assert status == 1 and f" 1{SAID}" in said
    assert str(path) in said.splitlines()[0] and words in said.splitlines()[0]
    status, said = command("--mend")
    assert status == 0 and "1 not as recorded, 0 left" in said
    if place in ("checkpoint", "entry of the run cache"):
        assert not path.exists() and "removed" in said
    else:
        assert path.read_bytes() == sound and "taken from" in said
        assert path.stat().st_mode & 0o777 == (0o444 if ".dvc" in path.parts else 0o644)
    assert command()[0] == 0
    assert clone.checked("dvc", "status", "--json").strip() == "{}"


def test_what_is_damaged_everywhere_is_made_again(clone: Clone, command: Command) -> None:
    """`dvc repro -f` alone would put the damaged object in the place of what the stage writes."""
    output, kept = Path("data/one.txt"), stored(locked("data/one.txt"))
    sound = output.read_bytes()
    for path in (output, kept):
        quietly(path, flipped)
    clone.checked("dvc", "repro", "-f", "-s", "write@one")
    assert output.read_bytes() != sound
    status, said = command("--mend")
    assert status == 0 and said.count("removed; dvc repro makes") == 2
    assert "1 of 5 outputs are not here" in command()[1]
    clone.checked("dvc", "repro")
    assert output.read_bytes() == kept.read_bytes() == sound
    assert command()[0] == 0


def test_an_object_that_nothing_needs_is_read_too(clone: Clone, command: Command) -> None:
    path = stored("0" * 32)
    path.parent.mkdir()
    path.write_bytes(b"old")
    assert "(of no output in dvc.lock)" in command()[1]
    assert command("--mend")[0] == 0 and not path.exists()


def test_a_spare_file_in_an_output_is_named_and_removed(command: Command) -> None:
    spare = Path("models/base/spare")
    spare.write_text("spare", encoding="utf-8")
    assert "models/base/spare: md5" in command()[1]
    assert command("--mend")[0] == 0 and not spare.exists()


def test_outputs_in_a_fresh_clone_are_not_damaged_but_not_here(
    clone: Clone, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.checked("git", "clone", "-q", str(clone.root), "../fresh")
    monkeypatch.chdir(clone.root.parent / "fresh")
    status, said = command()
    assert status == 0
    assert "4 of 5 outputs are not here (dvc pull, or dvc repro)" in said


def test_what_another_run_left_is_told(clone: Clone, command: Command) -> None:
    Path("params.yaml").write_text(
        Path("params.yaml").read_text(encoding="utf-8").replace("base: 1", "base: 2"), encoding="utf-8"
    )
    Path("stages/base.py").write_text(
        Path("stages/base.py").read_text(encoding="utf-8").replace("name * 100", "name * 99"),
        encoding="utf-8",
    )
    clone.checked("dvc", "repro", "-q", "base")
    clone.checked("git", "checkout", "-q", ".")
    status, said = command()
    assert status == 1
    assert said.count("these bytes are another run's: dvc checkout") == 3
    clone.checked("dvc", "checkout")
    assert command()[0] == 0


def test_an_input_may_be_as_git_has_it_and_is_left_to_its_owner(clone: Clone, command: Command) -> None:
    given = Path("given/a.txt")
    given.write_text("edited", encoding="utf-8")
    status, said = command("--mend")
    assert status == 1 and "given/a.txt: md5" in said and "left to you" in said
    assert given.read_text(encoding="utf-8") == "edited"
    clone.checked("git", "commit", "-q", "-a", "-m", "Edit")
    assert command()[0] == 0
    quietly(given, flipped)
    assert command()[0] == 1
    Path(".git").rename("../git")
    assert "given: changed; expected md5" in command()[1]


def test_a_shared_cache_is_read_where_it_lies(clone: Clone, command: Command) -> None:
    Path(".dvc/cache").rename("../shared")
    clone.checked("dvc", "config", "--local", "cache.dir", str(clone.root.parent / "shared"))
    assert command()[0] == 0
    md5 = locked("data/one.txt")
    quietly(clone.root.parent / "shared/files/md5" / md5[:2] / md5[2:], flipped)
    assert command()[0] == 1


@pytest.mark.parametrize(
    "content",
    [b"\xb9", b"a: [", b"a: 1", b"- 1", b"outs: 1", b"outs: [1]", b"outs:\n- path: 2026-13-99\n", b""],
)
def test_what_is_no_entry_of_the_run_cache_has_another_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "entry"
    path.write_bytes(content)
    assert verify.entry(path) == ("", "of no entry")


def test_elsewhere_than_in_a_project_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"dvc.yaml: not found; expected"):
        verify.look()


def test_every_one_of_forty_faults_is_named(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FOLDERS", ("data", "models", ".partial", ".dvc/cache"))
    known = integrity.stages(integrity.parse(integrity.PIPELINE), integrity.parse(integrity.PARAMS))
    outs = integrity.outs(integrity.parse(integrity.LOCK), known)
    places = {
        "outputs": [Path(path) for out in outs for path in integrity.listed(out.path) if "/" in path],
        "cache": sorted(path for path in Path(".dvc/cache/files").rglob("*") if path.is_file()),
        "checkpoints": sorted(path for path in verify.CHECKPOINTS.rglob("*") if path.is_file()),
    }
    then = faults.state()
    seen = set()
    for fault in list(faults.plan(places, 40, seed=1)):
        before = {path: path.read_bytes() for path in fault.bytes}
        faults.put(fault)
        assert {path: path.read_bytes() for path in fault.bytes} == fault.bytes != before
        assert faults.by_verify(fault), fault
        faults.restore(then)
        seen.add((fault.kind, fault.quiet))
    assert seen == {(kind, quiet) for kind in [*faults.KINDS, faults.SWAP] for quiet in (True, False)}
    assert verify.faults(verify.look()) == []


@pytest.mark.parametrize("kind", faults.KINDS)
def test_a_fault_is_what_it_is_called(kind: str) -> None:
    data = b"".join(b"row %d\n" % number for number in range(200))
    made = faults.KINDS[kind](data, random.Random(1))
    assert {
        "bit flipped": len(made) == len(data) and sum(a != b for a, b in zip(data, made, strict=False)) == 1,
        "truncated": data.startswith(made) and len(made) < len(data),
        "block zeroed": len(made) == len(data) and made.count(0) == faults.BLOCK,
        "row dropped": made.count(b"\n") == 199,
    }[kind]


def test_help_says_what_it_reads() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.verify", "--help"],
        cwd=Path(verify.__file__).parents[1],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--mend" in done.stdout and "run cache" in done.stdout
