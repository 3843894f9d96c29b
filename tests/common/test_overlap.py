"""Overlap: every copy of a benchmark is found, however it is dressed up, and nothing else."""

import json
import random
import re
from dataclasses import fields

import pytest
from conftest import ROOT

from stages.common import overlap, prompts, suites
from stages.common.overlap import CHECKS, Finding, Findings, Overlap
from stages.common.suites import Task

CHOSEN = Overlap(ngram=8, share=0.5, entry_points=False)

SNIPPET = """def load_report(cursor, name):
    return cursor.execute('SELECT body FROM report WHERE name = ?', (name,))"""
FIXED = SNIPPET.replace("?", ":name")
DETECTION = {
    "id": "d/1",
    "kind": "detection",
    "language": "python",
    "cwe": "CWE-89",
    "vulnerable": SNIPPET,
    "fixed": FIXED,
}
CODE = {
    "id": "c/1",
    "kind": "code",
    "prompt": "Write a function roman(text) that reads a Roman numeral.",
    "entry_point": "roman",
    "test": "assert roman('XIV') == 14\nassert roman('MCMXC') == 1990",
}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def falls_below_zero(operations):\n    """Tell whether a balance ever falls below zero."""\n',
    "entry_point": "falls_below_zero",
    "canonical_solution": "    return False\n",
    "test": "def check(candidate):\n    assert candidate([1, -2]) is True\n",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> overlap.Index:
    """Three small suites."""
    folder = tmp_path_factory.mktemp("suites")
    (folder / "b").mkdir()
    (folder / "b/mine.jsonl").write_text(json.dumps(DETECTION) + "\n" + json.dumps(CODE) + "\n")
    (folder / "humaneval.jsonl").write_text(json.dumps(HUMANEVAL) + "\n")
    return overlap.build(suites.load_all(folder / "b", folder / "humaneval.jsonl"), CHOSEN)


@pytest.fixture(scope="module")
def real() -> overlap.Index:
    """The project's own suites."""
    paths = sorted((ROOT / "data/benchmarks").glob("*.jsonl"))
    return overlap.build([task for path in paths for task in suites.load(path)], CHOSEN)


def task(number: int, **texts: str) -> Task:
    return Task(**{"id": f"t/{number}", "suite": "s", "kind": "code", "prompt": "", **texts})


def checks(found: list[Finding]) -> set[str]:
    return {one.check for one in found}


# Words. ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("!?\n\t", ""),
        ("If (X_1 == 1):\r\n\tpass", "if x_1 1 pass"),
        ("```python\nx = 1\n```", "x 1"),
        ("   ```c++  \r\nx\r\n```\r\n", "x"),
        ("```print(1)```", "print 1"),
        ("a\x00b\x1cc", "a b c"),
        ("\ufb01nd \uff38\uff11", "find x1"),
        ("ro\u200bman\ufeff nu\u00admeral", "roman numeral"),
        ("STRASSE straße", "strasse strasse"),
        ("\ud800 x", "x"),
    ],
)
def test_words_without_case_layout_and_punctuation(text, expected):
    assert overlap.normalised(text) == expected


def test_both_ways_of_reading_words_agree():
    text = "".join(map(chr, range(128))) + " aA_9 " + "".join(map(chr, range(127, -1, -1)))
    assert overlap.words(text) == re.findall(r"\w+", text.casefold()) == overlap.words(text + "\u00b7")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("plain", []),
        ("a\n```\nb\n```\nc\n```python\nd\n```", ["b", "d"]),
        ("a\n```\nb", ["b"]),
        ("```\n" * 3, []),
    ],
)
def test_code_of_a_message(text, code):
    assert overlap.message(text)[1] == code
    assert overlap.message(text)[0] == overlap.words(text.replace("python", ""))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("has_close_elements", True),
        ("minSubArraySum", True),
        ("check_if_last_char_is_a_letter", True),
        ("is_prime", False),
        ("digitSum", False),
        ("median", False),
        ("fib4", False),
        ("", False),
        ("____", False),
    ],
)
def test_names_that_nobody_chooses_by_chance(name, expected):
    assert overlap.specific(name) == expected


# What is found. ----------------------------------------------------------------------------------------

SHOUTED = SNIPPET.upper().replace("    ", "\t").replace("(", " ( ").replace("'", '"')


@pytest.mark.parametrize(
    ("prompt", "answer", "check"),
    [
        (prompts.detect(SNIPPET, "python"), "SAFE", "exact"),
        (prompts.detect(FIXED, "python"), "SAFE", "exact"),
        (prompts.fix(SNIPPET, "python"), "", "exact"),
        (SNIPPET, "", "exact"),
        (SHOUTED, "", "exact"),
        (f"What does this do?\n\n{SHOUTED}", "", "contained"),
        ("", SNIPPET, "exact"),
        ("", f"Sure:\n\n```python\n# mine\n{SNIPPET}\n\n\nprint(1)\n```\nGood luck.", "contained"),
        ("First this\nhalf:", f"x = 1;{SHOUTED};y = 2", "contained"),
        (CODE["prompt"], "", "exact"),
        ("  write a FUNCTION roman( text )\nthat reads a roman numeral!", "", "exact"),
        ("Now write a function roman(text) that reads a Roman numeral, quickly.", "", "contained"),
        ("", f"```python\n{CODE['test']}\n```", "exact"),
        ("", f"It works:\n{CODE['test']}\n# so", "contained"),
        (prompts.complete(HUMANEVAL["prompt"]), "", "exact"),
        ("", f"```python\n{HUMANEVAL['prompt']}    return True\n```", "contained"),
        ("", HUMANEVAL["test"] + "check(falls_below_zero)", "exact"),
        ("", HUMANEVAL["test"], "ngram"),
        ("", "return False", "exact"),
        ("", "```\nreturn False;\n```", "exact"),
        (SNIPPET.replace("(name,)", "(title,)"), "", "ngram"),
        ("", f"```python\n{SNIPPET.replace('load_report', 'read_it')}\n```", "ngram"),
    ],
)
def test_copy_is_found_by_the_strongest_check(index, prompt, answer, check):
    assert overlap.CHECKS.index(check) == min(
        CHECKS.index(one.check) for one in overlap.find(index, prompt, answer)
    )


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("", ""),
        ("!?", "..."),
        ("Write a function roman(text) that writes a Roman numeral.", ""),
        (prompts.detect("x = 1", "python"), "SAFE"),
        (prompts.detect("def other(a, b):\n    return a + b", "python"), "VULNERABLE CWE-89"),
        (prompts.complete("def add(a, b):\n    ..."), "```python\ndef add(a, b):\n    return a + b\n```"),
        ("", "print(0)\nreturn False"),
        ("", "def below_zero(x):\n    return x < 0"),
        ("", "cursor.execute('SELECT title FROM book WHERE author = ?', (author,))"),
        ("", "assert roman('XIV') == 14"),
        ("x" * 100_000, "\x00" * 1000),
    ],
)
def test_what_only_resembles_a_benchmark_is_innocent(index, prompt, answer):
    assert overlap.find(index, prompt, answer) == []


def test_the_question_around_short_code_is_no_text_of_a_benchmark():
    short = [task(n, prompt=prompts.detect(f"eval(name_{n})", "python")) for n in range(3)]
    index = overlap.build(short, CHOSEN)
    assert overlap.find(index, prompts.detect("exec(other)", "python"), "SAFE") == []
    assert checks(overlap.find(index, prompts.detect("eval(name_1)", "python"), "SAFE")) == {"exact"}


def test_the_rejected_answer_counts_too(index):
    assert checks(overlap.find(index, "Which is better?", "x = 1", "s = 1;" + SNIPPET)) >= {"contained"}


def test_words_end_where_they_end():
    index = overlap.build([task(1, solution="return sorted(list(set(l)))")], CHOSEN)
    assert overlap.find(index, "", "def f(l):\n    return sorted(list(set(l)))") != []
    assert overlap.find(index, "", "def f(lst):\n    return sorted(list(set(lst)))") == []


def test_long_text_of_one_word_is_found_inside():
    word = "supercalifragilistic_expialidocious"
    index = overlap.build([task(1, solution=word), task(2, solution="tiny")], CHOSEN)
    assert checks(overlap.find(index, "", f"x = {word}()")) == {"contained"}
    assert overlap.find(index, "", f"x = {word}s()") == overlap.find(index, "", "tiny()x") == []
    assert checks(overlap.find(index, "", "tiny()")) == {"exact"}


@pytest.mark.parametrize(("share", "found"), [(0.25, True), (0.5, True), (0.51, False), (1.0, False)])
def test_share_of_the_ngrams_is_the_threshold(share, found):
    text = [f"w{number}" for number in range(15)]  # 8 8-grams
    index = overlap.build([task(1, solution=" ".join(text))], Overlap(8, share, False))
    half = " ".join(text[:11])  # 4 of them
    assert (checks(overlap.find(index, "", half)) == {"ngram"}) == found


def test_ngrams_run_over_prompt_and_answer_and_repeats_count_once():
    text = [f"w{number}" for number in range(15)]
    index = overlap.build([task(1, solution=" ".join(text))], CHOSEN)
    assert checks(overlap.find(index, " ".join(text[:5]), " ".join(text[5:12]))) == {"ngram"}
    once = " ".join(text[:8])
    assert overlap.find(index, once, f"{once} / " * 20) == []


@pytest.mark.parametrize(("tasks", "found"), [(overlap.COMMON - 1, True), (overlap.COMMON, False)])
def test_what_many_tasks_of_a_suite_share_is_its_phrasing(tasks, found):
    shared = " ".join(f"s{number}" for number in range(12))
    made = [task(n, solution=f"{shared} own{n} more{n}") for n in range(tasks)]
    index = overlap.build(made, CHOSEN)
    assert bool(overlap.find(index, "", shared)) == found
    assert overlap.find(index, "", f"{shared} own0 more0") != []


def test_every_text_of_a_task_is_looked_for():
    names = [one.name for one in fields(Task) if one.type is str and one.name not in overlap.LABELS]
    assert set(names) == {"prompt", "code", "test", "security_test", "fault_test", "solution", "unsafe"}
    assert {one.name for one in fields(Task)} >= overlap.LABELS
    for name in names:
        index = overlap.build([task(1, **{name: "alpha beta gamma delta epsilon"})], CHOSEN)
        assert overlap.find(index, "", "so: alpha, beta, gamma, delta, epsilon.") != [], name


@pytest.mark.parametrize("label", ["hard_negative", "quiet"])
def test_what_a_task_is_called_is_no_text_of_it(label):
    index = overlap.build([task(1, kind="detection", trait=label, prompt="a b c")], CHOSEN)
    assert overlap.find(index, "", label) == overlap.find(index, label, "") == []


@pytest.mark.parametrize("name", ["test", "security_test", "fault_test", "solution", "unsafe"])
def test_the_texts_of_our_own_judge_are_looked_for_too(name):
    ours = task(1, prompt="Ask.", **{name: "alpha beta gamma delta epsilon"})
    index = overlap.build([Task("t/1", "s", "reference", "Ask.", ours=ours)], CHOSEN)
    assert overlap.find(index, "", "so: alpha, beta, gamma, delta, epsilon.") != []


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("def falls_below_zero(ops):\n    pass", "entry_point"),
        ("class A:\n    def Falls_Below_Zero (self): pass", "entry_point"),
        ("function falls_below_zero() {}", "entry_point"),
        ("falls_below_zero(ops)", None),
        ("undef falls_below_zero", None),
        ("def roman(text): pass", "common_name"),
    ],
)
def test_entry_points_are_findings_of_their_own(index, answer, found):
    names = overlap.find(index, "", answer)
    assert [one.check for one in names] == ([found] if found else [])
    assert overlap.copied(names, entry_points=True) == (found == "entry_point")
    assert not overlap.copied(names, entry_points=False)


# The reference's own leak: test prompts that stand in its training rows. ---------------------------------


def reference_tests() -> list[dict[str, str]]:
    path = ROOT / "data/benchmarks/reference.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def dressed(text: str) -> list[str]:
    """A text as it stands, and with its case, punctuation and indentation changed."""
    loud = text.upper().replace("    ", "\t").replace(".", " !").replace(",", " ;")
    return [text, loud, "  " + text.replace("\n", "\r\n\r\n  ").replace("```python", "~~~")]


@pytest.mark.parametrize("row", reference_tests(), ids=lambda row: row["id"])
def test_leak_of_the_reference_is_found(real, row):
    code = row["prompt"].partition("### Input:\n")[2]
    answer = "Here is one way:\n\ndef solution(value):\n    return value"
    leaks = [(row["prompt"], answer)]
    if code:  # a row of its own wording around the same snippet, as question or as answer
        leaks += [(f"Tell me what is wrong with this line:\n{code}", answer), ("Show a bad line.", code)]
    for prompt, completion in leaks:
        for question, reply in [
            *((text, completion) for text in dressed(prompt)),
            (prompt.lower(), completion),
        ]:
            found = overlap.find(real, question, reply)
            assert (
                Finding("reference", row["id"], "exact") in found
                or Finding("reference", row["id"], "contained") in found
            )


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Write a Python function that counts the lines of a file.", "def count_lines(path): ..."),
        ("Review this code. Is it safe?\n\nsubprocess.run(['cat', name], check=True)", "Yes."),
        ("Write a JavaScript function to sort an array of numbers.", "items.sort((a, b) => a - b);"),
        ("Check whether a year is a leap year.", "def is_leap(year): return year % 4 == 0"),
        ("Which query is right?", "query = 'SELECT name FROM cities WHERE country = ?'"),
    ],
)
def test_rows_like_the_reference_tests_are_innocent(real, prompt, answer):
    assert overlap.find(real, prompt, answer) == []


# The same, slowly. ---------------------------------------------------------------------------------------


def slowly(tasks: list[Task], chosen: Overlap, prompt: str, answer: str) -> dict[str, str]:
    """Each task's strongest check, by brute force over texts without code blocks."""
    whole = overlap.words(f"{prompt}\n{answer}")
    found = {}
    for one in tasks:
        ranks = set()
        for text in filter(None, map(overlap.words, (one.prompt, one.solution))):
            if text in (overlap.words(prompt), overlap.words(answer)):
                ranks.add(0)
            places = range(len(whole) - len(text) + 1)
            if len(" ".join(text)) >= overlap.SHORTEST and any(
                whole[p : p + len(text)] == text for p in places
            ):
                ranks.add(1)
            grams = {tuple(text[p : p + chosen.ngram]) for p in range(len(text) - chosen.ngram + 1)}
            there = {tuple(whole[p : p + chosen.ngram]) for p in range(len(whole) - chosen.ngram + 1)}
            if grams and len(grams & there) >= chosen.share * len(grams):
                ranks.add(2)
        if ranks:
            found[one.id] = CHECKS[min(ranks)]
    return found


@pytest.mark.parametrize("seed", range(12))
def test_index_finds_what_brute_force_finds(seed):
    draw = random.Random(seed)
    chosen = Overlap(draw.choice([2, 3, 5]), draw.choice([0.3, 0.5, 1.0]), False)
    letters = [f"word{number}" for number in range(draw.choice([3, 6, 30]))]

    def text(most: int) -> str:
        return " ".join(draw.choices(letters, k=draw.randrange(most)))

    tasks = [task(n, prompt=text(12), solution=text(8)) for n in range(9)]
    index = overlap.build(tasks, chosen)
    hits = 0
    for _ in range(60):
        prompt, answer = text(15), text(15)
        if draw.random() < 0.3:
            answer = f"{answer} {draw.choice(tasks).prompt} {text(3)}"
        expected = slowly(tasks, chosen, prompt, answer)
        assert {one.task: one.check for one in overlap.find(index, prompt, answer)} == expected
        hits += bool(expected)
    assert hits


# Counting. -----------------------------------------------------------------------------------------------


def test_findings_count_examples_once_a_suite_and_tasks_once(index):
    findings, other = Findings(), Findings()
    findings.add(
        [Finding("mine", "a", "ngram"), Finding("mine", "b", "exact"), Finding("x", "c", "contained")]
    )
    findings.add([Finding("mine", "a", "entry_point"), Finding("mine", "a", "ngram")])
    findings.add([Finding("mine", "e", "common_name")])
    findings.add([])
    other.add([Finding("mine", "d/1/fixed", "exact")])
    findings.merge(other)
    assert findings.examples == {
        ("mine", "exact"): 2,
        ("mine", "ngram"): 1,
        ("mine", "entry_point"): 1,
        ("mine", "common_name"): 1,
        ("x", "contained"): 1,
    }
    summary = overlap.summary(index, findings)
    assert list(summary) == ["mine", "humaneval"]
    assert summary["mine"] == {
        "exact": 2,
        "contained": 0,
        "ngram": 1,
        "entry_point": 1,
        "common_name": 1,
        "tasks_given_away": 3,
        "tasks": 3,
    }
    assert set(summary["humaneval"].values()) == {0, 1}


@pytest.mark.parametrize(
    "text", ["```\n" * 50_000, "a " * 500_000, "\x00" * 1_000_000, "(" * 300_000, "```" * 100_000 + "\n"]
)
def test_long_odd_texts_come_to_an_end(index, text):
    assert overlap.find(index, text, text) == []
