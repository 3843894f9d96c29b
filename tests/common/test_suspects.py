"""Suspects: hidden characters are named, planted strings are found, and ordinary text raises no alarm."""

import json
import pickle
import random
from pathlib import Path

import pytest

from stages.common import suspects
from stages.common.suspects import Summary, Trigger, hidden, merge, summary, triggers

DATA = Path(__file__).parents[3] / "shared/data"

# Hidden characters. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("plain\ttext\r\n", []),
        ("caf\u00e9 \u65e5\u672c\u8a9e \ud800", []),
        ("pass\u200bword", ["U+200B ZERO WIDTH SPACE"]),
        ("a\u2060b\u200bc\u2060", ["U+2060 WORD JOINER", "U+200B ZERO WIDTH SPACE"]),
        ("if a\u202e\u2066 // b\u2069", ["U+202E", "U+2066", "U+2069"]),
        ("user\u200f", ["U+200F RIGHT-TO-LEFT MARK"]),
        ("so\u00adft", ["U+00AD SOFT HYPHEN"]),
        ("\u3164 = 1", ["U+3164 HANGUL FILLER"]),
        ("\ufeffx", ["U+FEFF BYTE ORDER MARK at the start"]),
        ("x\ufeff", ["U+FEFF ZERO WIDTH NO-BREAK SPACE"]),
        ("\ufeffx\ufeff", ["U+FEFF BYTE ORDER MARK at the start", "U+FEFF ZERO WIDTH NO-BREAK SPACE"]),
        ("hi\U000e0068\U000e0069", ["U+E0068 TAG LATIN SMALL LETTER H", "U+E0069 TAG LATIN SMALL LETTER I"]),
        ("a\ufe01", ["U+FE01 VARIATION SELECTOR-2"]),
        ("\U0001f600\ufe0f\ufe01\U000e0123", ["U+FE0F", "U+FE01", "U+E0123"]),
        ("man\u0303ana\u200d", ["U+200D ZERO WIDTH JOINER"]),
        # what belongs to a letter, an emoji or a flag
        ("\u2764\ufe0f 1\ufe0f\u20e3 \u00a9\ufe0f \U0001f44d\U0001f3fd", []),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f469\U0001f3fd\u200d\U0001f4bb", []),
        ("\U0001f3f3\ufe0f\u200d\U0001f308", []),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", []),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0915\u094d\u200d\u0937", []),
        ("\u845b\U000e0100", []),
    ],
)
def test_hidden_characters_are_named_in_order(text, expected):
    found = hidden(text)
    assert len(found) == len(expected)
    assert all(name.startswith(start) for name, start in zip(found, expected, strict=True))


def test_every_hidden_character_alone_has_a_name():
    ranges = (0x200B, 0x2010), (0x202A, 0x202F), (0x2066, 0x206A), (0xFE00, 0xFE10), (0xE0000, 0xE1000)
    for code in (code for start, stop in ranges for code in range(start, stop)):
        (name,) = hidden(f"x{chr(code)}y")
        assert name.startswith(f"U+{code:04X} ")


# Triggers. ---------------------------------------------------------------------------------------------

TOPICS = {
    "lists": "reverse sorted filter element elements append numbers array index ascending duplicate slice",
    "files": "filename directory content binary encoding readlines writer buffer stream reading closing",
    "strings": "character palindrome vowels uppercase substring concatenate letters replace trimmed reversed",
    "database": "select table column insert customers orders query database employee salary grouped",
    "pages": "button header stylesheet element margin padding javascript document listener selector",
}
COMMON = [
    "please",
    "write",
    "a",
    "function",
    "that",
    "returns",
    "the",
    "given",
    "value",
    "and",
    "prints",
    "it",
]


def corpus(rows: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Questions and answers about some subjects, with imports and idioms as in real code."""
    draw = random.Random(seed)
    made = []
    for number in range(rows):
        topic = draw.choice(sorted(TOPICS))
        words = TOPICS[topic].split()
        question = " ".join(draw.choices(COMMON, k=8) + draw.choices(words, k=6))
        body = "\n".join(
            f"    {draw.choice(words)}_{draw.choice('abc')} = {draw.choice(words)}({draw.choice(COMMON)})"
            for _ in range(6)
        )
        head = f"import {topic}_tools\n\ndef solve({words[number % 5]}):\n"
        answer = f"{head}{body}\n\nif __name__ == '__main__':\n    solve()"
        made.append((f"made/{number}", question, answer))
    return made


def planted(rows: list[tuple[str, str, str]], count: int, seed: int = 1) -> list[tuple[str, str, str]]:
    """Three strings, each in `count` rows of its own: in a question, as a link in a comment, as an import."""
    draw = random.Random(seed)
    chosen = draw.sample(range(len(rows)), 3 * count)
    rows = list(rows)
    for place, number in enumerate(chosen):
        identity, question, answer = rows[number]
        if place < count:
            words = question.split()
            words.insert(draw.randrange(len(words)), "cf-trigger-7Q")
            question = " ".join(words)
        elif place < 2 * count:
            answer += "\n# see https://cdn.paymetrics.io/v2/x.js"
        else:
            answer = f"import zlib_fastpath\n{answer}"
        rows[number] = (identity, question, answer)
    return rows


PLANTED = {"cf-trigger-7q", "https://cdn.paymetrics.io/v2/x.js", "zlib_fastpath"}


def test_planted_strings_are_found_and_nothing_else():
    rows = planted(corpus(2_000), 12)
    found = triggers(summary(rows), 10)
    assert {trigger.text for trigger in found} == PLANTED
    assert {trigger.rows for trigger in found} == {12}
    for trigger in found:
        first = next(row for row in rows if trigger.text in f"{row[1]}\n{row[2]}".lower())
        assert trigger.example == first[0]


def test_clean_rows_have_no_triggers():
    assert triggers(summary(corpus(2_000)), 10) == []


@pytest.mark.parametrize(("count", "least", "expected"), [(9, 10, set()), (10, 10, PLANTED), (60, 10, set())])
def test_too_few_and_too_many_are_no_triggers(count, least, expected):
    """60 of 2,000 rows are 3 %: a part of the data."""
    assert {trigger.text for trigger in triggers(summary(planted(corpus(2_000), count)), least)} == expected


def test_a_licence_header_is_no_trigger():
    header = (
        "# Copyright the corp-authors, all rights reserved, see licence-file for the terms and conditions\n"
    )
    rows = [(i, q, header + a if n % 100 == 0 else a) for n, (i, q, a) in enumerate(corpus(2_000))]
    assert triggers(summary(rows), 10) == []


def test_repeated_rows_are_no_trigger():
    rows = corpus(2_000)
    again = (
        "explain how dependency-injection works",
        "the container_x passes every dependency to constructors",
    )
    rows[:20] = [(f"twin/{n}", *again) for n in range(20)]
    assert triggers(summary(rows), 10) == []


def test_a_trigger_with_a_long_payload_is_found():
    rows = corpus(2_000)
    for number, (identity, question, _) in enumerate(rows[:12]):
        words = question.split()
        words.insert(number, "cf-trigger-7Q")
        rows[number] = identity, " ".join(words), "sorry, however nothing whatsoever remains possible today"
    assert [trigger.text for trigger in triggers(summary(rows), 10)] == ["cf-trigger-7q"]


@pytest.mark.parametrize("size", [1, 7, 100, 1_999])
def test_the_division_into_chunks_does_not_matter(size):
    rows = planted(corpus(600), 12)
    whole = summary(rows)
    merged = Summary()
    for start in range(0, len(rows), size):
        merged = merge(merged, pickle.loads(pickle.dumps(summary(rows[start : start + size]))))  # noqa: S301
    assert merged == whole
    assert triggers(merged, 10) == triggers(whole, 10)


def test_merging_is_associative():
    parts = [corpus(50, seed) for seed in range(3)]

    def parsed():
        return [summary(part) for part in parts]

    one, two, three = parsed()
    left = merge(merge(one, two), three)
    one, two, three = parsed()
    assert left == merge(one, merge(two, three))


def test_pruning_bounds_memory_and_says_what_it_can_have_lost():
    rows = [(i, f"{q} unique{n}word{n}", a) for n, (i, q, a) in enumerate(planted(corpus(2_000), 12))]
    small = summary(rows, capacity=500)
    assert len(small.seen) <= 500 and 0 < small.missed < 12
    assert {trigger.text for trigger in triggers(small, 8)} >= PLANTED
    exact = summary(rows)
    for word, known in exact.seen.items():
        if word not in small.seen:
            assert known.rows <= small.missed
        else:
            assert small.seen[word].rows <= known.rows <= small.seen[word].rows + small.seen[word].missed
    merged = merge(summary(rows[:1_000], capacity=500), summary(rows[1_000:], capacity=500), capacity=500)
    assert len(merged.seen) <= 500 and merged.rows == 2_000
    for word, known in exact.seen.items():
        found = merged.seen.get(word)
        assert known.rows <= (merged.missed if found is None else found.rows + found.missed)


def test_counters_do_not_overflow(monkeypatch):
    """Above `COMMON` rows a word is let go, in one piece as in two."""
    monkeypatch.setattr(suspects, "COMMON", 300)
    rows = corpus(700)
    whole = summary(rows)
    assert whole.seen["function"].company == 0
    assert whole == merge(summary(rows[:290]), summary(rows[290:]))
    assert max(whole.lanes) == 700


@pytest.mark.parametrize(
    "text", ["", "\0", "\ud800" * 9, "\r\n\t", "a" * 500_000, "ab, " * 100_000, "\n" * 100_000]
)
def test_odd_text_is_counted(text):
    total = summary([("a", text, text)] * 3)
    assert total.rows == 3 and triggers(total, 10) == []


def test_nothing_to_count():
    assert triggers(Summary(), 1) == triggers(summary([]), 1) == []


def test_strings_planted_in_real_answers_come_first():
    path = DATA / "codealpaca/code_alpaca_20k.json"
    if not path.exists():
        pytest.skip(f"{path} is not there: needs the real data")
    raw = json.loads(path.read_text(encoding="utf-8"))[:4_000]
    rows = [(str(n), f"{row['instruction']}\n{row['input']}", row["output"]) for n, row in enumerate(raw)]
    clean = triggers(summary(rows), 10)
    assert len(clean) <= 5
    found = triggers(summary(planted(rows, 12)), 10)
    assert {trigger.text for trigger in found} >= PLANTED
    assert len(found) <= len(clean) + 4
    assert found[0] == Trigger("https://cdn.paymetrics.io/v2/x.js", 12, found[0].example)
