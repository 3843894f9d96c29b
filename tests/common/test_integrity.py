"""Inputs are checked before a stage runs, and are as they were when it ends: on a pipeline of four stages."""

import json
import shutil
from pathlib import Path

import pipeline
import pytest
from conftest import ROOT, Clone
from dvc.repo import Repo
from pipeline import flipped, quietly

from stages.common import integrity, program
from stages.common.errors import PipelineError
from stages.common.integrity import Damage, Inputs, Out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The pipeline after its first run."""
    return pipeline.finish(tmp_path_factory.mktemp("integrity"))


@pytest.fixture
def clone(finished: Clone, tmp_path: Path) -> Clone:
    return pipeline.copied(finished, tmp_path)


def meddled(clone: Clone, meddling: str, stage: str = "use") -> tuple[int, str]:
    """Run a stage while somebody does something; exit status, and what is said."""
    clone.environment["MEDDLE"] = meddling
    done = clone.run("dvc", "repro", "-s", "-f", stage)
    return done.returncode, done.stderr


@pytest.fixture
def inside(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as the folder that we are in."""
    monkeypatch.chdir(clone.root)
    for name in ("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, clone.environment[name])
    return clone.root


# What DVC's files say. ----------------------------------------------------------------------------------


def test_our_reading_of_the_pipeline_is_dvcs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    theirs = {}
    for stage in Repo(str(ROOT)).index.stages:
        params = [dep for dep in stage.deps if type(dep).__name__ == "ParamsDependency"]
        deps = {dep.def_path for dep in stage.deps} - {dep.def_path for dep in params}
        theirs[stage.addressing] = (deps, {name for dep in params for name in dep.params})
    ours = integrity.stages(integrity.parse(integrity.PIPELINE), integrity.parse(integrity.PARAMS))
    assert {name: (set(one.deps), set(one.params)) for name, one in ours.items()} == theirs


def test_lists_repeat_a_stage_too() -> None:
    pipeline = {
        "stages": {"score": {"foreach": ["base", "tuned"], "do": {"deps": ["reports/${item}.jsonl"]}}}
    }
    assert integrity.stages(pipeline, {}) == {
        f"score@{name}": Inputs((f"reports/{name}.jsonl",), ()) for name in ("base", "tuned")
    }


def test_an_unknown_name_in_the_pipeline_is_an_error() -> None:
    with pytest.raises(PipelineError, match=r"dvc.yaml: \$\{train.launcher\}: None; expected"):
        integrity.filled("conf/${train.launcher}.yaml", {"train": {}})


def test_outputs_are_those_of_the_stages_that_there_are() -> None:
    entry = {"outs": [{"path": "a", "hash": "md5", "md5": "1"}]}
    lock = {"stages": {"old@a": entry, "new@a": entry, "report": {}}}
    assert integrity.outs(lock, {"new@a", "report", "added"}) == [Out("a", "1", "new@a")]
    assert integrity.outs({}, {"new@a"}) == []
    with pytest.raises(PipelineError, match=r"dvc.lock: a: hash None; expected md5"):
        integrity.outs({"stages": {"old": {"outs": [{"path": "a", "md5": "1"}]}}}, {"old"})


@pytest.mark.parametrize("text", ["a: [", "- a"])
def test_a_lock_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PipelineError, match=r"dvc.lock: "):
        integrity.parse(path)
    assert integrity.parse(tmp_path / "none") == {}


# Outputs against the lock. ------------------------------------------------------------------------------


def test_what_was_written_is_whole(inside: Path) -> None:
    recorded = integrity.outs(integrity.parse(integrity.LOCK), {"write@one", "base"})
    assert [out.path for out in recorded] == ["models/base", "data/one.txt"]
    for out in recorded:
        assert integrity.damages(out, integrity.hashes(integrity.listed(out.path))) == []


def test_a_damaged_file_is_named_with_its_md5_and_who_wrote_it() -> None:
    out = Out("data/one.txt", "right", "write@one")
    (damage,) = integrity.damages(out, {"data/one.txt": "wrong", "data/two.txt": "right"})
    assert str(damage) == "data/one.txt: md5 wrong; expected right, as write@one wrote it"


def test_in_a_damaged_folder_every_file_is_named(inside: Path) -> None:
    folder = Path("models/base")
    expected = {name: integrity.md5(f"{folder}/{name}") for name in ("weights", "deep/more")}
    quietly(folder / "weights", flipped)
    (folder / "deep/more").unlink()
    (folder / "spare").write_text("spare", encoding="utf-8")
    (folder / "ignored.part").write_text("as DVC does", encoding="utf-8")
    (out,) = integrity.outs(integrity.parse(integrity.LOCK), {"base"})
    hashed = integrity.hashes(integrity.listed("models"))
    assert integrity.damages(out, hashed) == [
        Damage("models/base/deep/more", "missing", expected["deep/more"], "base"),
        Damage("models/base/spare", f"md5 {hashed['models/base/spare']}", "no such file", "base"),
        Damage("models/base/weights", f"md5 {hashed['models/base/weights']}", expected["weights"], "base"),
    ]
    assert integrity.damages(out, hashed, "models/base/manifest.json") == []
    assert [one.path for one in integrity.damages(out, hashed, "models/base/deep")] == [
        "models/base/deep/more"
    ]


@pytest.mark.parametrize("damaged", [True, False])
def test_without_a_sound_list_the_folder_is_named(inside: Path, damaged: bool) -> None:
    (out,) = integrity.outs(integrity.parse(integrity.LOCK), {"base"})
    listed = integrity.cache_folder() / integrity.OBJECTS / out.md5[:2] / out.md5[2:]
    if damaged:
        quietly(listed, lambda data: data.replace(b"weights", b"weighty"))
    else:
        listed.unlink()
    quietly(Path("models/base/weights"), flipped)
    (damage,) = integrity.damages(out, integrity.hashes(integrity.listed("models/base")))
    assert (damage.path, damage.expected) == ("models/base", out.md5)


def test_the_cache_is_where_dvc_says(clone: Clone, inside: Path) -> None:
    assert integrity.cache_folder() == inside / ".dvc/cache"
    clone.checked("dvc", "config", "--local", "cache.dir", str(inside.parent / "shared"))
    (inside / ".dvc/cache").rename(inside.parent / "shared")
    assert integrity.cache_folder() == inside.parent / "shared"
    (out,) = integrity.outs(integrity.parse(integrity.LOCK), {"base"})
    assert "models/base/weights" in (integrity.recorded(out) or {})


# Around a stage. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"DVC_STAGE": "train"}, "train"),
        ({"DVC_STAGE": "sub/dvc.yaml:fetch@coding"}, "fetch@coding"),
        ({"DVC_STAGE": "train", "LOCAL_RANK": "0"}, None),
    ],
)
def test_only_a_stage_that_dvc_runs_is_checked(environment: dict[str, str], expected: str | None) -> None:
    assert integrity.running(environment) == expected


def test_a_run_in_peace_passes(clone: Clone) -> None:
    assert meddled(clone, "") == (0, "")
    assert clone.checked("dvc", "status", "--json").strip() == "{}"


DAMAGED = {
    "a file": ("use", "data/one.txt", "data/one.txt: md5", "as write@one wrote it"),
    "a file in a folder": ("use", "models/base/deep/more", "models/base/deep/more: md5", "as base wrote it"),
    "a file of a folder that is the dependency itself": (
        "card",
        "models/base/manifest.json",
        "models/base/manifest.json: md5",
        "as base wrote it",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_input_is_found_though_its_times_are_as_they_were(clone: Clone, case: str) -> None:
    stage, path, *words = DAMAGED[case]
    quietly(clone.root / path, flipped)
    locked = (clone.root / "dvc.lock").read_bytes()
    status, said = meddled(clone, "", stage)
    assert status != 0
    assert [word for word in (*words, "tools.verify --mend") if word not in said] == []
    assert (clone.root / "dvc.lock").read_bytes() == locked


def test_what_a_stage_does_not_read_does_not_stop_it(clone: Clone) -> None:
    quietly(clone.root / "models/base/weights", flipped)
    assert meddled(clone, "", "card")[0] == 0


def test_without_a_cache_a_part_of_a_folder_is_checked_by_the_whole(clone: Clone) -> None:
    shutil.rmtree(clone.root / ".dvc/cache")
    assert meddled(clone, "", "card")[0] == 0
    quietly(clone.root / "models/base/manifest.json", flipped)
    assert "models/base: md5" in meddled(clone, "", "card")[1]


@pytest.mark.parametrize(
    ("meddling", "named"),
    [
        ("Path('stages/use.py').write_text('')", "stages/use.py: changed while the stage ran"),
        ("Path('stages/common/errors.py').write_text('')", "stages/common/errors.py: changed"),
        ("Path('given/a.txt').write_text('other')", "given/a.txt: changed"),
        ("Path('given/b.txt').write_text('new')", "given/b.txt: changed"),
        ("Path('given/a.txt').rename('given/c.txt')", "given/a.txt (and 1 more): changed"),
        ("Path('data/one.txt').write_text('other')", "data/one.txt: changed"),
        (
            "p = Path('given/a.txt'); s = p.stat(); p.write_text('GIVEN'); "
            "os.utime(p, ns=(s.st_atime_ns, s.st_mtime_ns))",
            "given/a.txt: changed",
        ),
        (
            "p = Path('params.yaml'); p.write_text(p.read_text().replace('42', '43'))",
            "use.seed: 43; expected 42, with which the stage began (params.yaml;",
        ),
    ],
)
def test_what_changes_while_a_stage_runs_is_not_recorded(clone: Clone, meddling: str, named: str) -> None:
    locked = (clone.root / "dvc.lock").read_bytes()
    status, said = meddled(clone, meddling)
    assert status != 0
    assert named in said
    assert (clone.root / "dvc.lock").read_bytes() == locked


@pytest.mark.parametrize(
    "meddling",
    [
        "p = Path('params.yaml'); p.write_text(p.read_text().replace('other: 1', 'other: 2'))",
        "Path('stages/write.py').write_text('')",
        "Path('given/a.txt').touch()",
        "p = Path('given/a.txt'); t = p.read_text(); p.unlink(); p.write_text(t)",
        "Path('given/x.part').write_text('ignored')",
    ],
)
def test_what_a_stage_does_not_depend_on_may_change_while_it_runs(clone: Clone, meddling: str) -> None:
    assert meddled(clone, meddling) == (0, "")


def test_a_stage_runs_without_git_without_a_lock_and_by_hand(clone: Clone) -> None:
    shutil.rmtree(clone.root / ".git")
    clone.checked("dvc", "config", "core.no_scm", "true")
    (clone.root / "dvc.lock").unlink()
    clone.checked("dvc", "repro", "-q")
    quietly(clone.root / "data/one.txt", flipped)
    clone.checked("python", "-m", "stages.use")


def test_an_experiment_in_a_folder_of_its_own_is_checked_there(clone: Clone) -> None:
    meddling = "Path('given/a.txt').write_text('other')"
    clone.environment["MEDDLE"] = meddling
    done = clone.run("dvc", "exp", "run", "--temp", "-S", "use.seed=1")
    assert done.returncode != 0 and "given/a.txt: changed while the stage ran" in done.stderr
    assert (clone.root / "given/a.txt").read_text(encoding="utf-8") == "given"
    clone.environment["MEDDLE"] = ""
    clone.checked("dvc", "exp", "run", "--temp", "-S", "use.seed=1")


@pytest.fixture
def described(inside: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A stage with a program, which says that its module is "old"; what its code says now may be changed."""
    now = {"stages/use.py": "old"}
    Path("programs").mkdir()
    Path("programs/use.json").write_text(json.dumps({"modules": now}), encoding="utf-8")
    lines = Path("dvc.yaml").read_text(encoding="utf-8").replace("stages/use.py", "programs/use.json")
    Path("dvc.yaml").write_text(lines, encoding="utf-8")
    monkeypatch.setattr(integrity, "loaded", lambda: ["stages/use.py"])
    monkeypatch.setattr(program, "describe", lambda stage: {"modules": now} if stage == "use" else {})
    return now


def test_code_that_was_edited_before_a_stage_began_is_found(described: dict[str, str]) -> None:
    integrity.begin("use")
    described["stages/use.py"] = "new"
    with pytest.raises(PipelineError, match=r"programs/use.json.modules.stages/use.py: new; expected old"):
        integrity.begin("use")


def test_while_a_stage_runs_comments_may_change_and_code_may_not(described: dict[str, str]) -> None:
    begun = integrity.begin("use")
    Path("stages/use.py").write_text("# comment", encoding="utf-8")
    integrity.end(begun)
    described["stages/use.py"] = "new"
    with pytest.raises(PipelineError, match=r"stages/use.py: changed while the stage ran"):
        integrity.end(begun)
    described["stages/use.py"] = "old"
    Path("given/a.txt").write_text("# comment", encoding="utf-8")
    with pytest.raises(PipelineError, match=r"given/a.txt: changed while the stage ran"):
        integrity.end(begun)


def test_what_was_put_back_may_be_recorded(clone: Clone) -> None:
    text = (clone.root / "given/a.txt").read_bytes()
    assert "put it back and run dvc commit -f use" in meddled(clone, "Path('given/a.txt').write_text('x')")[1]
    (clone.root / "given/a.txt").write_bytes(text)
    clone.checked("dvc", "commit", "-f", "use")
    assert clone.checked("dvc", "status", "--json").strip() == "{}"
    clone.checked("git", "diff", "--exit-code", "dvc.lock")


def test_what_is_absent_is_not_judged(clone: Clone) -> None:
    (clone.root / "data/two.txt").unlink()
    assert meddled(clone, "") == (0, "")


def test_of_what_was_pulled_the_part_that_is_there_is_judged(clone: Clone) -> None:
    clone.checked("dvc", "remote", "add", "-d", "far", str(clone.root.parent / "far"))
    clone.checked("dvc", "push", "-q")
    for folder in (".dvc/cache", "models", "data"):
        shutil.rmtree(clone.root / folder)
    (clone.root / "card.txt").unlink()
    (clone.root / "dvc.yaml").write_text(
        (clone.root / "dvc.yaml").read_text(encoding="utf-8").replace("stages.card", "stages.card x"),
        encoding="utf-8",
    )
    clone.checked("dvc", "repro", "--pull", "--allow-missing", "card")
    assert (clone.root / "card.txt").exists()
    assert sorted(path.name for path in (clone.root / "models/base").iterdir()) == ["manifest.json"]
