"""Decontamination: which benchmark texts stand in a training example, word for word or nearly so.

Three checks against every text of every task, the strongest first, and one beside them:

    exact        a message, or the code in it, is the benchmark's text
    contained    a benchmark's text of SHORTEST characters or more stands inside the example
    ngram        a share of the text's word n-grams stands in the example
    entry_point  an answer defines a function with a benchmark's own, specific name
    common_name  the same with a name that anyone may choose; reported, never a reason to drop

All of them see words alone: case, punctuation, layout, code fences and invisible characters hide nothing.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from stages.common.params import params
from stages.common.prompts import INPUT
from stages.common.suites import Task

SHORTEST = 20  # characters of a normalised text that is also looked for inside longer ones
COMMON = 10  # tasks that share an n-gram before it is a suite's phrasing (NeMo Curator's max_matches)
SPECIFIC = 3  # words in a function's name that hardly anyone chooses by chance: has_close_elements

CHECKS = ("exact", "contained", "ngram", "entry_point", "common_name")
NAMES = CHECKS[3:]  # those that see a name alone
LABELS = {"id", "suite", "kind", "pair", "trait", "cwe", "language", "entry_point"}  # of a task: no texts

WORD = re.compile(r"\w+")
ASCII = {code: chr(code).lower() if WORD.match(chr(code)) else " " for code in range(128)}
NAME_PART = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")
DEFINED = re.compile(r"\b(?:def|function|func|fn)\s+(\w+)")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
FENCE = re.compile(r"^[ \t]*`{3,}[\w+#.-]*[ \t\r]*$", re.MULTILINE)

Words = list[str]
Gram = tuple[str, ...]


@params
class Overlap:
    """How much of a benchmark's text may stand in an example.

    The literature's choices: GPT-3 (arXiv:2005.14165, appendix C) takes one shared 13-gram, PaLM
    (arXiv:2204.02311, section 8) 70 % of a text's 8-grams, Tulu 3 (arXiv:2411.15124, section 3.2) half of a
    text covered by shared 8-grams.
    """

    ngram: Annotated[int, Field(ge=2)]  # words; of a shorter text only exact and contained copies are found
    share: Annotated[float, Field(gt=0, le=1)]  # of a text's distinct n-grams, from which on it is a copy
    entry_points: bool  # whether a benchmark's function name alone makes an example contaminated


@dataclass(frozen=True)
class Finding:
    """A task of a benchmark that an example gives away."""

    suite: str
    task: str
    check: str  # one of CHECKS


@dataclass
class Findings:
    """What many examples give away."""

    examples: Counter[tuple[str, str]] = field(default_factory=Counter)  # by suite and check
    tasks: set[tuple[str, str]] = field(default_factory=set)  # suite and task

    def add(self, found: Iterable[Finding]) -> None:
        """Count one example: in each suite under its strongest check, and under entry points apart."""
        strongest: dict[tuple[str, bool], int] = {}
        for one in found:
            if one.check != "common_name":
                self.tasks.add((one.suite, one.task))
            key, rank = (one.suite, one.check in NAMES), CHECKS.index(one.check)
            strongest[key] = min(rank, strongest.get(key, rank))
        self.examples.update((suite, CHECKS[rank]) for (suite, _), rank in strongest.items())

    def merge(self, other: "Findings") -> None:
        """Add what other examples give away."""
        self.examples.update(other.examples)
        self.tasks |= other.tasks


@dataclass(frozen=True)
class Index:
    """The texts of all benchmarks, ready for looking up."""

    ngram: int
    share: float
    tasks: list[tuple[str, str]]  # suite and id
    texts: list[str]  # normalised, with a space on either side, each once
    owners: list[list[int]]  # of each text: its tasks
    grams_of: list[int]  # of each text: its distinct n-grams that count, 0 when it is too short
    exact: dict[str, int]  # text to its number
    anchors: dict[Gram, list[int]]  # two neighbouring words to the texts that hold them, see `_anchors`
    anchored: frozenset[Gram]
    alone: dict[str, int]  # a long text of one word to its number
    grams: dict[Gram, list[int]]  # n-gram to the texts that hold it
    known: frozenset[Gram]
    names: dict[str, list[int]]  # function's name to its tasks


def words(text: str) -> Words:
    """Letters, digits and underscores in runs, without case; Unicode's variants of a letter are one."""
    if text.isascii():
        return text.translate(ASCII).split()  # five times as fast as the pattern, measured on code
    return WORD.findall(INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold())


def normalised(text: str) -> str:
    """A text as the checks see it: `normalised("If (X == 1):\\n  pass") == "if x 1 pass"`."""
    return " ".join(message(text)[0])


def message(text: str) -> tuple[Words, Words]:
    """The words of a message, and those of its code blocks, or else of its input, alone."""
    if "```" not in text:
        given = text.partition(INPUT)[2]
        return words(text), words(given)
    pieces = [words(piece) for piece in FENCE.split(text)]  # prose, code, prose, code, ...
    return [word for piece in pieces for word in piece], [word for piece in pieces[1::2] for word in piece]


def build(tasks: Sequence[Task], chosen: Overlap) -> Index:
    """Index every text of the tasks: question, code in it, and all else that a task consists of."""
    found: dict[Gram, dict[int, bool]] = {}  # words to their tasks; True where n-grams count
    for number, task in enumerate(tasks):
        for text, counts in _texts(task):
            owners = found.setdefault(text, {})
            owners[number] = owners.get(number, False) or counts
    texts = list(found)
    rows = [[_row(tasks[number]) for number in found[text]] for text in texts]
    grams = [_grams(text, chosen.ngram) if any(found[text].values()) else frozenset[Gram]() for text in texts]
    grams = _without_phrasing(grams, rows)
    exact = {" ".join(text): number for number, text in enumerate(texts)}
    anchors = _anchors(texts, rows)
    by_gram = _inverted(grams)
    return Index(
        chosen.ngram,
        chosen.share,
        [(task.suite, task.id) for task in tasks],
        [f" {text} " for text in exact],
        [list(found[text]) for text in texts],
        [len(part) for part in grams],
        exact,
        anchors,
        frozenset(anchors),
        {text[0]: number for number, text in enumerate(texts) if len(text) == 1 and len(text[0]) >= SHORTEST},
        by_gram,
        frozenset(by_gram),
        _names(tasks),
    )


def _row(task: Task) -> tuple[str, str]:
    """What both sides of a pair share."""
    return task.suite, task.pair or task.id


def _texts(task: Task) -> list[tuple[Gram, bool]]:
    """The texts of a task as words, and whether their n-grams count.

    Of a question about code it is the code that counts: the words around it are the same in every task.
    """
    texts = []
    for one in fields(task):
        value = getattr(task, one.name)
        if isinstance(value, Task):
            texts += _texts(value)
        elif one.name not in LABELS and isinstance(value, str):
            whole, code = message(value)
            texts += [(tuple(whole), not code), (tuple(code), True)]
    return [(text, counts) for text, counts in texts if text]


def _grams(text: Sequence[str], size: int) -> frozenset[Gram]:
    return frozenset(zip(*(text[start:] for start in range(size)), strict=False))


def _without_phrasing(
    grams: list[frozenset[Gram]], rows: list[list[tuple[str, str]]]
) -> list[frozenset[Gram]]:
    """The n-grams of each text but for those that COMMON tasks of a suite share."""
    holders: dict[tuple[str, Gram], set[str]] = {}
    for part, owners in zip(grams, rows, strict=True):
        for gram in part:
            for suite, row in owners:
                holders.setdefault((suite, gram), set()).add(row)
    phrasing = {gram for (_, gram), tasks in holders.items() if len(tasks) >= COMMON}
    return [part - phrasing for part in grams]


def _anchors(texts: list[Gram], rows: list[list[tuple[str, str]]]) -> dict[Gram, list[int]]:
    """Each text of SHORTEST characters and two words or more under its rarest two neighbouring words."""
    spread: Counter[Gram] = Counter()
    for text, owners in zip(texts, rows, strict=True):
        for pair in set(pairwise(text)):
            spread[pair] += len(owners)
    anchors: dict[Gram, list[int]] = {}
    for number, text in enumerate(texts):
        if len(text) > 1 and len(" ".join(text)) >= SHORTEST:
            rarest = min(pairwise(text), key=lambda pair: (spread[pair], -len("".join(pair)), pair))
            anchors.setdefault(rarest, []).append(number)
    return anchors


def _inverted(grams: list[frozenset[Gram]]) -> dict[Gram, list[int]]:
    holders: dict[Gram, list[int]] = {}
    for number, part in enumerate(grams):
        for gram in part:
            holders.setdefault(gram, []).append(number)
    return holders


def _names(tasks: Sequence[Task]) -> dict[str, list[int]]:
    names: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        if task.entry_point:
            names.setdefault(task.entry_point.casefold(), []).append(number)
    return names


def specific(name: str) -> bool:
    """Whether a function's name says more than what everyone calls it: three words or more.

    >>> specific("has_close_elements"), specific("minSubArraySum"), specific("is_prime")
    (True, True, False)
    """
    return len(NAME_PART.findall(name)) >= SPECIFIC


def find(index: Index, prompt: str, *answers: str) -> list[Finding]:
    """What an example gives away: of each task the strongest check, and its entry point apart from that."""
    read = [message(text) for text in (prompt, *answers)]
    whole = [word for part, _ in read for word in part]
    ranks: dict[int, int] = {}  # text to the rank of the check that found it
    for part in (part for pair in read for part in pair if 0 < len(part) <= SHORTEST):
        number = index.exact.get(" ".join(part))
        if number is not None:
            ranks[number] = 0
    for number in _contained(index, whole):
        copies = any(index.texts[number] == f" {' '.join(part)} " for pair in read for part in pair)
        ranks.setdefault(number, 0 if copies else 1)
    for number in _repeated(index, whole):
        ranks.setdefault(number, 2)
    found: dict[int, int] = {}  # task to rank
    for number, rank in ranks.items():
        for task in index.owners[number]:
            found[task] = min(rank, found.get(task, rank))
    named = {
        (task, CHECKS.index("entry_point" if specific(name) else "common_name"))
        for name in defined(answers)
        for task in index.names.get(name.casefold(), ())
    }
    pairs = sorted([*found.items(), *named])
    return [Finding(*index.tasks[task], CHECKS[rank]) for task, rank in pairs]


def _contained(index: Index, whole: Words) -> list[int]:
    """The texts that stand in an example as they are."""
    found = [index.alone[word] for word in whole if word in index.alone] if index.alone else []
    hits = index.anchored.intersection(pairwise(whole))
    if hits:
        text = f" {' '.join(whole)} "
        found += [number for hit in hits for number in index.anchors[hit] if index.texts[number] in text]
    return found


def _repeated(index: Index, whole: Words) -> list[int]:
    """The texts of whose n-grams the given share stands in an example."""
    hits = index.known.intersection(zip(*(whole[start:] for start in range(index.ngram)), strict=False))
    counts = Counter(number for hit in hits for number in index.grams[hit])
    return [number for number, count in counts.items() if count >= index.share * index.grams_of[number]]


def copied(found: Iterable[Finding], entry_points: bool) -> bool:
    """Whether findings make an example contaminated; a function's name alone does where that is asked for."""
    reasons = {*CHECKS[: 4 if entry_points else 3]}
    return any(one.check in reasons for one in found)


def summary(index: Index, findings: Findings) -> dict[str, dict[str, int]]:
    """By suite: examples found by each check, tasks that they give away, and tasks in all."""
    suites = dict.fromkeys(suite for suite, _ in index.tasks)
    return {
        suite: {
            **{check: findings.examples[suite, check] for check in CHECKS},
            "tasks_given_away": sum(name == suite for name, _ in findings.tasks),
            "tasks": sum(name == suite for name, _ in index.tasks),
        }
        for suite in suites
    }


def defined(answers: Iterable[str]) -> set[str]:
    """The names of the functions that answers define."""
    return {name for answer in answers for name in DEFINED.findall(answer)}
