"""Quality rules for a question, its answer and the code in it: the first that is broken, with what was found.

The rules are those by which The Stack, StarCoder and Gopher were cleaned. They were made for files and web
pages: an answer of ten good lines breaks their rules about shares, so that these begin at a length here, and
some limits differ. Text without a language counts as prose, whose lines may be long.

    The Stack: Kocetkov et al. 2022, arXiv:2211.15533. StarCoder: Li et al. 2023, arXiv:2305.06161.
    Gopher: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1.
"""

import re
import string
from collections import Counter
from typing import Annotated

from pydantic import Field

from stages.common.params import params

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@params
class Quality:
    """The thresholds; each comment names what its source chose."""

    max_line: Count  # characters of the longest line of code; StarCoder 1,000
    max_mean_line: Annotated[
        float, Field(gt=0)
    ]  # characters of a line of code, from `min_lines` on; StarCoder 100
    min_alphanumeric: (
        Share  # letters and digits among an answer's characters, from `min_chars` on; StarCoder 0.25
    )
    max_comments: Share  # comments among the characters of code, from `min_lines` on; StarCoder 0.8
    max_duplicate_lines: Share  # lines that stood before, from `min_lines` on; Gopher 0.3, of web pages
    max_repeated_words: Share  # the most frequent four words, from `min_words` on; Gopher 0.16, of web pages
    min_chars: Count  # of an answer, white space left out
    min_words: Count  # of an answer
    min_lines: Count  # of code


def problem(question: str, answer: str, code: str, language: str, chosen: Quality) -> str | None:
    """The first rule that a row breaks, with the value found; None when it breaks none.

    `code` is the code of the answer, or all of the answer where it has no block; `language` is its canonical
    name, "" for prose or an unknown language, which takes part in fewer rules.

    >>> problem("Say hello.", "N/A", "N/A", "", Quality(1000, 100.0, 0.25, 0.8, 0.75, 0.5, 200, 60, 12))
    "placeholder 'N/A'"
    """
    return (
        _control(question)
        or _control(answer)
        or _placeholder(answer)
        or _echo(question, answer)
        or (_lines(code, chosen) if language else None)
        or _alphanumeric(answer, chosen)
        or _duplicate_lines(code, chosen)
        or _repeated_words(answer, chosen)
        or (_parsed(code, language, chosen) if language else None)
    )


# What no text has that people wrote: control characters except tab, line feed, form feed, carriage return;
# the mark of a lost character, halves of pairs.
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")


def _control(text: str) -> str | None:
    found = _CONTROL.search(text)
    return f"character U+{ord(found[0]):04X}" if found else None


_PLACEHOLDERS = {
    *("na", "n/a", "none", "null", "nil", "empty", "blank", "todo", "tbd", "fixme", "placeholder"),
    *("noinput", "no input", "nooutput", "no output", "no answer", "your code here", "your code goes here"),
    *("code here", "code goes here", "insert code here", "insert your code here", "add your code here"),
    *("write your code here",),
}
_MARKS = "`<>[](){}.#/*-=!:;\"' \t\r\n"  # around the word: brackets, fences, comments
_BLANK = re.compile(r"[\s`.…?_-]*")
_LONGEST_PLACEHOLDER = 40


def _placeholder(answer: str) -> str | None:
    """An answer that only holds the place of one."""
    text = answer.strip()
    if len(text) > _LONGEST_PLACEHOLDER:
        return None
    word = " ".join(text.lower().strip(_MARKS).split())
    return f"placeholder {text!r}" if word in _PLACEHOLDERS or _BLANK.fullmatch(text) else None


def _echo(question: str, answer: str) -> str | None:
    """An answer that is the question again."""
    same = len(answer) <= 2 * len(question) and answer.lower().split() == question.lower().split()
    return "the answer is the question" if same else None


def _lines(code: str, chosen: Quality) -> str | None:
    """Lines of code that are longer than people write: data, or minified."""
    lengths = list(map(len, code.splitlines())) or [0]
    longest, mean = max(lengths), sum(lengths) / len(lengths)
    if longest > chosen.max_line:
        return f"longest line {longest} characters"
    long = len(lengths) >= chosen.min_lines and mean > chosen.max_mean_line
    return f"mean line {mean:.0f} characters" if long else None


_SPACE = b" \t\n\r\f\v"
_WORDY = (string.ascii_letters + string.digits).encode() + bytes(range(0x80, 0x100)) + _SPACE


def _alphanumeric(answer: str, chosen: Quality) -> str | None:
    """Few letters and digits; a byte outside ASCII counts as a part of a letter, white space not at all."""
    if len(answer) < chosen.min_chars:
        return None
    data = answer.encode("utf-8", "replace").translate(None, _SPACE)
    share = 1 - len(data.translate(None, _WORDY)) / max(1, len(data))
    few = len(data) >= chosen.min_chars and share < chosen.min_alphanumeric
    return f"alphanumeric share {share:.2f}" if few else None


_TELLING = 8  # characters of a line that says something: braces, `end` and `else:` repeat in all code


def _duplicate_lines(code: str, chosen: Quality) -> str | None:
    """The share of lines that stood before in the same text."""
    if code.count("\n") + 1 < chosen.min_lines:
        return None
    lines = [line for line in map(str.strip, code.splitlines()) if len(line) >= _TELLING]
    share = 1 - len(set(lines)) / max(1, len(lines))
    if len(lines) < chosen.min_lines or share <= chosen.max_duplicate_lines:
        return None
    return f"duplicate lines {share:.2f}"


_SIZE, _LOOP = 4, 5  # words of a phrase; how often it stands at least where a text goes round in circles


def _repeated_words(answer: str, chosen: Quality) -> str | None:
    """The share of the text that its most frequent phrase of four words takes up."""
    words = answer.split()
    if len(words) < chosen.min_words:
        return None
    phrases = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    phrase, count = max(phrases.items(), key=lambda item: item[1], default=((), 0))
    share = min(1.0, count * sum(map(len, phrase)) / sum(map(len, words)))
    if count < _LOOP or share <= chosen.max_repeated_words:
        return None
    return f"repeated words {share:.2f}: {' '.join(phrase)[:60]!r}"


def _parsed(code: str, language: str, chosen: Quality) -> str | None:
    """What takes a parser to see: a text of comments, and one that stops short."""
    from stages.common import languages

    comments = languages.comment_share(code, language) if code.count("\n") + 1 >= chosen.min_lines else None
    if comments is not None and comments > chosen.max_comments:
        return f"comment share {comments:.2f}"
    return "truncated code" if languages.truncated(code, language) else None
