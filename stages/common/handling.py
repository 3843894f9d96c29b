"""Does a piece of JavaScript handle an error? Its syntax tree tells: comments and strings prove nothing."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from stages.common import languages

if TYPE_CHECKING:
    from tree_sitter import Node

# Names of errors, and of the functions that take one: Node's callback convention, promises, Express.
ERROR_NAME = re.compile(r"(?i)e|ex|.*err|.*error|.*exception|reason|cause")
REPORTERS = frozenset({"reject", "next", "callback", "cb", "done", "fail"})
LISTEN = frozenset({"on", "once", "addListener", "addEventListener", "prependListener"})
EVENTS = frozenset({"error", "messageerror"})
HANDLERS = frozenset({"onerror", "onmessageerror", "onblocked", "ontimeout"})  # DOM, XHR, IndexedDB
# What an `if` has to look at before a bare `return null` under it counts as handling.
PROPERTIES = frozenset({"ok", "status", "statusCode", "code", "error", "errors", "length", "size"})
CHECKS = frozenset({"isNaN", "isFinite", "isInteger", "isSafeInteger", "isArray", "has", "hasOwn"})
OPERATORS = frozenset({"typeof", "instanceof"})
CLOSURES = frozenset({"arrow_function", "function_expression", "function_declaration", "method_definition"})


def _field(node: "Node", name: str) -> str:
    return languages.text(node.child_by_field_name(name))


def _parts(node: "Node") -> "list[Node]":
    return [child for child in node.named_children if child.type != "comment"]


def _call(node: "Node") -> "tuple[str, Node | None, list[Node]]":
    """What a call calls (the last name), on which object, with which arguments."""
    function, arguments = node.child_by_field_name("function"), node.child_by_field_name("arguments")
    given = [] if arguments is None else _parts(arguments)
    if function is not None and function.type == "member_expression":
        return _field(function, "property"), function.child_by_field_name("object"), given
    return languages.text(function), None, given


def _is_error(node: "Node") -> bool:
    """A new error, or a name that errors have."""
    if node.type == "new_expression":
        return _field(node, "constructor").endswith(("Error", "Exception"))
    last = languages.text(node).rpartition(".")[2]
    return node.type in ("identifier", "member_expression") and ERROR_NAME.fullmatch(last) is not None


def _idle(body: "Node | None", error: str) -> bool:
    """The body of a catch does nothing, or no more than throw the same error again."""
    statements = [] if body is None else _parts(body)
    return not statements or (
        len(statements) == 1 and languages.text(statements[0]).rstrip(";") == f"throw {error}"
    )


def _idle_function(node: "Node") -> bool:
    """undefined, null or a function with an empty body: as good as no handler."""
    body = node.child_by_field_name("body")
    return node.type in ("undefined", "null") or (
        body is not None and body.type == "statement_block" and not _parts(body)
    )


def _catch_handles(node: "Node") -> bool:
    return not _idle(node.child_by_field_name("body"), _field(node, "parameter"))


def _call_handles(node: "Node") -> bool:
    """`.catch(f)`, `.then(f, g)`, `.on("error", f)`."""
    name, owner, given = _call(node)
    if owner is None or not given or _idle_function(given[-1]):
        return False
    if name in LISTEN:
        return len(given) > 1 and given[0].type == "string" and languages.text(given[0])[1:-1] in EVENTS
    return (name, len(given)) in (("catch", 1), ("then", 2))


def _assignment_handles(node: "Node") -> bool:
    """`x.onerror = f`."""
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    if left is None or right is None or left.type != "member_expression" or _idle_function(right):
        return False
    return _field(left, "property") in HANDLERS


def _tests_fault(condition: "Node") -> bool:
    """The condition looks at .ok, a status, zero, a length, null, a type, NaN or an error."""
    for node in languages.walk(condition, CLOSURES):
        if (
            node.type in ("null", "undefined")
            or (node.type == "number" and languages.text(node) in ("0", "0n"))
            or (node.type == "member_expression" and _field(node, "property") in PROPERTIES)
            or (node.type == "identifier" and (languages.text(node) in ("ok", "status") or _is_error(node)))
            or (node.type.endswith("ary_expression") and _field(node, "operator") in OPERATORS)
            or (node.type == "call_expression" and _call(node)[0] in CHECKS)
        ):
            return True
    return False


def _error_value(node: "Node | None") -> bool:
    """What tells of a failure: null, undefined, false, NaN, -1, [], an error, { error }, { ok: false }."""
    if node is None or node.type in ("null", "undefined", "false") or _is_error(node):
        return True
    if languages.text(node) in ("NaN", "Number.NaN", "-1", "[]"):
        return True
    if node.type == "call_expression":
        name, owner, _ = _call(node)
        return name == "reject" and languages.text(owner) == "Promise"
    if node.type != "object":
        return False
    for member in _parts(node):
        key, value = (_field(member, "key") or languages.text(member)).strip("'\""), _field(member, "value")
        if key in ("error", "errors", "reason", "problem") and value not in ("null", "undefined", "[]"):
            return True
        if key in ("ok", "success") and value == "false":
            return True
    return False


def _reports(branch: "Node", tests_fault: bool) -> bool:
    """The branch throws, gives an error to reject(), next() or a callback, or returns an error value."""
    for node in languages.walk(branch, CLOSURES | {"if_statement"}):
        if node.type == "throw_statement":
            return True
        if node.type == "call_expression":
            name, _, given = _call(node)
            if name in REPORTERS and any(map(_is_error, given)):
                return True
        if node.type == "return_statement" and tests_fault:
            value = _parts(node)
            if _error_value(value[0] if value else None):
                return True
    return False


def _if_handles(node: "Node") -> bool:
    condition = node.child_by_field_name("condition")
    tests_fault = condition is not None and _tests_fault(condition)
    branches = map(node.child_by_field_name, ("consequence", "alternative"))
    return any(_reports(branch, tests_fault) for branch in branches if branch is not None)


HANDLES: "dict[str, Callable[[Node], bool]]" = {
    "catch_clause": _catch_handles,
    "call_expression": _call_handles,
    "assignment_expression": _assignment_handles,
    "if_statement": _if_handles,
}


def handles(code: str) -> bool:
    """The code handles an error in a way that its syntax shows.

    True for a catch clause, `.catch(f)`, `.then(f, g)`, a listener of "error" and `onerror = f`, unless they
    do nothing or only throw the same error again; and for an `if` that throws, gives an error to reject(),
    next() or a callback, or, after a look at .ok, a status, zero, null, a type or an error, returns an error
    value.
    """
    parsed = languages.parsed(code, "javascript")
    if parsed is None:
        return False
    return any(
        HANDLES[node.type](node) for node in languages.walk(parsed.tree.root_node) if node.type in HANDLES
    )
