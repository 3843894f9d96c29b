"""The sandbox's server: a clean, single-threaded interpreter that forks a confined process for each run.

Started by `stages.common.sandbox` with a Unix socket, on which it receives a JSON request and descriptors at
a time. It never reads a program, a test or an answer itself, so none is left in the memory of the next run.
Standard library only.
"""

import collections
import copy
import dataclasses
import functools
import gc
import itertools
import json
import math
import os
import re
import select
import signal
import socket
import string
import sys
import time
import typing
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from stages.common import jail, remote

LOADED = (
    collections,
    copy,
    dataclasses,
    functools,
    itertools,
    math,
    re,
    string,
    typing,
)  # what answers import
PAUSE = 0.02  # seconds between looks at what the kernel does not bound
REASON = 200  # characters of a reason
GONE = "the parent is gone"


@dataclass(frozen=True)
class Request:
    """What one run is given."""

    kind: str  # "run" or "judge"
    scratch: str
    limits: dict[str, int]
    wall: float
    place: "Place"


@dataclass(frozen=True)
class Place:
    """What all runs of a server have in common."""

    user: tuple[int, int]
    namespaces: bool
    readable: list[tuple[int, bytes]]  # rules of Landlock
    beside: int | None  # processes that count as the run's own but are not; None where all of a user's do


def seeded() -> None:
    """Import `random` with a fixed seed, which it would otherwise renew in every forked process."""
    register, os.register_at_fork = os.register_at_fork, lambda **_: None
    import random

    os.register_at_fork = register
    random.seed(0)


def report(descriptor: int, **content: Any) -> None:
    """Tell the parent something, a line each."""
    os.write(descriptor, json.dumps(content).encode() + b"\n")


def contents(descriptor: int) -> Any:
    """The JSON in an anonymous file, which is closed."""
    size = os.fstat(descriptor).st_size
    parts = []
    while size > 0 and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    os.close(descriptor)
    return json.loads(b"".join(parts))


def close_all_but(kept: list[int]) -> None:
    """Close every descriptor from 3 on but these."""
    start = 3
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 1 << 20)


def settle(scratch: str) -> None:
    """Make the scratch folder the working, home and temporary folder."""
    os.chdir(scratch)
    if os.environ.get("HOME") != scratch:
        os.environ.update(TMPDIR=scratch, HOME=scratch)


def explained(error: BaseException, source: str = "", file: str = "") -> str:
    """An exception's class and text, or the line of the test where it has no text."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 (whatever its __str__ does)
        text = ""
    trace, line = error.__traceback__, 0
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    lines = source.splitlines()
    if not text and 0 < line <= len(lines):
        text = f"line {line}: {lines[line - 1].strip()}"
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return ("answer: " if vars(error).get("_answer") else "") + said


def enter(request: Request) -> str:
    """Enter the jail; returns why it could not be, or nothing."""
    place = request.place
    try:
        jail.enter(request.scratch, place.readable, request.limits, place.namespaces)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


def main_module() -> dict[str, Any]:
    """The names of a fresh `__main__`."""
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    return module.__dict__


def run_alone(request: Request, answer: int, program: int) -> NoReturn:
    """Run one program to its end; report with the token that it has come there."""
    if refusal := enter(request):
        report(answer, error=refusal)
        os._exit(1)
    report(answer, entered=True)
    given = contents(program)
    try:
        exec(compile(given["program"], "<program>", "exec", dont_inherit=True), main_module())  # noqa: S102
    except BaseException as error:  # noqa: BLE001 (whatever the program raises is its result)
        report(answer, token="", reason=explained(error)[:REASON])
    else:
        report(answer, token=given["token"], reason="")
    os._exit(0)


def run_suspect(request: Request, channel: int, given: int) -> NoReturn:
    """Serve the judge: load the answer and call its functions when asked to."""
    jail.die_with_parent()
    close_all_but([channel, given, *(descriptor for descriptor, _ in request.place.readable)])
    peer = remote.Peer(channel, broken=lambda _: os._exit(3), leads=False)
    refusal = enter(request)
    remote.send(peer, ["entered", 0, refusal])
    if refusal:
        os._exit(1)
    content = contents(given)
    remote.suspect(peer, content["answer"], content["entry_point"])
    os._exit(0)


def run_judge(request: Request, answer: int, channel: int, given: int, suspect: int) -> NoReturn:
    """Run the test; report whether it came to its end."""
    if refusal := enter(request):
        report(answer, error=refusal)
        os._exit(1)
    content = contents(given)
    began = False

    def broken(reason: str) -> NoReturn:
        status = "failed"
        if not began:
            report(answer, error=f"suspect: {reason or 'ended before it was confined'}")
            os._exit(1)
        if not reason:
            status, reason = ended(suspect, request.limits["cpu_seconds"])
        verdict(answer, status, reason)

    peer = remote.Peer(channel, broken, leads=True)
    offered = remote.judge(peer)
    names = main_module()
    first = remote.receive(peer)  # its own code's, before it has read the answer
    if first[2]:
        broken(first[2])
    began = True
    report(answer, entered=True)
    part, file_name = "", ""
    try:
        for part, file_name in (("head", "<head>"), ("test", "<test>")):
            code = compile(content[part], file_name, "exec", dont_inherit=True)
            if part == "test":
                entry = offered["entry"]
                entry.__name__ = entry.__qualname__ = content["entry_point"]
                names |= {content["entry_point"]: entry, "SOURCE": content["answer"]}
                names |= {name: offered[name] for name in ("before", "load", "inside")}
            exec(code, names)  # noqa: S102 (in the jail)
    except BaseException as error:  # noqa: BLE001 (whatever the test raises is its result)
        unread = isinstance(error, SyntaxError) and not vars(error).get("_answer")
        prefix = f"{part}: " if unread or part == "head" else ""
        verdict(answer, "failed", prefix + explained(error, content[part], file_name))
    verdict(answer, "passed", "")


def verdict(descriptor: int, status: str, reason: str) -> NoReturn:
    """Report how the run ended and end it."""
    report(descriptor, status=status, reason=reason[:REASON])
    os._exit(0)


def ended(child: int, cpu_seconds: int) -> tuple[str, str]:
    """How a child that hung up has ended: status and reason."""
    deadline = time.monotonic() + 1
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() > deadline:
            return "failed", "answer: hung up"
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(status)
    if by_limit(code, used, cpu_seconds):
        return "timeout", "CPU limit"
    return "failed", f"answer: ended with status {code}"


def by_limit(code: int, used: Any, cpu_seconds: int) -> bool:
    """Whether a process was killed for its CPU time."""
    spent = used.ru_utime + used.ru_stime
    return code in (-signal.SIGXCPU, -signal.SIGKILL) and spent > cpu_seconds - 0.5


def child(request: Request, descriptors: list[int]) -> NoReturn:
    """The life of a forked process; `descriptors`: for the report, then a file for each program."""
    answer = descriptors[0]
    try:
        jail.die_with_parent()
        os.setsid()
        shared = [descriptor for descriptor, _ in request.place.readable]
        close_all_but([*descriptors, *shared])
        if request.place.namespaces:
            limits = request.limits
            jail.furnish(request.scratch, request.place.user, limits["disk_bytes"], limits["disk_files"])
        settle(request.scratch)
        gc.enable()
        if request.kind == "run":
            run_alone(request, answer, descriptors[1])
        ours, theirs = socket.socketpair()
        suspect = os.fork()
        if suspect == 0:
            run_suspect(request, theirs.detach(), descriptors[2])
        theirs.close()
        os.close(descriptors[2])
        run_judge(request, answer, ours.detach(), descriptors[1], suspect)
    except BaseException as error:  # noqa: BLE001 (told to the parent, which raises it)
        with suppress(OSError):
            report(answer, error=f"{type(error).__name__}: {error}")
    os._exit(1)


def threads(process: int) -> int:
    """The number of a process's threads, 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{process}/task"))  # noqa: PTH208 (this module starts fast)
    except OSError:
        return 0


def descendants(process: int) -> list[int]:
    """A process and its children."""
    try:
        with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:  # noqa: PTH123
            return [process, *map(int, file.read().split())]
    except OSError:
        return [process]


def disk_used(folder: str, most_files: int) -> tuple[int, int]:
    """Bytes and number of files below a folder; counting ends soon after `most_files`."""
    used, files, waiting = 0, 0, [folder]
    while waiting and files <= most_files:
        try:
            for entry in os.scandir(waiting.pop()):
                files += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                used += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
        except OSError:  # a path too long to be looked at
            return used, most_files + 1
    return used, files


def beyond(request: Request, process: int) -> str:
    """Which limit, of those that the kernel does not keep, is passed."""
    limits = request.limits
    if sum(map(threads, descendants(process))) > limits["threads"]:
        return f"more than {limits['threads']} threads"
    if not request.place.namespaces:
        used, files = disk_used(request.scratch, limits["disk_files"])
        if used > limits["disk_bytes"] or files > limits["disk_files"]:
            return "too much in the scratch folder"
    return ""


def watch(request: Request, process: int, control: socket.socket) -> dict[str, Any]:
    """Wait for the end of a process and of all that it left; the parent's end is the end of all."""
    deadline = time.monotonic() + request.wall
    reason = ""
    poll = select.poll()
    pidfd = os.pidfd_open(process)
    poll.register(pidfd, select.POLLIN)
    poll.register(control, select.POLLIN | select.POLLHUP)
    while True:
        events = dict(poll.poll(PAUSE * 1000))
        if pidfd in events:
            break
        if control.fileno() in events:
            reason = GONE
        elif time.monotonic() > deadline:
            reason = "wall"
        else:
            reason = beyond(request, process)
        if reason:
            break
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    os.close(pidfd)
    _, status, used = os.wait4(process, 0)
    code = os.waitstatus_to_exitcode(status)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    late = by_limit(code, used, request.limits["cpu_seconds"])
    return {"status": code, "reason": reason or ("CPU" if late else "")}


def permitted(scratch: str, readable: list[str], user: tuple[int, int]) -> bool:
    """Whether namespaces and mounts of one's own are permitted: a child tries."""
    process = os.fork()
    if process == 0:
        try:
            jail.seclude(scratch, readable, user)
            inner = jail.fork(namespaces=True)
            if inner == 0:
                jail.furnish(scratch, user, 1 << 20, 16)
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
        except BaseException:  # noqa: BLE001 (the answer is no)
            os._exit(1)
    return os.waitpid(process, 0)[1] == 0


def settled(hello: dict[str, Any]) -> Place:
    """Get everything ready that runs have in common, so that each has little to do."""
    scratch, readable = hello["scratch"], hello["readable"]
    user = (os.geteuid(), os.getegid())
    os.sched_setaffinity(0, {hello["cpu"]})
    jail.adopt_orphans()
    alone = jail.hide_identity()
    namespaces = permitted(scratch, readable, user)
    if namespaces:
        jail.seclude(scratch, readable, user)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    seeded()
    jail.prepared()
    settle(scratch)
    for name in [name for name in sys.modules if name.partition(".")[0] == "stages"]:
        del sys.modules[name]
    beside = 0 if namespaces else 1 if alone else None
    return Place(user, namespaces, [jail.rule(path, jail.READ_ONLY) for path in readable], beside)


def serve(control: socket.socket) -> None:
    """Answer requests until the parent closes its end."""
    hello = json.loads(control.recv(1 << 16))
    above, name = os.path.split(hello["scratch"])
    folder = os.open(above, os.O_PATH | os.O_CLOEXEC)
    try:
        place = settled(hello)
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    control.send(json.dumps({"namespaces": place.namespaces}).encode())
    gc.collect()
    gc.disable()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 3)
        if not message:
            break
        request = Request(**json.loads(message), place=place)
        try:
            process = jail.fork(place.namespaces)
        except OSError as error:
            report(descriptors[0], error=f"fork: {error}")
            ended = {"status": 1, "reason": ""}
        else:
            if process == 0:
                child(request, descriptors)
            ended = {}
        for descriptor in descriptors:
            os.close(descriptor)
        ended = ended or watch(request, process, control)
        if ended["reason"] == GONE:
            break
        control.send(json.dumps(ended).encode())
    with suppress(OSError):  # the parent may have done it
        os.rmdir(name, dir_fd=folder)


def main() -> None:
    """Serve on the socket whose number is the only argument."""
    serve(socket.socket(fileno=int(sys.argv[1])))
