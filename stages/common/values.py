"""Plain data and exceptions between two processes that do not trust one another: tagged JSON, never pickle.

What arrives is built from the standard library's own types only. Text, whole and real numbers, booleans and
None stand for themselves; everything else is a list that begins with its tag. Modules of types that most
programs do not use are imported only when a value of theirs arrives: every process of the sandbox would have
to copy them.
"""

import importlib
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

DEEPEST = 200  # levels of lists and the like
CAUSES = 5  # exceptions in a chain of causes
Other = Callable[[Any, int], Any]  # packs what is no plain data
Unpacker = Callable[[Any, int], Any]


class Unsendable(TypeError):
    """A value that is no plain data, or too deep or too large."""


class Malformed(ValueError):
    """A message that nobody who keeps to the format would send."""


def _items(tag: str) -> Callable[[Any, Other, int], list[Any]]:
    return lambda value, other, depth: [tag, [pack(item, other, depth + 1) for item in value]]


def _text(tag: str, text: Callable[[Any], str]) -> Callable[[Any, Other, int], list[Any]]:
    return lambda value, other, depth: [tag, text(value)]


def _pairs(value: Any, other: Other, depth: int) -> list[Any]:
    pairs = dict.items(value) if isinstance(value, dict) else value.items()
    return ["dict", [[pack(key, other, depth + 1), pack(item, other, depth + 1)] for key, item in pairs]]


def _hexadecimals(value: Any) -> str:
    return bytes(value).hex()


PACKERS: dict[type, Callable[[Any, Other, int], Any]] = {
    bool: lambda value, other, depth: value,
    float: lambda value, other, depth: float.__float__(value),
    str: lambda value, other, depth: str.__str__(value),
    int: lambda value, other, depth: _whole(int.__int__(value)),
    list: _items("list"),
    tuple: _items("tuple"),
    set: _items("set"),
    frozenset: _items("frozenset"),
    deque: _items("list"),
    type({}.keys()): _items("list"),
    type({}.values()): _items("list"),
    type({}.items()): _items("list"),
    dict: _pairs,
    type(type.__dict__): _pairs,
    range: lambda value, other, depth: ["range", [hex(value.start), hex(value.stop), hex(value.step)]],
    complex: lambda value, other, depth: ["complex", [value.real, value.imag]],
    bytes: _text("bytes", _hexadecimals),
    bytearray: _text("bytearray", _hexadecimals),
    memoryview: _text("bytes", _hexadecimals),
}


OfClass = Callable[[Any, Any], Any]
ISO: tuple[OfClass, OfClass] = (
    lambda kind, value: kind.isoformat(value),
    lambda kind, data: kind.fromisoformat(data),
)
TEXT: tuple[OfClass, OfClass] = (
    lambda kind, value: kind.__str__(value),
    lambda kind, data: kind(_is(data, str)),
)
# By module and name, which is the tag as well: what a value becomes, given its class, and back.
MORE_TYPES: dict[tuple[str, str], tuple[OfClass, OfClass]] = {
    ("datetime", "datetime"): ISO,
    ("datetime", "date"): ISO,
    ("datetime", "time"): ISO,
    ("datetime", "timedelta"): (
        lambda kind, value: [value.days, value.seconds, value.microseconds],
        lambda kind, data: kind(*_is(data, list)),
    ),
    ("decimal", "Decimal"): TEXT,
    ("fractions", "Fraction"): (
        lambda kind, value: [hex(value.numerator), hex(value.denominator)],
        lambda kind, data: kind(*map(_hexadecimal, _is(data, list))),
    ),
    ("pathlib", "Path"): TEXT,
    ("pathlib", "PurePosixPath"): TEXT,
    ("pathlib", "PureWindowsPath"): TEXT,
    ("uuid", "UUID"): TEXT,
}


def _whole(value: int) -> Any:
    return value if -(2**63) <= value < 2**63 else ["int", hex(value)]  # digits would take quadratic time


def pack(value: Any, other: Other, depth: int = 0) -> Any:
    """A value as JSON data; instances of subclasses become the plain type, `other` packs what is none.

    Raises Unsendable beyond DEEPEST levels, which lists that contain themselves reach too.
    """
    if value is None:
        return None
    if depth > DEEPEST:
        raise Unsendable(f"nested deeper than {DEEPEST}")
    for kind in type(value).__mro__[:-1]:
        if kind in PACKERS:
            return PACKERS[kind](value, other, depth)
        for (module, name), (packed, _) in MORE_TYPES.items():
            if getattr(sys.modules.get(module), name, None) is kind:
                return [name, packed(kind, value)]
    return other(value, depth)


def _hexadecimal(text: Any) -> int:
    return int(_is(text, str), 16)


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Malformed(f"{type(value).__name__}; expected {kind.__name__}")
    return value


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": _hexadecimal,
    "range": lambda data: range(*map(_hexadecimal, _is(data, list))),
    "complex": lambda data: complex(*map(float, _is(data, list))),
    "bytes": lambda data: bytes.fromhex(_is(data, str)),
    "bytearray": lambda data: bytearray.fromhex(_is(data, str)),
}


def unpack(data: Any, others: dict[str, Unpacker], depth: int = 0) -> Any:
    """The value of `pack`; `others` gives the meaning of further tags.

    Raises Malformed, or what a constructor of the standard library raises, on anything else.
    """
    if type(data) is not list:
        if data is None or type(data) in (bool, int, float, str):
            return data
        raise Malformed(f"a bare {type(data).__name__}")
    if depth > DEEPEST:
        raise Malformed(f"nested deeper than {DEEPEST}")
    if len(data) != 2 or type(data[0]) is not str:
        raise Malformed("a list without a tag")
    tag, content = data
    if tag in CONTAINERS:
        return CONTAINERS[tag]([unpack(item, others, depth + 1) for item in _is(content, list)])
    if tag == "dict":
        pairs = [_is(pair, list) for pair in _is(content, list)]
        return {unpack(key, others, depth + 1): unpack(item, others, depth + 1) for key, item in pairs}
    if tag in SCALARS:
        return SCALARS[tag](content)
    if tag in others:
        return others[tag](content, depth)
    for (module, name), (_, unpacked) in MORE_TYPES.items():
        if name == tag:
            return unpacked(getattr(importlib.import_module(module), name), content)
    raise Malformed(f"tag {tag[:20]!r}")


# Modules with exceptions that a test may name; all of them may be imported without side effects.
EXCEPTION_MODULES = frozenset(
    {
        *("asyncio.exceptions", "asyncio.queues", "binascii", "bdb", "builtins", "cmd", "concurrent.futures"),
        *("concurrent.futures._base", "concurrent.futures.process", "concurrent.futures.thread"),
        *("configparser", "copy", "csv", "_csv", "dataclasses", "decimal", "email.errors", "ftplib"),
        *("getopt", "argparse", "gzip", "http.client", "http.cookies", "imaplib", "ipaddress", "json"),
        *(
            "json.decoder",
            "lzma",
            "_lzma",
            "mailbox",
            "nntplib",
            "poplib",
            "queue",
            "_queue",
            "re",
            "sre_constants",
        ),
        *(
            "re._constants",
            "shutil",
            "smtplib",
            "socket",
            "sqlite3",
            "ssl",
            "statistics",
            "struct",
            "_struct",
        ),
        *(
            "subprocess",
            "tarfile",
            "tokenize",
            "tomllib",
            "unittest.case",
            "urllib.error",
            "uuid",
            "wave",
            "xdrlib",
        ),
        *("xml.dom", "xml.etree.ElementTree", "xml.parsers.expat", "xml.sax", "xml.sax._exceptions"),
        *("zipfile", "zipimport", "zlib", "zoneinfo", "zoneinfo._common", "string", "locale", "pickle"),
        *(
            "_pickle",
            "contextvars",
            "inspect",
            "importlib.metadata",
            "threading",
            "_thread",
            "ast",
            "selectors",
        ),
        *("netrc", "plistlib", "quopri", "secrets", "signal", "sched", "types", "typing", "hashlib", "enum"),
    }
)


@cache
def stdlib_exception(module: str, name: str) -> type[BaseException] | None:
    """An exception class of the standard library by its names, None when there is none."""
    if module not in EXCEPTION_MODULES or not name.isidentifier():
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def named_type(module: str, name: str) -> type | None:
    """A class that may be named to an untrusting side: of builtins, of plain data, or an exception."""
    if exception := stdlib_exception(module, name):
        return exception
    if module == "builtins":
        found = sys.modules["builtins"].__dict__.get(name)
        return found if isinstance(found, type) else None
    if (module, name) not in MORE_TYPES:
        return deque if (module, name) == ("collections", "deque") else None
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, type) else None


ATTRIBUTES = (  # what exceptions of the standard library carry beside their arguments and dictionary
    *("errno", "strerror", "filename", "filename2", "code", "reason", "msg", "doc", "pos", "lineno", "colno"),
    *("offset", "text", "name", "obj", "value", "encoding", "object", "start", "end"),
)


def refuse(value: Any, depth: int = 0) -> Any:
    """Raise Unsendable: for `pack` where nothing but plain data may be sent."""
    raise Unsendable(f"{type(value).__name__} is no plain data")


def _plain(value: Any) -> list[Any]:
    """The packed value alone in a list, or nothing."""
    try:
        return [pack(value, refuse)]
    except (Unsendable, RecursionError):
        return []


def pack_error(error: BaseException, classes: Callable[[type], Any], depth: int = 0) -> Any:
    """An exception as JSON data: name, nearest classes that the other side knows, text, arguments, cause.

    `classes` gives what stands for a class, None for one that the other side cannot know.
    """

    bases: list[type] = []
    for kind in type(error).__mro__:
        if classes(kind) is not None and not any(issubclass(base, kind) for base in bases):
            bases.append(kind)
    try:
        text = str.__str__(str(error))
    except BaseException as failure:  # noqa: BLE001 (whatever its __str__ does)
        text = f"<str() of it raises {type(failure).__name__}>"
    known = dir(type(error))
    attributes = {name: getattr(error, name, None) for name in ATTRIBUTES if name in known}
    attributes |= {name: value for name, value in vars(error).items() if not name.startswith("_")}
    packed = {name: _plain(value) for name, value in attributes.items() if value is not None}
    arguments = [_plain(argument) for argument in error.args[:50]]
    cause = error.__cause__
    return {
        "name": type(error).__name__,
        "exact": classes(type(error)) is not None,
        "bases": [classes(base) for base in bases],
        "text": text[:100_000],
        "args": [argument[0] for argument in arguments if argument] if all(arguments) else [text[:100_000]],
        "attributes": [[name, value[0]] for name, value in packed.items() if value],
        "cause": pack_error(cause, classes, depth + 1) if cause and depth < CAUSES else None,
    }


def unpack_error(
    data: Any, classes: Callable[[Any], type[BaseException] | None], depth: int = 0
) -> BaseException:
    """An exception of the same name, text and arguments, below the nearest classes that are known here.

    Raises Malformed on anything that `pack_error` does not write.
    """
    if type(data) is not dict or depth > CAUSES:
        raise Malformed("no exception")
    name, text = _is(data.get("name"), str), _is(data.get("text"), str)
    arguments = [unpack(item, {}) for item in _is(data.get("args"), list)]
    pairs = [_is(pair, list) for pair in _is(data.get("attributes"), list)]
    attributes = {_is(key, str): unpack(value, {}) for key, value in pairs if not key.startswith("_")}
    bases = [found for base in _is(data.get("bases"), list) if (found := classes(base))]
    error = None
    if data.get("exact") is True and len(bases) == 1:
        error = _made(bases[0], arguments, attributes, text)
    if error is None:
        error = _derived(name[:200], bases, arguments, attributes, text)
    if data.get("cause") is not None:
        error.__cause__ = unpack_error(data["cause"], classes, depth + 1)
    return error


def _made(
    kind: type[BaseException], arguments: list[Any], attributes: dict[str, Any], text: str
) -> BaseException | None:
    """The exception itself, where its arguments are enough to make it."""
    try:
        error = kind(*arguments)
        _adorn(error, attributes)
        return error if type(error) is kind and str(error) == text else None
    except Exception:  # noqa: BLE001 (constructors of 60 classes, with what another process sends)
        return None


def _derived(
    name: str,
    bases: list[type[BaseException]],
    arguments: list[Any],
    attributes: dict[str, Any],
    text: str,
) -> BaseException:
    """An exception of a class made for it."""
    content = {"__str__": lambda self: text, "__init__": lambda self, *_: None, "__module__": "answer"}
    candidates: list[tuple[type[BaseException], ...]] = [
        tuple(bases),
        *((base,) for base in bases),
        (Exception,),
    ]
    for kinds in candidates:
        try:
            kind = type(name, kinds, content)
            error: BaseException = kind.__new__(kind, *arguments)
            error.args = tuple(arguments)
            error.__dict__.setdefault("file", None)  # urllib's HTTPError looks for it at every attribute
            _adorn(error, attributes)
        except Exception:  # noqa: BLE001, S112 (as above: the next base is tried)
            continue
        return error
    raise Malformed(f"exception {name[:20]!r}")


def _adorn(error: BaseException, attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        with suppress(AttributeError, TypeError, ValueError):
            if getattr(error, key, None) != value:
                setattr(error, key, value)
