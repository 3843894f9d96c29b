"""Known weak patterns in code, by a scanner, and what they say about the labels of a vulnerable/fixed pair.

Python is scanned by bandit, used as a library on text in memory. JavaScript, TypeScript, PHP and Ruby are
scanned for one thing, a call of `eval` on something that is not a literal, by tree-sitter. A scanner sees
patterns, not meaning: it misses most weaknesses and flags some sound code. What it says is a reason to look.

The first scan of Python in a process imports bandit (0.4 s). stevedore, which loads bandit's tests, then
keeps its list of entry points in `~/.cache/python-entrypoints`, where it may write there.
"""

import ast
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from stages.common import languages

if TYPE_CHECKING:
    from tree_sitter import Node

Level = Literal["LOW", "MEDIUM", "HIGH"]

# Bounds of one side, past which it is not scanned. bandit's time grows with the square of a statement's lines
# (a list of 12,500 strings, one a line: 24 s; of 2,000: 0.9 s) and with the cube of the strings that an
# expression adds up (900: 9 s; 400: 1 s). A usual file of 50,000 characters takes 0.1 s.
MAX_CHARS = 50_000
MAX_LINES = 2_000
MAX_ADDITIONS = 400


@dataclass(frozen=True, order=True)
class Finding:
    """One weak pattern: the test that found it, the weakness it names, and what the test thinks of it."""

    test: str  # of bandit: "B307"; ours: "EVAL"
    cwe: str  # as the test names it: "CWE-78"; "" when it names none
    severity: Level  # how grave it is
    confidence: Level  # how sure the test is


@dataclass(frozen=True)
class Label:
    """What the scanner says about the labels of one pair; `outcome` is "" where it has no objection."""

    outcome: Literal["", "mislabelled", "reversed", "unflagged"] = ""
    detail: str = ""  # the findings behind it: "B608 (CWE-89, MEDIUM)"


# Scanning. ---------------------------------------------------------------------------------------------


def findings(code: str, language: str) -> frozenset[Finding] | None:
    """The weak patterns in a text; None when it cannot be scanned.

    That is: no rules for the language, Python that does not parse (a method alone, indented, does), a text
    past the bounds above, or nesting too deep for the scanner. A comment like `# nosec` silences nothing.
    """
    if len(code) > MAX_CHARS or code.count("\n") >= MAX_LINES or code.count("+") > MAX_ADDITIONS:
        return None
    language = languages.canonical(language)
    if language == "python":
        return _python(code)
    return _eval(code, language) if language in _EVAL_LANGUAGES else None


def _python(code: str) -> frozenset[Finding] | None:
    for text in dict.fromkeys((code, textwrap.dedent(code))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes and comparisons in what is scanned
                ast.parse(text)
                return frozenset(_bandit()(text))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


@cache
def _bandit() -> Any:
    """A function from parsable Python to its findings, with one set of all of bandit's tests behind it."""
    logging.getLogger("bandit").setLevel(
        logging.CRITICAL + 1
    )  # it reports each test that stumbles over odd code
    from bandit.core import config, meta_ast, metrics, node_visitor, test_set

    tests, tree, counts = (
        test_set.BanditTestSet(config.BanditConfig()),
        meta_ast.BanditMetaAst(),
        metrics.Metrics(),
    )

    def scan(text: str) -> Iterator[Finding]:
        data = text.encode()
        visitor = node_visitor.BanditNodeVisitor(
            "./code.py", io.BytesIO(data), tree, tests, False, {}, counts
        )
        visitor.process(data)
        for issue in visitor.tester.results:
            cwe = f"CWE-{issue.cwe.id}" if issue.cwe.id else ""
            yield Finding(issue.test_id, cwe, issue.severity, issue.confidence)

    return scan


_EVAL_FINDING = Finding("EVAL", "CWE-95", "MEDIUM", "HIGH")
_EVAL_LANGUAGES = ("javascript", "php", "ruby", "typescript")
_EVAL = {"eval", "window.eval", "globalThis.eval", "self.eval", "global.eval", "(0,eval)", "Kernel.eval"}
_CALLS = {"call_expression": "function", "function_call_expression": "function", "call": "method"}
_LITERAL_PARTS = {"string_fragment", "string_content", "string_value", "escape_sequence"}


def _eval(code: str, language: str) -> frozenset[Finding] | None:
    if "eval" not in code:
        return frozenset()
    parsed = languages.parsed(code, language)
    if parsed is None:
        return None
    found = any(_evaluates(node) for node in languages.walk(parsed.tree.root_node))
    return frozenset({_EVAL_FINDING} if found else ())


def _evaluates(node: "Node") -> bool:
    """A call of `eval` whose first argument is not a literal."""
    if node.type not in _CALLS:
        return False
    callee = node.child_by_field_name(_CALLS[node.type])
    arguments = node.child_by_field_name("arguments")
    if callee is None or callee.end_byte - callee.start_byte > 20 or arguments is None:
        return False
    receiver = node.child_by_field_name("receiver")  # of Ruby
    name = f"{languages.text(receiver)}.{languages.text(callee)}" if receiver else languages.text(callee)
    if name.replace(" ", "") not in _EVAL or not arguments.named_children:
        return False
    first = arguments.named_children[0]
    if first.type == "argument" and first.named_children:  # PHP's wrapper
        first = first.named_children[0]
    literal = first.type in ("string", "template_string", "encapsed_string", "number", "integer")
    return not (literal and all(part.type in _LITERAL_PARTS for part in first.named_children))


# Labels. -----------------------------------------------------------------------------------------------

# Weaknesses that are one for this purpose: the scanner is coarser than labels are, or labels differ in taste.
FAMILIES: tuple[frozenset[str], ...] = (
    frozenset({"CWE-77", "CWE-78", "CWE-88"}),  # commands, their arguments
    frozenset({"CWE-94", "CWE-95", "CWE-96"}),  # code made of data
    frozenset({"CWE-79", "CWE-80"}),  # cross-site scripting
    frozenset({"CWE-259", "CWE-321", "CWE-798"}),  # hard-coded passwords, keys, credentials
    frozenset({"CWE-326", "CWE-327", "CWE-328", "CWE-759", "CWE-760", "CWE-916"}),  # weak ciphers and hashes
    frozenset({"CWE-330", "CWE-331", "CWE-335", "CWE-338"}),  # predictable random values
    frozenset({"CWE-276", "CWE-732"}),  # permissions
    frozenset({"CWE-377", "CWE-378", "CWE-379"}),  # temporary files
)

# Weaknesses that a test finds beside the one that it names (bandit 1.9, docs of the plugins and blacklists).
_XML = frozenset({"CWE-611", "CWE-776"})
ALSO: dict[str, frozenset[str]] = {
    "B102": frozenset({"CWE-94", "CWE-95"}),  # exec; named CWE-78
    "B307": frozenset({"CWE-94", "CWE-95"}),  # eval; named CWE-78
    "EVAL": frozenset({"CWE-77", "CWE-78"}),
    "B506": frozenset({"CWE-502"}),  # yaml.load; named CWE-20
    "B701": frozenset({"CWE-79", "CWE-80"}),  # Jinja2 without escaping; named CWE-94
    **{f"B{number}": _XML for number in range(313, 320)},  # XML parsers; named CWE-20
}


def stands_for(finding: Finding) -> frozenset[str]:
    """Every weakness that a finding can be evidence of: CWE-338 is one for B311, which names CWE-330."""
    family = next((family for family in FAMILIES if finding.cwe in family), frozenset({finding.cwe}))
    return family | ALSO.get(finding.test, frozenset())


def _evidence(finding: Finding) -> bool:
    """Does the finding speak of weak code? Not if sound code has it as well.

    An import of `subprocess` or `pickle` (B4xx) is no weakness. Findings of severity LOW for CWE-78 are the
    very repair of the others: B603 and B607 flag `subprocess.run([...])` without a shell. B604 flags any call
    with an argument `shell` that is not plainly false (in SVEN: two repairs, one weakness).
    """
    low_command = finding.severity == "LOW" and finding.cwe == "CWE-78"
    return not (low_command or finding.test.startswith("B4") or finding.test == "B604")


def label(vulnerable: str, fixed: str, language: str, cwe: str) -> Label:
    """What speaks against the labels of a pair, or of a secure answer alone (`vulnerable` is "").

    - `reversed`: the fixed side has a finding for the declared weakness, and the vulnerable side was scanned
      and has none.
    - `mislabelled`: the fixed side has a finding for the declared weakness; without a declared one, a finding
      of severity MEDIUM or HIGH, by a test that flags the vulnerable side too if there is one. Findings of
      confidence LOW do not count here: of 25 in SVEN, 24 were queries whose values are bound (B608).
    - `unflagged`: the vulnerable side was scanned by rules that know the weakness, and has no finding for it.
    - "": nothing of this, or the side that it takes could not be scanned.
    """
    after = findings(fixed, language)
    before = findings(vulnerable, language) if vulnerable else None
    flagged_before, flagged_after = _about(before, cwe), _about(after, cwe)
    if cwe and before is not None and flagged_after and not flagged_before:
        return Label("reversed", _detail(flagged_after))
    tests = {finding.test for finding in flagged_before}
    sure = [finding for finding in flagged_after if finding.confidence != "LOW"]
    if not cwe and vulnerable:
        sure = [finding for finding in sure if finding.test in tests]
    if sure:
        return Label("mislabelled", _detail(sure))
    if before is not None and not flagged_before and _knows(language, cwe):
        return Label("unflagged", _detail(sorted(before)))
    return Label()


def _about(found: frozenset[Finding] | None, cwe: str) -> list[Finding]:
    """The findings that are evidence of a weakness, or, where none is declared, of any grave one."""
    return [
        finding
        for finding in sorted(found or ())
        if _evidence(finding) and (cwe in stands_for(finding) if cwe else finding.severity != "LOW")
    ]


def _knows(language: str, cwe: str) -> bool:
    """Can the rules for a language find the weakness at all? bandit is taken at its word that it can."""
    return languages.canonical(language) == "python" or cwe in stands_for(_EVAL_FINDING)


def _detail(found: list[Finding]) -> str:
    return ", ".join(f"{finding.test} ({finding.cwe}, {finding.severity})" for finding in found)
