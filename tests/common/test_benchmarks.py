"""The shipped evaluation suites: enough of everything, no way to pass by a trick, and every test proven."""

import ast
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from test_handmade import plain, repeated, rows, skeleton, training_pairs

from stages.common import checks, cwe, files, handling, languages, overlap, sandbox, suites

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "data/benchmarks"
SUITES = sorted(BENCHMARKS.glob("*.jsonl"))
LEAST = {  # rows of a suite
    "detection": 200,
    "error_handling": 60,
    "explanation": 40,
    "fixing": 60,
    "reference": 6,
    "secure_coding": 40,
}
EXECUTED = ("error_handling", "fixing", "secure_coding")
LEAST_PAIRS = {"python": 100, "javascript": 20, "php": 20, "java": 20, "c": 20}
TORN = 0.02  # share of bytes that a grammar may fail to read, see languages.error_share
TOKEN = re.compile(r"\w+|[^\w\s]")
COMMENT = re.compile(r"(?:#|//|/\*).*")
VERDICT = re.compile(r"vulnerab|insecure|unsafe|exploit|CWE-|\bfixed\b|\bsecure(?:ly)?\b(?!:)", re.IGNORECASE)

Tokens = frozenset[str]


class Pair(NamedTuple):
    """A pair of the detection suite."""

    id: str
    language: str
    cwe: str
    trait: str
    vulnerable: str
    fixed: str


@cache
def tasks(suite: str) -> list[suites.Task]:
    """The tasks of a shipped suite."""
    return suites.load(BENCHMARKS / f"{suite}.jsonl")


def suite_rows(suite: str) -> list[files.Row]:
    """The rows of a shipped suite, for what its loader keeps inside the prompts alone."""
    return list(files.read_rows(BENCHMARKS / f"{suite}.jsonl"))


@cache
def pairs() -> list[Pair]:
    """Every pair to measure with."""
    return [
        Pair(
            row["id"],
            row["language"],
            row["cwe"],
            row.get("trait", ""),
            row["vulnerable"].rstrip(),
            row["fixed"].rstrip(),
        )
        for row in suite_rows("detection")
    ]


def snippets() -> Iterable[tuple[str, str]]:
    """The id and code of everything that a model is to judge, explain or mend."""
    for pair in pairs():
        yield pair.id, pair.vulnerable
    for suite in ("explanation", "fixing"):
        for row in suite_rows(suite):
            yield row["id"], row["vulnerable"]


def words_tell(given: list[tuple[str, str]], tokens: Callable[[str], Tokens]) -> float:
    """Accuracy on single sides of naive Bayes that has learned from all other pairs, 0..1; chance is 0.5.

    A side is called vulnerable when its tokens' presences are likelier, by Laplace's rule, among vulnerable
    sides than among fixed ones.
    """
    read = [(tokens(vulnerable), tokens(fixed)) for vulnerable, fixed in given]
    counts = [Counter(token for pair in read for token in pair[side]) for side in (0, 1)]

    def leans(side: Tokens, pair: tuple[Tokens, Tokens]) -> float:
        return sum(
            math.log(
                (counts[0][token] - (token in pair[0]) + 1) / (counts[1][token] - (token in pair[1]) + 1)
            )
            for token in side
        )

    right = sum((leans(pair[0], pair) > 0) + (leans(pair[1], pair) <= 0) for pair in read)
    return right / (2 * len(read))


def tokens(code: str) -> Tokens:
    """Words and signs of a text, each once."""
    return frozenset(TOKEN.findall(code))


def length_tells(given: list[tuple[str, str]]) -> float:
    """The share of pairs whose longer side is the fixed one, 0..1; equal lengths count half."""
    return sum((len(fixed) > len(weak)) + (len(fixed) == len(weak)) / 2 for weak, fixed in given) / len(given)


# ---- every suite


def test_the_suites_are_these():
    assert [path.stem for path in SUITES] == sorted(LEAST)


@pytest.mark.parametrize("suite", LEAST)
def test_a_suite_loads_and_has_enough_rows(suite):
    assert len({task.pair or task.id for task in tasks(suite)}) >= LEAST[suite]


def test_no_two_prompts_are_alike():
    assert repeated([plain(task.prompt) for suite in LEAST for task in tasks(suite)]) == []


def test_no_prompt_spells_a_control_token():
    found = [task.id for suite in LEAST for task in tasks(suite) if checks.CONTROL_TOKEN.search(task.prompt)]
    assert found == []


def test_every_weakness_has_a_name():
    given = {name for suite in LEAST for task in tasks(suite) for name in (task.cwe, *task.also) if name}
    assert given - set(cwe.NAMES) == set()


def test_no_snippet_to_judge_is_another_one_renamed():
    found: dict[str, list[str]] = {}
    for name, code in snippets():
        found.setdefault(skeleton(code), []).append(name)
    assert [names for names in found.values() if len(names) > 1] == []


def test_no_snippet_names_its_own_verdict():
    given = [*snippets(), *((pair.id, pair.fixed) for pair in pairs())]
    told = [
        (name, comment)
        for name, code in given
        for comment in COMMENT.findall(code)
        if VERDICT.search(comment)
    ]
    assert told == []


# ---- apart from training


@pytest.mark.parametrize("name", ["error_handling", "fixes", "preferences"])
def test_no_training_row_gives_a_benchmark_away(name):
    asked = [task for suite in LEAST for task in tasks(suite)]
    index = overlap.build(asked, overlap.Overlap(ngram=8, share=0.5, entry_points=True))
    assert overlap.copied(overlap.find(index, "", asked[0].prompt), True), "a benchmark's own text is found"
    found = [overlap.find(index, *row.values()) for row in rows(f"handmade/{name}.jsonl")]
    assert found and [one for one in found if overlap.copied(one, entry_points=True)] == []


@pytest.mark.parametrize("form", [plain, skeleton])
def test_training_and_measurement_share_no_snippet(form):
    trained = {form(code) for pair in training_pairs() for code in pair[2:]}
    measured = {form(code) for _, code in snippets()} | {form(pair.fixed) for pair in pairs()}
    assert trained & measured == set()


@pytest.mark.parametrize(("form", "sides"), [(plain, 2), (skeleton, 1)])
def test_error_handling_shares_no_answer_with_its_benchmark(form, sides):
    trained = {
        form(row[key])
        for row in rows("handmade/error_handling.jsonl")
        for key in ("code", "incomplete")[:sides]
    }
    measured = {
        form(code) for task in tasks("error_handling") for code in (task.solution, task.unsafe)[:sides]
    }
    assert trained & measured == set()


# ---- detection


def test_pairs_are_many_and_half_of_them_python():
    spread = Counter(pair.language for pair in pairs())
    assert set(spread) == set(LEAST_PAIRS)
    assert all(spread[language] >= least for language, least in LEAST_PAIRS.items()), spread
    assert 0.45 <= spread["python"] / len(pairs()) <= 0.6, spread


def test_weaknesses_are_many_and_half_of_them_new_to_training():
    given = {pair.cwe for pair in pairs()}
    trained = {weakness for _, weakness, *_ in training_pairs()}
    assert len(given) >= 25
    assert len(given - trained) >= len(given) / 2


@pytest.mark.parametrize("trait", ["hard_negative", "quiet"])
def test_traits_are_there(trait):
    assert sum(pair.trait == trait for pair in pairs()) >= 24


def test_no_side_equals_another():
    assert repeated([plain(code) for pair in pairs() for code in pair[4:]]) == []


@pytest.mark.parametrize("side", ["vulnerable", "fixed"])
def test_no_side_is_that_of_another_pair_renamed(side):
    assert repeated([skeleton(getattr(pair, side)) for pair in pairs()]) == []


@pytest.mark.parametrize("language", LEAST_PAIRS)
def test_both_sides_are_code(language):
    torn = []
    for pair in pairs():
        for code in pair[4:] if pair.language == language else ():
            share = languages.error_share(code, language)
            if share is None or share > TORN:
                torn.append((pair.id, share))
            if language == "python":
                ast.parse(code, pair.id)
    assert torn == []


def test_words_alone_do_not_tell_the_sides_apart():
    given = [(pair.vulnerable, pair.fixed) for pair in pairs()]
    assert words_tell([("f(x)", f"g(x{number})") for number in range(9)], tokens) == 1, "it can tell"
    assert words_tell(given, tokens) < 0.62  # 0.52 measured; by language 0.53 (C, Java) to 0.60 (JavaScript)


def test_length_does_not_tell_the_sides_apart():
    assert length_tells([("a", "abc"), ("abc", "abc")]) == 0.75
    assert length_tells([(pair.vulnerable, pair.fixed) for pair in pairs()]) < 0.72  # 0.69 measured


# ---- explanation


def test_no_constant_answer_explains_much():
    given = Counter(name for task in tasks("explanation") for name in {task.cwe, *task.also})
    assert max(given.values()) <= 0.08 * len(tasks("explanation")), given.most_common(3)  # 0.079 measured


# ---- suites that are marked by execution


@pytest.mark.parametrize("suite", EXECUTED)
def test_rows_have_an_answer_that_is_right_and_one_that_is_not(suite):
    other = {"error_handling": "handled"}.get(suite, "secure")
    for task in tasks(suite):
        assert task.solution and task.unsafe and plain(task.solution) != plain(task.unsafe), task.id
        assert set(task.checks()) == {"functional", other} or task.language == "javascript", task.id


@pytest.mark.parametrize("suite", EXECUTED)
def test_checks_tell_right_from_unsafe(suite):
    runs = [
        (task, answer, check)
        for task in tasks(suite)
        if task.language == "python"
        for answer in ("solution", "unsafe")
        for check in task.checks()
    ]
    with ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(
            lambda run: sandbox.judge(getattr(run[0], run[1]), run[0].checks()[run[2]], run[0].entry_point),
            runs,
        )
    wrong = [
        (task.id, answer, check, outcome)
        for (task, answer, check), outcome in zip(runs, outcomes, strict=True)
        if outcome.status != ("failed" if answer == "unsafe" and check != "functional" else "passed")
    ]
    assert runs and wrong == []


def test_javascript_answers_differ_in_what_they_handle():
    given = [task for task in tasks("error_handling") if task.language == "javascript"]
    wrong = [
        task.id for task in given if not handling.handles(task.solution) or handling.handles(task.unsafe)
    ]
    assert given and wrong == []
