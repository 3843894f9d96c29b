"""The dataset card of the mix: its README by the Hub's conventions, and a picture of where the rows went.

Nothing here opens a file: texts are made of the counts that the stages report.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ruamel.yaml import YAML

from stages.common.overlap import CHECKS, Findings, Overlap, words
from stages.common.records import Example

Row = Mapping[str, Any]

FILTERED = (
    "rows",
    "kept",
    "rejected",
)  # what reports/filter/<source>.json must tell; `reasons`, `redacted` may be

# What the Hub has an identifier for: the SPDX one in lower case. All else is "other" there.
# https://huggingface.co/docs/hub/repositories-licenses
HUB_LICENCES = {
    *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0"),
    *("cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc0-1.0", "epl-2.0", "gpl-2.0", "gpl-3.0"),
    *("isc", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "odbl", "unlicense", "wtfpl", "zlib"),
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TOKEN = re.compile(r"\w+|[^\w\s]")
MARKS = {
    code: None for code in range(128) if re.match(r"[\w\s]", chr(code))
}  # leaves punctuation marks alone


# Counting what was written. ------------------------------------------------------------------------------


@dataclass
class Tally:
    """What stands in some written rows."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)  # by source and kind
    characters: Counter[str] = field(default_factory=Counter)  # of prompt and completion, by kind
    tokens: Counter[str] = field(default_factory=Counter)  # words and punctuation marks of the same, by kind
    origins: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # source, licence, revision
    transforms: Counter[str] = field(default_factory=Counter)  # rows by what was done to them
    cwes: Counter[str] = field(default_factory=Counter)  # rows by weakness, where they have one
    contaminated: int = 0  # rows that give a benchmark away
    findings: Findings = field(default_factory=Findings)

    def add(self, example: Example) -> None:
        """Count one row."""
        texts = (example.prompt, example.completion)
        self.rows[example.source, example.kind] += 1
        self.characters[example.kind] += sum(map(len, texts))
        self.tokens[example.kind] += sum(map(approximate_tokens, texts))
        self.origins[example.source, example.licence, example.revision] += 1
        self.cwes.update([example.cwe] if example.cwe else [])
        self.transforms.update({re.sub(r"\d+", "n", step) for step in example.transforms.split("; ") if step})

    def merge(self, other: "Tally") -> None:
        """Add what was counted in other rows."""
        for name in ("rows", "characters", "tokens", "origins", "transforms", "cwes"):
            getattr(self, name).update(getattr(other, name))
        self.contaminated += other.contaminated
        self.findings.merge(other.findings)

    def total(self) -> int:
        """All rows."""
        return self.rows.total()


def approximate_tokens(text: str) -> int:
    """Words and punctuation marks: `approximate_tokens("a_b = f(1)") == 6`."""
    if text.isascii():  # the same, faster
        return len(words(text)) + len(text.translate(MARKS))
    return len(TOKEN.findall(text))


def merged(tallies: Iterable[Tally]) -> Tally:
    """What stands in all of them."""
    result = Tally()
    for tally in tallies:
        result.merge(tally)
    return result


def kinds(tally: Tally) -> dict[str, dict[str, float]]:
    """Rows, characters, approximate tokens and share of the rows by kind."""
    rows: Counter[str] = Counter()
    for (_, kind), count in tally.rows.items():
        rows[kind] += count
    return {
        kind: {
            "rows": rows[kind],
            "characters": tally.characters[kind],
            "approximate_tokens": tally.tokens[kind],
            "share": round(rows[kind] / tally.total(), 6),
        }
        for kind in sorted(rows)
    }


# The card. -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What the card tells."""

    report: Row  # reports/mix.json
    provenance: Mapping[str, Row]  # by source: data/raw/<source>.provenance.json
    filters: Mapping[str, Row]  # by source: reports/filter/<source>.json
    mixed: Tally  # of train and valid
    preferences: Tally
    strategy: str  # how the sources were mixed, in words
    drops: bool  # contaminated examples were left out, not only counted
    overlap: Overlap
    notes: Sequence[str] = ()  # what the reader should know of this very mix


def readme(facts: Facts) -> str:
    """The card: YAML front matter, then Markdown."""
    report = facts.report
    sections = [
        f"---\n{_yaml(front_matter(facts))}---",
        "# Security-aware coding assistant: training mix",
        "Questions and answers for fine-tuning a code model: writing code, handling faults, judging snippets "
        "(both sides of a pair under the same question), fixing them and explaining their weakness. A DVC "
        "pipeline made it; its stage `mix` wrote this page, from counts.",
        "![Where the rows went](funnel.svg)",
        f"## Splits\n\n{_splits(report)}",
        f"## Composition\n\n{_composition(facts)}",
        f"## Where the rows went\n\n{_funnel_table(facts)}",
        f"## Sources\n\n{_sources(facts)}",
        f"## Transforms\n\n{_transforms(facts)}",
        f"## Decontamination\n\n{_decontamination(facts)}",
        f"## A row\n\n{ROW_FIELDS}",
        "## Known limits\n\n" + "\n".join(f"- {line}" for line in [*map(_inline, facts.notes), *LIMITS]),
    ]
    return "\n\n".join(sections) + "\n"


ROW_FIELDS = """One JSON object a line, all values text: `id`, `group` (rows of one group never straddle a
split), `source`, `licence` and `revision` of the source, `transforms` (what was done to the row), `kind`
(what is asked), `prompt`, `completion`, and `rejected` (the worse answer, of preference pairs alone). An id
that ends in `@2` is the second copy of an example."""

LIMITS = (
    "Labels and licences are the sources' own; a scanner and the tests confirm only part of the labels.",
    "A benchmark in other words or in another language is not found: the checks compare words.",
    "Near-duplicates are found by MinHash, which estimates similarity.",
    "Approximate tokens are words and punctuation marks; a model's tokenizer counts differently.",
    "Code to be judged or fixed is insecure on purpose: do not run or reuse it.",
)


def front_matter(facts: Facts) -> dict[str, Any]:
    """The metadata that the Hub reads."""
    tallies = {"train": facts.mixed, "preferences": facts.preferences}
    licences = sorted({licence for tally in tallies.values() for _, licence, _ in tally.origins})
    named = sorted({hub_licence(licence) for licence in licences})
    report = facts.report
    splits = [("train", "train"), ("validation", "valid")]
    configs = [
        {
            "config_name": "default",
            "default": True,
            "data_files": [
                {"split": split, "path": f"{name}.jsonl"} for split, name in splits if report[name]
            ],
        }
    ]
    if report["preferences"]:
        files = [{"split": "train", "path": "preferences.jsonl"}]
        configs.append({"config_name": "preferences", "data_files": files})
    result: dict[str, Any] = {
        "pretty_name": "Security-aware coding assistant: training mix",
        "license": named[0] if len(named) == 1 else named,
        "language": ["en", "code"],
        "task_categories": ["text-generation"],
        "tags": ["code", "security", *(f"kind:{kind}" for kind in report["kinds"])],
        "size_categories": [size_category(sum(report[name] for name in ("train", "valid", "preferences")))],
        "configs": configs,
    }
    if "other" in named:
        others = [licence for licence in licences if hub_licence(licence) == "other"]
        result["license_name"] = ", ".join(others)
    return result


def hub_licence(spdx: str) -> str:
    """The Hub's identifier of a licence: `hub_licence("Apache-2.0") == "apache-2.0"`."""
    return spdx.lower() if spdx.lower() in HUB_LICENCES else "other"


def size_category(rows: int) -> str:
    """The Hub's class of size: `size_category(25_162) == "10K<n<100K"`."""
    return next((name for limit, name in SIZES if rows < limit), "1M<n<10M")


def _yaml(value: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(dict(value), stream)
    return stream.getvalue()


def _inline(value: object) -> str:
    """Text that cannot break out of a line or a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else _inline(value)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, numbers to the right."""
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[place], int) for row in rows) for place in range(len(header))]
    lines = [header, ["---:" if number else "---" for number in right]]
    lines += [[_number(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _splits(report: Row) -> str:
    told = {
        "train": "to learn from",
        "valid": "to watch the loss on",
        "preferences": "pairs of a better and a worse answer; none of them belongs to a group of `valid`",
    }
    shown = table(("file", "rows", "for"), [(f"{name}.jsonl", report[name], told[name]) for name in told])
    return (
        f"{shown}\n\nTwins, pieces of one row, near-duplicates and rows under the same question hang "
        "together and stay on one side."
    )


def _composition(facts: Facts) -> str:
    report = facts.report
    rows = [
        (
            kind,
            counts["rows"],
            f"{counts['share']:.2%}",
            counts["characters"],
            counts["approximate_tokens"],
        )
        for kind, counts in report["kinds"].items()
    ]
    shown = table(("kind", "rows", "share", "characters", "approximate tokens"), rows)
    floors = [
        f"{_inline(name)} {floor['share']:.2%} (floor {floor['floor']:.2%})"
        for name, floor in report["floors"].items()
    ]
    return f"Of `train` and `valid` together; strategy {_inline(facts.strategy)}.\n\n{shown}" + (
        f"\n\nFloors: {', '.join(floors)}." if floors else ""
    )


def _funnel_table(facts: Facts) -> str:
    counts = facts.report["sources"]
    columns = ("examples", "too_long", "contaminated", "near_duplicate", "not_chosen", "preferences", "mixed")
    shown = table(
        ("source", "rows in", "kept", "rejected", *(name.replace("_", " ") for name in columns), "repeated"),
        [
            (
                name,
                *(facts.filters[name][key] for key in FILTERED),
                *(one[key] for key in columns),
                one["repeated"],
            )
            for name, one in counts.items()
        ],
    )
    reasons = [
        f"- {name}: {_counts(facts.filters[name].get('reasons', {}))}"
        for name in counts
        if any(facts.filters[name].get("reasons", {}).values())
    ]
    text = (
        "Rows are fetched and filtered; kept rows are converted into examples, of which the mix takes some."
    )
    if not facts.drops:
        text += " Contaminated examples are counted here and stay in the mix."
    return f"{text}\n\n{shown}" + ("\n\nRejected, by reason:\n\n" + "\n".join(reasons) if reasons else "")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{_inline(name)} {count:,}" for name, count in counts.items() if count)


def _sources(facts: Facts) -> str:
    rows = [
        (
            name,
            f"`{_inline(origin['uri'])}`",
            origin.get("revision", ""),
            origin["licence"],
            origin["rows"],
        )
        for name, provenance in facts.provenance.items()
        for origin in provenance["origins"]
    ]
    licences: Counter[str] = Counter()
    for tally in (facts.mixed, facts.preferences):
        for (_, licence, _), count in tally.origins.items():
            licences[licence] += count
    shown = table(("source", "URI", "revision", "licence", "rows"), rows)
    text = f"{shown}\n\nLicences of the rows in this mix: {_counts(dict(sorted(licences.items())))}."
    return text + doubts(facts.provenance)


def doubts(provenance: Mapping[str, Row]) -> str:
    """What origins say beside their licences, as a paragraph after another; "" where none says anything."""
    notes = [
        f"- {name}: {_inline(origin['note'])}"
        for name, one in provenance.items()
        for origin in one["origins"]
        if origin.get("note")
    ]
    return "\n\nConflicts and doubts:\n\n" + "\n".join(notes) if notes else ""


def _transforms(facts: Facts) -> str:
    redacted: Counter[str] = Counter()
    for one in facts.filters.values():
        redacted.update(one.get("redacted", {}))
    done = facts.mixed.transforms + facts.preferences.transforms
    if not done and not redacted.total():
        return "None: the texts are the sources' own."
    lines = [f"- rows here with `{_inline(name)}`: {count:,}" for name, count in sorted(done.items())]
    if redacted.total():
        lines.append(
            f"- replaced in all sources before the choice: {_counts(dict(sorted(redacted.items())))}"
        )
    return "\n".join(lines)


def _decontamination(facts: Facts) -> str:
    chosen = facts.overlap
    done = "left out with its whole group" if facts.drops else "counted and kept"
    names = ", or its answer defines a function with a benchmark's own, specific name" * chosen.entry_points
    text = (
        f"An example is {done} when one of its texts is a benchmark's, a benchmark's text stands inside it, "
        f"or {chosen.share:.0%} of a benchmark text's {chosen.ngram}-grams stand in it{names}. Case, "
        "punctuation and layout do not count. A common name is only counted. Found before the choice:"
    )
    rows = [
        (suite, *(counts[check] for check in CHECKS), counts["tasks_given_away"], counts["tasks"])
        for suite, counts in facts.report["decontamination"].items()
    ]
    shown = table(
        ("suite", *(check.replace("_", " ") for check in CHECKS), "tasks given away", "tasks"), rows
    )
    left = facts.mixed.contaminated + facts.preferences.contaminated
    return f"{text}\n\n{shown}\n\nRead again after writing: {left:,} rows give a benchmark away."


# The picture. --------------------------------------------------------------------------------------------

WIDTH, LEFT, BAR, RIGHT = 960, 120, 380, 520  # of the picture; where bars start, how long; where words start
LINE, STEP = 22, 15  # height of a bar's row and of a bar
WORDS = 70  # characters that fit beside a bar

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.page { fill: #ffffff } .name { font-weight: 600; font-size: 14px } .quiet { fill: #59636e }
.good { fill: #1a7f37 } .kept { fill: #0969da } .more { fill: #8250df }
.rest { fill: #b0b8c1 } .out0 { fill: #d1570a } .out1 { fill: #f2a65a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117 } .quiet { fill: #9198a1 }
  .good { fill: #3fb950 } .kept { fill: #4493f8 } .more { fill: #ab7df8 }
  .rest { fill: #59636e } .out0 { fill: #db6d28 } .out1 { fill: #ffc680 }
}
"""


@dataclass(frozen=True)
class Bar:
    """A step of a source: its name and how its rows divide, as class, label and count."""

    name: str
    parts: tuple[tuple[str, str, int], ...]

    def total(self) -> int:
        """All rows of the step."""
        return sum(count for _, _, count in self.parts)


def bars(filtered: Row, mixed: Row, drops: bool) -> list[Bar]:
    """The four steps of a source: fetched, filtered, converted, mixed."""
    reasons = {name: count for name, count in filtered.get("reasons", {}).items() if count}
    if sum(reasons.values()) != filtered["rejected"]:  # some reasons are of pieces of rows
        reasons = {"rejected": filtered["rejected"]} if filtered["rejected"] else {}
    out = ["too_long", *["contaminated"] * drops, "near_duplicate"]
    return [
        Bar("fetched", (("kept", "rows", filtered["rows"]),)),
        Bar(
            "filtered",
            (
                ("kept", "kept", filtered["kept"]),
                *(("out", name, count) for name, count in reasons.items()),
            ),
        ),
        Bar(
            "converted",
            (
                ("good", "chosen", mixed["mixed"] - mixed["repeated"]),
                ("more", "preferences", mixed["preferences"]),
                ("rest", "not chosen", mixed["not_chosen"]),
                *(("out", name.replace("_", " "), mixed[name]) for name in out),
            ),
        ),
        Bar(
            "mixed",
            (
                ("good", "examples", mixed["mixed"] - mixed["repeated"]),
                ("rest", "repeated", mixed["repeated"]),
                ("more", "preferences", mixed["preferences"]),
            ),
        ),
    ]


def funnel(sources: Mapping[str, Sequence[Bar]]) -> str:
    """The picture as SVG text: four bars a source, each source on a scale of its own."""
    lines: list[str] = []
    top = 52
    for name, steps in sources.items():
        widest = max((bar.total() for bar in steps), default=0) or 1
        lines.append(f'<text class="name" x="16" y="{top}">{_xml(_short(name, 60))}</text>')
        for number, bar in enumerate(steps):
            lines += _bar(bar, top + 10 + number * LINE, BAR / widest)
        top += 10 + len(steps) * LINE + 26
    height = top - 10
    told = "; ".join(
        f"{_short(name, 60)}: " + ", ".join(f"{bar.name} {bar.total()}" for bar in steps)
        for name, steps in sources.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img">\n<title>Where the rows went</title>\n<desc>{_xml(told)}</desc>\n'
        f'<style>{STYLE}</style>\n<rect class="page" width="{WIDTH}" height="{height}"/>\n'
        f'<text class="quiet" x="16" y="24">Where the rows went. Each source has its own scale.</text>\n'
        + "\n".join(lines)
        + "\n</svg>\n"
    )


def _bar(bar: Bar, top: int, scale: float) -> list[str]:
    """A step: its name, its rows as a bar, and in words what each colour means."""
    lines = [f'<text class="quiet" x="24" y="{top + 12}">{_xml(bar.name)}</text>']
    words: list[str] = []
    place, room = float(LEFT), WORDS
    for number, (style, label, count) in enumerate(part for part in bar.parts if part[2]):
        colour = f"out{number % 2}" if style == "out" else style
        told = f"{count:,} {_short(label, 24)}"
        lines.append(
            f'<rect class="{colour}" x="{place:.2f}" y="{top}" width="{count * scale:.2f}" height="{STEP}">'
            f"<title>{_xml(told)}</title></rect>"
        )
        place += count * scale
        room -= len(told) + 3
        if room >= 0:
            words.append(f'<tspan class="{colour}">\u25a0</tspan> {_xml(told)}')
    text = "&#160; ".join(words) + ("&#160; ..." if room < 0 else "") if words else "0"
    return [*lines, f'<text x="{RIGHT}" y="{top + 12}">{text}</text>']


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def _xml(text: str) -> str:
    """Text as XML can hold it."""
    return escape(re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text))
