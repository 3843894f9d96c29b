"""One answer and its verdict: a judge for each kind of task.

Verdict lines are read strictly. Python is executed in the sandbox, and so is JavaScript where the machine has
node; elsewhere JavaScript is read as a syntax tree, and its rows say so (`by`). Keywords decide in the
reference's own graders alone.
"""

import ast
import re
from collections.abc import Callable
from functools import cache

from stages.common import handling, javascript, languages, prompts, sandbox
from stages.common.files import Row
from stages.common.suites import Task

ANY = "*"  # an entry point where the prompt names no function; the test then calls it `entry`


def judge_detection(task: Task, answer: str, limits: sandbox.Limits) -> Row:
    """Whether the verdict line is there and right."""
    verdict = prompts.parse_verdict(answer)
    if verdict is None:
        return {"status": "invalid", "verdict": None, "cwe": "", "reason": "no verdict line"}
    right = verdict.vulnerable == task.vulnerable
    reason = "right" if right else ("missed" if task.vulnerable else "false alarm")
    return {**passed(right), "verdict": verdict.vulnerable, "cwe": verdict.cwe, "reason": reason}


def judge_verdict(task: Task, answer: str, limits: sandbox.Limits) -> Row:
    """Whether the first line says clearly, in our words or in the reference's, what is right."""
    said = prompts.parse_polarity(answer)
    if said is None:
        return {"status": "invalid", "reason": "no verdict line"}
    return {**passed(said == task.vulnerable), "reason": "vulnerable" if said else "safe"}


def judge_code(task: Task, answer: str, limits: sandbox.Limits) -> Row:
    """Whether the code stands every test of the task; each test runs in processes of its own."""
    code = prompts.code_block(answer)
    if task.language == "javascript":
        return judge_javascript(task, code, limits)
    code, tests, entry = completed(task, code), task.checks(), task.entry_point
    if entry == ANY:
        entry, name = "entry", last_function(code)
        code += f"\n\nentry = {name}\n" if name != entry else ""
    outcomes = {
        name: sandbox.judge(code, test, entry, head(task.code, task.entry_point, test), limits)
        for name, test in tests.items()
    }
    return verdict_on(outcomes)


@cache
def head(prompt: str, entry_point: str, test: str) -> str:
    """A HumanEval prompt with an empty body, where its test names what it defines beside the entry point."""
    code = f"{prompt}\n    pass\n" if prompt else ""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError):
        return code  # the sandbox says so
    defined = {name for node in nodes for name in _defined(node)} - {entry_point}
    return code if "*" in defined or defined & set(re.findall(r"\w+", test)) else ""


def _defined(node: ast.AST) -> list[str]:
    """The names that a statement or an expression gives a meaning."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


def verdict_on(found: dict[str, sandbox.Outcome]) -> Row:
    """The verdict on code from the outcome of each test."""
    failed = [(name, outcome) for name, outcome in found.items() if outcome.status != "passed"]
    reason = "; ".join(f"{name}: {outcome.reason or outcome.status}" for name, outcome in failed)
    status = failed[0][1].status if failed else "passed"
    checks = {name: outcome.status == "passed" for name, outcome in found.items()}
    return {"status": status, "checks": checks, "reason": steady(reason) or "passed"}


def steady(reason: str) -> str:
    """A reason without what changes from run to run: the scratch folder's path and addresses in memory."""
    return re.sub(r"0x[0-9a-f]{4,}", "0x", re.sub(r"(?:/[\w.-]+)*/sandbox-\w{8}", ".", reason))


def judge_javascript(task: Task, code: str, limits: sandbox.Limits) -> Row:
    """Whether the code stands every test of the task in node; without node, what its syntax tree shows."""
    if sandbox.node() is None:
        return {**judge_tree(code, task.entry_point), "by": "tree"}
    any_function = task.entry_point == ANY
    entry = "entry" if any_function else task.entry_point
    found = {
        name: javascript.judge(code, test, entry, any_function, limits)
        for name, test in task.checks().items()
    }
    return {**verdict_on(found), "by": "node"}


def judge_tree(code: str, entry: str) -> Row:
    """Whether the code defines its function and handles a fault, by its syntax tree: nothing is executed."""
    defined, handled = defines(code, entry), handling.handles(code)
    reason = "the fault is handled" if handled else "handled: nothing in the syntax tree handles a fault"
    reason = reason if defined else f"handled: no function {entry}"
    return {**passed(defined and handled), "checks": {"handled": defined and handled}, "reason": reason}


def judge_explanation(task: Task, answer: str, limits: sandbox.Limits) -> Row:
    """Whether the answer names one CWE, and a right one; an answer that names several has not decided."""
    named = sorted(set(re.findall(r"\bCWE-[1-9]\d{0,3}\b", answer.upper())))
    if len(named) != 1:
        return {"status": "invalid", "reason": f"{len(named)} CWEs named"}
    return {**passed(named[0] in (task.cwe, *task.also)), "reason": f"{named[0]} named"}


def judge_reference(task: Task, answer: str, limits: sandbox.Limits) -> Row:
    """The reference's own grader, keywords as substrings in any case, and ours beside it."""
    text = answer.lower()
    groups = [any(word in text for word in group) for group in task.all_of]
    found = sum(groups) >= (task.at_least or len(groups))
    ours = judge(task.ours, answer, limits) if task.ours else {"passed": None}
    reason = f"{sum(groups)} of {len(groups)} groups of keywords"
    said = {"by": ours["by"]} if "by" in ours else {}
    return {**passed(found and bool(groups)), "ours": ours["passed"], "reason": reason, **said}


JUDGES: dict[str, Callable[[Task, str, sandbox.Limits], Row]] = {
    "detection": judge_detection,
    "verdict": judge_verdict,
    "code": judge_code,
    "fixing": judge_code,
    "explanation": judge_explanation,
    "reference": judge_reference,
}


def passed(right: bool) -> Row:
    """The status of an answer that could be judged."""
    return {"status": "passed" if right else "failed"}


def last_function(code: str) -> str:
    """The name of the last function at top level, `main` only where there is no other; "entry" without any.

    >>> last_function("def load(p):\\n    pass\\n\\ndef main():\\n    load(1)")
    'load'
    """
    names = re.findall(r"^(?:async )?def (\w+)", code, re.MULTILINE)
    return next((name for name in reversed(names) if name != "main"), names[-1] if names else "entry")


# What names a function in JavaScript, and the field that holds the name.
NAMING = {
    **{"function_declaration": "name", "generator_function_declaration": "name", "method_definition": "name"},
    **{"variable_declarator": "name", "assignment_expression": "left", "pair": "key"},
}


def defines(code: str, entry: str) -> bool:
    """The JavaScript gives something the name of the entry point, or, where any will do, holds a function.

    >>> defines("exports.load = (path) => 1;", "load"), defines("// load(path)", "load")
    (True, False)
    """
    parsed = languages.parsed(code, "javascript")
    nodes = [] if parsed is None else languages.walk(parsed.tree.root_node)
    if entry == ANY:
        return any(node.type in handling.CLOSURES for node in nodes)
    names = (node.child_by_field_name(NAMING[node.type]) for node in nodes if node.type in NAMING)
    return any(languages.text(name).rpartition(".")[2] == entry for name in names)


def completed(task: Task, code: str) -> str:
    """An answer's code, with the given head where the answer continues it or leans on its imports."""
    if not task.code:
        return code
    defines = re.search(rf"^\s*(?:async )?def {re.escape(task.entry_point)}\b", code, re.MULTILINE)
    return f"{task.code}\n    pass\n\n{code}" if defines else task.code + code


def judge(task: Task, answer: str, limits: sandbox.Limits) -> Row:
    """The verdict on one answer: `status`, `passed`, the reason, and what the kind of task adds."""
    row = JUDGES[task.kind](task, answer, limits)
    return {"passed": row["status"] == "passed", **row}
