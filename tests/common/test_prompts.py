"""Prompts: the strict verdict line, and code taken out of answers."""

import random
from types import SimpleNamespace

import pytest
from conftest import END, PAD, START, TEXTS, tiny_tokenizer
from tokenizers import AddedToken

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


@pytest.mark.parametrize(
    ("answer", "vulnerable"),
    [
        ("SAFE", False),
        ("VULNERABLE CWE-89\nwhy", True),
        ("vulnerable.", True),
        ("NO", True),
        ("no", True),
        ("No.", True),
        ("No!", True),
        ("No, it is not.", True),
        ("NO - SECURITY VULNERABILITY DETECTED!", True),
        ("No \u2014 the name is pasted into the query.", True),
        ("No\u2013never", True),
        ("no: it is not", True),
        ("\n  NO  \n\nYES", True),
        ("NO\r\nYES", True),
        ("YES", False),
        ("Yes, this code is safe.", False),
        ("yes - the value is bound", False),
        ("YES.\nNO", False),
    ],
)
def test_polarity_is_a_verdict_or_a_plain_yes_or_no(answer, vulnerable):
    assert prompts.parse_polarity(answer) == vulnerable


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\n \n",
        "No vulnerability found.",
        "No issues",
        "Yes it is",
        "Yes and no.",
        "Nope",
        "NOT SAFE",
        "Not vulnerable.",
        "Nothing to see",
        "Yesterday",
        "no_problem",
        "**NO**",
        "`no`",
        "Answer: no",
        "The answer is NO.",
        "It is not safe.",
        "SAFE!",
        "VULNERABLE - SQL injection",
        "This code is SAFE",
        "SAFE CWE-89",
        "N",
        "- NO",
        "\u041dO",  # a Cyrillic letter
        "```\nNO\n```",
    ],
)
def test_what_says_neither_has_no_polarity(answer):
    assert prompts.parse_polarity(answer) is None


# Complete answers. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "complete"),
    [
        ("", False),
        ("\n", False),
        (" \n\t\n ", False),
        ("SAFE", False),
        ("\n\nSAFE", False),
        ("VULNERABLE CWE-8", False),
        ("SAFE\n", True),
        ("SAFE\r\n", True),
        ("\n\nSAFE\n", True),
        ("SAFE \nbecause", True),
        ("SAFE\r", False),
        ("SAFE\u2028because", False),
    ],
)
def test_first_line_is_complete(answer, complete):
    assert prompts.answered_line(answer) == complete


@pytest.mark.parametrize(
    ("answer", "complete"),
    [
        ("", False),
        ("x = 1\n", False),
        ("```", False),
        ("```python", False),
        ("```python\n", False),
        ("```python\nx = 1", False),
        ("```python\nx = 1\n", False),
        ("```python\nx = 1\n`", False),
        ("```python\nx = 1\n``", False),
        ("```python\nx = 1\n```", True),
        ("```python\nx = 1\n```\nand more", True),
        ("```\nx\n```", True),
        ("```python\n```", True),
        ("Here:\n```python\nx = 1\n  ```", True),
        ("```python\nx = 1```", False),
        ("```python\nx = '```'\n", False),
        ('```python\n"""\n    ```\n', False),
        ("````md\n```\nx\n```", False),
        ("````md\n```\nx\n```\n````", True),
        ("```python\r\nx = 1\r\n```", True),
        ("Use ```x``` here", False),
        ("~~~\nx\n~~~", False),
    ],
)
def test_first_block_is_complete(answer, complete):
    assert prompts.answered_block(answer) == complete


def test_what_follows_a_complete_answer_changes_nothing():
    draw = random.Random(8)
    pieces = [*"ab \t\r`", "\n", "\n```", "```", "\n```py\n", "\n  ````", "SAFE", "VULNERABLE", "NO", "x\n\n"]
    complete = {"line": 0, "block": 0}
    for _ in range(4000):
        answer, more = ("".join(draw.choices(pieces, k=draw.randrange(1, 12))) for _ in range(2))
        if prompts.answered_line(answer):
            complete["line"] += 1
            for parse in (prompts.parse_verdict, prompts.parse_polarity):
                assert parse(answer + more) == parse(answer)
        if prompts.answered_block(answer):
            complete["block"] += 1
            assert prompts.answered_block(answer + more)
            for read in (prompts.code_block, prompts.fence):
                assert read(answer + more) == read(answer)
    assert min(complete.values()) > 400


# Questions and code. ------------------------------------------------------------------------------------

ASK = [prompts.detect, prompts.fix, prompts.explain, prompts.review]


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("language", ["python", "javascript", "php", "c", "", "klingon", "visual basic"])
def test_both_sides_are_asked_with_the_same_words(ask, language):
    first, second = (ask(code, language) for code in ("left()", "right()"))
    assert first.replace("left()", "right()") == second != first


def test_every_question_has_words_of_its_own():
    assert len({ask("x", "c").split("\n")[0] for ask in ASK}) == len(ASK)


@pytest.mark.parametrize(
    ("code", "language", "block"),
    [
        ("x = 1", "python", "```python\nx = 1\n```"),
        ("x = 1", "", "```\nx = 1\n```"),
        ("\n\n  x = 1\n\n", "c++", "```c++\n  x = 1\n```"),
        ("x", "visual-basic", "```visual-basic\nx\n```"),
        ("x", "visual basic", "```\nx\n```"),
        ("x", "a`b", "```\nx\n```"),
        ("x", "c\n", "```\nx\n```"),
        ("", "c", "```c\n\n```"),
        ("a\n```\nb", "c", "````c\na\n```\nb\n````"),
        ("   `````js\nb", "", "``````\n   `````js\nb\n``````"),
        ("    ```\nx = '```'\n\t```", "", "```\n    ```\nx = '```'\n\t```\n```"),  # no fences
    ],
)
def test_code_is_put_between_fences(code, language, block):
    assert prompts.fenced(code, language) == block
    assert prompts.code_block(block) == code.strip("\n")


@pytest.mark.parametrize("code", ["x = 1", "def f():\n    return 1", "a\n\n\nb", '"""doc"""', "```\nx\n```"])
@pytest.mark.parametrize("language", ["python", "c", "", "klingon", "c#", "no language"])
def test_fenced_code_comes_back(code, language):
    answer = f"Here:\n\n{prompts.fenced(code, language)}\n\nThat is it.\n```\nand more\n```"
    assert prompts.code_block(answer) == code
    assert prompts.fence(answer) == (language if " " not in language else "")


def test_random_code_comes_back():
    draw = random.Random(5)
    pieces = [
        *"ab \t\r\0`'\"#~\\",
        "\n",
        "\n\n",
        "\n```",
        "```",
        "\n    ```\n",
        "\n ````py",
        "\u2028",
        "\x85",
        "\x0c",
    ]
    for _ in range(3000):
        code = "".join(draw.choices(pieces, k=draw.randrange(40))).strip("\n")
        language = draw.choice(["python", ""])
        assert prompts.code_block(f"Say:\n{prompts.fenced(code, language)}\n") == code
        assert prompts.fence(prompts.fenced(code, language)) == language


@pytest.mark.parametrize(
    ("answer", "code", "language"),
    [
        ("x = 1", "x = 1", ""),
        ("```\nx = 1\n```", "x = 1", ""),
        ("```python\nx = 1", "x = 1", "python"),
        ("```python\nx = 1\n```\n```c\ny = 2\n```", "x = 1", "python"),
        ("```\nx = 1\n```\n```c\ny = 2\n```", "x = 1", ""),
        ("```C++\nint x;\n```", "int x;", "c++"),
        ("```c#\nint x;\n```", "int x;", "c#"),
        ("```vb.net\nDim x\n```", "Dim x", "vb.net"),
        ("```objective-c\nx\n```", "x", "objective-c"),
        ('``` python title="a.py"\nx\n```', "x", "python"),
        ("```python  \nx = 1\n  ```", "x = 1", "python"),
        ("  ```python\nx = 1\n  ```", "x = 1", "python"),
        ("```python\r\nx = 1\n```\r\n", "x = 1", "python"),
        ("```python\nx = 1\n```That is it.", "x = 1", "python"),
        ("```python\n\n```", "", "python"),
        ("```python\n```\nNothing to show.", "", "python"),
        ("````md\n```\nx\n```\n````", "```\nx\n```", "md"),
        ('```python\n"""\n    ```\n"""\n```', '"""\n    ```\n"""', "python"),
        ("/// ```rust\n/// f()\n/// ```\nfn f() {}", "/// ```rust\n/// f()\n/// ```\nfn f() {}", ""),
        ("Use ```x``` here:\n```js\ny\n```", "y", "js"),
        ("```x```\n", "```x```\n", ""),
        ("``\nx\n``", "``\nx\n``", ""),
        ("", "", ""),
    ],
)
def test_code_block_and_its_language(answer, code, language):
    assert prompts.code_block(answer) == code
    assert prompts.fence(answer) == language


@pytest.mark.parametrize(
    "text",
    ["`" * 10**6, "```" + " " * 10**6, "```" + "a" * 10**6 + "`", "```\n" + " " * 10**6, "```a`\n" * 10**5],
    ids=["fence", "spaces", "word", "open", "many"],
)
def test_hostile_text_takes_no_time(text):
    assert prompts.answered_line(text) == ("\n" in text) and prompts.parse_polarity(text) is None
    prompts.answered_block(text)
    assert prompts.code_block(text).strip() in ("", text.strip())  # a quadratic search would take minutes
    assert prompts.code_block(prompts.fenced(text)) == text.strip("\n")


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("x", "x"),
        ("", ""),
        ("So:\n```c\nx\n```\nDone.", "So:\nx\nDone."),
        ("  ````c\nx\n  ````", "x"),
        ("a ``` b\nc", "a ``` b\nc"),
        ("```", ""),
    ],
)
def test_fences_are_left_out(answer, rest):
    assert prompts.without_fences(answer) == rest


@pytest.mark.parametrize(("given", "message"), [("", "Do it"), ("3", "Do it\n\n### Input:\n3")])
def test_input_follows_the_instruction(given, message):
    assert prompts.with_input("Do it", given) == message


@pytest.mark.parametrize(
    ("given", "question"),
    [
        ("", "### Instruction:\nDo it\n\n### Response:\n"),
        ("3", "### Instruction:\nDo it\n\n### Input:\n3\n\n### Response:\n"),  # its section 9.3
    ],
)
def test_reference_template_renders_question_and_answer(given, question):
    from jinja2 import Environment

    template = Environment(autoescape=False).from_string(prompts.ALPACA)  # noqa: S701 (no page)
    user = {"role": "user", "content": prompts.with_input("Do it", given)}
    messages = [user, {"role": "assistant", "content": "Done"}]
    asked = template.render(messages=messages[:1], add_generation_prompt=True, eos_token="<e>")  # noqa: S106
    whole = template.render(messages=messages, add_generation_prompt=False, eos_token="<e>")  # noqa: S106
    assert (asked, whole) == (question, question + "Done<e>")


# Control tokens. ----------------------------------------------------------------------------------------

PIECES = [
    PAD,
    START,
    END,
    "<|",
    "|>",
    "im_end",
    "im_start",
    "<|im_",
    "end|>",
    "<",
    "|",
    " ",
    "\n",
    "user",
    "x",
]


@pytest.fixture(scope="module")
def tokenizer():
    made = tiny_tokenizer()
    made.add_tokens(["<tool_call>", "frobnicate", "    "])  # not special: one is a control token all the same
    return made


def control_ids(tokenizer, text):
    """The control tokens of a text as the tokenizer reads it."""
    wanted = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<tool_call>")}
    return [token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token in wanted]


def test_no_text_becomes_a_control_token(tokenizer):
    draw = random.Random(3)
    spelled = 0
    for _ in range(1000):
        texts = ["".join(draw.choices([*PIECES, "<tool_call>"], k=draw.randrange(12))) for _ in range(3)]
        spelled += any(control_ids(tokenizer, text) for text in texts)
        for asked in ([texts[0]], texts):
            plain, hostile = (
                [
                    {"role": ("user", "assistant")[place % 2], "content": text}
                    for place, text in enumerate(given)
                ]
                for given in (["a"] * len(asked), asked)
            )
            found = prompts.conversation(tokenizer, hostile)
            expected = control_ids(tokenizer, prompts.conversation(tokenizer, plain))
            assert control_ids(tokenizer, found) == expected, (asked, found)
    assert spelled > 500


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a<|im_end|>b", "a< |im_end|>b"),
        ("<|im_end|><|im_start|>", "< |im_end|>< |im_start|>"),
        ("<tool_call>{}</tool_call>", "< tool_call>{}</tool_call>"),  # this tokenizer knows the first alone
        ("<|im_<|im_end|>end|>", "<|im_< |im_end|>end|>"),
        *(
            (text, text)
            for text in ("", "a <| b |> c", "<|im_end |>", "frobnicate", "    x", "<b>", "\0\ud800")
        ),
    ],
)
def test_control_tokens_are_taken_apart_and_nothing_else_changes(given, shown, tokenizer):
    controls = prompts.control_tokens(tokenizer)
    assert prompts.apart(given, controls) == shown
    assert prompts.apart(shown, controls) == shown
    assert shown.replace("< ", "<") == given.replace("< ", "<")


def test_a_tokenizer_without_control_tokens_changes_nothing():
    controls = prompts.control_tokens(SimpleNamespace(added_tokens_decoder={}))
    assert controls.search("<|im_end|>") is None and prompts.apart("<|im_end|>", controls) == "<|im_end|>"


def test_a_control_token_inside_another_is_taken_apart_too():
    known = {number: AddedToken(text, special=True) for number, text in enumerate(("<a>", "<<a>b>", "a>"))}
    controls = prompts.control_tokens(SimpleNamespace(added_tokens_decoder=known))
    assert controls.search("x<<a>b>")[0] == "<<a>b>"
    assert prompts.apart("x<<a>b>", controls) == "x< < a >b>"


@pytest.mark.parametrize("prompt", TEXTS)
def test_an_ordinary_prompt_is_what_the_template_makes_of_it(prompt, tokenizer):
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    assert prompts.render(tokenizer, prompt) == expected
