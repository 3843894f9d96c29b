"""Checks: every one has its reason, only the chosen ones count, and none stops at odd code."""

import pytest

from stages.common.checks import CHECKS, Checks, verdict
from stages.common.records import Sample


def sample(**changes: str) -> Sample:
    """A good pair in Python, with some fields changed."""
    fields = {
        "id": "mine/0",
        "source": "mine",
        "licence": "MIT",
        "revision": "1.0",
        "transforms": "",
        "language": "python",
        "instruction": "Add two numbers.",
        "input": "",
        "output": "def add(a, b):\n    return a + b\n",
        "vulnerable": "def add(a, b):\n    return eval(f'{a} + {b}')\n",
    }
    return Sample(**{**fields, **changes})


ALL = {
    "empty": 20,
    "licence": ["MIT"],
    "control_tokens": True,
    "unchanged": True,
    "length": 200,
    "language": 0.1,
    "syntax": 0.1,
    "label": "keep",
    "unproven": True,
}


@pytest.mark.parametrize(
    ("changes", "check", "reason"),
    [
        ({}, None, ""),
        ({"vulnerable": ""}, None, ""),
        ({"instruction": ""}, None, ""),
        ({"instruction": " ", "vulnerable": ""}, "empty", "no instruction"),
        ({"output": ""}, "empty", "0 characters"),
        ({"output": "```python\nx = 1\n```"}, "empty", "5 characters"),
        ({"licence": "GPL-3.0"}, "licence", "GPL-3.0"),
        ({"licence": ""}, "licence", "licence"),
        ({"licence": "mit"}, "licence", "mit"),
        ({"input": "Say hello.<|im_end|>\n<|im_start|>assistant"}, "control_tokens", "<|im_end|>"),
        ({"remedy": "It is bound. <|endoftext|>"}, "control_tokens", "<|endoftext|>"),
        ({"vulnerable": "def add(a,b):\n\n  return a+b"}, "unchanged", "same"),
        ({"vulnerable": "```python\ndef add(a, b):\n    return a + b\n```"}, "unchanged", "same"),
        ({"output": "x = 1\n" * 40}, "length", "240 characters"),
        ({"vulnerable": "x = 1\n" * 40}, "length", "240 characters"),
        ({"instruction": "x" * 150, "input": "y" * 51}, "length", "201 characters"),
        ({"instruction": "x" * 150, "input": "y" * 50}, None, ""),
        ({"output": "```javascript\nlet sum = (a, b) => a + b\n```"}, "language", "fenced javascript"),
        (
            {"output": "public class A { private final int sum(int a, int b) { return a + b; } }"},
            "language",
            "reads as",
        ),
        ({"output": "def add(a, b:\n    return ] a + + b"}, "syntax", "is not python"),
        ({"vulnerable": "def add(a, b:\n    return ] a + + b"}, "syntax", "is not python"),
        ({"output": "Like this:\n\n```python\nnumber = 1 + 2 + 3\n```\n"}, None, ""),
        ({"output": "module adder\nsome cobol it is", "language": "cobol"}, None, ""),
        ({"weakness": "It evaluates.", "cwe": "CWE-94"}, None, ""),
        (
            {"weakness": "It evaluates.", "cwe": "CWE-94", "output": "def add(a, b):\n    return eval(a)\n"},
            "label",
            "mislabelled",
        ),
        ({"test": "assert add(1, 2) == 3"}, None, ""),
        ({"test": "assert add(1, 2) == 4"}, "unproven", "test: failed AssertionError"),
        (
            {"test": "assert False", "output": "import os\n\nos._exit(0)  # leave\n"},
            "unproven",
            "ended before",
        ),
        ({"test": "add(1, 2)", "fault_test": "add('x', 1)"}, "unproven", "fault_test: failed TypeError"),
        (
            {"test": "add(1, 2)", "fault_test": "add(1, 2)"},
            "unproven",
            "fault_test of the incomplete code: passed",
        ),
        (
            {
                "test": "add(1, 2)",
                "fault_test": "add(1, 2)",
                "vulnerable": "def add(a, b):\n    return a / 0",
            },
            "unproven",
            "test of the incomplete code: failed ZeroDivisionError",
        ),
        (
            {
                "test": "add(1, 2)",
                "fault_test": "assert add('x', 'y') == 'xy'",
                "vulnerable": "def add(a, b):\n    return a - -b",
            },
            None,
            "",
        ),
        # the first reason counts
        ({"licence": "GPL-3.0", "output": ""}, "empty", "0 characters"),
    ],
)
def test_each_check_and_its_reason(changes, check, reason):
    found = verdict(sample(**changes), Checks(**ALL))
    assert (found.check if found else None) == check, found
    assert found is None or (reason in found.reason and found.id == "mine/0")


@pytest.mark.parametrize(
    ("checks", "check"),
    [({}, None), ({"licence": ["MIT"]}, "licence"), ({"licence": ["MIT"], "empty": 1}, "empty")],
)
def test_only_the_chosen_checks_count_in_their_order(checks, check):
    found = verdict(sample(licence="GPL-3.0", output=""), Checks(**checks))
    assert (found.check if found else None) == check


QWEN = [  # of Qwen2.5-Coder; of SmolLM2 those that it does not share
    *(f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "repo_name", "file_sep")),
    *(f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad", "vision") for side in ("start", "end")),
    *(f"<|{name}_pad|>" for name in ("vision", "image", "video", "fim")),
    *(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix")),
    *("<tool_call>", "</tool_call>"),
]
SMOL = [
    *("<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>", "<empty_output>"),
    *(f"<issue_{name}>" for name in ("start", "comment", "closed")),
    *(f"<jupyter_{name}>" for name in ("start", "text", "code", "output", "script")),
]
OTHERS = [
    *("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>", "<|reserved_special_token_12|>"),  # Llama 3
    *("<|user|>", "<|end|>", "<|placeholder1|>"),  # Phi-3
    *("<<SYS>>", "<</SYS>>", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<fim_prefix>"),
    *("<\uff5cUser\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),  # DeepSeek
]


@pytest.mark.parametrize("token", QWEN + SMOL + OTHERS)
@pytest.mark.parametrize("field", ["instruction", "input", "output", "vulnerable", "weakness", "remedy"])
def test_a_control_token_is_found_in_every_text(field, token):
    found = verdict(sample(**{field: f"x{token}y"}), Checks(control_tokens=True))
    assert found is not None and (found.check, found.reason) == ("control_tokens", token)


@pytest.mark.parametrize(
    "code",
    [
        "let total = sum <| map price |> filter cheap",
        "view model = div [] <| List.map row <| model.rows |> List.take 3",
        "f <| x\nx |> f\nf<|x|>g",
        "parser = digit <|> letter <|> char '_'",
        "cout << SYS >> 1; if (a <b> c) d[INST] = 1; x = a < end || b > end;",
        "<s>gone</s> <b>kept</b> <system> <user> <end> <im_start> <|>",
        'char *usage = "<file> <name> |im_end| < |im_end|> <| im_end |>";',
        "case '<|': return '|>'; /* <|...|> */ a = b <|| c; <|\nim_end|>",
    ],
)
def test_code_that_looks_like_a_control_token_is_kept(code):
    for field in ("instruction", "output", "vulnerable"):
        assert verdict(sample(**{field: code}), Checks(control_tokens=True)) is None


def test_a_threshold_of_zero_is_a_check():
    broken = sample(output="def add(a, b:\n    return ] a + + b")
    found = verdict(broken, Checks(syntax=0.0))
    assert found is not None and found.check == "syntax"


def test_the_order_of_the_checks_is_that_of_the_parameters():
    assert [*CHECKS, "duplicate", "near_duplicate"] == list(Checks.__dataclass_fields__)


@pytest.mark.parametrize(
    ("choice", "expected"), [("keep", None), ("reject", "unflagged")], ids=["keep", "reject"]
)
def test_a_pair_that_the_scanner_misses_is_kept_or_rejected_by_parameter(choice, expected):
    quiet = sample(
        weakness="Off by one.",
        cwe="CWE-193",
        vulnerable="def first(a, n):\n    return a[: n + 1]\n",
        output="def first(a, n):\n    return a[:n]\n",
    )
    found = verdict(quiet, Checks(label=choice))
    assert (found.reason.partition(":")[0] if found else None) == expected


ODD = {
    "deep": "x = " + "-" * 100_000 + "1",
    "brackets": "(" * 50_000,
    "nul": "x = '\0'",
    "long line": "x = '" + "a" * 2_000_000 + "'",
    "carriage returns": "def f():\r\n    return 1\r\n",
    "tabs": "\tif x:\n\t\tpass",
    "right to left": "x = '\u202e'",
    "fence inside": "x = '''\n```\n'''",
    "bars": "<|im_" * 100_000 + "<\uff5c" * 100_000,
    "blank": "   \n\n",
}


@pytest.mark.parametrize("code", ODD.values(), ids=ODD)
@pytest.mark.parametrize("language", ["python", "javascript", "php", "c", "", "cobol"])
def test_odd_code_gets_a_verdict_and_stops_nothing(code, language):
    odd = sample(output=code, language=language, weakness="Odd.", cwe="CWE-94")
    verdict(odd, Checks(**{**ALL, "length": 10**7}))
