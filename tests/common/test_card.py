"""Card: what the Hub reads is right, the tables add up, and the picture is a picture."""

import random
import re
import xml.etree.ElementTree as xml

import pytest
from ruamel.yaml import YAML

from stages.common import card
from stages.common.overlap import Overlap
from stages.common.records import Example

SVG = "{http://www.w3.org/2000/svg}"


def example(**changes: str) -> Example:
    given = {
        "id": "one/0/write",
        "group": "one/0",
        "source": "one",
        "licence": "MIT",
        "revision": "1.0",
        "transforms": "",
        "kind": "write",
        "prompt": "Say a.",
        "completion": "a",
    }
    return Example(**{**given, **changes})


def tally(*examples: Example) -> card.Tally:
    made = card.Tally()
    for one in examples:
        made.add(one)
    return made


MIXED = tally(
    example(),
    example(kind="fix", licence="BSD-3-Clause", transforms="chunk 1 of 2; redact EMAIL 1"),
    example(kind="fix", transforms="chunk 2 of 2"),
)
COUNTS = {
    "examples": 9,
    "too_long": 2,
    "contaminated": 1,
    "near_duplicate": 0,
    "not_chosen": 2,
    "wanted": 3,
    "mixed": 3,
    "repeated": 0,
    "preferences": 1,
}
FILTERED = {"rows": 1200, "kept": 1195, "rejected": 5, "reasons": {"length": 4, "empty": 1, "syntax": 0}}


def facts(**changes: object) -> card.Facts:
    checks = {
        "exact": 1,
        "contained": 2,
        "ngram": 3,
        "entry_point": 4,
        "common_name": 7,
        "tasks_given_away": 5,
        "tasks": 6,
    }
    report = {
        "train": 2,
        "valid": 1,
        "preferences": 1,
        "sources": {"one": COUNTS},
        "kinds": card.kinds(MIXED),
        "floors": {"one": {"share": 1.0, "floor": 0.02}},
        "decontamination": {"humaneval": checks},
    }
    origin = {
        "uri": "hf://a/b@c",
        "revision": "c",
        "licence": "MIT",
        "rows": 1200,
        "note": "its | card\ndisagrees",
    }
    given = {
        "report": {**report, **changes.pop("report", {})},
        "provenance": {"one": {"origins": [origin]}},
        "filters": {"one": {**FILTERED, "redacted": {"EMAIL": 7}}},
        "mixed": MIXED,
        "preferences": tally(example(kind="preference", rejected="b", licence="Elastic-2.0")),
        "strategy": "weights, order paired",
        "drops": True,
        "overlap": Overlap(8, 0.5, False),
        "notes": ["one group was <cut>"],
    }
    return card.Facts(**{**given, **changes})


def front(text: str) -> dict:
    return YAML(typ="safe").load(text.split("---\n")[1])


# The card. -----------------------------------------------------------------------------------------------


def test_front_matter_is_what_the_hub_expects():
    assert front(card.readme(facts())) == {
        "pretty_name": "Security-aware coding assistant: training mix",
        "license": ["bsd-3-clause", "mit", "other"],
        "license_name": "Elastic-2.0",
        "language": ["en", "code"],
        "task_categories": ["text-generation"],
        "tags": ["code", "security", "kind:fix", "kind:write"],
        "size_categories": ["n<1K"],
        "configs": [
            {
                "config_name": "default",
                "default": True,
                "data_files": [
                    {"split": "train", "path": "train.jsonl"},
                    {"split": "validation", "path": "valid.jsonl"},
                ],
            },
            {
                "config_name": "preferences",
                "data_files": [{"split": "train", "path": "preferences.jsonl"}],
            },
        ],
    }


def test_files_without_rows_are_not_offered_and_one_licence_is_no_list():
    found = front(
        card.readme(facts(report={"valid": 0, "preferences": 0}, mixed=tally(example()), preferences=tally()))
    )
    assert found["license"] == "mit" and "license_name" not in found
    assert [one["data_files"] for one in found["configs"]] == [[{"split": "train", "path": "train.jsonl"}]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (25_162, "10K<n<100K"),
        (100_000, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
    ],
)
def test_size_category(rows, expected):
    assert card.size_category(rows) == expected


@pytest.mark.parametrize(
    ("spdx", "expected"),
    [("Apache-2.0", "apache-2.0"), ("CC-BY-NC-4.0", "cc-by-nc-4.0"), ("Proprietary", "other"), ("", "other")],
)
def test_hub_licence(spdx, expected):
    assert card.hub_licence(spdx) == expected


@pytest.mark.parametrize(
    "words",
    [
        "| fix | 2 | 66.67% |",
        "| one | 1,200 | 1,195 | 5 | 9 | 2 | 1 | 0 | 2 | 1 | 3 | 0 |",
        "- one: length 4, empty 1",
        "| one | `hf://a/b@c` | c | MIT | 1,200 |",
        "- one: its \\| card disagrees",
        "Licences of the rows in this mix: BSD-3-Clause 1, Elastic-2.0 1, MIT 2.",
        "- rows here with `chunk n of n`: 2",
        "- rows here with `redact EMAIL n`: 1",
        "EMAIL 7",
        "Floors: one 100.00% (floor 2.00%).",
        "left out with its whole group",
        "50% of a benchmark text's 8-grams",
        "| humaneval | 1 | 2 | 3 | 4 | 7 | 5 | 6 |",
        "- one group was &lt;cut>",
        "![Where the rows went](funnel.svg)",
    ],
)
def test_card_tells(words):
    assert words in card.readme(facts())


def test_card_says_when_nothing_was_dropped_or_done():
    text = card.readme(facts(drops=False, mixed=tally(example()), filters={"one": FILTERED}))
    assert "counted and kept" in text and "stay in the mix" in text
    assert "None: the texts are the sources' own." in text
    assert "Conflicts" not in card.readme(
        facts(provenance={"one": {"origins": [{"uri": "file:a", "licence": "MIT", "rows": 1}]}})
    )


def test_table_keeps_its_shape_whatever_stands_in_it():
    lines = card.table(("name", "count"), [("a|b\nc", 1000), ("<b>", 2)]).split("\n")
    assert lines == ["| name | count |", "| --- | ---: |", "| a\\|b c | 1,000 |", "| &lt;b> | 2 |"]


# Counting. -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_tokens_are_words_and_marks_however_they_are_counted(seed):
    draw = random.Random(seed)
    ascii_text = "".join(chr(draw.randrange(128)) for _ in range(400))
    assert card.approximate_tokens(ascii_text) == len(re.findall(r"\w+|[^\w\s]", ascii_text))
    assert card.approximate_tokens("größe = f(1);\u2003x") == 8


def test_tallies_add_up():
    rows = [
        example(cwe="CWE-79"),
        example(kind="fix", source="two", cwe="CWE-89"),
        example(kind="fix", prompt="ab c", cwe="CWE-79"),
    ]
    whole, parts = tally(*rows), card.merged([tally(rows[0]), tally(*rows[1:]), card.Tally()])
    assert whole == parts and whole.total() == 3
    assert whole.cwes == {"CWE-79": 2, "CWE-89": 1} and tally(example()).cwes == {}
    assert whole.rows == {("one", "write"): 1, ("two", "fix"): 1, ("one", "fix"): 1}
    kinds = card.kinds(whole)
    assert kinds["fix"] == {"rows": 2, "characters": 12, "approximate_tokens": 7, "share": 0.666667}
    assert sum(kind["share"] for kind in kinds.values()) == pytest.approx(1, abs=1e-5)
    assert card.kinds(card.Tally()) == {}


# The picture. --------------------------------------------------------------------------------------------


def drawn(sources: dict) -> xml.Element:
    return xml.fromstring(card.funnel(sources))  # noqa: S314 (our own text)


def test_bars_of_a_source_add_up():
    bars = {bar.name: bar for bar in card.bars(FILTERED, COUNTS, drops=True)}
    assert bars["fetched"].total() == bars["filtered"].total() == 1200
    assert bars["converted"].total() == COUNTS["examples"]
    assert bars["mixed"].total() == COUNTS["mixed"] + COUNTS["preferences"]
    kept = card.bars(FILTERED, {**COUNTS, "mixed": 4}, drops=False)[2]
    assert kept.total() == COUNTS["examples"] and "contaminated" not in [label for _, label, _ in kept.parts]


@pytest.mark.parametrize("reasons", [{}, {"length": 9}, {"length": 1}])
def test_reasons_that_count_pieces_become_one_bar(reasons):
    bar = card.bars({**FILTERED, "reasons": reasons}, COUNTS, drops=True)[1]
    assert bar.total() == 1200 and ("out", "rejected", 5) in bar.parts


def test_picture_shows_every_count_and_its_bars_are_to_scale():
    picture = drawn({"one": card.bars(FILTERED, COUNTS, drops=True)})
    words = " ".join(picture.itertext())
    for shown in (
        "1,200 rows",
        "1,195 kept",
        "4 length",
        "1 empty",
        "3 chosen",
        "2 too long",
        "1 contaminated",
    ):
        assert shown in words
    widths = [
        float(one.get("width")) for one in picture.iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None
    ]
    assert max(widths) == card.BAR and sum(widths[1:4]) == pytest.approx(card.BAR, abs=0.1)
    assert "0 syntax" not in words and "prefers-color-scheme: dark" in card.funnel({})


def test_picture_needs_nothing_from_outside():
    text = card.funnel({"one": card.bars(FILTERED, COUNTS, drops=True)})
    assert "href" not in text and "url(" not in text and "<script" not in text
    assert text.count("http") == 1  # the name of the language


@pytest.mark.parametrize("name", ["<b>&\"'", "a" * 500, "nul\x00\x1b", "größe", ""])
def test_odd_names_do_not_break_the_picture(name):
    bars = [card.Bar("fetched", (("kept", name, 3), ("out", name, 0))), card.Bar("nothing", ())]
    words = list(drawn({name: bars}).itertext())
    assert all(len(word) < 700 for word in words)


def test_words_that_do_not_fit_are_left_to_the_bar():
    parts = tuple(("out", f"a long reason {number}", number + 1) for number in range(12))
    picture = drawn({"one": [card.Bar("filtered", parts)]})
    shown = ["".join(one.itertext()) for one in picture.iter(f"{SVG}text")][-1]
    assert shown.endswith("...") and len(shown) < 100
    assert len(list(picture.iter(f"{SVG}title"))) == 1 + len(parts)
