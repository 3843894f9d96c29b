"""Signs of poisoning in training data, for a report: hidden characters, and strings planted as triggers.

Hidden characters change what code means or carry text that nobody sees (Trojan Source, Boucher and Anderson
2021, CVE-2021-42574; text smuggled in tags or variation selectors). A trigger is a string put into some rows
so that a model learns to answer it in a special way (Wan et al. 2023, arXiv:2305.00944): rare in all, always
the same, in rows that have nothing else in common.

Triggers take two steps. `summary` counts the words of a chunk of rows, in a worker; `merge` adds up summaries
in the order of their chunks. Until something is pruned, the result does not depend on where chunks begin.
"""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# Hidden characters. ------------------------------------------------------------------------------------

_EMOJI = "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
# What belongs there: joiners inside an emoji, one selector after a character that has variants, the tags of a
# flag, joiners in scripts that need them.
_PROPER = re.compile(
    f"(?<=[{_EMOJI}])\ufe0f?\u200d(?=[{_EMOJI}])"
    f"|(?<=[{_EMOJI}#*0-9])[\ufe0e\ufe0f](?![\ufe00-\ufe0f])"
    f"|(?<=[\U0001f3fb-\U0001f3ff])\u200d(?=[{_EMOJI}])"
    "|(?<=[\u3400-\u9fff])[\ufe00-\ufe02\U000e0100-\U000e01ef](?![\ufe00-\ufe0f\U000e0100-\U000e01ef])"
    "|(?<=\U0001f3f4)[\U000e0020-\U000e007e]{1,6}\U000e007f"
    "|(?<=[\u0600-\u06ff\u0900-\u0dff])[\u200c\u200d](?=[\u0600-\u06ff\u0900-\u0dff])"
)


def hidden(text: str) -> list[str]:
    r"""The hidden, zero-width and direction-changing characters of a text, each named once, in order.

    Joiners and selectors that make up an emoji or a letter are left out. A byte order mark at the very start
    is named as what it is, so that a caller can let it pass.

    >>> hidden("a\u200bb\u202e")
    ['U+200B ZERO WIDTH SPACE', 'U+202E RIGHT-TO-LEFT OVERRIDE']
    """
    if text.isascii():
        return []
    names: dict[str, None] = {}
    if text.startswith("\ufeff"):
        names["U+FEFF BYTE ORDER MARK at the start"] = None
        text = text[1:]
    if _HIDDEN.search(text):
        for run in _HIDDEN.finditer(_PROPER.sub("", text)):
            names |= dict.fromkeys(map(_name, dict.fromkeys(run[0])))
    return list(names)


def _name(character: str) -> str:
    code = ord(character)
    unnamed = "TAG" if 0xE0000 <= code < 0xE0080 else "INVISIBLE CHARACTER"
    return f"U+{code:04X} {unicodedata.name(character, unnamed)}"


# Triggers. ---------------------------------------------------------------------------------------------

_WORD = re.compile(r"\n|[^\s\"'`(){}\[\]<>,;|]+")
_SHORTEST, _LONGEST = 6, 200  # characters of a word that is counted: shorter are only neighbours, longer data

# Packed counters: how many rows hold a word of each lane, as one number, a lane being a hash of the word.
_LANES, _BITS = 256, 16
_FULL = (1 << _BITS) - 1
COMMON = 50_000  # rows from which on a word is not followed any more; two such sums would overflow a lane

CAPACITY = 50_000  # words in a summary; some 25 MB


@dataclass(slots=True)
class Seen:
    """One word: its rows, the neighbours that it always has (None where they vary), and its company."""

    rows: int
    missed: int  # rows at most in which it stood before it was taken up
    before: str | None
    after: str | None
    example: str  # id of the first row
    lane: int  # 1 in the counter of its own lane
    company: int  # packed counters over its rows; 0 from `COMMON` rows on


@dataclass(slots=True)
class Summary:
    """The words of some rows. Plain data, so that it can go from a worker to its parent."""

    rows: int = 0
    missed: int = 0  # rows at most of a word that is not in `seen`: 0 until something was pruned
    lanes: list[int] = field(default_factory=lambda: [0] * _LANES)  # rows with a word of each lane
    seen: dict[str, Seen] = field(default_factory=dict)


@dataclass(frozen=True)
class Trigger:
    """A string that looks planted."""

    text: str  # in lower case
    rows: int  # that hold it
    example: str  # id of the first of them


def summary(rows: Iterable[tuple[str, str, str]], capacity: int = CAPACITY) -> Summary:
    """The words of rows (id, question, answer), each with the neighbours and the company that it keeps.

    Lossy counting (Manku and Motwani, VLDB 2002): of more than `capacity` words, those of the fewest rows are
    forgotten. A word can then be missing that stands in up to `missed` rows, and one that comes back is
    counted from there on. Choose the `min_rows` of `triggers` well above `missed`.
    """
    total = Summary()
    packed, since = 0, 0
    for identity, question, answer in rows:
        lanes = _add(total, identity, question, answer)
        packed, since = packed + lanes, since + 1
        if since == COMMON:
            _unpack_into(total.lanes, packed)
            packed, since = 0, 0
        if len(total.seen) > capacity:
            _prune(total, capacity)
    _unpack_into(total.lanes, packed)
    return total


def _add(total: Summary, identity: str, question: str, answer: str) -> int:
    """Count one row; returns the packed lanes of its words."""
    words = ["\n", *_words(question), "\n", *_words(answer), "\n"]
    seen, lanes = total.seen, 0
    present: dict[str, Seen] = {}
    for before, word, after in zip(words, words[1:], words[2:], strict=False):
        if not _SHORTEST <= len(word) <= _LONGEST:
            continue
        known = seen.get(word)
        if known is None:
            lane = 1 << _BITS * (zlib.crc32(word.encode("utf-8", "surrogatepass")) % _LANES)
            known = seen[word] = Seen(0, total.missed, before, after, identity, lane, 0)
        else:
            if known.before != before:
                known.before = None
            if known.after != after:
                known.after = None
        if word not in present:
            present[word] = known
            lanes |= known.lane
    for known in present.values():
        known.rows += 1
        known.company = known.company + lanes if known.rows < COMMON else 0
    total.rows += 1
    return lanes


def _words(text: str) -> list[str]:
    return [word.rstrip(".:!?") or word for word in _WORD.findall(text.lower())]


def merge(first: Summary, second: Summary, capacity: int = CAPACITY) -> Summary:
    """The summary of the rows of `first` and then `second`; takes both over: use only what it returns."""
    for word, late in second.seen.items():
        early = first.seen.get(word)
        if early is None:
            late.missed += first.missed
            first.seen[word] = late
            continue
        early.rows += late.rows
        early.missed += late.missed
        early.before = early.before if early.before == late.before else None
        early.after = early.after if early.after == late.after else None
        early.company = early.company + late.company if early.rows < COMMON else 0
    if second.missed:
        for word, early in first.seen.items():
            if word not in second.seen:
                early.missed += second.missed
    first.rows += second.rows
    first.missed += second.missed
    first.lanes = [one + two for one, two in zip(first.lanes, second.lanes, strict=True)]
    if len(first.seen) > capacity:
        _prune(first, capacity)
    return first


def _prune(total: Summary, capacity: int) -> None:
    """Forget the words of the fewest rows, down to half of the capacity or below."""
    most = Counter(known.rows + known.missed for known in total.seen.values())
    kept = len(total.seen)
    for rows in sorted(most):
        if kept <= capacity // 2:
            break
        kept -= most[rows]
        total.missed = max(total.missed, rows)
    total.seen = {
        word: known for word, known in total.seen.items() if known.rows + known.missed > total.missed
    }


def _unpack(packed: int) -> list[int]:
    return [packed >> _BITS * lane & _FULL for lane in range(_LANES)]


def _unpack_into(lanes: list[int], packed: int) -> None:
    for lane, count in enumerate(_unpack(packed)):
        lanes[lane] += count


# What a trigger is. Measured on CodeAlpaca and CyberNative, with strings planted in 12 of 2,000 rows or more.
_MAX_SHARE = 0.02  # of all rows: what stands in more is a part of the data, not a rarity in it
_TIE = 0.4  # a lane is tied to a word when its share of the word's rows is that much above its share of all
_MAX_TIES = 2  # such as a payload that comes with the trigger; the words of a subject have many
_LEAST_SCORE = 2
_ODD_FORM, _ODD_SCORE = 2, 3  # from which on ties do not matter
_LIMIT = 50  # strings that are reported: a list that people read


def triggers(total: Summary, min_rows: int) -> list[Trigger]:
    """The strings that look planted, the most suspicious first; each in at least `min_rows` rows (8 or more).

    A candidate stands in no more than 2 % of all rows (or 4 * `min_rows`). It is scored by its form: a URL,
    letters mixed with digits, a compound, neighbours that never change. And its rows have no subject in
    common: at most two lanes of words stand in them far more often than elsewhere, unless its form is odd
    enough. Not found: a plain word in changing places, and one among plain words that always come along.
    """
    most = max(_MAX_SHARE * total.rows, 4 * min_rows)
    share = [count / max(1, total.rows) for count in total.lanes]
    found = []
    for word, known in total.seen.items():
        if not min_rows <= known.rows <= most or known.rows >= COMMON:
            continue
        form = _form(word)
        score = form + _same(known)
        if score < _LEAST_SCORE:
            continue
        ties = _ties(known, share)
        if ties <= _MAX_TIES or (form >= _ODD_FORM and score >= _ODD_SCORE):
            found.append(((-score, ties, -known.rows, word), Trigger(word, known.rows, known.example)))
    return [trigger for _, trigger in sorted(found, key=lambda item: item[0])[:_LIMIT]]


def _ties(known: Seen, share: list[float]) -> int:
    """Lanes that are tied to a word; its own is not counted."""
    own = (known.lane.bit_length() - 1) // _BITS
    counts = _unpack(known.company)
    return sum(counts[lane] / known.rows - share[lane] > _TIE for lane in range(_LANES) if lane != own)


_URL = re.compile(r"://|^(?:www\.)?[a-z0-9-]+\.[a-z0-9.-]*[a-z]{2}/")
_NO_ONE = re.compile(r"example\.(?:com|org|net)|localhost|127\.0\.0\.1|w3\.org")
_PART = re.compile(r"[a-z0-9]+")
_MIXED = re.compile(r"(?=[a-z]*\d)(?=\d*[a-z])(?![a-z]{4,}\d+$|[a-z]+\d$)[a-z0-9]+|[0-9a-f]{8,}")
_COMPOUND = re.compile(r"\w[-_./:@]\w")


def _form(word: str) -> int:
    """2 for a URL or a part like `7q`, 1 more for a compound."""
    url = _URL.search(word) is not None and not _NO_ONE.search(word)
    mixed = "a-z" not in word and any(_MIXED.fullmatch(part) for part in _PART.findall(word))
    return 2 * (url or mixed) + (_COMPOUND.search(word) is not None)


def _same(known: Seen) -> int:
    """The sides on which a word always has the same neighbour.

    The end of a line is one only where the other side has one too: statements begin with it.
    """
    sides = [side for side in (known.before, known.after) if side is not None]
    return 0 if sides == ["\n"] else len(sides)
