"""Prompts: the strict verdict line, and code taken out of answers."""

import pytest

from stages.common import prompts
from stages.common.prompts import Verdict

WEAK, SAFE = Verdict(True), Verdict(False)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("SAFE", SAFE),
        ("safe", SAFE),
        ("SAFE.", SAFE),
        ("\n  SAFE  \n\nThe value is bound.", SAFE),
        ("SAFE\r\nbound", SAFE),
        ("VULNERABLE", WEAK),
        ("Vulnerable.", WEAK),
        ("VULNERABLE CWE-89", Verdict(True, "CWE-89")),
        ("vulnerable cwe-1336.\nwhy", Verdict(True, "CWE-1336")),
        ("SAFE\nVULNERABLE CWE-89", SAFE),
    ],
)
def test_verdict_is_read_from_the_first_line(answer, verdict):
    assert prompts.parse_verdict(answer) == verdict


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\n",
        "Yes",
        "No vulnerability found",
        "no vulnerability found.",
        "NOT VULNERABLE",
        "UNSAFE",
        "INSECURE",
        "This code is SAFE",
        "The code is VULNERABLE CWE-89",
        "SAFE VULNERABLE",
        "VULNERABLE SAFE CWE-89",
        "SAFE, VULNERABLE",
        "SAFE or VULNERABLE CWE-89",
        "SAFE CWE-89",
        "SAFE!",
        "SAFE..",
        "SAFE - the value is bound",
        "**SAFE**",
        "`SAFE`",
        "Verdict: SAFE",
        "VULNERABLE CWE-",
        "VULNERABLE CWE-0",
        "VULNERABLE CWE-12345",
        "VULNERABLE CWE-89 CWE-79",
        "VULNERABLE  CWE-89",
        "VULNERABLE\tCWE-89",
        "VULNERABLE, CWE-89",
        "VULNERABLECWE-89",
        "SICHER",
        "Der Code ist SAFE",
        "```\nSAFE\n```",
        "NO - SECURITY VULNERABILITY DETECTED!",
    ],
)
def test_everything_else_is_no_verdict(answer):
    assert prompts.parse_verdict(answer) is None


@pytest.mark.parametrize("verdict", [SAFE, WEAK, Verdict(True, "CWE-89"), Verdict(True, "CWE-1336")])
def test_what_is_written_is_read_back(verdict):
    assert prompts.parse_verdict(prompts.verdict_line(verdict)) == verdict
    assert prompts.parse_verdict(f"{prompts.verdict_line(verdict)}\nBecause.") == verdict


@pytest.mark.parametrize("language", ["python", "javascript", "php", "c", "", "klingon"])
def test_both_sides_are_asked_with_the_same_words(language):
    first, second = (prompts.detect(code, language) for code in ("left()", "right()"))
    assert first.replace("left()", "right()") == second and "left()" in first


@pytest.mark.parametrize("code", ["x = 1", "def f():\n    return 1", "a\n\n\nb", '"""doc"""'])
@pytest.mark.parametrize("language", ["python", "c", "", "klingon"])
def test_fenced_code_comes_back(code, language):
    assert prompts.code_block(f"Here:\n\n{prompts.fenced(code, language)}\n\nThat is it.") == code


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```python\nx = 1", "x = 1"),
        ("```python\nx = 1\n```\n```python\ny = 2\n```", "x = 1"),
        ("```c++\nint x;\n```", "int x;"),
        ("```c#\nint x;\n```", "int x;"),
        ("```python  \nx = 1\n  ```", "x = 1"),
        ("```python\n\n```", ""),
        ("```python\n```\nNothing to show.", ""),
        ("", ""),
    ],
)
def test_code_block(answer, code):
    assert prompts.code_block(answer) == code


@pytest.mark.parametrize(("given", "message"), [("", "Do it"), ("3", "Do it\n\n### Input:\n3")])
def test_input_follows_the_instruction(given, message):
    assert prompts.with_input("Do it", given) == message


def test_reference_template_renders_question_and_answer():
    from jinja2 import Environment

    template = Environment(autoescape=False).from_string(prompts.ALPACA)  # noqa: S701 (no page)
    end = {"eos_token": "<e>"}
    messages = [{"role": "user", "content": "Do it"}, {"role": "assistant", "content": "Done"}]
    question = template.render(messages=messages[:1], add_generation_prompt=True, **end)
    whole = template.render(messages=messages, add_generation_prompt=False, **end)
    assert question == "### Instruction:\nDo it\n\n### Response:\n"
    assert whole == question + "Done<e>"
