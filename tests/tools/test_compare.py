"""Two runs compared: on the same tasks alone, with rows of their own hashes alone, and never silently."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import write_yaml
from test_noise import environment

from stages.common import files, metrics, noise
from stages.common.errors import PipelineError
from tools import compare, revisions, runs

TASKS = 8  # of a suite
PARAMS = {"train": {"seed": 42, "rate": 0.1}, "report": {"significance": 0.05}}
FAILED = "failed (functional: AssertionError)"


def code(passed: Sequence[int], suite: str = "secure_coding") -> list[dict[str, Any]]:
    """Verdicts on a suite of code: all withstand the attack, and those of `passed` work as well."""
    return [
        {
            "id": f"{suite}/{number}",
            "suite": suite,
            "sample": 0,
            "ended": "stop",
            "passed": number in passed,
            "status": "passed" if number in passed else "failed",
            "checks": {"functional": number in passed, "secure": True},
            "reason": "" if number in passed else "functional: AssertionError",
        }
        for number in range(TASKS)
    ]


def detection(called: Sequence[int]) -> list[dict[str, Any]]:
    """Verdicts on pairs, of which these are called vulnerable, on both sides."""
    return [
        {
            "id": f"detection/{number}/{side}",
            "suite": "detection",
            "sample": 0,
            "ended": "stop",
            "log_odds": 1.0 if number in called else -1.0,
            "passed": (side == "vulnerable") == (number in called),
            "status": "passed" if (side == "vulnerable") == (number in called) else "failed",
            "verdict": number in called,
            "reason": "right" if (side == "vulnerable") == (number in called) else "wrong",
        }
        for number in range(TASKS)
        for side in ("vulnerable", "fixed")
    ]


KINDS = {"secure_coding": "code", "detection": "detection", "mine": "code", "humaneval": "code"}
KINDS["reference"] = "reference"
BEFORE = [*detection([]), *code([0, 1])]
AFTER = [*detection([]), *code([1, 2, 3, 4, 5, 6, 7])]


class Repository:
    """Runs that are committed on branches; what DVC would keep lies in its cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "-q", "-b", "main")
        self.write(".dvc/config", "")
        self.write("data/benchmarks/detection.jsonl", suite("detection"))
        self.write("data/benchmarks/secure_coding.jsonl", suite("secure_coding"))
        self.write(".gitignore", "/reports/verdicts/\n/.dvc/cache\n/.dvc/tmp\n")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def write(self, name: str, text: str) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return revisions.md5(text.encode())

    def run(
        self, tuned: list[dict[str, Any]], rate: float = 0.1, loss: float = 0.5, humaneval: str = "1"
    ) -> None:
        """Leave in the working tree and in the cache what a run leaves."""
        params = {**PARAMS, "train": {**PARAMS["train"], "rate": rate}}
        write_yaml(self.root / "params.yaml", params)
        outs = {"data/raw/humaneval.jsonl": humaneval}
        for model, rows in (("base", BEFORE), ("tuned", tuned)):
            text = "".join(map(files.line, rows))
            outs[f"reports/verdicts/{model}.jsonl"] = key = self.write(
                f"reports/verdicts/{model}.jsonl", text
            )
            self.write(f".dvc/cache/files/md5/{key[:2]}/{key[2:]}", text)
            found = runs.recounted(runs.by_suite(text, model), KINDS)
            outs[f"reports/scores/{model}.json"] = self.write(
                f"reports/scores/{model}.json", json.dumps(found)
            )
        sizes = {"secure_coding": {"tasks": TASKS}, "detection": {"pairs": TASKS}}
        told = {**sizes, "training": {"loss": loss, "steps": 67}, "data": {"rows": 9}}
        outs["reports/metrics.json"] = self.write("reports/metrics.json", json.dumps(told))
        self.write("reports/mix.json", json.dumps({"kinds": {"write": 1}}))
        stages = {
            "train": {"params": {"params.yaml": {"train": params["train"]}}},
            "report": {
                "params": {"params.yaml": {"report": params["report"]}},
                "deps": [{"path": "reports/scores/tuned.json", "md5": outs["reports/scores/tuned.json"]}],
                "outs": [{"path": path, "md5": key} for path, key in outs.items()],
            },
        }
        write_yaml(self.root / "dvc.lock", {"stages": stages})

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Run")
        return self.git("rev-parse", "HEAD")

    def forget(self) -> None:
        """What a fresh clone lacks."""
        for folder in ("reports/verdicts", ".dvc/cache"):
            subprocess.run(["rm", "-r", str(self.root / folder)], check=True)


def suite(name: str, **changed: str) -> str:
    """A suite's file; `changed` gives rows another text by number."""
    rows = ({"id": f"{name}/{number}", "text": changed.get(f"_{number}", "")} for number in range(TASKS))
    return "".join(map(files.line, rows))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A run on main, and in the working tree, on the branch `other`, another one."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path.parent / name))
    made = Repository(tmp_path)
    made.run(BEFORE)
    made.commit()
    made.git("switch", "-q", "-c", "other")
    made.run(AFTER, rate=0.2, loss=0.4)
    return made


def compared(before: str = "main", after: str = "workspace") -> runs.Comparison:
    first, second = (runs.read(revisions.revision(name)) for name in (before, after))
    return runs.compare((first, second))


def by_name(side: runs.Side) -> dict[str, runs.Compared]:
    return {one.measure.name: one for one in side.compared}


# With the answers. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["workspace", "other"])
def test_metrics_are_tested_on_pairs_and_flips_are_named(after: str, repository: Repository) -> None:
    repository.commit()
    found = compared(after=after)
    tuned, base = found.sides
    assert (tuned.model, base.model, base.same, tuned.same, found.notes) == ("tuned", "base", True, False, [])
    one = by_name(tuned)["secure_coding.pass_rate"]
    passed = [[number in chosen for number in range(TASKS)] for chosen in ((0, 1), range(1, 8))]
    assert (one.measure.values, one.sizes, one.tested) == ((0.25, 0.875), (TASKS, TASKS), True)
    assert one.measure.intervals == (metrics.wilson(2, TASKS), metrics.wilson(7, TASKS))
    assert one.measure.p == metrics.mcnemar(*passed) == pytest.approx(0.125)
    assert one.measure.shift == metrics.difference(*passed)
    assert by_name(tuned)["detection.recall"].measure.p == 1
    assert tuned.flips == [
        runs.Flip("secure_coding", "secure_coding/0", False, "passed", FAILED),
        *(
            runs.Flip("secure_coding", f"secure_coding/{number}", True, FAILED, "passed")
            for number in range(2, TASKS)
        ),
    ]  # fmt: skip
    assert found.params == [("train.rate", 0.1, 0.2)]
    assert [(row["name"], row["then"], row["now"]) for row in found.others] == [("training.loss", 0.5, 0.4)]


def test_answers_that_flip_and_leave_every_metric_as_it_was_are_told(repository: Repository) -> None:
    repository.run([*detection([]), *code([2, 3])])
    tuned = compared().sides[0]
    assert not tuned.same
    assert [(flip.id[-1], flip.passed) for flip in tuned.flips or []] == [
        ("0", False), ("1", False), ("2", True), ("3", True)
    ]  # fmt: skip
    assert "2 now pass, 2 no longer do (secure_coding +2 -2)" in compare.text(compared(), None)


def test_drawn_answers_count_for_pass_at_k_alone(repository: Repository) -> None:
    def drawn(passed: int) -> list[dict[str, Any]]:
        rows = [{**row, "sample": number} for number in range(6) for row in code(range(TASKS))]
        return [{**row, "passed": row["sample"] <= passed} for row in rows]

    for count, branch in ((1, "main"), (2, "other")):
        repository.git("switch", "-q", "-f", branch)
        repository.run(drawn(count))
        repository.commit()
    found = compared("main", "other").sides[0]
    assert by_name(found)["secure_coding.pass_at_5"].measure.values == (1.0, 1.0)
    assert by_name(found)["secure_coding.pass_rate"].sizes == (TASKS, TASKS)
    assert found.flips == []
    repository.forget()
    untested = by_name(compared("main", "other").sides[0])["secure_coding.pass_at_5"]
    assert (untested.measure.values, untested.tested, untested.sizes) == ((1.0, 1.0), False, (TASKS, TASKS))


def test_the_marks_follow_the_significance_that_the_second_run_chose(repository: Repository) -> None:
    params = {**PARAMS, "report": {"significance": 0.2}}
    assert compared().significance == 0.05
    write_yaml(repository.root / "params.yaml", params)
    found = compared()
    assert found.significance == 0.2
    assert by_name(found.sides[0])["secure_coding.pass_rate"].measure.change(found.significance) == 1


def test_answers_of_another_run_in_the_working_tree_are_not_taken_for_its_own(repository: Repository) -> None:
    repository.commit()
    repository.git("switch", "-q", "main")  # and no dvc checkout: reports/verdicts are those of `other`
    found = compared("other", "workspace")
    assert by_name(found.sides[0])["secure_coding.pass_rate"].measure.values == (0.875, 0.25)
    assert compared("main", "workspace").sides[0].same


def test_seed_noise_stands_beside_what_it_was_measured_of(repository: Repository) -> None:
    facts = noise.facts(json.loads(Path("reports/metrics.json").read_text()), {"kinds": ["write"]})
    values = {"secure_coding.pass_rate.tuned": [0.1, 0.3], "training.loss": [0.1, 0.3]}
    files.write_json(noise.FILE, {"revision": "0" * 40, "seeds": [1, 2], "facts": facts, "values": values})
    found = compared()
    assert found.noise.of(by_name(found.sides[0])["secure_coding.pass_rate"].measure) == pytest.approx(0.2)
    assert found.others[0]["noise"] == "within 0.2"
    assert "0.200" in compare.text(found, None) and "0000000000" in compare.text(found, None)
    report = json.loads(Path("reports/metrics.json").read_text())
    report["training"]["steps"] = 68  # of the second run alone
    repository.write("reports/metrics.json", json.dumps(report))
    assert compared().noise.floors
    files.write_json(noise.FILE, {"revision": "0" * 40, "seeds": [1, 2], "facts": {}, "values": values})
    assert "of another training" in compared().noise.brief


# Other tasks. ------------------------------------------------------------------------------------------


def test_only_tasks_that_both_asked_are_compared(repository: Repository) -> None:
    mine = code([0], "mine")
    repository.run([*detection([0])[:8], *AFTER[16:22], *mine])
    found = compared()
    assert {name: one.sizes for name, one in by_name(found.sides[0]).items()} == {
        **{f"detection.{name}": (4, 4) for name in ("balanced_accuracy", "recall", "specificity", "mcc")},
        **{f"detection.{name}": (4, 4) for name in ("pair_correct", "invalid_rate", "auc")},
        "secure_coding.pass_rate": (6, 6),
        "secure_coding.functional_rate": (6, 6),
    }
    assert found.notes == [
        "detection: 8 tasks are the same in both, of 16 and 8",
        "secure_coding: 6 tasks are the same in both, of 8 and 6",
        "mine: only workspace was asked",
    ]


def test_a_task_whose_text_changed_is_another_task(repository: Repository) -> None:
    repository.write("data/benchmarks/secure_coding.jsonl", suite("secure_coding", _3="changed"))
    repository.write("data/benchmarks/detection.jsonl", suite("detection", _0="changed"))
    found = compared()
    assert "secure_coding/3" not in {flip.id for flip in found.sides[0].flips or []}
    sizes = {name: one.sizes for name, one in by_name(found.sides[0]).items()}
    assert (sizes["secure_coding.pass_rate"], sizes["detection.mcc"]) == ((7, 7), (7, 7))
    assert found.notes[0] == "detection: 14 tasks are the same in both, of 16 and 16"


def test_a_suite_that_cannot_be_matched_is_left_out(repository: Repository) -> None:
    (repository.root / "data/benchmarks/detection.jsonl").unlink()
    found = compared()
    assert {one.measure.suite for one in found.sides[0].compared} == {"secure_coding"}
    assert found.notes == ["detection: the suites are not the same, so they are left out"]


def test_tasks_of_another_humaneval_are_other_tasks(repository: Repository) -> None:
    repository.git("switch", "-q", "-f", "main")
    repository.run([*detection([]), *code([0, 1], "humaneval")])
    repository.commit()
    repository.run([*detection([]), *code([0], "humaneval")])
    assert by_name(compared().sides[0])["coding.pass_at_1"].measure.values == (0.25, 0.125)
    repository.run([*detection([]), *code([0], "humaneval")], humaneval="2")
    found = compared()
    assert found.notes == ["humaneval: the suites are not the same, so they are left out"]
    assert "coding.pass_at_1" not in by_name(found.sides[0])


# Without the answers. ----------------------------------------------------------------------------------


def test_without_answers_the_metrics_in_git_are_compared_and_nothing_is_tested(
    repository: Repository,
) -> None:
    repository.commit()
    repository.forget()
    found = compared("main", "other")
    one = by_name(found.sides[0])["secure_coding.pass_rate"]
    assert (one.measure.values, one.tested, found.sides[0].flips) == ((0.25, 0.875), False, None)
    assert one.measure.intervals == (metrics.wilson(2, TASKS), metrics.wilson(7, TASKS))
    assert one.measure.change(found.significance) == 0
    assert len(found.notes) == 1 and "no remote is set" in found.notes[0] and "main (" in found.notes[0]
    said = compare.text(found, None)
    assert "by its metrics alone" in said and "flipped" not in said and "better" not in said


def test_with_and_without_answers_the_same_metrics_have_the_same_values(repository: Repository) -> None:
    repository.commit()
    before = by_name(compared("main", "other").sides[0])
    repository.forget()
    after = by_name(compared("main", "other").sides[0])
    assert before.keys() == after.keys()
    for name, one in before.items():
        other = after[name].measure
        assert (other.title, other.values, other.intervals) == (
            one.measure.title,
            one.measure.values,
            one.measure.intervals,
        )


def test_shares_of_other_tasks_are_shown_with_their_sizes_and_counts_with_their_noise(
    repository: Repository,
) -> None:
    def reference(passed: int, size: int) -> list[dict[str, Any]]:
        rows = code(range(passed), "reference")[:size]
        return [{**row, "ours": row["passed"]} for row in rows]

    repository.write("data/benchmarks/reference.jsonl", suite("reference"))
    repository.run([*detection([]), *reference(2, 8)])
    repository.commit()
    facts = noise.facts(json.loads(Path("reports/metrics.json").read_text()), {"kinds": ["write"]})
    values = {"reference_tests.passed.tuned": [1, 2]}
    files.write_json(noise.FILE, {"revision": "0" * 40, "seeds": [1, 2], "facts": facts, "values": values})
    repository.run([*detection([]), *reference(2, 4)])
    repository.forget()
    found = compared("other")
    one = by_name(found.sides[0])["reference_tests.passed"]
    assert (one.measure.values, one.sizes, found.noise.of(one.measure)) == ((0.25, 0.5), (8, 4), 0.25)
    assert "of 8 and 4 tasks" in compare.text(found, None)


def test_a_remote_brings_the_answers(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    remote = tmp_path_factory.mktemp("remote") / "files"
    repository.commit()
    subprocess.run(["cp", "-r", ".dvc/cache/files", str(remote)], check=True)
    repository.forget()
    subprocess.run(["dvc", "remote", "add", "-q", "-d", "store", str(remote.parent)], check=True)
    found = compared("main", "other")
    assert (found.notes, len(found.sides[0].flips or [])) == ([], 7)
    key = revisions.outputs(runs.read(revisions.revision("main")).lock)["reports/verdicts/tuned.jsonl"]
    for place in (remote, Path(".dvc/cache/files")):
        (place / "md5" / key[:2] / key[2:]).unlink()
    found = compared("main", "other")
    assert found.sides[0].flips is None
    assert "neither in DVC's cache nor on its remote" in found.notes[0] and "other" not in found.notes[0]


@pytest.mark.parametrize("url", ["s3://bucket/cache", "https://127.0.0.1:9/cache", "/nowhere/at/all"])
def test_a_remote_that_fails_is_said_and_stops_nothing(
    url: str, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    repository.commit()
    repository.forget()
    subprocess.run(["dvc", "remote", "add", "-q", "-d", "store", url], check=True)
    found = compared("main", "other")
    assert found.sides[0].flips is None and len(found.sides[0].compared) == 9
    assert len(found.notes) == 1 and "remote" in found.notes[0]


def test_a_damaged_object_is_not_read(repository: Repository) -> None:
    key = revisions.outputs(runs.read(revisions.revision("main")).lock)["reports/verdicts/tuned.jsonl"]
    repository.write(f".dvc/cache/files/md5/{key[:2]}/{key[2:]}", "{}")
    with pytest.raises(PipelineError, match=rf"{key[2:]}: damaged; expected MD5 {key}"):
        compared()


# Revisions. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "--all", "main:params.yaml", ""])
def test_an_unknown_revision_is_named(name: str, repository: Repository) -> None:
    with pytest.raises(
        PipelineError, match=r": no such revision; expected a branch, tag, commit or experiment"
    ):
        revisions.revision(name)


def test_an_experiment_is_a_revision_the_newest_of_its_name(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = repository.git("rev-parse", "main")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2099-01-01T00:00:00Z")
    new = repository.git("commit-tree", "main^{tree}", "-m", "Later")
    for places in (("ab", "cd"), ("cd", "ab")):
        for place, commit in zip(places, (old, new), strict=True):
            repository.git("update-ref", f"refs/exps/{place}/ef/sweep-1", commit)
        assert revisions.revision("sweep-1").commit == new


def test_a_revision_without_a_run_is_told_from_one_that_is_unknown(repository: Repository) -> None:
    repository.git("rm", "-q", "--cached", "reports/metrics.json", "dvc.lock")
    repository.git("commit", "-q", "-m", "No run")
    with pytest.raises(
        PipelineError, match=r"^other \(\w{10}\): no reports/metrics\.json; expected a whole run"
    ):
        compared("other")
    (repository.root / "dvc.lock").unlink()
    with pytest.raises(
        PipelineError, match=r"^workspace: no dvc\.lock; expected a whole run \(make repro\)$"
    ):
        compared()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda root: write_yaml(root / "params.yaml", {**PARAMS, "train": {"seed": 42, "rate": 0.3}}),
            "train ran with train.rate 0.2, and params.yaml says 0.3",
        ),
        (
            lambda root: (root / "reports/scores/tuned.json").write_text("{}"),
            "reports/scores/tuned.json is not the one of dvc.lock",
        ),
        (
            lambda root: (root / "dvc.lock").write_text(
                (root / "dvc.lock").read_text().replace("md5: ", "md5: 0", 1)
            ),
            "report ran with another reports/scores/tuned.json",
        ),
    ],
)  # fmt: skip
def test_files_of_several_runs_are_noted(spoil: Any, said: str, repository: Repository) -> None:
    spoil(repository.root)
    found = compared()
    assert found.notes[0] == f"workspace is not one finished run: {said} (dvc repro, then commit)"


# In words. ---------------------------------------------------------------------------------------------


def test_lists_are_cut_where_not_all_is_asked_for(repository: Repository) -> None:
    found = compared()
    assert "  and 5 more (--all)" in compare.text(found, 2) and "more (--all)" not in compare.text(
        found, None
    )
    assert "- and 5 more (--all)" in compare.markdown(found, 2)


def test_markdown_is_a_table_whatever_the_answers_say(repository: Repository) -> None:
    rows = code(range(1, 8))
    rows[0]["reason"] = "<script>|*x*\n# no"
    repository.run([*detection([]), *rows])
    said = compare.markdown(compared(), None)
    assert r"failed (\<script\>\|\*x\* \# no)" in said
    lines = [line for line in said.splitlines() if line.startswith("|")]
    assert len(lines) > 4 and {line.replace(r"\|", "").count("|") for line in lines} == {8}


def test_json_says_all_that_the_table_says(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compare", "main", "--format", "json"])
    compare.main()
    found = json.loads(capsys.readouterr().out)
    measure = found["models"]["tuned"]["measures"][-2]
    assert (measure["name"], measure["values"]) == ("secure_coding.pass_rate", [0.25, 0.875])
    assert (measure["test"], measure["p"]) == ("mcnemar", pytest.approx(0.125))
    assert len(found["models"]["tuned"]["flips"]) == 7 and found["models"]["base"]["same"]
    assert (found["before"]["name"], found["after"]) == ("main", {"name": "workspace", "commit": None})
    repository.commit()
    repository.forget()
    compare.main()
    found = json.loads(capsys.readouterr().out)  # NaN would not be JSON
    assert found["models"]["tuned"]["measures"][-2]["p"] is None and not found["models"]["tuned"]["tested"]
