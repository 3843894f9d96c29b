"""Convert: each task makes its examples, both sides of a pair are asked alike, and bad rows are named."""

import json
import random
from dataclasses import asdict
from typing import get_args

import pytest
from conftest import ROOT, read_rows, write_rows

from stages import convert
from stages.common import prompts
from stages.common.errors import PipelineError
from stages.common.records import Example, Sample

DATA = ROOT.parent / "shared/data"


def sample(**changes: str) -> Sample:
    """A pair in Python with everything known about it, with some fields changed."""
    fields = {
        "id": "mine/7",
        "source": "mine",
        "licence": "MIT",
        "revision": "abc",
        "transforms": "",
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


LONE = sample(vulnerable="", cwe="", weakness="", remedy="", output="Like this:\n```\nx\n```")
CONTRAST = sample(
    instruction="Parse the text.",
    output="```python\ntry:\n    go()\nexcept OSError:\n    stop()\n```",
    vulnerable="```python\ngo()\n```",
    cwe="",
    weakness="A missing file ends it.",
    remedy="It stops.",
    test="assert go",
    fault_test="assert stop",
)

BAD = "```python\nexecute(query % name)\n```"
GOOD = "```python\nexecute(query, (name,))\n```"
HANDLED = "```python\ntry:\n    go()\nexcept OSError:\n    stop()\n```"
LEFT_OUT = "```python\ngo()\n```"

SECURE = "Is this code secure? Answer SAFE, or VULNERABLE and the CWE, on the first line.\n\n"
COMPLETE = (
    "Does this code handle its errors? Answer COMPLETE or INCOMPLETE on the first line, then say why.\n\n"
)

EXPECTED = [
    ("write", sample(), [("write", "List the users.", GOOD, "")]),
    ("write", sample(input=" 3\n"), [("write", "List the users.\n\n### Input:\n3", GOOD, "")]),
    ("write", sample(language="klingon 2"), [("write", "List the users.", GOOD.replace("python", ""), "")]),
    ("write", LONE, [("write", "List the users.", "Like this:\n```\nx\n```", "")]),
    ("write", sample(instruction=" \n"), []),
    ("write", sample(id="mine/7#1"), []),  # a piece does not answer the whole request
    ("write", CONTRAST, [("write", "Parse the text.", HANDLED, "")]),
    ("handle", CONTRAST, [("handle", "Parse the text.", HANDLED, "")]),
    ("handle", LONE, [("handle", "List the users.", "Like this:\n```\nx\n```", "")]),
    (
        "verdict",
        sample(),
        [
            ("detect_vulnerable", SECURE + BAD, "VULNERABLE CWE-89", ""),
            ("detect_safe", SECURE + GOOD, "SAFE", ""),
        ],
    ),
    ("verdict", LONE, []),
    (
        "detect",
        sample(),
        [
            (
                "detect_vulnerable",
                SECURE + BAD,
                "VULNERABLE CWE-89\n\nCWE-89 (SQL injection): The name is pasted into the query.",
                "",
            ),
            ("detect_safe", SECURE + GOOD, "SAFE\n\nThe name is bound.", ""),
        ],
    ),
    (
        "detect",
        sample(remedy=" ", weakness=" Pasted.\n"),
        [
            ("detect_vulnerable", SECURE + BAD, "VULNERABLE CWE-89\n\nCWE-89 (SQL injection): Pasted.", ""),
            ("detect_safe", SECURE + GOOD, "SAFE\n\nIt is not open to SQL injection.", ""),
        ],
    ),
    (
        "detect",
        sample(cwe="", weakness="", remedy=""),
        [
            ("detect_vulnerable", SECURE + BAD, "VULNERABLE", ""),
            ("detect_safe", SECURE + GOOD, "SAFE\n\nIt is not open to a security weakness.", ""),
        ],
    ),
    ("detect", LONE, []),
    ("fix", sample(), [("fix", f"Fix the security weakness in this code.\n\n{BAD}", GOOD, "")]),
    (
        "fix",
        sample(vulnerable=f"Do not:\n{BAD}\nBye.", output=f"Do:\n{GOOD}\nBye."),
        [("fix", f"Fix the security weakness in this code.\n\n{BAD}", GOOD, "")],
    ),
    ("fix", LONE, []),
    (
        "explain",
        sample(),
        [
            (
                "explain",
                f"Name the security weakness in this code and explain it.\n\n{BAD}",
                "CWE-89 (SQL injection): The name is pasted into the query. The name is bound.",
                "",
            )
        ],
    ),
    (
        "explain",
        sample(cwe="", remedy=""),
        [
            (
                "explain",
                f"Name the security weakness in this code and explain it.\n\n{BAD}",
                "The name is pasted into the query.",
                "",
            )
        ],
    ),
    ("explain", sample(weakness=" "), []),
    ("explain", LONE, []),
    (
        "review",
        CONTRAST,
        [
            (
                "review_incomplete",
                COMPLETE + LEFT_OUT,
                f"INCOMPLETE\n\nA missing file ends it.\n\n{HANDLED}",
                "",
            ),
            ("review_complete", COMPLETE + HANDLED, "COMPLETE\n\nIt stops.", ""),
        ],
    ),
    (
        "review",
        sample(weakness="", remedy=" "),
        [
            ("review_incomplete", COMPLETE + BAD, f"INCOMPLETE\n\n{GOOD}", ""),
            ("review_complete", COMPLETE + GOOD, "COMPLETE", ""),
        ],
    ),
    ("review", LONE, []),
    ("prefer", sample(), [("preference", "List the users.", GOOD, BAD)]),
    ("prefer", CONTRAST, [("preference", "Parse the text.", HANDLED, LEFT_OUT)]),
    ("prefer", sample(instruction=""), []),
    ("prefer", sample(id="mine/7#1"), []),
    ("prefer", sample(vulnerable=f"Worse:\n{GOOD}", output=f"Better:\n{GOOD}"), []),
    ("prefer", LONE, []),
]


@pytest.mark.parametrize(("task", "given", "turns"), EXPECTED)
def test_task_makes_these_examples(task, given, turns):
    made = convert.examples(given, [task])
    assert [(each.kind, each.prompt, each.completion, each.rejected) for each in made] == turns


# The reference's section 9.2, written out: upstream's text goes in as it stands.
CHOSEN, REJECTED = "  \n```js\r\nsafe(a)\r\n```\tor so ", "\n    eval(a)\n\n"
REVIEW = (
    "NO - SECURITY VULNERABILITY DETECTED!\n"
    "\n"
    "This code contains security issues that could be exploited.\n"
    "\n"
    "**Secure Version:**\n"
    "```\n"
    "  \n```js\r\nsafe(a)\r\n```\tor so \n"
    "```\n"
    "\n"
    "Always validate inputs and follow secure coding practices."
)


@pytest.mark.parametrize(
    ("task", "given", "turn"),
    [
        (
            "reference_detect",
            sample(output=CHOSEN, vulnerable=REJECTED),
            (
                "detect_vulnerable",
                "Review this code for security vulnerabilities. Is it safe?\n\n### Input:\n\n    eval(a)\n\n",
                REVIEW,
            ),
        ),
        (
            "reference_fix",
            sample(output=CHOSEN, vulnerable=REJECTED),
            (
                "fix",
                "Fix the security vulnerabilities in this code\n\n### Input:\n\n    eval(a)\n\n",
                CHOSEN,
            ),
        ),
        (
            "reference_write",
            sample(instruction=" Sort it. ", input="<noinput>", output=" [1]\n", vulnerable=""),
            ("write", " Sort it. \n\n### Input:\n<noinput>", " [1]\n"),
        ),
        (
            "reference_write",
            sample(instruction="Sort.\r\n", output="", vulnerable=""),
            ("write", "Sort.\r\n", ""),
        ),
    ],
)
def test_reference_is_followed_to_the_letter(task, given, turn):
    (made,) = convert.examples(given, [task])
    assert (made.kind, made.prompt, made.completion, made.rejected) == (*turn, "")


def test_every_named_task_has_a_converter_and_an_expectation():
    assert set(convert.CONVERTERS) == set(get_args(convert.Task))
    tested = {task for task, _, turns in EXPECTED if turns}
    assert tested | {"reference_write", "reference_detect", "reference_fix"} == set(convert.CONVERTERS)


# Both sides of a pair. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["verdict", "detect"])
@pytest.mark.parametrize("cwe", ["CWE-89", "CWE-9999", ""])
@pytest.mark.parametrize("words", [{}, {"weakness": "", "remedy": ""}])
@pytest.mark.parametrize("language", ["python", ""])
def test_both_sides_get_one_question_and_opposite_verdicts(task, cwe, words, language):
    weak, safe = convert.examples(sample(cwe=cwe, language=language, **words), [task])
    assert weak.prompt.replace(sample().vulnerable, sample().output) == safe.prompt != weak.prompt
    verdicts = [prompts.parse_verdict(example.completion) for example in (weak, safe)]
    assert verdicts == [prompts.Verdict(True, cwe), prompts.Verdict(False)]
    assert "CWE" not in weak.prompt.replace("the CWE", "")
    assert (task == "verdict") <= all("\n" not in example.completion for example in (weak, safe))


def test_both_sides_of_a_contrast_pair_get_one_question_and_opposite_answers():
    bad, good = convert.examples(CONTRAST, ["review"])
    assert bad.prompt.replace(LEFT_OUT, HANDLED) == good.prompt != bad.prompt
    assert [each.completion.split("\n")[0] for each in (bad, good)] == ["INCOMPLETE", "COMPLETE"]


@pytest.mark.parametrize("task", ["verdict", "detect", "review"])
def test_every_constant_answer_is_wrong_on_half(task):
    made = [each for n in range(20) for each in convert.examples(sample(id=f"mine/{n}"), [task])]
    first = [each.completion.split("\n")[0].split(" ")[0] for each in made]
    assert sorted(first.count(word) for word in set(first)) == [20, 20]


# The code in the examples. ------------------------------------------------------------------------------

ODD = [*"ab1(){}[]'\"\\#$%&<>|~;:,._- \t\n\n\n`", "```", "\n```", "\n    ```", "\r\n", "\r", "\0", "\x0c"]
ODD += [
    "\x85",
    "\u2028",
    "\ufeff",
    "é",
    "語",
    "😀",
    "<|im_end|>",
    "</s>",
    "{{",
    "}}",
    "### Response:\n",
    "~~~",
]


def odd_code(draw: random.Random) -> str:
    """Some code without blank lines around it."""
    return "x" + "".join(draw.choices(ODD, k=draw.randrange(60))) + "y"


def sides(given: Sample, tasks: list[convert.Task]) -> dict[str, list[str]]:
    """The code in each example: of its prompt, of its answer, of the worse answer, where there is a block."""
    texts = {
        each.kind: (each.prompt, each.completion, each.rejected) for each in convert.examples(given, tasks)
    }
    return {
        kind: [prompts.code_block(text) for text in each if "```" in text] for kind, each in texts.items()
    }


@pytest.mark.parametrize("seed", range(200))
def test_code_comes_back_from_every_example(seed):
    draw = random.Random(seed)
    good, bad = odd_code(draw), odd_code(draw)
    language = draw.choice(["python", "c", "cpp", "csharp", "visual-basic", "", "no such language"])
    given = sample(
        language=language, output=prompts.fenced(good, language), vulnerable=prompts.fenced(bad, language)
    )
    assert sides(given, ["write", "handle", "detect", "fix", "explain", "review", "prefer"]) == {
        "write": [good],
        "handle": [good],
        "detect_vulnerable": [bad],
        "detect_safe": [good],
        "fix": [bad, good],
        "explain": [bad],
        "review_incomplete": [bad, good],
        "review_complete": [good],
        "preference": [good, bad],
    }


@pytest.mark.parametrize(
    "code",
    [
        'def f():\n    """Show it.\n\n    ```\n    f()\n    ```\n    """\n    return 1',
        "/// ```\n/// assert!(f());\n/// ```\nfn f() {}",
        "//! ```rust\n//! f();\nfn f() {}",
        "const a = `x`;\nconst b = ```y```;",
        "echo `date`",
        "  indented()\nand_not()",
        "a\r\nb\r",
    ],
)
def test_code_without_a_fence_around_it_comes_back_whole(code):
    given = sample(output=code, vulnerable=f"{code}\nz")
    assert sides(given, ["verdict", "fix"]) == {
        "detect_vulnerable": [f"{code}\nz"],
        "detect_safe": [code],
        "fix": [f"{code}\nz", code],
    }


@pytest.mark.parametrize("name", ["sven", "safecoder"])
def test_code_of_real_pairs_comes_back(name):
    path = DATA / name / "train.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    for row in read_rows(path):
        bad, good = row["func_src_before"], row["func_src_after"]
        assert sides(sample(output=good, vulnerable=bad), ["fix", "prefer"])["fix"] == [
            bad.strip("\n"),
            good.strip("\n"),
        ]


# What every example carries. ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", get_args(convert.Task))
@pytest.mark.parametrize(
    ("name", "group", "transforms", "noted"),
    [
        ("mine/7", "mine/7", "", "convert {}"),
        ("mine/7#2", "mine/7", "redact EMAIL 1; chunk 2 of 3", "redact EMAIL 1; chunk 2 of 3; convert {}"),
    ],
)
@pytest.mark.parametrize("cwe", ["CWE-89", ""])
def test_examples_carry_where_they_come_from(task, name, group, transforms, noted, cwe):
    examples = convert.examples(sample(id=name, transforms=transforms, cwe=cwe), [task])
    assert examples or ("#" in name and task in ("write", "handle", "prefer"))
    for made in examples:
        assert asdict(made) == {
            "id": f"{name}/{made.kind}",
            "group": group,
            "source": "mine",
            "licence": "MIT",
            "revision": "abc",
            "transforms": noted.format(task),
            "kind": made.kind,
            "prompt": made.prompt,
            "completion": made.completion,
            "rejected": made.rejected,
            "cwe": cwe,
        }


def test_examples_follow_the_order_of_tasks_and_ids_are_unique():
    tasks: list[convert.Task] = ["fix", "detect", "prefer", "write", "explain", "handle", "review"]
    pairs = [sample(id=name) for name in ("mine/7", "mine/7#1", "mine/7#2", "mine/71")]
    made = [each for pair in pairs for each in convert.examples(pair, tasks)]
    assert [each.kind for each in made[:9]] == [
        "fix",
        "detect_vulnerable",
        "detect_safe",
        "preference",
        "write",
        "explain",
        "handle",
        "review_incomplete",
        "review_complete",
    ]
    assert len({each.id for each in made}) == len(made) == 9 + 6 + 6 + 9


@pytest.mark.parametrize(
    ("tasks", "kind"),
    [
        (["write", "reference_write"], "write"),
        (["verdict", "detect"], "detect_vulnerable"),
        (["explain", "detect", "reference_detect"], "detect_vulnerable"),
        (["fix", "reference_fix"], "fix"),
        (["fix", "fix"], "fix"),
    ],
)
def test_two_tasks_that_make_one_kind_are_refused(tasks, kind):
    with pytest.raises(PipelineError) as error:
        convert.examples(sample(), tasks)
    assert str(error.value) == (
        f"convert.mine.tasks: {', '.join(tasks)}; two of them make {kind!r} examples, "
        "expected each kind once (params.yaml)"
    )


# The stage. ---------------------------------------------------------------------------------------------


def filtered(project, rows: list[dict], tasks: object) -> None:
    """Put rows where filter leaves them."""
    write_rows(project.root / "data/filtered/mine.jsonl", rows)
    project.params(convert={"mine": {"tasks": tasks}})


def test_main_converts_in_order_and_repeats_itself(project, capsys):
    filtered(project, [asdict(sample(id=f"mine/{n}")) for n in (2, 0, 1)], ["detect", "prefer"])
    project.run("convert", "mine")
    rows = read_rows(project.root / "data/converted/mine.jsonl")
    expected = [
        each for n in (2, 0, 1) for each in convert.examples(sample(id=f"mine/{n}"), ["detect", "prefer"])
    ]
    assert [Example(**row) for row in rows] == expected
    assert capsys.readouterr().out == (
        "convert mine: 9 examples (detect_safe 3, detect_vulnerable 3, preference 3)\n"
    )
    first = project.files()
    project.run("convert", "mine")
    assert project.files() == first


def test_any_number_of_workers_writes_the_same_bytes(project, monkeypatch):
    monkeypatch.setattr(convert, "CHUNK", 3)
    given = [sample(id=f"mine/{n}", output=f"safe({n})", instruction="語" * (n % 3)) for n in range(20)]
    filtered(project, [asdict(each) for each in given], ["detect", "prefer"])
    written = set()
    for workers in (1, 2, 3):
        project.run("convert", "mine", "--workers", str(workers))
        written.add((project.root / "data/converted/mine.jsonl").read_bytes())
    (text,) = written
    made = [each for one in given for each in convert.examples(one, ["detect", "prefer"])]
    assert [json.loads(line) for line in text.decode().splitlines()] == [asdict(each) for each in made]


@pytest.mark.parametrize(
    ("rows", "tasks", "words"),
    [
        ([], ["write"], ["convert.mine.tasks: write", "no example", "data/filtered/mine.jsonl"]),
        ([asdict(LONE)], ["detect", "fix"], ["convert.mine.tasks: detect, fix", "no example"]),
        ([asdict(LONE), asdict(sample())], ["fix", "fix"], ["convert.mine.tasks: fix, fix", "'fix'"]),
        ([asdict(sample()), {"id": "x"}], ["fix"], ["data/filtered/mine.jsonl:2", "['id']"]),
        ([{**asdict(sample()), "colour": "red"}], ["fix"], ["mine.jsonl:1", "colour"]),
        ([asdict(sample())], ["sing"], ["convert.mine.tasks.0: 'sing'"]),
        ([asdict(sample())], [], ["convert.mine.tasks: []"]),
        ([asdict(sample())], "fix", ["convert.mine.tasks: 'fix'"]),
        ([{**asdict(sample()), "output": 3}], ["fix"], ["mine.jsonl:1", "output: 3"]),
        ([{**asdict(sample()), "output": None}], ["fix"], ["mine.jsonl:1", "output: None"]),
        ([asdict(sample(output="\ud800"))], ["fix"], ["mine.jsonl:1", "'\\ud800'"]),
        ([asdict(sample())] * 8 + [{"id": "x"}] + [asdict(sample())] * 8, ["fix"], ["mine.jsonl:9:"]),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_bad_input_gives_one_line_and_no_output(project, capsys, monkeypatch, rows, tasks, words, workers):
    monkeypatch.setattr(convert, "CHUNK", 3)
    filtered(project, rows, tasks)
    (project.root / "data/converted").mkdir()
    (project.root / "data/converted/mine.jsonl").write_text("of the run before\n")
    before = project.files()
    status = project.command("convert", "mine", "--workers", workers)
    printed = capsys.readouterr().err
    assert status == 2 and printed.startswith("error: ") and printed.count("\n") == 1
    assert all(word in printed for word in words), printed
    assert project.files() == before


@pytest.mark.parametrize("line", ["{", "[1]", "\ufeff{}", '{"id": "x"} {}', '{"id": "\x01"}'])
def test_malformed_line_is_named_with_its_number(project, line):
    filtered(project, [], ["fix"])
    text = f"{json.dumps(asdict(sample()))}\n\n  \n{line}\n"
    (project.root / "data/filtered/mine.jsonl").write_text(text)
    with pytest.raises(PipelineError, match=r"^data/filtered/mine\.jsonl:4: .*expected a JSON object"):
        project.run("convert", "mine")
    assert not (project.root / "data/converted/mine.jsonl").exists()


def test_missing_file_is_named(project):
    project.params(convert={"mine": {"tasks": ["fix"]}})
    with pytest.raises(PipelineError, match=r"data/filtered/mine\.jsonl: not found"):
        project.run("convert", "mine")
