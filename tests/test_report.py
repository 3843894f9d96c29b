"""Report: numbers that agree everywhere, a page that stands alone and escapes all, gates that hold."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

from stages import report, score
from stages.common import answers, comparison, noise, pictures, suites
from stages.common.errors import PipelineError

ROOT = Path(__file__).resolve().parents[1]
EVIL = (
    '<script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)>\'"&</pre></details>{{7*7}}'
)
SIZES = {"error_handling": 8, "explanation": 6, "fixing": 8, "humaneval": 40, "reference": 3}
TRAITS = ("", "hard_negative", "quiet")
GATES: dict[str, Any] = {"significance": 0.05, "no_drop": [], "floors": {}, "ceilings": {}, "enforce": True}


def tasks() -> list[suites.Task]:
    """Twelve pairs, and some tasks of every other kind."""
    pairs = [
        suites.Task(
            f"detection/{n:02}/{side}",
            "detection",
            "detection",
            f"{EVIL} {n} {side}",
            pair=f"detection/{n:02}",
            vulnerable=side == "vulnerable",
            cwe=("CWE-89", "CWE-79", "CWE-9")[n % 3],
            language=("python", "java")[n % 2],
            trait=TRAITS[n % 3],
        )
        for n in range(12)
        for side in ("vulnerable", "fixed")
    ]
    kinds = {"fixing": "fixing", "explanation": "explanation", "reference": "reference"}
    others = [
        suites.Task(f"{name}/{n}", name, kinds.get(name, "code"), f"{EVIL} {name} {n}", cwe="CWE-89")
        for name, size in SIZES.items()
        for n in range(size)
    ]
    return pairs + others


CHECKS = {"error_handling": ("functional", "handled"), "fixing": ("functional", "secure")}


def judged(task: suites.Task, number: int, right: int) -> dict[str, Any]:
    """A verdict: of every five tasks `right` pass; the others fail, time out or are invalid by turns."""
    passed = number % 5 < right
    status = "passed" if passed else ("failed", "timeout", "invalid")[number % 3]
    row = {
        "id": task.id,
        "suite": task.suite,
        "sample": 0,
        "passed": passed,
        "status": status,
        "reason": EVIL,
    }
    if task.kind == "detection":
        given = None if status == "invalid" else task.vulnerable == passed
        row |= {"verdict": given, "cwe": "", "status": "failed" if status == "timeout" else status}
        row |= {"log_odds": (1.0 if task.vulnerable else -1.0) * (1 if passed else -1) + number / 100}
    elif task.suite in CHECKS:
        first, second = CHECKS[task.suite]
        row["checks"] = {first: passed or number % 2 == 0, second: passed}
    elif task.kind == "code":
        row["checks"] = {"functional": passed}
    elif task.kind == "reference":
        row["ours"] = None if number % 3 == 0 else passed
    return row


def verdicts(right: int) -> list[dict[str, Any]]:
    return [judged(task, number, right) for number, task in enumerate(tasks())]


def completions() -> list[dict[str, Any]]:
    return [
        {"id": task.id, "suite": task.suite, "sample": 0, "prompt": task.prompt, "completion": EVIL}
        | {"new_tokens": 3, "ended": "length" if number % 7 == 0 else "stop"}
        | ({"log_odds": 0.5} if task.kind == "detection" else {})
        for number, task in enumerate(tasks())
    ]


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What `score` writes about these verdicts."""
    known = {task.id: task for task in tasks()}
    return score.totals([(known[row["id"]], row) for row in rows], frozenset({"CWE-89"}))


RIGHT = {"base": 2, "tuned": 4}
TRAINING = {
    **{"loss": 1.25, "token_accuracy": 0.7, "entropy": 1.1, "valid_loss": 1.5, "tokens": 123456, "steps": 40},
    **{"seconds": 321.5, "tokens_per_second": 384.0, "peak_memory_mib": 512, "trainable_parameters": 1000},
    **{"device": EVIL, "dtype": "bfloat16"},
}
MIX = {
    "cwes": {"CWE-89": 4},
    "kinds": {"write": {}, "detect_safe": {}},
    "sources": {
        "coding": {
            **{"examples": 51, "too_long": 0, "contaminated": 3, "near_duplicate": 1, "not_chosen": 25},
            **{"wanted": 22, "mixed": 22, "repeated": 0, "preferences": 0},
        }
    },
}
FILTER = {"rows": 60, "kept": 50, "rejected": 10, "reasons": {"empty": 10, "length": 1, "label": 0}}
CURVES = {name: f"step\t{name}\n5\t2.5\n10\t1.5\n40\t1.25\n" for name in report.TITLES}


def write(path: Path, value: object) -> None:
    """A file of JSON lines for a list, of text for a string, of one JSON object otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list):
        value = "".join(json.dumps(row) + "\n" for row in value)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@pytest.fixture
def reported(project: Project) -> Project:
    """A project in which every other stage has run."""
    (project.root / "stages").mkdir()
    shutil.copy(ROOT / report.TEMPLATE, project.root / report.TEMPLATE)
    for model, right in RIGHT.items():
        put(project, model, verdicts(right))
        write(project.root / f"reports/completions/{model}.jsonl", completions())
    for name, value in {
        "reports/mix.json": MIX,
        "reports/filter/coding.json": FILTER,
        "reports/train.json": TRAINING,
        "reports/export.json": {"agreement": 0.9987},
        "models/base/manifest.json": {"uri": EVIL},
        **{f"reports/train/plots/metrics/{name}.tsv": text for name, text in CURVES.items()},
    }.items():
        write(project.root / name, value)
    project.params(report=GATES)
    return project


def put(project: Project, model: str, rows: list[dict[str, Any]]) -> None:
    """Verdicts of a model and the scores that follow from them."""
    write(project.root / f"reports/verdicts/{model}.jsonl", rows)
    write(project.root / f"reports/scores/{model}.json", totals(rows))


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text, and tags that are not closed in their order."""

    VOID = ("meta", "br", "line", "polyline", "link", "img", "hr", "circle", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


def shown(project: Project) -> tuple[str, Page]:
    text = (project.root / report.PAGE).read_text(encoding="utf-8")
    return text, Page(text)


def leaves(tree: object) -> list[object]:
    """Every value of a tree of dictionaries."""
    return [leaf for value in tree.values() for leaf in leaves(value)] if isinstance(tree, dict) else [tree]


# The page. ---------------------------------------------------------------------------------------------


def test_page_stands_alone(reported: Project) -> None:
    reported.run("report")
    text, page = shown(reported)
    assert (page.open, page.wrong) == ([], [])
    tags = {tag for tag, _ in page.tags}
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & tags
    named = [(name, value or "") for _, attributes in page.tags for name, value in attributes.items()]
    assert not {"src", "xlink:href", "srcset", "action", "background", "data"} & {name for name, _ in named}
    assert not any(name.startswith("on") for name, _ in named)
    assert all(value.startswith("#") for name, value in named if name == "href")
    targets = {value for name, value in named if name == "id"}
    assert {value[1:] for name, value in named if name == "href"} <= targets
    assert not any("http:" in value or "https:" in value for _, value in named)
    styles = text.split("<style>")[1].split("</style>")[0]
    assert not any(word in styles for word in ("url(", "@import", "http"))


def test_only_our_own_script_may_run(reported: Project) -> None:
    reported.run("report")
    text, page = shown(reported)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = next(one["content"] for tag, one in page.tags if tag == "meta" and "http-equiv" in one)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1 == sum(tag == "script" for tag, _ in page.tags)
    assert f"script-src 'sha256-{digest}'" in str(policy) and "default-src 'none'" in str(policy)
    assert "innerHTML" not in scripts[0]


def test_page_escapes_what_models_say(reported: Project) -> None:
    reported.run("report")
    text, page = shown(reported)
    assert "<script src" not in text and "<img" not in text and "&lt;script" in text
    count = len(tasks())
    assert page.text.count(EVIL) == 5 * count + 2  # prompt, two answers, two reasons; device and base model


def test_page_shows_unseen_characters_by_their_code(reported: Project) -> None:
    rows = completions()
    rows[0]["completion"] = "a\u202eb\x00c\x1b[31m"
    write(reported.root / "reports/completions/tuned.jsonl", rows)
    reported.run("report")
    text, page = shown(reported)
    assert "a⟨U+202E⟩b⟨U+0000⟩c⟨U+001B⟩[31m" in page.text
    assert not re.search("[\x00\x1b\u202e]", text)


def test_numbers_on_page_and_in_summary_are_those_of_metrics(reported: Project) -> None:
    reported.run("report")
    found = json.loads((reported.root / report.METRICS).read_text())
    text, page = shown(reported)
    summary = (reported.root / report.SUMMARY).read_text(encoding="utf-8")
    for group in ("detection", "coding", "error_handling", "fixing", "explanation"):
        for name, values in found[group].items():
            if isinstance(values, dict):
                for value in values.values():
                    assert f"{value:.3f}" in summary, (group, name)
                    assert f"{value:.3f}".replace("-", "\u2212") in page.text, (group, name)
    for model in ("base", "tuned"):
        assert f"{found['reference_tests']['passed'][model]} of 3" in page.text
    for number in ("123,456", "1.250", "70.0 %", "1.100", "1.500", "99.9 %", "empty 10, length 1"):
        assert number in page.text
    assert "seen in training" in page.text and "unseen in training" in page.text
    assert not re.search(r"\b(nan|None|undefined|Undefined)\b", page.text)
    assert text.count("<polyline") == 2 + len(report.TITLES)  # two ROC curves


def test_answers_can_be_filtered_by_suite_and_outcome(reported: Project) -> None:
    reported.run("report")
    _, page = shown(reported)
    found = [one for tag, one in page.tags if tag == "details" and one.get("class") == "task"]
    assert len(found) == len(tasks())
    assert {str(one["data-suite"]) for one in found} == {"detection", *SIZES}
    outcomes = {name for one in found for name in str(one["data-outcome"]).split()}
    buttons = {
        (str(one["data-key"]), str(one["data-value"]))
        for tag, one in page.tags
        if tag == "button" and one["data-value"]
    }
    assert {value for key, value in buttons if key == "suite"} == {"detection", *SIZES}
    assert outcomes <= {value for key, value in buttons if key == "outcome"}
    assert any(tag == "div" and one.get("id") == "controls" and "hidden" in one for tag, one in page.tags)


def test_a_large_page_shows_the_same_share_of_every_suite(
    reported: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ANSWER_BYTES", 60_000)
    reported.run("report")
    _, page = shown(reported)
    shown_suites = [one["data-suite"] for tag, one in page.tags if one.get("class") == "task"]
    assert set(shown_suites) == {"detection", *SIZES} and len(shown_suites) < len(tasks())
    assert f"{len(tasks()) - len(shown_suites)} of {len(tasks())} tasks are left out" in page.text


def test_user_suite_stands_under_its_own_name_escaped(
    reported: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = 'my "<b>|suite'
    own = [suites.Task(f"own/{n}", name, "code", "?") for n in range(3)]
    every = [*tasks(), *own]
    monkeypatch.setattr(sys.modules[__name__], "tasks", lambda: every)
    for model, right in RIGHT.items():
        put(reported, model, verdicts(right))
        write(reported.root / f"reports/completions/{model}.jsonl", completions())
    reported.run("report")
    text, page = shown(reported)
    assert "<b>|" not in text and (page.open, page.wrong) == ([], [])
    assert name in json.loads((reported.root / report.METRICS).read_text())
    assert r"\<b\>\|suite" in (reported.root / report.SUMMARY).read_text()


# Metrics. ----------------------------------------------------------------------------------------------


def test_metrics_are_finite_and_complete(reported: Project) -> None:
    reported.run("report")
    found = json.loads((reported.root / report.METRICS).read_text())
    assert {group: set(found[group]) for group in found if group not in ("training", "data")} == {
        "detection": {*comparison.DETECTION, "pairs"},
        "error_handling": {"pass_rate", "functional_rate", "tasks"},
        "explanation": {"pass_rate", "tasks"},
        "fixing": {"pass_rate", "functional_rate", "tasks"},
        "reference_tests": {"passed", "passed_ours", "tasks"},
        "coding": {"pass_at_1", "tasks"},
    }
    values = leaves(found)
    assert all(type(value) in (int, float) and math.isfinite(value) for value in values)  # type: ignore[arg-type]
    assert found["data"] == {"rows": 60, "kept": 50, "rejected": 10, "contaminated": 3, "mixed": 22}
    assert found["training"]["tokens"] == 123456 and "device" not in found["training"]
    for model, right in RIGHT.items():
        scores = totals(verdicts(right))
        assert found["coding"]["pass_at_1"][model] == scores["humaneval"]["pass_rate"]
        assert found["detection"]["mcc"][model] == scores["detection"]["mcc"]
        assert (
            found["fixing"]["functional_rate"][model] == scores["fixing"]["checks"]["functional"]["pass_rate"]
        )
        assert found["reference_tests"]["passed"][model] == scores["reference"]["passed"]
        assert found["reference_tests"]["passed_ours"][model] == scores["reference"]["ours"]["passed"]


def test_sampled_answers_give_pass_at_k(reported: Project) -> None:
    known = {task.id: task for task in tasks()}
    for model, right in RIGHT.items():
        more = [
            row | {"sample": sample, "passed": (number + sample) % 5 < right, "status": "passed"}
            for number, row in enumerate(verdicts(right))
            if row["suite"] == "humaneval"
            for sample in (1, 2, 3)
        ]
        rows = [*verdicts(right), *more]
        given = [*completions()]
        given += [given[list(known).index(row["id"])] | {"sample": row["sample"]} for row in more]
        put(reported, model, rows)
        write(reported.root / f"reports/completions/{model}.jsonl", given)
    reported.run("report")
    found = json.loads((reported.root / report.METRICS).read_text())["coding"]
    scores = json.loads((reported.root / "reports/scores/tuned.json").read_text())["humaneval"]
    assert set(found) == {"pass_at_1", "pass_at_3", "tasks"}
    assert found["pass_at_3"]["tuned"] == scores["pass_at_k"]["3"]
    assert found["pass_at_1"]["tuned"] == scores["pass_rate"]


def test_same_reports_give_same_bytes_and_show_writes_nothing(
    reported: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = reported.files()
    reported.run("report", "--show")
    assert reported.files() == before
    table = capsys.readouterr().out
    reported.run("report")
    first = reported.files()
    assert capsys.readouterr().out.split("\n\n")[0] == table.split("\n\n")[0]
    reported.run("report")
    assert reported.files() == first
    lines = table.split("\n")
    names = "base, tuned, difference, seed noise, always vulnerable, always safe"
    assert lines[0].split() == names.replace(",", "").split()
    recall = next(line for line in lines if line.startswith("detection recall"))
    assert recall.split()[-2:] == ["1.000", "0.000"]
    assert "better" in next(line for line in lines if line.startswith("coding pass@1"))
    assert "0 gates, none missed" in table


# Gates. ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "missed"),
    [
        ({"floors": {"detection.specificity": 0.3}}, []),
        ({"floors": {"detection.specificity": 0.99}}, [r"specificity: 0.833; expected at least 0.990"]),
        ({"ceilings": {"detection.invalid_rate": 0.5}}, []),
        ({"ceilings": {"detection.invalid_rate": 0}}, [r"invalid_rate: 0.042; expected at most 0.000"]),
        ({"no_drop": ["coding.pass_at_1", "detection.recall"]}, []),
        ({"floors": {"reference_tests.passed": 3}}, []),
        ({"floors": {"reference_tests.passed_ours": 3}}, [r"passed_ours: 2.000; expected at least 3.000"]),
        ({"floors": {"detection.luck": 0.1}}, [r"luck: no such metric; expected one of detection.bal"]),
        ({"no_drop": ["luck"]}, [r"report.no_drop.luck: no such metric"]),
        (
            {"floors": {"detection.recall": 1.0}, "ceilings": {"coding.pass_at_1": 0.1}},
            [r"report.floors.detection.recall: 0.833", r"report.ceilings.coding.pass_at_1: 0.800"],
        ),
    ],
)  # fmt: skip
def test_gates(
    reported: Project, capsys: pytest.CaptureFixture[str], gates: dict[str, Any], missed: list[str]
) -> None:
    reported.params(report=GATES | gates)
    status = reported.command("report")
    printed = capsys.readouterr().err
    assert status == (2 if missed else 0)
    assert len(re.findall(r"expected", printed)) == len(missed)
    for pattern in missed:
        assert re.search(rf"{pattern}.* \(params.yaml\)", printed)
    summary = (reported.root / report.SUMMARY).read_text()
    _, page = shown(reported)
    held = sum(map(len, gates.values())) - len(missed)
    assert (summary.count("**FAIL**"), summary.count("- pass:")) == (len(missed), held)
    assert (page.text.count("✗ missed"), page.text.count("✓ held")) == (len(missed), held)
    assert json.loads((reported.root / report.METRICS).read_text())["data"]
    assert reported.command("report", "--show") == 0
    printed = capsys.readouterr().out
    assert all(re.search(pattern, printed) for pattern in missed)


def test_a_significant_drop_is_a_missed_gate(reported: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for model, right in RIGHT.items():
        put(reported, model, verdicts(6 - right))
    reported.params(report=GATES | {"no_drop": ["coding.pass_at_1", "explanation.pass_rate"]})
    assert reported.command("report") == 2
    printed = capsys.readouterr().err
    assert "report.no_drop.coding.pass_at_1: 0.8 to 0.4 (p = 3.1e-05)" in printed
    assert "explanation" not in printed  # 5 to 3 of 6: by chance
    assert "worse" in (reported.root / report.SUMMARY).read_text()
    reported.params(report=GATES | {"no_drop": ["coding.pass_at_1"], "enforce": False})
    assert reported.command("report") == 0
    assert "report.no_drop.coding.pass_at_1: 0.8 to 0.4 (p = 3.1e-05)" in capsys.readouterr().out
    reported.params(report=GATES | {"no_drop": ["coding.pass_at_1"], "significance": 1e-9})
    assert reported.command("report") == 0


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"significance": 0}, "report.significance: 0"),
        ({"significance": 1.0}, "report.significance: 1.0"),
        ({"floors": {"detection.recall": "high"}}, "report.floors.detection.recall: 'high'"),
        ({"ceiling": {}}, "report.ceiling"),
    ],
)
def test_a_wrong_parameter_is_named(reported: Project, change: dict[str, Any], key: str) -> None:
    reported.params(report=GATES | change)
    with pytest.raises(PipelineError, match=re.escape(key)):
        reported.run("report")


# History. ----------------------------------------------------------------------------------------------


def git(project: Project, *arguments: str) -> None:
    who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=project.root, check=True, capture_output=True)


def commit(project: Project) -> None:
    git(project, "add", "-A")
    git(project, "commit", "-q", "--allow-empty", "-m", "Run")


def test_history_shows_what_changed_since_the_last_run_that_differs(reported: Project) -> None:
    git(reported, "init", "-q")
    reported.run("report")
    assert "Nothing to compare with: git cannot tell: your current branch" in shown(reported)[1].text
    commit(reported)
    reported.run("report")
    assert "every committed run has these numbers" in shown(reported)[1].text

    put(reported, "tuned", verdicts(3))
    write(reported.root / "reports/train.json", TRAINING | {"seconds": 1.0})
    reported.run("report")
    page = shown(reported)[1].text
    assert "coding.pass_at_1.tuned" in page and "coding.pass_at_1.base" not in page
    assert "training.seconds" not in page
    assert "| coding.pass_at_1.tuned" in (reported.root / report.SUMMARY).read_text().replace("\\_", "_")
    first = reported.files()
    commit(reported)
    reported.run("report")  # committing a run does not change what it is compared with
    after = reported.files()
    assert all(after[str(path)] == first[str(path)] for path in (report.PAGE, report.METRICS, report.SUMMARY))


def test_history_survives_deleted_and_broken_versions(reported: Project) -> None:
    git(reported, "init", "-q")
    reported.run("report")
    old = json.loads((reported.root / report.METRICS).read_text())
    old["detection"]["recall"]["tuned"] = 0.0
    for text in (json.dumps(old | {"gone": {"x": 1}}), "<<<<<<< half a merge", "[]", None):
        if text is None:
            (reported.root / report.METRICS).unlink()
        else:
            write(reported.root / report.METRICS, text)
        commit(reported)
    reported.run("report")
    page = shown(reported)[1].text
    assert "detection.recall.tuned" in page and "1 are no longer there" in page and "gone.x" in page


def test_history_without_git_says_so(reported: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(reported.root.parent))
    reported.run("report")
    assert "git cannot tell: not a git repository" in shown(reported)[1].text
    monkeypatch.setenv("PATH", str(reported.root))
    reported.run("report")
    assert "git cannot tell: it is not installed" in shown(reported)[1].text


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


# Seed noise. -------------------------------------------------------------------------------------------

REVISION = "c0ffee" * 7
FACTS = {
    "kinds": ["detect_safe", "write"],
    "steps": 40,
    "trainable_parameters": 1000,
    "sizes": {
        **{"coding": 40, "detection": 12, "error_handling": 8, "explanation": 6, "fixing": 8},
        "reference_tests": 3,
    },
}
VALUES = {
    "coding.pass_at_1.tuned": [0.1, 0.9, 0.3],
    "detection.recall.tuned": [0.5, 0.52],
    "error_handling.pass_rate.tuned": [0.25, 0.25, 0.25],
    "reference_tests.passed.tuned": [3, 1, 2],
    "training.loss": [1.0, 2.0, 1.5],
}


def measured(values: dict[str, list[float]] = VALUES, **change: Any) -> dict[str, Any]:
    """A file of seed noise, of three seeds."""
    whole = {name: (one + one[:1])[:3] for name, one in values.items()}
    return {"revision": REVISION, "seeds": [42, 43, 44], "facts": FACTS, "values": whole} | change


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of a summary's tables by their first cell."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n") if line[:1] == "|"
    ]
    return {row[0].replace("\\", ""): row[1:] for row in cells}


def test_noise_stands_beside_every_difference(reported: Project, capsys: pytest.CaptureFixture[str]) -> None:
    write(reported.root / noise.FILE, measured())
    reported.run("report")
    printed = capsys.readouterr().out
    text = (reported.root / report.SUMMARY).read_text(encoding="utf-8")
    found = {name: row[-1] for name, row in rows_of(text).items()}
    assert found["coding pass@1"] == "within 0.800"
    assert found["detection recall"] == "0.020", "the difference is greater"
    assert found["error handling pass rate"] == "0.000"
    assert found["reference tests passed"] == "within 0.667", "two of three tasks, as a share"
    assert found["detection MCC"] == "", "not measured of this metric"
    _, page = shown(reported)
    for where in (text, printed, page.text):
        words = " ".join(where.replace("\\", "").split())
        assert "3 trainings that differ in their seed alone (42, 43, 44; commit c0ffeec0ff)" in words
    assert "within 0.800" in printed and "within 0.667" in printed and "not measured" not in printed
    assert "0.800within" in page.text and "0.667within" in page.text and "not measured" not in page.text


def test_noise_stands_beside_what_has_changed(reported: Project) -> None:
    git(reported, "init", "-q")
    write(reported.root / noise.FILE, measured())
    reported.run("report")
    commit(reported)
    put(reported, "tuned", verdicts(3))
    write(reported.root / "reports/train.json", TRAINING | {"loss": 3.25, "token_accuracy": 0.5})
    reported.run("report")
    found = rows_of((reported.root / report.SUMMARY).read_text(encoding="utf-8"))
    assert found["coding.pass_at_1.tuned"][-2:] == ["-0.2", "within 0.8"]
    assert found["detection.recall.tuned"][-1] == "0.02"
    assert found["training.loss"][-2:] == ["+2", "1"]
    assert found["training.token_accuracy"][-2:] == ["-0.2", ""]
    assert "-0.20.8within" in shown(reported)[1].text.replace("\u2212", "-")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (None, "was not measured"),
        ({}, "was not measured"),
        ({"steps": 67}, "of another training (steps: 67 and 40 here)"),
        ({"kinds": ["write"]}, "of another training (kinds: ['write'] and ['detect_safe', 'write'] here)"),
        ({"sizes": {**FACTS["sizes"], "coding": 41}}, "of another training (sizes.coding: 41 and 40 here)"),  # type: ignore[dict-item]
    ],
)
def test_noise_of_another_training_is_not_shown(
    facts: dict[str, Any] | None, words: str, reported: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    if facts is not None:
        write(reported.root / noise.FILE, measured(facts=FACTS | facts) if facts else {})
    reported.run("report")
    text = (reported.root / report.SUMMARY).read_text(encoding="utf-8")
    brief = "of another training" if facts else "not measured"
    assert {row[-1] for name, row in rows_of(text).items() if name.startswith("coding")} == {brief}
    for where in (text, capsys.readouterr().out, shown(reported)[1].text):
        plain = where.replace("\\", "")
        assert words in plain and not re.search(r"within \d|\dwithin", plain)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("oops", ["data/noise.json: ", "expected one JSON object"]),
        (measured(seeds=[42]), ["noise.seeds: [42]; expected", "data/noise.json"]),
        (measured(seeds=[42, 42, 43]), ["noise: ", "each seed once; found [42, 42, 43]"]),
        (measured(seeds=[42, 43]), ["a value of each of 2 seeds; values.coding.pass_at_1.tuned has 3"]),
        (measured(values={"training.loss": ["low"]}), ["noise.values.training.loss.0: 'low'; expected"]),  # type: ignore[dict-item]
        (measured(revision="HEAD"), ["noise.revision: 'HEAD'; expected"]),
        (without(measured(), "facts"), ["noise.facts: nothing; expected a value"]),
        (measured(more=1), ["noise.more: 1; expected no such key"]),
    ],
)
def test_malformed_noise_gives_one_line_and_no_output(
    reported: Project, capsys: pytest.CaptureFixture[str], value: object, words: list[str]
) -> None:
    write(reported.root / noise.FILE, value)
    before = reported.files()
    assert reported.command("report") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert all(word in printed for word in words), printed
    assert reported.files() == before


# What other stages left. -------------------------------------------------------------------------------


def first(name: str, **change: Any) -> list[dict[str, Any]]:
    """Rows of a file of the tuned model, of which the first is changed; a value of ... takes the key out."""
    rows = completions() if name == "completions" else verdicts(RIGHT["tuned"])
    changed = {key: value for key, value in (rows[0] | change).items() if value is not ...}
    return [changed, *rows[1:]]


SCORES = totals(verdicts(RIGHT["tuned"]))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("reports/scores/tuned.json", None, ["reports/scores/tuned.json: not found"]),
        ("reports/filter/coding.json", None, ["reports/filter/coding.json: not found"]),
        ("reports/completions/base.jsonl", None, ["reports/completions/base.jsonl: not found"]),
        ("reports/export.json", None, ["reports/export.json: not found"]),
        ("reports/train/plots/metrics/entropy.tsv", None, ["entropy.tsv: not found"]),
        ("models/base/manifest.json", "[]", ["manifest.json"]),
        ("models/base/manifest.json", {}, ["manifest.json: uri: nothing"]),
        ("reports/mix.json", "oops", ["reports/mix.json"]),
        ("reports/mix.json", without(MIX, "cwes"), ["reports/mix.json: cwes: nothing"]),
        ("reports/filter/coding.json", without(FILTER, "kept"), ["filter/coding.json: kept: nothing"]),
        ("reports/train.json", without(TRAINING, "steps"), ["reports/train.json: steps: nothing"]),
        ("reports/train.json", TRAINING | {"loss": "low"}, ["reports/train.json: loss: 'low'"]),
        ("reports/mix.json", MIX | {"sources": {"coding": {}}}, ["sources.coding.examples: nothing"]),
        ("reports/train.json", {**TRAINING, "loss": float("nan")}, ["reports/train.json", "NaN"]),
        ("reports/verdicts/base.jsonl", "{}\noops\n", ["reports/verdicts/base.jsonl:1: id: nothing"]),
        ("reports/verdicts/base.jsonl", "oops\n", ["reports/verdicts/base.jsonl:1", "'oops"]),
        ("reports/verdicts/tuned.jsonl", first("verdicts", status="lost"), ["tuned.jsonl:1: status: 'lost'"]),
        ("reports/verdicts/tuned.jsonl", first("verdicts", passed=...), ["tuned.jsonl:1: passed: nothing"]),
        ("reports/verdicts/tuned.jsonl", first("verdicts", log_odds=float("inf")), ["log_odds: inf"]),
        ("reports/verdicts/tuned.jsonl", first("verdicts", checks=[1]), ["tuned.jsonl:1: checks: [1]"]),
        ("reports/verdicts/tuned.jsonl", verdicts(4)[1:], ["nothing on 'detection/00/vulnerable'"]),
        ("reports/verdicts/tuned.jsonl", verdicts(4) + verdicts(4)[:1], ["comes twice"]),
        ("reports/verdicts/tuned.jsonl", verdicts(1), ["detection.passed: ", "as in the verdicts"]),
        ("reports/completions/tuned.jsonl", first("completions", prompt="other"), ["asked otherwise"]),
        ("reports/completions/tuned.jsonl", first("completions", new_tokens=-1), ["new_tokens: -1"]),
        ("reports/completions/tuned.jsonl", [], ["tuned.jsonl: 0 rows"]),
        ("reports/scores/tuned.json", {"detection": SCORES["detection"]}, ["tuned.json: suites detection;"]),
        (
            "reports/scores/tuned.json",
            SCORES | {"detection": without(SCORES["detection"], "confusion")},
            ["tuned.json: detection.confusion: nothing"],
        ),
        ("reports/scores/tuned.json", dict.fromkeys(SCORES, 1), ["detection: 1; expected an object"]),
        (
            "reports/scores/tuned.json",
            SCORES | {"fixing": SCORES["fixing"] | {"groups": {}}},
            ["reports/scores: fixing: kind or groups differ"],
        ),
        (
            "reports/scores/tuned.json",
            SCORES | {"fixing": SCORES["fixing"] | {"groups": {"cwe": {"CWE-89": {"tasks": 8}}}}},
            ["fixing.groups.cwe.CWE-89.pass_rate: nothing"],
        ),
        ("reports/train/plots/metrics/loss.tsv", "step\tloss\n", ["loss.tsv: no point"]),
        ("reports/train/plots/metrics/loss.tsv", "step\tloss\n1\tnan\n", ["loss.tsv:2", "finite"]),
        ("reports/train/plots/metrics/loss.tsv", "step\tless\n1\t2\n", ["loss.tsv:2", "a loss"]),
    ],
)  # fmt: skip
def test_bad_report_of_another_stage_gives_one_line_and_no_output(
    reported: Project, capsys: pytest.CaptureFixture[str], name: str, value: object, words: list[str]
) -> None:
    if value is None:
        (reported.root / name).unlink()
    else:
        write(reported.root / name, value)
    before = reported.files()
    status = reported.command("report")
    printed = capsys.readouterr().err
    assert status == 2 and printed.startswith("error: ") and printed.count("\n") == 1
    assert all(word in printed for word in words), printed
    assert reported.files() == before


@pytest.mark.parametrize("points", ["1\t0.0\n", "0\t1.5\n", "1\t2.5\n", "1\t-3\n2\t1e-9\n"])
def test_short_and_odd_curves_do_not_stop_the_report(reported: Project, points: str) -> None:
    write(reported.root / "reports/train/plots/metrics/loss.tsv", f"step\tloss\n{points}")
    reported.run("report")
    assert not re.search(r"\bnan\b|\binf\b", shown(reported)[0])


def test_training_without_validation_is_reported_without_its_loss(reported: Project) -> None:
    write(reported.root / "reports/train.json", without(TRAINING, "valid_loss"))
    reported.run("report")
    assert "validation loss" not in shown(reported)[1].text
    assert "valid_loss" not in json.loads((reported.root / report.METRICS).read_text())["training"]


def test_show_before_any_run_names_the_missing_file(project: Project) -> None:
    project.params(report=GATES)
    with pytest.raises(PipelineError, match=r"reports/scores/base\.json: not found"):
        project.run("report", "--show")


def test_a_suite_may_not_take_the_name_of_another_group() -> None:
    found = [(task, judged(task, 0, 5)) for task in [suites.Task("x/1", "data", "code", "?")]]
    scores = {model: score.totals(found) for model in RIGHT}
    given = answers.Answer("x/1", "data", 0, "?", "", 1, "stop", True, "passed", "")
    with pytest.raises(PipelineError, match="overwrite the metrics of data"):
        comparison.measures(scores, {"data": [answers.Task(given, given)]}, {})


# The numbers beneath. ----------------------------------------------------------------------------------


def test_shifts_agree_with_the_metrics_and_tell_real_from_chance() -> None:
    from stages.common import metrics

    def detected(right: int) -> list[metrics.Judged]:
        rows = [(task, judged(task, n, right)) for n, task in enumerate(tasks()) if task.kind == "detection"]
        return [
            metrics.Judged(task.pair, task.vulnerable, row["verdict"], row["log_odds"]) for task, row in rows
        ]

    same = comparison.shifted(detected(2), detected(2))
    assert set(same.values()) == {((0.0, 0.0), 1.0)}
    for name, ((low, high), p) in comparison.shifted(detected(1), detected(5)).items():
        change = metrics.detection(detected(5))[name] - metrics.detection(detected(1))[name]
        assert low <= change <= high, name
        assert p < 0.05 or low <= 0 <= high, name


def test_roc_encloses_the_auc() -> None:
    from stages.common import metrics

    positive, negative = [3.0, 2.0, 2.0, -1.0], [2.0, 0.0, -1.0]
    line = pictures.roc(positive, negative)
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(line))
    assert area == pytest.approx(metrics.auc(positive, negative))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 68), (-0.3, 2.99), (0, 0), (0, 1e-9), (5, 5), (0, 3146)]
)
def test_marks_are_round_and_enclose(low: float, high: float) -> None:
    marks = pictures.rounded(low, high)
    assert marks == sorted(set(marks)) and 2 <= len(marks) <= 8
    assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12


def test_report_starts_without_heavy_libraries() -> None:
    heavy = ["torch", "pandas", "numpy", "jinja2"]
    code = f"import sys, stages.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
