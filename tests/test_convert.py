"""Convert: each task makes its examples, both sides of a pair are asked alike, and bad rows are named."""

import json
from dataclasses import asdict
from typing import get_args

import pytest

from stages import convert
from stages.common import prompts
from stages.common.errors import PipelineError
from stages.common.records import Sample


def sample(**changes: str) -> Sample:
    """A pair in Python with everything known about it, with some fields changed."""
    fields = {
        "id": "mine/7",
        "source": "mine",
        "licence": "MIT",
        "language": "python",
        "instruction": "List the users.",
        "input": "",
        "output": "execute(query, (name,))",
        "vulnerable": "execute(query % name)",
        "cwe": "CWE-89",
        "weakness": "The name is pasted into the query.",
        "remedy": "The name is bound.",
    }
    return Sample(**{**fields, **changes})


PLAIN = sample(vulnerable="", cwe="", weakness="", remedy="", output="Like this:\n```\nx\n```")


@pytest.mark.parametrize(
    ("task", "given", "kinds"),
    [
        ("write", sample(), ["write"]),
        ("write", PLAIN, ["write"]),
        ("write", sample(instruction=""), []),
        ("detect", sample(), ["detect_vulnerable", "detect_safe"]),
        ("detect", PLAIN, []),
        ("fix", sample(), ["fix"]),
        ("fix", PLAIN, []),
        ("explain", sample(), ["explain"]),
        ("explain", sample(weakness=""), []),
        ("explain", PLAIN, []),
        ("reference_write", PLAIN, ["write"]),
        ("reference_detect", sample(), ["detect_vulnerable"]),
        ("reference_fix", sample(), ["fix"]),
    ],
)
def test_task_makes_these_kinds(task, given, kinds):
    made = convert.examples(given, [task])
    assert [example.kind for example in made] == kinds
    for example in made:
        assert (example.id, example.group) == (f"mine/7/{example.kind}", "mine/7")
        assert (example.source, example.licence) == ("mine", "MIT")
        assert example.prompt.strip() and example.completion.strip()


def test_every_named_task_has_a_converter():
    assert set(convert.CONVERTERS) == set(get_args(convert.Task))


@pytest.mark.parametrize("cwe", ["CWE-89", "CWE-9999", ""])
@pytest.mark.parametrize("words", [{}, {"weakness": "", "remedy": ""}])
def test_both_sides_get_one_question_and_opposite_verdicts(cwe, words):
    weak, safe = convert.examples(sample(cwe=cwe, **words), ["detect"])
    assert weak.prompt.replace(sample().vulnerable, sample().output) == safe.prompt
    verdicts = [prompts.parse_verdict(example.completion) for example in (weak, safe)]
    assert verdicts == [prompts.Verdict(True, cwe), prompts.Verdict(False)]
    assert all("\n" not in example.completion for example in (weak, safe))
    assert "CWE" not in weak.prompt.replace("the CWE", "")


def test_no_constant_verdict_is_right_on_more_than_half():
    made = [example for n in range(20) for example in convert.examples(sample(id=f"mine/{n}"), ["detect"])]
    verdicts = [prompts.parse_verdict(example.completion) for example in made]
    assert sum(verdict.vulnerable for verdict in verdicts if verdict) == len(made) / 2


@pytest.mark.parametrize(
    ("task", "asked", "answered"),
    [
        ("write", "List the users.", "```python\nexecute(query, (name,))\n```"),
        ("fix", "execute(query % name)", "```python\nexecute(query, (name,))\n```"),
        (
            "explain",
            "execute(query % name)",
            "CWE-89 (SQL injection): The name is pasted into the query. The name is bound.",
        ),
        ("reference_fix", "### Input:\nexecute(query % name)", "execute(query, (name,))"),
        ("reference_detect", "### Input:\nexecute(query % name)", "NO - SECURITY VULNERABILITY DETECTED!"),
    ],
)
def test_question_and_answer(task, asked, answered):
    (example,) = convert.examples(sample(), [task])
    assert asked in example.prompt and answered in example.completion
    if task in ("write", "fix", "explain"):
        assert example.completion == answered


def test_write_keeps_a_plain_answer_as_it_stands_and_adds_the_input():
    (example,) = convert.examples(PLAIN, ["write"])
    assert (example.prompt, example.completion) == ("List the users.", PLAIN.output)
    (example,) = convert.examples(sample(vulnerable="", input="3"), ["write"])
    assert example.prompt == "List the users.\n\n### Input:\n3"


def test_examples_follow_the_order_of_tasks_and_ids_are_unique():
    made = convert.examples(sample(), ["fix", "detect", "write", "explain"])
    assert [example.kind for example in made] == [
        "fix",
        "detect_vulnerable",
        "detect_safe",
        "write",
        "explain",
    ]
    assert len({example.id for example in made}) == len(made)


def filtered(project, rows: list[dict], tasks: object) -> None:
    """Put rows where filter leaves them."""
    folder = project.root / "data/filtered"
    folder.mkdir(parents=True)
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    project.params(convert={"mine": {"tasks": tasks}})


def test_main_converts_in_order_and_repeats_itself(project):
    filtered(project, [asdict(sample(id=f"mine/{n}")) for n in (2, 0, 1)], ["detect", "fix"])
    project.run("convert", "mine")
    text = (project.root / "data/converted/mine.jsonl").read_text()
    rows = [json.loads(line) for line in text.split("\n") if line]
    assert [row["group"] for row in rows] == ["mine/2"] * 3 + ["mine/0"] * 3 + ["mine/1"] * 3
    first = project.files()
    project.run("convert", "mine")
    assert project.files() == first


@pytest.mark.parametrize(
    ("rows", "tasks", "words"),
    [
        ([], ["write"], ["convert.mine.tasks: write", "0 samples"]),
        ([asdict(PLAIN)], ["detect", "fix"], ["convert.mine.tasks: detect, fix", "no example"]),
        ([asdict(sample()), {"id": "x"}], ["fix"], ["mine.jsonl:2", "['id']"]),
        ([{**asdict(sample()), "colour": "red"}], ["fix"], ["mine.jsonl:1", "colour"]),
        ([asdict(sample())], ["sing"], ["convert.mine.tasks.0: 'sing'"]),
        ([asdict(sample())], [], ["convert.mine.tasks: []"]),
        ([asdict(sample())], "fix", ["convert.mine.tasks: 'fix'"]),
        ([{**asdict(sample()), "output": 3}], ["fix"], ["mine.jsonl:1", "output: 3"]),
    ],
)
def test_bad_input_gives_one_line_and_no_output(project, capsys, rows, tasks, words):
    filtered(project, rows, tasks)
    before = project.files()
    status = project.command("convert", "mine")
    printed = capsys.readouterr().err
    assert status == 2 and printed.startswith("error: ") and printed.count("\n") == 1
    assert all(word in printed for word in words)
    assert project.files() == before


def test_missing_file_is_named(project):
    project.params(convert={"mine": {"tasks": ["fix"]}})
    with pytest.raises(PipelineError, match=r"data/filtered/mine\.jsonl: not found"):
        project.run("convert", "mine")
