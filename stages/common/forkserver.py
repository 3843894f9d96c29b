"""The sandbox's server: a clean, single-threaded interpreter that forks confined processes for each run.

Started by `stages.common.sandbox` with a Unix socket, on which it receives a run's kind and descriptors at a
time. It never reads a program, a test or an answer itself, so none is left in the memory of the next run.

Most of a run's cost is the copying of memory pages that a forked interpreter writes to, if only to count a
reference. So what all runs have in common, their limits too, is made ready before the first fork, and a
run's second process is forked before the first has written to much. Forking and ending a process take time
for every page that it has, so nothing is imported that is not needed: `dataclasses` alone, with what that
imports, would add 1.2 MB to 6 MB (measured). Standard library only.
"""

import _socket
import collections
import copy
import functools
import gc
import itertools
import json
import marshal
import math
import os
import re
import select
import signal
import string
import sys
import time
import typing
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from stages.common import jail, remote

LOADED = (
    collections,
    copy,
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
LOADER = "/lib64/ld-linux-x86-64.so.2"  # starts every program that is linked dynamically
NODE_FLAGS = ("--no-warnings", "--no-addons", "--experimental-vm-modules", "--v8-pool-size=1")
HEAP = 0.75  # share of node's memory that JavaScript's objects may take; buffers and the engine need some
ENTERED = b'{"entered": true}\n'  # a run's first line
DESCRIPTOR = 4  # bytes of a descriptor's number in a message
TURNS = 20  # of a rehearsal; code is adapted after eight
VALUES = [None, True, 1, 0.5, "text", [1], (2,), {"key": {3}}]
PROGRAM = """
from typing import List


def total(numbers: List[int]) -> int:
    \"\"\"Of some numbers.\"\"\"
    return sum(number for number in numbers if number > 0)


def check(candidate):
    assert candidate([1, -2, 3]) == 4, "a sum"
    assert abs(candidate([]) - 0.5) < 1 and not str(candidate([])).isalpha()


check(total)
"""
HUNG_UP = 3  # node's status when the other side is gone (javascript.js)


class Place(NamedTuple):
    """What all runs of a server have in common."""

    scratch: str
    readable: list[str]
    node: str  # its path, "" without it
    limits: dict[str, int]
    wall: float
    namespaces: bool
    beside: int | None  # threads of the same user that are not the run's; None where they are not known
    walls: jail.Walls
    untouched: int  # when the scratch folder was changed last, before any run


class Talk(NamedTuple):
    """Both sides of the talk of judge and suspect, made before there is anything to say."""

    judge: remote.Peer
    offered: dict[str, Any]  # to the test
    suspect: remote.Peer
    serve: Callable[[str, str], NoReturn]


def ready() -> Talk:
    """The talk; each process gives its peer the pipes."""
    judge = remote.Peer(broken=lambda _: os._exit(3), leads=True)
    suspect = remote.Peer(broken=lambda _: os._exit(3), leads=False)
    return Talk(judge, remote.judge(judge), suspect, remote.suspect(suspect))


def rehearse() -> None:
    """Hold a talk and run a program, so that later ones write to less memory.

    The interpreter adapts code that it has run some times and keeps what it has looked up.
    """
    talk = ready()
    pipes = [*os.pipe(), *os.pipe()]
    talk.suspect.reads, talk.judge.writes, talk.judge.reads, talk.suspect.writes = pipes
    for turn in range(1, TURNS + 1):
        reply = ["value", turn, talk.suspect.pack(VALUES)]
        remote.send(talk.suspect, reply)  # it waits in the pipe for the question
        talk.offered["before"]("")
        remote.serve(talk.suspect, remote.receive(talk.suspect))
        remote.receive(talk.judge)
    for descriptor in pipes:
        os.close(descriptor)
    exec(compile(PROGRAM, "<program>", "exec", dont_inherit=True), {})  # noqa: S102 (the one above)


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
    """What the parent marshalled into an anonymous file, which is closed."""
    content = os.pread(descriptor, os.lseek(descriptor, 0, os.SEEK_END), 0)
    os.close(descriptor)
    return marshal.loads(content)  # noqa: S302 (the parent is trusted)


def request(control: _socket.socket) -> tuple[str, list[int]]:
    """The next run's kind and descriptors; no kind when the parent has closed its end."""
    message, ancillary, _, _ = control.recvmsg(16, _socket.CMSG_LEN(3 * DESCRIPTOR))
    numbers = b"".join(data for _, _, data in ancillary)
    parts = range(0, len(numbers), DESCRIPTOR)
    return message.decode(), [int.from_bytes(numbers[at : at + DESCRIPTOR], sys.byteorder) for at in parts]


def close_all_but(kept: list[int]) -> None:
    """Close every descriptor from 3 on but these."""
    start = 3
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 1 << 20)


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


def enter(place: Place) -> str:
    """Enter the jail; returns why it could not be, or nothing."""
    try:
        jail.enter(place.walls)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


def main_module() -> dict[str, Any]:
    """The names of a fresh `__main__`."""
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    return module.__dict__


def run_alone(place: Place, answer: int, program: int) -> NoReturn:
    """Run one program to its end; report with the token that it has come there."""
    if refusal := enter(place):
        report(answer, error=refusal)
        os._exit(1)
    os.write(answer, ENTERED)
    given = contents(program)
    try:
        exec(compile(given["program"], "<program>", "exec", dont_inherit=True), main_module())  # noqa: S102
    except BaseException as error:  # noqa: BLE001 (whatever the program raises is its result)
        report(answer, token="", reason=explained(error)[:REASON])
    else:
        report(answer, token=given["token"], reason="")
    os._exit(0)


def run_suspect(place: Place, talk: Talk, given: int, reads: int, writes: int) -> NoReturn:
    """Serve the judge: load the answer and call its functions when asked to."""
    jail.die_with_parent()
    close_all_but([given, reads, writes, place.walls.rules])
    talk.suspect.reads, talk.suspect.writes = reads, writes
    refusal = enter(place)
    remote.send(talk.suspect, ["entered", 0, refusal])
    if refusal:
        os._exit(1)
    content = contents(given)
    talk.serve(content["answer"], content["entry_point"])


def run_judge(
    place: Place, talk: Talk, answer: int, given: int, reads: int, writes: int, suspect: int
) -> NoReturn:
    """Run the test; report whether it came to its end."""
    if refusal := enter(place):
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
            status, reason = ended(suspect, place.limits["cpu_seconds"])
        verdict(answer, status, reason)

    peer, offered = talk.judge, talk.offered
    peer.reads, peer.writes, peer.broken = reads, writes, broken
    names = main_module()
    first = remote.receive(peer)  # its own code's, before it has read the answer
    if first[2]:
        broken(first[2])
    began = True
    os.write(answer, ENTERED)
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


def run_node(place: Place, answer: int, test: int, suspect: int) -> NoReturn:
    """Run a test and an answer in node, each in a process; report how these ended where the test did not."""
    programs = [place.node, LOADER]
    walls = jail.walls(place.scratch, place.readable, place.limits, place.beside, programs)
    place = place._replace(walls=walls)
    ours, theirs = _socket.socketpair()
    sides = [[ours.fileno(), test, answer], [theirs.fileno(), suspect]]
    processes = []
    for descriptors in sides:
        processes.append(os.fork())
        if processes[-1] == 0:
            become_node(place, descriptors)
    ours.close()
    theirs.close()
    _, status, used = os.wait4(processes[0], 0)
    code = os.waitstatus_to_exitcode(status)
    if by_limit(code, used, place.limits["cpu_seconds"]):
        verdict(answer, "timeout", "CPU limit")
    if code == HUNG_UP:
        verdict(answer, *ended(processes[1], place.limits["cpu_seconds"]))
    os._exit(code if code >= 0 else 128 - code)


def become_node(place: Place, descriptors: list[int]) -> NoReturn:
    """Enter the jail and become node; `descriptors`: the talk's, the program's, for the judge the report's.

    The judge waits until the suspect is confined before it says that both are.
    """
    talk, given, *answer = descriptors
    jail.die_with_parent()
    close_all_but([*descriptors, place.walls.rules])
    content = contents(given)
    task = os.memfd_create("task")
    with os.fdopen(os.dup(task), "wb") as file:
        file.write(json.dumps(content["task"]).encode())
        file.seek(0)
    os.setresuid(os.geteuid(), os.geteuid(), os.geteuid())  # or a new program would lose the effective one
    refusal = enter(place)
    if answer:
        heard = os.read(talk, 1 << 16)  # one line: node says nothing until it is asked
        refusal = refusal or (json.loads(heard) if heard else "suspect: ended before it was confined")
        report(answer[0], **({"error": refusal} if refusal else {"entered": True}))
    else:
        os.write(talk, json.dumps(refusal).encode() + b"\n")
    if refusal:
        os._exit(1)
    kept = [talk, task, *answer]
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    flags = [*NODE_FLAGS, f"--max-old-space-size={int(place.limits['memory_bytes'] * HEAP) >> 20}"]
    flags += ["--disallow-code-generation-from-strings"] if answer else []
    command = ["node", *flags, "-e", content["program"], *map(str, kept)]
    os.execve(  # noqa: S606 (in the jail)
        place.node, command, {"HOME": place.scratch, "TMPDIR": place.scratch, "OPENSSL_CONF": "/dev/null"}
    )


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
    """Whether a process was killed for its CPU time.

    The limit counts clock ticks, `used` what really ran: on a busy machine 3 s by the one were as little as
    2.6 s by the other (measured), and less is possible. Nothing else kills a run that has used half of it.
    """
    spent = used.ru_utime + used.ru_stime
    return code in (-signal.SIGXCPU, -signal.SIGKILL) and spent > cpu_seconds / 2


def child(kind: str, place: Place, talk: Talk, suspect: int, descriptors: list[int]) -> NoReturn:
    """The life of a forked process, or two: `suspect` is 0 in the second, and that one's number in the first.

    `descriptors`: the report's, each program's, and for two the ends of a pipe to the second and of one back.
    """
    answer = descriptors[0]
    try:
        gc.enable()
        if suspect == 0:
            _, _, given, reads, _, _, writes = descriptors
            run_suspect(place, talk, given, reads, writes)
        jail.die_with_parent()
        if kind == "run":
            close_all_but([*descriptors, place.walls.rules])
            run_alone(place, answer, descriptors[1])
        if kind == "node":
            close_all_but(descriptors)
            run_node(place, answer, descriptors[1], descriptors[2])
        _, given, _, _, writes, reads, _ = descriptors
        close_all_but([answer, given, reads, writes, place.walls.rules])
        run_judge(place, talk, answer, given, reads, writes, suspect)
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


def beyond(place: Place, process: int) -> str:
    """Which limit, of those that the kernel does not keep, is passed."""
    limits = place.limits
    if sum(map(threads, descendants(process))) > limits["threads"]:
        return f"more than {limits['threads']} threads"
    if not place.namespaces:
        used, files = disk_used(place.scratch, limits["disk_files"])
        if used > limits["disk_bytes"] or files > limits["disk_files"]:
            return "too much in the scratch folder"
    return ""


def watch(place: Place, process: int, control: _socket.socket) -> dict[str, Any]:
    """Wait for the end of a process and of all that it left; the parent's end is the end of all."""
    deadline = time.monotonic() + place.wall
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
            reason = beyond(place, process)
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
    late = by_limit(code, used, place.limits["cpu_seconds"])
    return {"status": code, "reason": reason or ("CPU" if late else "")}


def permitted(hello: dict[str, Any], user: tuple[int, int]) -> bool:
    """Whether namespaces and mounts of one's own are permitted: a child tries."""
    process = os.fork()
    if process == 0:
        try:
            jail.seclude(hello["scratch"], hello["readable"], user)
            jail.furnish(hello["scratch"], 1 << 20, 16)
            inner, _ = jail.fork(own=True)
            if inner == 0:
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
    if alone:
        # it asks what the real user may do, where opening a file asks for the effective one
        os.access = functools.partial(os.access, effective_ids=True)
    namespaces = permitted(hello, user)
    if namespaces:
        jail.seclude(scratch, readable, user)
    jail.seal_memory()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    seeded()
    del os.environ["LD_BIND_NOW"]
    os.environ.update(TMPDIR=scratch, HOME=scratch)
    for name in [name for name in sys.modules if name.partition(".")[0] == "stages"]:
        del sys.modules[name]
    beside = 1 if namespaces or alone else None  # this server
    limits = hello["limits"]
    walls, untouched = furnished(scratch, readable, limits, beside, namespaces)
    return Place(
        scratch, readable, hello["node"], limits, hello["wall"], namespaces, beside, walls, untouched
    )


def furnished(
    scratch: str, readable: list[str], limits: dict[str, int], beside: int | None, namespaces: bool
) -> tuple[jail.Walls, int]:
    """Walls around an empty scratch folder, the working folder from here on, and when that was changed."""
    if namespaces:
        jail.furnish(scratch, limits["disk_bytes"], limits["disk_files"])
    os.chdir(scratch)
    return jail.walls(scratch, readable, limits, beside), changed(scratch)


def changed(scratch: str) -> int:
    """When something was made or removed in the scratch folder last; no run can set this time."""
    return os.stat(scratch).st_ctime_ns  # noqa: PTH116 (this module starts fast)


def cleared(place: Place) -> Place:
    """The place as it was before a run; without namespaces the parent clears the scratch folder."""
    if not place.namespaces or (changed(place.scratch) == place.untouched and not os.listdir()):  # noqa: PTH208
        return place
    os.close(place.walls.rules)
    jail.clear(place.scratch)
    walls, untouched = furnished(place.scratch, place.readable, place.limits, place.beside, place.namespaces)
    return place._replace(walls=walls, untouched=untouched)


def serve(control: _socket.socket) -> None:
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
    talk = ready()
    rehearse()
    gc.collect()
    gc.disable()
    gc.freeze()
    while True:
        kind, descriptors = request(control)
        if not kind:
            break
        if kind == "judge":
            descriptors += [*os.pipe(), *os.pipe()]
        try:
            process, suspect = jail.fork(place.namespaces, pair=kind == "judge")
        except OSError as error:
            report(descriptors[0], error=f"fork: {error}")
            ended = {"status": 1, "reason": ""}
        else:
            if process == 0:
                child(kind, place, talk, suspect, descriptors)
            ended = {}
        for descriptor in descriptors:
            os.close(descriptor)
        ended = ended or watch(place, process, control)
        if ended["reason"] == GONE:
            break
        place = cleared(place)
        control.send(json.dumps(ended).encode())
    with suppress(OSError):  # the parent may have done it
        os.rmdir(name, dir_fd=folder)


def main() -> None:
    """Serve on the socket whose number is the only argument."""
    serve(_socket.socket(fileno=int(sys.argv[1])))
