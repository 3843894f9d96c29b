"""An answer in JavaScript, and its test, as `javascript.js` beside this module runs them in node.

The syntax tree gives the names in an answer and turns its `import` and `export` into CommonJS, so that both
kinds of module load at once and in the same way.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import handling, languages, sandbox

if TYPE_CHECKING:
    from tree_sitter import Node

PROGRAM = Path(__file__).with_suffix(".js")
FUNCTIONS = handling.CLOSURES | {"generator_function", "generator_function_declaration"}


def judge(
    answer: str, test: str, entry_point: str, any_function: bool, limits: sandbox.Limits
) -> sandbox.Outcome:
    """Run `answer` and the test in two processes of node; it passes when the test, awaited, comes to its end.

    With `any_function` the test's entry point is the last function that the answer defines. Raises
    PipelineError as `sandbox.judge` does, and without node.
    """
    name = last_function(answer) if any_function else entry_point
    loaded = {"answer": commonjs(answer), "entry_point": name, "any": any_function}
    return sandbox.judge_by_node(
        PROGRAM.read_text(encoding="utf-8"), loaded, {"test": test, "entry_point": entry_point}, limits
    )


def commonjs(code: str) -> str:
    """The same program with `require` and `exports` for `import` and `export` at its top level.

    >>> commonjs('import fs, { sep as s } from "x";\\nexport const f = () => fs;')
    '"use strict";const fs = require("x"), { sep: s } = require("x");\\nconst f = () => fs;'
    """
    parsed = languages.parsed(code, "javascript")
    top = [] if parsed is None else parsed.tree.root_node.children
    changes = [(part, REWRITES[part.type](part)) for part in top if part.type in REWRITES]
    if parsed is None or not changes:
        return code
    source, position, kept = parsed.source, 0, ['"use strict";']
    for part, text in changes:
        kept += [source[position : part.start_byte].decode("utf-8", "replace"), text]
        position = part.end_byte
    return "".join(kept) + source[position:].decode("utf-8", "replace")


def last_function(code: str) -> str:
    """The name of the last function at top level, `main` only where there is no other; "" without any.

    >>> last_function("const load = (p) => p;\\nfunction main() { load(1); }")
    'load'
    """
    parsed = languages.parsed(code, "javascript")
    top = [] if parsed is None else parsed.tree.root_node.children
    names = [name for part in top for name in _names(part)]
    return next((name for name in reversed(names) if name != "main"), names[-1] if names else "")


def _names(part: "Node") -> list[str]:
    """The functions that a statement names."""
    if part.type == "export_statement":
        declared = part.child_by_field_name("declaration")
        return [] if declared is None else _names(declared)
    if part.type in FUNCTIONS:
        return [languages.text(part.child_by_field_name("name"))]
    pairs = [
        (child.child_by_field_name("name") or child.child_by_field_name("left"), child)
        for child in part.named_children
        if child.type in ("variable_declarator", "assignment_expression")
    ]
    return [
        languages.text(name).rpartition(".")[2]
        for name, child in pairs
        if languages.text(name) != "module.exports" and _value(child) in FUNCTIONS
    ]


def _value(part: "Node") -> str:
    value = part.child_by_field_name("value") or part.child_by_field_name("right")
    return "" if value is None else value.type


def _import(part: "Node") -> str:
    source = f"require({languages.text(part.child_by_field_name('source'))})"
    bound = []
    for clause in (child for child in part.named_children if child.type == "import_clause"):
        for name in clause.named_children:
            text = languages.text(name)
            pattern = re.sub(r"^[*]\s*as\s+", "", text)
            bound.append(f"{re.sub(AS, ': ', pattern)} = {source}")
    return f"const {', '.join(bound)};" if bound else f"{source};"


def _export(part: "Node") -> str:
    declared, value = part.child_by_field_name("declaration"), part.child_by_field_name("value")
    if declared is not None:
        return languages.text(declared)
    if value is not None:
        return f"exports.default = {languages.text(value)};"
    source = part.child_by_field_name("source")
    place = f"require({languages.text(source)})." if source else ""
    texts = []
    for clause in (child for child in part.named_children if child.type == "export_clause"):
        for name in clause.named_children:
            given, alias = (languages.text(name.child_by_field_name(field)) for field in ("name", "alias"))
            texts.append(f"exports.{alias or given} = {place}{given};")
    return "".join(texts)


AS = re.compile(r"\s+as\s+")
REWRITES = {"import_statement": _import, "export_statement": _export}
