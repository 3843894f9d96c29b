"""Transforms: what is said to be no input goes, secrets go, long pairs are cut, and each change is noted."""

from collections import Counter
from dataclasses import asdict, fields, replace

import pytest

from stages.common import chunks, params, parsers, transforms
from stages.common.errors import PipelineError
from stages.common.records import Sample
from stages.common.transforms import Transforms

PLAIN = Sample(
    id="mine/7",
    source="mine",
    licence="MIT",
    revision="abc",
    transforms="",
    language="python",
    instruction="Add the numbers.",
    input="1 2",
    output="print(1 + 2)",
)
ALL = Transforms(blank_input=True, redact=True, chunk=60)

# A pair of two changed functions around one that is not, longer than the limit of ALL.
FUNCTIONS = [f"def f{n}(name):\n    return run({{}})" for n in range(3)]
WEAK = "\n\n\n".join(function.format("name") for function in FUNCTIONS)
FIXED = WEAK.replace("f0(name):\n    return run(name)", "f0(name):\n    return run(safe(name))").replace(
    "f2(name):\n    return run(name)", "f2(name):\n    return run(quoted(name))"
)
PAIR = replace(PLAIN, instruction="", input="", output=FIXED, vulnerable=WEAK, cwe="CWE-78")
PIECES = [
    ("def f0(name):\n    return run(name)", "def f0(name):\n    return run(safe(name))"),
    ("def f2(name):\n    return run(name)", "def f2(name):\n    return run(quoted(name))"),
]

MAIL, HIDDEN = "ann.berg@fjordpost.no", "<EMAIL>"


def changed(sample: Sample, result: Sample) -> dict[str, str]:
    """The fields that a transform changed."""
    before = asdict(sample)
    return {name: value for name, value in asdict(result).items() if value != before[name]}


@pytest.mark.parametrize(
    "given",
    [
        "<noinput>",
        "N/A",
        " n/a. ",
        "None",
        "No input.",
        "(none)",
        "[noinput]",
        "< noInput >",
        "<No-input>",
        "<<noinput>>\n",
    ],
)
def test_input_that_says_that_there_is_none_is_left_out(given):
    sample = replace(PLAIN, input=given, transforms="earlier")
    assert changed(sample, transforms.blank_input(sample)) == {
        "input": "",
        "transforms": "earlier; blank input",
    }


@pytest.mark.parametrize(
    "given",
    [
        "",
        " \n",
        "0",
        "()",
        "[]",
        ".",
        "<>",
        "x = None",
        "None, 1",
        "nonet",
        "banana",
        "null pointer",
        "No",
        "-",
    ],
)
def test_any_other_input_stays(given):
    sample = replace(PLAIN, input=given)
    assert transforms.blank_input(sample) == sample


def test_secrets_are_replaced_in_every_text_and_counted():
    texts = {name: f"{name} {MAIL}" for name in transforms.TEXTS}
    sample = replace(PLAIN, **texts)
    result, counts = transforms.redact(sample)
    expected = {name: f"{name} {HIDDEN}" for name in transforms.TEXTS}
    assert changed(sample, result) == {**expected, "transforms": f"redact EMAIL {len(texts)}"}
    assert counts == {"EMAIL": len(texts)}


def test_every_text_of_a_sample_is_looked_at():
    metadata = {"id", "source", "licence", "revision", "transforms", "language", "cwe"}
    assert {field.name for field in fields(Sample)} - metadata == set(transforms.TEXTS)


def test_kinds_are_noted_in_order():
    sample = replace(PLAIN, output=f"ping 185.199.108.153\nmail {MAIL} {MAIL}", transforms="earlier")
    result, counts = transforms.redact(sample)
    assert result.transforms == "earlier; redact EMAIL 2 IP_ADDRESS 1"
    assert result.output == "ping <IP_ADDRESS>\nmail <EMAIL> <EMAIL>"
    assert counts == Counter(EMAIL=2, IP_ADDRESS=1)


def test_both_sides_keep_the_same_words_for_one_secret():
    pair = replace(PAIR, vulnerable=f'mail("{MAIL}", x)', output=f'mail("{MAIL}", safe(x))')
    result, _ = transforms.redact(pair)
    assert result.vulnerable.replace("x)", "safe(x))") == result.output == f'mail("{HIDDEN}", safe(x))'


@pytest.mark.parametrize("sample", [PLAIN, PAIR, replace(PLAIN, output='password = "hunter2"')])
def test_nothing_to_redact_changes_nothing(sample):
    assert transforms.redact(sample) == (sample, Counter())


@pytest.mark.parametrize("fence", ["{}", "```python\n{}\n```", "Here it is:\n\n```\n{}\n```\nThat is all."])
def test_long_pair_becomes_its_changed_functions(fence):
    pair = replace(PAIR, vulnerable=fence.format(WEAK), output=fence.format(FIXED), transforms="earlier")
    made = transforms.cut(pair, 60)
    assert [changed(pair, piece) for piece in made] == [
        {
            "id": f"mine/7#{number}",
            "vulnerable": weak,
            "output": fixed,
            "transforms": f"earlier; chunk {number} of 2",
        }
        for number, (weak, fixed) in enumerate(PIECES, 1)
    ]


@pytest.mark.parametrize(
    ("sample", "limit"),
    [
        (PAIR, len(FIXED)),  # not longer than the limit
        (
            replace(PAIR, output=f"Of {len(FIXED)} characters:\n```\n{FIXED}\n```"),
            len(FIXED),
        ),  # prose is free
        (replace(PLAIN, output=FIXED), 10),  # a lone answer
        (PAIR, 10),  # nothing fits
        (replace(PAIR, output=WEAK), 60),  # nothing changed
        (replace(PAIR, test="f0('a')"), 60),  # a test is about the whole
    ],
)
def test_any_other_sample_is_not_cut(sample, limit):
    assert transforms.cut(sample, limit) == [sample]


def test_limit_is_of_the_longer_side(monkeypatch):
    monkeypatch.setattr(chunks, "chunks", lambda *given: [given[:2]])
    for weak, fixed in (("x" * 11, "y"), ("x", "y" * 11)):
        pair = replace(PAIR, vulnerable=weak, output=fixed)
        assert [piece.id for piece in transforms.cut(pair, 10)] == ["mine/7#1"]
        assert transforms.cut(pair, 11) == [pair]


def test_nothing_is_done_that_was_not_chosen():
    sample = replace(PAIR, input="N/A", weakness=MAIL)
    assert transforms.transformed(sample, Transforms()) == ([sample], Counter())


def test_all_are_done_in_order_and_noted():
    sample = replace(PAIR, input="N/A", weakness=f"{MAIL} was told.")
    made, counts = transforms.transformed(sample, ALL)
    assert [(piece.id, piece.vulnerable, piece.output) for piece in made] == [
        (f"mine/7#{number}", *sides) for number, sides in enumerate(PIECES, 1)
    ]
    assert {(piece.input, piece.weakness) for piece in made} == {("", f"{HIDDEN} was told.")}
    assert [piece.transforms for piece in made] == [
        f"blank input; redact EMAIL 1; chunk {n} of 2" for n in (1, 2)
    ]
    assert counts == {"EMAIL": 1}


def test_secret_counts_before_the_cut():
    """A secret outside the pieces is counted: redaction comes first."""
    middle = (
        WEAK.replace("f1(name)", f"f1(name, to='{MAIL}')"),
        FIXED.replace("f1(name)", f"f1(name, to='{MAIL}')"),
    )
    made, counts = transforms.transformed(replace(PAIR, vulnerable=middle[0], output=middle[1]), ALL)
    assert [(piece.vulnerable, piece.output) for piece in made] == PIECES
    assert counts == {"EMAIL": 2}


def test_transforming_again_changes_nothing_more():
    sample = replace(PLAIN, input="N/A", output=f"mail {MAIL}")
    (once,), _ = transforms.transformed(sample, ALL)
    assert transforms.transformed(once, ALL) == ([once], Counter())


def test_parsed_row_has_no_transforms_yet():
    row = {"instruction": "Add.", "input": "N/A", "output": "1"}
    sample = parsers.parse(row, 0, parsers.Origin("mine", "alpaca", "MIT", "abc"))
    ((made,), _) = transforms.transformed(sample, ALL)
    assert (sample.transforms, made.transforms) == ("", "blank input")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"chunk": 0}, "filter.mine.transforms.chunk: 0"),
        ({"chunk": "60"}, "filter.mine.transforms.chunk: '60'"),
        ({"redact": 1}, "filter.mine.transforms.redact: 1"),
        ({"shuffle": True}, "filter.mine.transforms.shuffle: True"),
    ],
)
def test_bad_parameter_is_named(values, words):
    with pytest.raises(PipelineError, match=words):
        params.validate(values, "filter.mine.transforms", Transforms)
