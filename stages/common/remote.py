"""The talk between the judge, which runs a test, and the suspect, which runs the answer under test.

Each side asks in turn and serves the other's questions while it waits: the judge asks for calls of the
answer's functions, the suspect for operations on objects that a test passes as arguments. The judge trusts
nothing that it is told: whatever is malformed, too long or too deep ends the run as a failure, and so does a
suspect that is gone, in a way that no `except` of the test can catch.

What a test finds beside its own names: the entry point, `before(code)`, `load()`, `inside(expression)` and
`SOURCE`. Plain data (see `values`) travels by value; the other arguments of a call by reference, and then the
suspect can read attributes that do not begin with an underscore, set those that are not the class's own, and
do what OPERATIONS lists; functions of the standard library travel by name.
"""

import _thread
import json
import operator
import os
import sys
from collections.abc import Callable, Generator
from itertools import count, islice
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    TracebackType,
)
from typing import Any, NoReturn

from stages.common import values

LONGEST = 8 << 20  # bytes of a message
PART = 1 << 12  # bytes that are read at a time, or more where more are known to come
ITEMS = 10_000  # of an iterator that is returned
RAISED = 1_000  # exceptions of the test that are remembered, in case they come back

Handler = Callable[..., Any]
encoded = json.JSONEncoder(separators=(",", ":")).encode
decoded = json.JSONDecoder().raw_decode


class Refused(BaseException):
    """The answer cannot be judged at all; no `except` of a test is to take that for an error it expects."""


class Peer:
    """One side of the talk; `judge` or `suspect` gives it what it does."""

    handlers: dict[str, Handler]
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]
    pack_error: Callable[[BaseException], Any]
    unpack_error: Callable[[Any], BaseException]

    def __init__(self, broken: Callable[[str], NoReturn], leads: bool) -> None:
        self.reads, self.writes = -1, -1  # ends of two pipes (a socket's reader is woken by what it has sent)
        self.broken = broken  # what is done when the other side does not keep to the protocol
        self.leads = leads  # may ask at any time (the judge), not only while it is asked (the suspect)
        self.lock = _thread.RLock()
        self.unread = bytearray()
        self.number = 0  # of the last question
        self.serving = 0  # questions of the other side that are being answered


def send(peer: Peer, message: list[Any]) -> None:
    """Write a message; raises Unsendable when it is too long."""
    body = encoded(message).encode()
    if len(body) > LONGEST:
        raise values.Unsendable(f"a message of {len(body)} bytes; expected at most {LONGEST}")
    rest = memoryview(len(body).to_bytes(4, "big") + body)
    while rest:
        try:
            rest = rest[os.write(peer.writes, rest) :]
        except BrokenPipeError:
            peer.broken("")


def _read(peer: Peer, size: int) -> bytearray:
    """The next bytes; what is read beyond them, so that few calls are needed, waits in `peer.unread`."""
    while len(peer.unread) < size:
        part = os.read(peer.reads, max(size - len(peer.unread), PART))
        if not part:
            peer.broken("")
        peer.unread += part
    found = peer.unread[:size]
    del peer.unread[:size]
    return found


def receive(peer: Peer) -> list[Any]:
    """The next message; ends the run on what is none."""
    size = int.from_bytes(_read(peer, 4), "big")
    if size > LONGEST:
        peer.broken(f"sent a message of {size} bytes; expected at most {LONGEST}")
    body = _read(peer, size)
    try:
        text = body.decode()
        message, end = decoded(text)
    except (ValueError, RecursionError, MemoryError) as error:
        peer.broken(f"sent a message that is no JSON ({type(error).__name__})")
    if end != len(text) or type(message) is not list or len(message) < 3 or type(message[1]) is not int:
        peer.broken("sent a message of an unknown form")
    return message


def ask(peer: Peer, operation: str, *arguments: Any) -> Any:
    """What the other side answers, raised when it is an exception; its own questions are served meanwhile."""
    packed = [peer.pack(argument) for argument in arguments]
    with peer.lock:
        if not (peer.leads or peer.serving):
            raise RuntimeError("the call that this object was given to is over")
        peer.number += 1
        number = peer.number
        send(peer, ["ask", number, operation, packed])
        while True:
            message = receive(peer)
            if message[0] == "ask":
                serve(peer, message)
                continue
            if message[1] != number or len(message) != 3:
                peer.broken("sent an answer that nobody asked for")
            if message[0] == "fail":
                peer.broken(str(message[2])[:500])
            if message[0] == "value":
                return _understood(peer, peer.unpack, message[2])
            if message[0] == "error":
                raise _understood(peer, peer.unpack_error, message[2])
            peer.broken("sent a message of an unknown kind")


def _understood(peer: Peer, reading: Callable[[Any], Any], data: Any) -> Any:
    try:
        return reading(data)
    except Exception as error:  # noqa: BLE001 (constructors of many types, with what the other side sent)
        peer.broken(f"sent a value that cannot be read ({type(error).__name__}: {error})"[:300])


def serve(peer: Peer, message: list[Any]) -> None:
    """Do what the other side asks for and send what comes of it."""
    if len(message) != 4 or message[2] not in peer.handlers or type(message[3]) is not list:
        peer.broken("sent a question of an unknown form")
    arguments = [_understood(peer, peer.unpack, argument) for argument in message[3]]
    peer.serving += 1
    try:
        answer = ["value", message[1], peer.pack(peer.handlers[message[2]](*arguments))]
    except (Refused, values.Unsendable) as error:
        answer = ["fail", message[1], str(error)]
    except BaseException as error:  # noqa: BLE001 (whatever is raised is the answer)
        answer = ["error", message[1], peer.pack_error(error)]
    if answer[0] == "fail" and peer.leads:
        answer = ["error", message[1], peer.pack_error(TypeError(answer[2]))]
    with peer.lock:  # threads that the answer left behind cannot ask between this and the next question
        try:
            send(peer, answer)
        except values.Unsendable as error:
            send(peer, ["fail", message[1], str(error)])
        peer.serving -= 1


def finish(awaitable: Any) -> Any:
    """The result of an awaitable, also where an event loop is running already."""

    import asyncio  # takes longer to import than all the rest
    import threading  # makes every fork slower

    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    results: list[tuple[bool, Any]] = []

    def work() -> None:
        try:
            results.append((True, asyncio.run(wait())))
        except BaseException as error:  # noqa: BLE001 (raised again below)
            results.append((False, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    good, result = results[0]
    if good:
        return result
    raise result


# --- the judge's side ------------------------------------------------------------------------------------

OPERATIONS: dict[str, Handler] = {  # on the judge's objects, by the name of the method that carries them out
    "__call__": lambda thing, *arguments, **named: thing(*arguments, **named),
    "__iter__": iter,
    "__next__": next,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__contains__": operator.contains,
    "__len__": len,
    "__bool__": bool,
    "__str__": str,
    "__repr__": repr,
    "__enter__": lambda thing: type(thing).__enter__(thing),
    "__exit__": lambda thing, *arguments: type(thing).__exit__(thing, *arguments),
    "__aenter__": lambda thing: type(thing).__aenter__(thing),
    "__aexit__": lambda thing, *arguments: type(thing).__aexit__(thing, *arguments),
    "__aiter__": lambda thing: type(thing).__aiter__(thing),
    "__anext__": lambda thing: type(thing).__anext__(thing),
    "__await__": finish,
}
CLOSED = (
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    type,
    GeneratorType,
    CoroutineType,
    AsyncGeneratorType,
)
NEVER = (ModuleType, FrameType, CodeType, TracebackType)


class Given:
    """The judge's objects that the suspect may refer to, and the suspect's that the judge has."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self.numbers: dict[int, int] = {}  # by id(); `things` keeps them alive
        self.raised: dict[int, BaseException] = {}
        self.raising = count()
        self.proxies: dict[int, int] = {}  # id of a function here: its number over there
        self.kept: list[Any] = []

    def number(self, thing: Any) -> int:
        """The number of an object, a new one at its first time."""
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.things)
            self.things.append(thing)
        return self.numbers[id(thing)]


def _by_name(thing: Any) -> list[str] | None:
    """Module and name of what the suspect has as well: functions and classes of the standard library."""
    if not isinstance(thing, FunctionType | BuiltinFunctionType | type):
        return None
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if not isinstance(module, str) or module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    found: Any = sys.modules.get(module)
    if module == "__main__" or found is None:
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    return [module, name] if found is thing else None


def _features(thing: Any) -> list[str]:
    kind = type(thing)
    return [name for name in OPERATIONS if getattr(kind, name, None) is not None]


def judge(peer: Peer) -> dict[str, Any]:
    """Make `peer` the judge's side; returns what a test may use of it."""
    given = Given()

    def classes(kind: type) -> Any:
        if not issubclass(kind, BaseException):
            return None
        module = kind.__module__
        if values.stdlib_exception(module, kind.__qualname__) is kind:
            return ["type", [module, kind.__qualname__]]
        bases = [packed for base in kind.__mro__[1:] if (packed := classes(base))][:1]
        return ["class", [given.number(kind), kind.__name__, bases]]

    def other(thing: Any, depth: int) -> Any:
        if id(thing) in given.proxies:
            return ["own", given.proxies[id(thing)]]
        if isinstance(thing, BaseException):
            return ["exception", pack_error(thing)]
        if isinstance(thing, type) and issubclass(thing, BaseException):
            return classes(thing)
        if named := _by_name(thing):
            return ["named", named]
        if isinstance(thing, NEVER):
            raise values.Unsendable(f"{type(thing).__name__}; expected plain data, a function or an object")
        name = str(getattr(thing, "__name__", "")) if callable(thing) else ""
        return ["ref", [given.number(thing), name, _features(thing)]]

    def pack_error(error: BaseException) -> Any:
        number = next(given.raising)
        if len(given.raised) >= RAISED:
            given.raised.pop(next(iter(given.raised)))
        given.raised[number] = error
        return {**values.pack_error(error, classes), "number": number}

    def known(data: Any) -> type[BaseException] | None:
        tag, content = data
        if tag == "class":
            found = given.things[content]
            return found if isinstance(found, type) and issubclass(found, BaseException) else None
        return values.stdlib_exception(*content) if tag == "type" else None

    def unpack_error(data: Any) -> BaseException:
        number = data.get("number")
        if type(number) is int and number in given.raised:
            return given.raised[number]
        error = values.unpack_error(data, known)
        error.__dict__["_answer"] = True
        return error

    def own(content: Any, depth: int) -> Any:
        if type(content) is not int or not 0 <= content < len(given.things):
            raise values.Malformed("an object that was never given")
        return given.things[content]

    def named_type(content: Any, depth: int) -> Any:
        if found := values.named_type(*content):
            return found
        raise values.Malformed("an unknown class")

    def keep(number: Any, proxy: Any) -> Any:
        given.proxies[id(proxy)] = number
        given.kept.append(proxy)  # so that its id stays its own
        return proxy

    def function(content: Any, depth: int) -> Any:
        def proxy(*arguments: Any, **named: Any) -> Any:
            return ask(peer, "call", content, list(arguments), named)

        return keep(content, proxy)

    def awaitable(content: Any, depth: int) -> Any:
        async def proxy() -> Any:
            return ask(peer, "await", content)

        return proxy()

    def iterator(content: Any, depth: int) -> Any:
        items, more, error = content
        found = [values.unpack(item, others, depth + 1) for item in items]
        ending = unpack_error(error) if error else None

        def each() -> Generator[Any, None, None]:
            yield from found
            if ending:
                raise ending
            if more:
                raise RuntimeError(f"the answer's iterator goes on; expected at most {ITEMS} items")

        return each()

    others: dict[str, values.Unpacker] = {
        "own": own,
        "type": named_type,
        "class": own,
        "callable": function,
        "awaitable": awaitable,
        "iterator": iterator,
        "exception": lambda content, depth: unpack_error(content),
    }

    def get(thing: Any, name: str) -> Any:
        if type(name) is not str or name.startswith("_") or isinstance(thing, CLOSED + NEVER):
            raise AttributeError(f"{type(thing).__name__!r} object has no attribute {name!r} for an answer")
        return getattr(thing, name)

    def put(thing: Any, name: str, value: Any) -> None:
        if name.startswith("_") or isinstance(thing, CLOSED + NEVER) or callable(getattr(thing, name, None)):
            raise AttributeError(f"{type(thing).__name__!r} object: {name!r} is not for an answer to set")
        setattr(thing, name, value)

    def operate(thing: Any, operation: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        if operation not in OPERATIONS or operation not in _features(thing):
            raise TypeError(f"{type(thing).__name__!r} object has no {operation}")
        return OPERATIONS[operation](thing, *arguments, **named)

    peer.handlers = {"get": get, "set": put, "operate": operate}
    peer.pack = lambda value: values.pack(value, other)
    peer.unpack = lambda data: values.unpack(data, others)
    peer.pack_error, peer.unpack_error = pack_error, unpack_error

    def entry(*arguments: Any, **named: Any) -> Any:
        return ask(peer, "enter", list(arguments), named)

    def before(code: str) -> None:
        """Run trusted code inside the suspect, before the answer is loaded."""
        ask(peer, "before", code)

    def load() -> None:
        """Load the answer; raises what that raises."""
        ask(peer, "load")

    def inside(expression: str) -> Any:
        """What a trusted expression gives inside the suspect."""
        return ask(peer, "inside", expression)

    keep(-1, entry)
    return {"entry": entry, "before": before, "load": load, "inside": inside}


# --- the suspect's side ----------------------------------------------------------------------------------


def suspect(peer: Peer) -> Callable[[str, str], NoReturn]:
    """Make `peer` the suspect's side; returns what serves the judge with an answer and its entry point.

    That never ends: it loads the answer when it is needed, and calls its functions.
    """
    functions: list[Any] = []
    numbers: dict[int, int] = {}
    remotes: dict[int, Any] = {}
    classes: dict[int, type[BaseException]] = {}
    origins: dict[type, int] = {}
    helpers: dict[str, Any] = {"__name__": "before"}
    module = ModuleType("answer")
    state: dict[str, Any] = {"loaded": False, "unreadable": "", "failure": None}
    given: dict[str, str] = {}

    def number(thing: Any) -> int:
        if id(thing) not in numbers:
            numbers[id(thing)] = len(functions)
            functions.append(thing)
        return numbers[id(thing)]

    def known(kind: type) -> Any:
        if kind in origins:
            return ["class", origins[kind]]
        exception = issubclass(kind, BaseException)
        return (
            ["type", [kind.__module__, kind.__qualname__]]
            if exception and values.stdlib_exception(kind.__module__, kind.__qualname__) is kind
            else None
        )

    def pack_error(error: BaseException) -> Any:
        return {**values.pack_error(error, known), "number": error.__dict__.get("_judge_s_number")}

    def iterated(thing: Any, depth: int) -> Any:
        items: list[Any] = []
        error, more = None, False
        try:
            for item in islice(thing, ITEMS + 1):
                items.append(item)
        except BaseException as raised:  # noqa: BLE001 (the judge raises it at this place)
            error = pack_error(raised)
        more = len(items) > ITEMS
        return ["iterator", [[values.pack(item, other, depth + 1) for item in items[:ITEMS]], more, error]]

    def other(thing: Any, depth: int) -> Any:
        if type(thing) in kinds.values():
            return ["own", object.__getattribute__(thing, "_number")]
        if isinstance(thing, BaseException):
            return ["exception", pack_error(thing)]
        if isinstance(thing, type):
            if packed := known(thing):
                return packed
            if values.named_type(thing.__module__, thing.__qualname__) is thing:
                return ["type", [thing.__module__, thing.__qualname__]]
        if hasattr(type(thing), "__await__"):
            return ["awaitable", number(thing)]
        if hasattr(type(thing), "__next__"):
            return iterated(thing, depth)
        if callable(thing):
            return ["callable", number(thing)]
        raise values.Unsendable(f"an instance of {type(thing).__name__}; expected plain data")

    kinds: dict[tuple[str, ...], type] = {}

    def kind_of(features: tuple[str, ...]) -> type:
        """The class of the proxies for objects with these methods."""
        if features in kinds:
            return kinds[features]

        def get(self: Any, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            return ask(peer, "get", self, name)

        def put(self: Any, name: str, value: Any) -> None:
            ask(peer, "set", self, name, value)

        def method(feature: str) -> Callable[..., Any]:
            def operate(self: Any, *arguments: Any, **named: Any) -> Any:
                return ask(peer, "operate", self, feature, list(arguments), named)

            return operate

        def leave(feature: str) -> Callable[..., Any]:
            def operate(self: Any, kind: Any, error: Any, trace: Any) -> Any:
                return ask(peer, "operate", self, feature, [kind, error, None], {})

            return operate

        def wait(self: Any) -> Generator[None, None, Any]:
            yield from ()
            return ask(peer, "operate", self, "__await__", [], {})

        content: dict[str, Any] = {feature: method(feature) for feature in features}
        content |= {feature: leave(feature) for feature in ("__exit__", "__aexit__") if feature in features}
        if "__await__" in features:
            content["__await__"] = wait
        kinds[features] = type("Remote", (), {**content, "__getattr__": get, "__setattr__": put})
        return kinds[features]

    def remote(content: Any, depth: int) -> Any:
        number_, name, features = content
        if number_ not in remotes:
            thing: Any = object.__new__(kind_of(tuple(features)))
            object.__setattr__(thing, "_number", number_)
            if name:
                object.__setattr__(thing, "__name__", name)
                object.__setattr__(thing, "__qualname__", name)
            remotes[number_] = thing
        return remotes[number_]

    def exception_class(content: Any, depth: int = 0) -> type[BaseException]:
        number_, name, bases = content
        if number_ not in classes:
            below = tuple(base for packed in bases if (base := local(packed)))
            classes[number_] = type(name, below or (Exception,), {"__module__": "__main__"})
            origins[classes[number_]] = number_
        return classes[number_]

    def local(data: Any) -> type[BaseException] | None:
        tag, content = data
        return exception_class(content) if tag == "class" else values.stdlib_exception(*content)

    def unpack_error(data: Any) -> BaseException:
        error = values.unpack_error(data, local)
        error.__dict__["_judge_s_number"] = data["number"]
        return error

    def by_name(content: Any, depth: int) -> Any:
        __import__(content[0])
        found: Any = sys.modules[content[0]]
        for part in content[1].split("."):
            found = getattr(found, part)
        return found

    others: dict[str, values.Unpacker] = {
        "own": lambda content, depth: entry() if content == -1 else functions[content],
        "ref": remote,
        "named": by_name,
        "type": by_name,
        "class": exception_class,
        "exception": lambda content, depth: unpack_error(content),
    }

    def load() -> None:
        if not state["loaded"]:
            state["loaded"] = True
            try:
                code = compile(given["answer"], "<answer>", "exec", dont_inherit=True)
            except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
                state["unreadable"] = f"answer: {type(error).__name__}: {error}"
            else:
                sys.modules["answer"] = module
                try:
                    exec(code, module.__dict__)  # noqa: S102 (this is what the jail is for)
                except BaseException as error:
                    state["failure"] = error
                    raise
        if state["unreadable"]:
            raise Refused(state["unreadable"])
        if state["failure"]:
            raise state["failure"]

    def entry() -> Any:
        load()
        if given["entry_point"] not in module.__dict__:
            raise Refused(f"answer: no {given['entry_point']!r} is defined")
        return module.__dict__[given["entry_point"]]

    def before(code: str) -> None:
        if state["loaded"]:
            raise RuntimeError("before(): the answer is loaded already; expected it at the top of the test")
        exec(compile(code, "<before>", "exec", dont_inherit=True), helpers)  # noqa: S102

    def inside(expression: str) -> Any:
        load()
        return eval(expression, {**helpers, **module.__dict__})  # noqa: S307

    peer.handlers = {
        "load": load,
        "enter": lambda arguments, named: entry()(*arguments, **named),
        "call": lambda number_, arguments, named: (entry() if number_ == -1 else functions[number_])(
            *arguments, **named
        ),
        "await": lambda number_: finish(functions[number_]),
        "before": before,
        "inside": inside,
    }
    peer.pack = lambda value: values.pack(value, other)
    peer.unpack = lambda data: values.unpack(data, others)
    peer.pack_error, peer.unpack_error = pack_error, unpack_error

    def begin(answer: str, entry_point: str) -> NoReturn:
        given.update(answer=answer, entry_point=entry_point)
        while True:
            serve(peer, receive(peer))

    return begin
