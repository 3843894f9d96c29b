"""Report: finite metrics, a table, and one page that stands alone and escapes what models say."""

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stages import report, score
from stages.common import suites
from stages.common.errors import PipelineError

ROOT = Path(__file__).resolve().parents[1]
EVIL = '<script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)>\'"&</pre></details>'
SUITES = ("detection", "error_handling", "humaneval", "reference_tests")


def tasks() -> list[suites.Task]:
    """Three pairs, and four tasks in each other suite."""
    pairs = [
        suites.Task(
            f"detection/{n}/{side}", "detection", "detection", EVIL, pair=f"{n}", vulnerable=side == "weak"
        )
        for n in range(3)
        for side in ("weak", "fixed")
    ]
    return pairs + [suites.Task(f"{name}/{n}", name, "code", EVIL) for name in SUITES[1:] for n in range(4)]


def verdicts(right: int) -> list[dict]:
    """A verdict a task, of which `right` in every five or so pass; some detection answers are no verdict."""
    rows = []
    for number, task in enumerate(tasks()):
        passed = number % 5 < right
        given = (task.vulnerable == passed) if passed or number % 2 else None
        rows.append({"id": task.id, "suite": task.suite, "passed": passed, "verdict": given, "reason": EVIL})
    return rows


def scores() -> dict[str, dict]:
    """The totals of base and tuned."""
    return {model: score.totals(tasks(), verdicts(right)) for model, right in (("base", 2), ("tuned", 4))}


TRAINING = {
    **{"loss": 1.25, "token_accuracy": 0.7, "entropy": 1.1, "valid_loss": 1.5, "tokens": 123456, "steps": 40},
    **{
        "seconds": 321.5,
        "trainable_parameters": 1000,
        "truncated_share": 0.0,
        "device": EVIL,
        "dtype": "bfloat16",
    },
}
MIX = {
    **{"train": 20, "valid": 2, "preferences": 0, "contaminated": 3, "floors": {}, "decontamination": {}},
    "kinds": {"write": {"rows": 22, "characters": 2200, "approximate_tokens": 700, "share": 1.0}},
    "sources": {
        "coding": {
            **{"examples": 51, "too_long": 0, "contaminated": 3, "near_duplicate": 1, "not_chosen": 25},
            **{"wanted": 22, "mixed": 22, "repeated": 0, "preferences": 0},
        }
    },
}
FILTER = {  # of a row in three pieces two are kept, so pieces and entries of the ledger are more than rows
    **{"rows": 60, "kept": 50, "rejected": 10, "chunks": 3, "samples": 51},
    **{"reasons": {"empty": 10, "length": 1}, "redacted": {}, "label": {}, "suspects": {}},
}
LOSS = "step\tloss\n5\t2.5\n10\t1.5\n40\t1.25\n"


def write(path: Path, value: object) -> None:
    """A file of JSON lines for a list, of text for a string, of one JSON object otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list):
        value = "".join(json.dumps(row) + "\n" for row in value)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@pytest.fixture
def reported(project):
    """A project in which every other stage has run."""
    (project.root / "stages").mkdir()
    shutil.copy(ROOT / report.TEMPLATE, project.root / report.TEMPLATE)
    for model, right in (("base", 2), ("tuned", 4)):
        answers = [
            {"id": task.id, "suite": task.suite, "prompt": task.prompt, "completion": EVIL, "new_tokens": 3}
            for task in tasks()
        ]
        write(project.root / f"reports/completions/{model}.jsonl", answers)
        write(project.root / f"reports/verdicts/{model}.jsonl", verdicts(right))
        write(project.root / f"reports/scores/{model}.json", scores()[model])
    for name, value in {
        "reports/mix.json": MIX,
        "reports/filter/coding.json": FILTER,
        "reports/train.json": TRAINING,
        "reports/export.json": {"agreement": 0.9987, "divergence": 1e-5, "tokens": 100, "adapter_bytes": 1},
        "reports/train/plots/metrics/loss.tsv": LOSS,
        "models/base/manifest.json": {"uri": EVIL, "licence": EVIL, "files": {}},
    }.items():
        write(project.root / name, value)
    project.params()
    return project


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text, and tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br", "line", "polyline", "link", "img", "hr", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def leaves(tree: object) -> list[object]:
    """Every value of a tree of dictionaries."""
    return [leaf for value in tree.values() for leaf in leaves(value)] if isinstance(tree, dict) else [tree]


def test_page_stands_alone(reported):
    reported.run("report")
    text = (reported.root / report.PAGE).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "xlink:href", "srcset", "action", "background", "data"} & names
    assert not any(name.startswith("on") for name in names)
    assert not any("http://" in (value or "") or "https://" in (value or "") for _, value in page.attributes)
    styles = text.split("<style>")[1].split("</style>")[0]
    assert not any(word in styles for word in ("url(", "@import", "http"))
    assert page.open == []


def test_page_escapes_what_models_say(reported):
    reported.run("report")
    text = (reported.root / report.PAGE).read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text and "&lt;script" in text
    assert Page(text).text.count(EVIL) >= 30  # prompts, answers, reasons, device and base model


def test_page_shows_ten_answers_of_all_suites_and_the_numbers(reported):
    reported.run("report")
    text = Page((reported.root / report.PAGE).read_text(encoding="utf-8")).text
    assert all(f"{name}/" in text for name in SUITES)
    shown = Page((reported.root / report.PAGE).read_text(encoding="utf-8")).tags.count("details")
    assert shown == 10
    for number in ("123,456", "1.250", "70.0", "1.100", "1.500", "99.87", "empty 10, length 1"):
        assert number in text
    assert "nan" not in text.lower().split() and "None" not in text and "undefined" not in text.lower()


def test_metrics_are_finite_and_complete(reported):
    reported.run("report")
    found = json.loads((reported.root / report.METRICS).read_text())
    assert set(found) == {"detection", "coding", "error_handling", "reference_tests", "training", "data"}
    assert set(found["detection"]) == set(report.DETECTION)
    for group, name in (
        ("coding", "pass_at_1"),
        ("error_handling", "pass_rate"),
        ("reference_tests", "passed"),
    ):
        assert set(found[group][name]) == {"base", "tuned"}
    values = leaves(found)
    assert all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    assert all(map(math.isfinite, values)) and len(values) > 25
    assert found["data"] == {"rows": 60, "kept": 50, "rejected": 10, "contaminated": 3, "mixed": 22}
    assert found["coding"]["pass_at_1"] == {
        m: scores()[m]["humaneval"]["pass_rate"] for m in ("base", "tuned")
    }
    assert found["reference_tests"]["passed"]["base"] == scores()["base"]["reference_tests"]["passed"]


def test_same_reports_give_same_bytes_and_show_writes_nothing(reported, capsys):
    before = reported.files()
    reported.run("report", "--show")
    assert reported.files() == before
    shown = capsys.readouterr().out
    reported.run("report")
    first = reported.files()
    assert capsys.readouterr().out == shown
    reported.run("report")
    assert reported.files() == first


def test_text_table_is_aligned_and_has_every_measure():
    table = report.text_table(report.lines(scores())).split("\n")
    assert table[0].split() == ["base", "tuned", "always", "vulnerable", "always", "safe"]
    for name in (*report.DETECTION, "pass @1", "pass rate"):
        assert any(name.replace("_", " ") in line for line in table)
    ends = {line.index("0.500") for line in table if line.count("0.500") == 2 and "balanced" in line}
    assert len(table) == 1 + len(report.DETECTION) + 3 and len(ends) <= 1
    mcc = next(line for line in table if "mcc" in line)
    assert mcc.split()[-2:] == ["0.000", "0.000"] and len(mcc) == len(table[0])


def test_lines_carry_both_models_and_the_constants():
    for line in report.lines(scores()):
        assert len(line.values) == 4
        if line.label.startswith("detection"):
            assert None not in line.values and line.counts is None
        else:
            assert line.values[2:] == (None, None) and line.counts is not None
            assert line.values[:2] == tuple(count / line.tasks for count in line.counts)


@pytest.mark.parametrize(
    ("base", "tuned", "label", "best"),
    [
        (0.1, 0.2, "coding: pass @1", True),
        (0.2, 0.1, "coding: pass @1", False),
        (0.2, 0.2, "coding: pass @1", False),
        (-0.5, -0.2, "detection: mcc", True),
        (0.1, 0.2, "detection: invalid rate", False),
    ],
)
def test_only_an_improvement_is_marked(base, tuned, label, best):
    shown = report.cells(report.Line(label, "", (base, tuned, None, None)))
    assert [cell["best"] for cell in shown] == [False, best, False, False]
    assert [cell["text"] for cell in shown] == [f"{base:.3f}", f"{tuned:.3f}", "", ""]


def test_shares_stand_with_their_interval():
    shown = report.cells(report.Line("coding", "", (0.5, 1.0, None, None), (5, 10), 10))
    assert [cell["interval"] for cell in shown[:2]] == ["5 of 10; 0.24 to 0.76", "10 of 10; 0.72 to 1.00"]


@pytest.mark.parametrize(("size", "count"), [(0, 5), (3, 5), (5, 5), (164, 3)])
def test_answers_are_drawn_once_in_order_and_repeatably(size, count):
    found = report.drawn(range(size), count)
    assert found == report.drawn(range(size), count)
    assert len(found) == min(size, count) and found == sorted(set(found))


@pytest.mark.parametrize("loss", ["step\tloss\n1\t0.0\n", "step\tloss\n0\t1.5\n", "step\tloss\n1\t2.5\n"])
def test_short_curves_do_not_stop_the_report(reported, loss):
    write(reported.root / "reports/train/plots/metrics/loss.tsv", loss)
    reported.run("report")
    assert "nan" not in (reported.root / report.PAGE).read_text().lower().replace("-", " ").split()


def test_training_without_validation_is_reported_without_its_loss(reported):
    write(reported.root / "reports/train.json", {k: v for k, v in TRAINING.items() if k != "valid_loss"})
    reported.run("report")
    text = (reported.root / report.PAGE).read_text(encoding="utf-8")
    assert "validation loss" not in text and "Undefined" not in text
    assert "valid_loss" not in json.loads((reported.root / report.METRICS).read_text())["training"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("reports/scores/tuned.json", None, ["reports/scores/tuned.json: not found"]),
        ("reports/filter/coding.json", None, ["reports/filter/coding.json: not found"]),
        ("reports/completions/base.jsonl", None, ["reports/completions/base.jsonl: not found"]),
        ("reports/export.json", None, ["reports/export.json: not found"]),
        ("reports/train/plots/metrics/loss.tsv", None, ["loss.tsv: not found"]),
        ("models/base/manifest.json", "[]", ["manifest.json"]),
        ("reports/mix.json", "oops", ["reports/mix.json"]),
        ("reports/verdicts/base.jsonl", "{}\noops\n", ["reports/verdicts/base.jsonl:2", "'oops"]),
        ("reports/train/plots/metrics/loss.tsv", "step\tloss\n", ["loss.tsv"]),
        ("reports/train.json", {**TRAINING, "loss": float("nan")}, ["reports/train.json", "nan"]),
        ("reports/scores/tuned.json", {"detection": scores()["tuned"]["detection"]}, ["error_handling"]),
        ("reports/completions/tuned.jsonl", [], ["tuned.jsonl"]),
    ],
)
def test_bad_report_of_another_stage_gives_one_line_and_no_output(reported, capsys, name, value, words):
    if value is None:
        (reported.root / name).unlink()
    else:
        write(reported.root / name, value)
    before = reported.files()
    status = reported.command("report")
    printed = capsys.readouterr().err
    assert status == 2 and printed.startswith("error: ") and printed.count("\n") == 1
    assert all(word in printed.lower() or word in printed for word in words)
    assert reported.files() == before


def test_show_before_any_run_names_the_missing_file(project):
    with pytest.raises(PipelineError, match=r"reports/scores/base\.json: not found"):
        project.run("report", "--show")
