"""The verdict line against answers of models that a person labelled, and against constructed edge cases.

tests/data/verdicts.jsonl holds distinct answers of SmolLM2-135M-Instruct, as it is and tuned by this
pipeline's recipes, to the detection question: greedy ones to the detection suite and to the reference's "Is
it safe?", and draws at temperatures 0.9 to 1.4, of at most 24 tokens, to the same question, to that of the
explanation suite, and to other wordings ("Is this code secure? yes or no", answers shown by example). Of
some two hundred that begin "This code is not safe" every second was kept, and sixteen draws were left out
for their words. Of the 353 answers 20 are verdicts; a small model says little else exactly, so the cases
below add to them. The labels were given by reading each answer beside the contract, without running the
parser: the first line is exactly SAFE or VULNERABLE, the latter with or without a CWE, in any case, a full
stop or none, spaces around it. What else an answer may mean was not asked.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from stages.common import prompts
from stages.common.prompts import Verdict

LABELLED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data/verdicts.jsonl").read_text(encoding="utf-8").split("\n")
    if line
]
SAFE, WEAK, SQL = Verdict(False), Verdict(True), Verdict(True, "CWE-89")


def test_labels_are_many_and_of_each_kind():
    assert len({row["answer"] for row in LABELLED}) == len(LABELLED) >= 320
    spread = Counter(row["vulnerable"] for row in LABELLED)
    assert spread[True] >= 15 and spread[False] >= 3, spread
    assert all(row["vulnerable"] or not row["cwe"] for row in LABELLED)


def test_every_answer_of_a_model_is_read_as_a_person_reads_it():
    wrong = []
    for row in LABELLED:
        expected = None if row["vulnerable"] is None else Verdict(row["vulnerable"], row["cwe"])
        if prompts.parse_verdict(row["answer"]) != expected:
            wrong.append(row)
    assert wrong == []


READ = [
    ("SAFE", SAFE),
    ("Safe", SAFE),
    ("sAfE.", SAFE),
    ("  SAFE  ", SAFE),
    ("\tSAFE\t", SAFE),
    ("SAFE\n", SAFE),
    ("SAFE\r\nThe value is bound.\r\n", SAFE),
    ("\r\n\r\nSAFE.\r\n", SAFE),
    ("\n\n\n   \nSAFE", SAFE),
    ("SAFE\n\nVULNERABLE CWE-89", SAFE),
    ("SAFE\nNo: it is VULNERABLE.", SAFE),
    ("VULNERABLE\nSAFE", WEAK),
    ("VULNERABLE", WEAK),
    ("vulnerable.", WEAK),
    ("Vulnerable\n**CWE-89**", WEAK),
    ("VULNERABLE CWE-89", SQL),
    ("VULNERABLE CWE-89.", SQL),
    ("vulnerable cwe-89", SQL),
    ("Vulnerable Cwe-89\n", SQL),
    ("VULNERABLE CWE-89 \nCWE-79", SQL),
    ("VULNERABLE CWE-89\n" + "x" * 100_000, SQL),
    ("VULNERABLE CWE-1", Verdict(True, "CWE-1")),
    ("VULNERABLE CWE-1427", Verdict(True, "CWE-1427")),
]
NOT_READ = [
    "",
    " ",
    "\n\r\n\t",
    ".",
    "SAF",
    "SAFER",
    "UNSAFE",
    "NOT SAFE",
    "SAFE SAFE",
    "SAFE?",
    "SAFE,",
    "SAFE:",
    "SAFE .",
    ". SAFE",
    "SAFE\u2026",  # an ellipsis
    "SAFE\u3002",  # a full stop, Chinese
    "SAFE, but the query is pasted",
    "SAFE\rVULNERABLE CWE-89",
    "SAFE\u2028VULNERABLE",
    "SAFE\x0bVULNERABLE",
    "SAFE\x0cVULNERABLE",
    "SAFE\x85VULNERABLE",
    "SAFE\0",
    "\ufeffSAFE",
    "\u200bSAFE",
    "SAFE\u200b",
    "SA\u00adFE",  # a soft hyphen
    "SA\u200dFE",
    "\u202eEFAS",  # shown as SAFE
    "\u0405\u0410FE",  # Cyrillic
    "\u0455\u0430f\u0435",
    "S\u0391FE",  # Greek
    "\uff33\uff21\uff26\uff25",  # full width
    "\U0001d412\U0001d400\U0001d405\U0001d404",  # mathematical bold
    "SAF\u0301E",
    "**SAFE**",
    "*SAFE*",
    "__VULNERABLE CWE-89__",
    "`SAFE`",
    "# SAFE",
    "> SAFE",
    "- SAFE",
    "1. SAFE",
    '"SAFE"',
    "'SAFE'",
    "\u201cSAFE\u201d",
    "(SAFE)",
    "[VULNERABLE]",
    "<SAFE>",
    "```\nSAFE\n```",
    '{"verdict": "SAFE"}',
    "Answer: SAFE",
    "SAFE/VULNERABLE",
    "SAFE | VULNERABLE CWE-89",
    "VULNERABLE SAFE",
    "VULNERABLE or SAFE",
    "VULNERABLE VULNERABLE",
    "VULNERABLE: no",
    "NOT VULNERABLE",
    "INVULNERABLE",
    "VULNERABLE CWE",
    "VULNERABLE CWE-",
    "VULNERABLE CWE-0",
    "VULNERABLE CWE-00079",
    "VULNERABLE CWE-089",
    "VULNERABLE CWE-12345",
    "VULNERABLE CWE--89",
    "VULNERABLE CWE -89",
    "VULNERABLE CWE- 89",
    "VULNERABLE CWE 89",
    "VULNERABLE CWE89",
    "VULNERABLE CWE\u201189",  # a hyphen that does not break
    "VULNERABLE CWE\u201389",  # a dash
    "VULNERABLE CWE-8.9",
    "VULNERABLE CWE-89a",
    "VULNERABLE CWE-XX",
    "VULNERABLE (CWE-89)",
    "VULNERABLE - CWE-89",
    "VULNERABLE. CWE-79",
    "VULNERABLE.CWE-79",
    "VULNERABLE CWE-79, CWE-89",
    "VULNERABLE CWE-79 and CWE-89",
    "VULNERABLE CWE-89 SQL injection",
    "VULNERABLE CWE-89: SQL injection",
    "VULNERABLE\u00a0CWE-89",
    "VULNERABLE\u2003CWE-89",
    "CWE-89",
    "CWE-89 VULNERABLE",
    "SAFE CWE-89",
    "SICHER",
    "s\u00fbr",
    "\u5b89\u5168",
    "\u0411\u0415\u0417\u041e\u041f\u0410\u0421\u041d\u041e",
]


@pytest.mark.parametrize(("answer", "verdict"), READ)
def test_a_verdict_line_is_read(answer, verdict):
    assert prompts.parse_verdict(answer) == verdict


@pytest.mark.parametrize("answer", NOT_READ)
def test_what_comes_near_it_is_not(answer):
    assert prompts.parse_verdict(answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "\u017fAFE",  # a long s, which equals S when case is ignored
        "\u017fafe.",
        "VULNERABLE CWE-8\u0669",  # a digit, Arabic
        "VULNERABLE CWE-1\uff19",  # a digit, full width
    ],
)
def test_letters_and_digits_beyond_ascii_are_no_verdict(answer):
    assert prompts.parse_verdict(answer) is None


@pytest.mark.parametrize(("answer", "verdict"), READ)
def test_polarity_agrees_with_the_verdict(answer, verdict):
    assert prompts.parse_polarity(answer) is verdict.vulnerable


@pytest.mark.parametrize(
    ("answer", "vulnerable"),
    [
        ("NO - SECURITY VULNERABILITY DETECTED!", True),
        ("No.", True),
        ("no", True),
        ("No, the name is pasted into the command.", True),
        ("Yes", False),
        ("YES: the value is bound.", False),
        ("\nYes.\nNo.", False),
        ("No vulnerability found.", None),
        ("No issues", None),
        ("None", None),
        ("Not safe", None),
        ("Nothing wrong here", None),
        ("Yes and no", None),
        ("Yesterday", None),
        ("It is safe", None),
        ("**No**", None),
        ("\u2116", None),
        ("", None),
    ],
)
def test_polarity_of_other_first_lines(answer, vulnerable):
    assert prompts.parse_polarity(answer) is vulnerable
