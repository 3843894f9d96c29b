"""Run generated code where it can do no harm, and say whether it ran to its end or did what a test asks.

`judge` runs an answer in Python and its test in two processes (see `remote`); `run` runs one program alone.
Every run is forked from a clean interpreter (see `forkserver`), so it costs milliseconds. `judge_by_node`
does for JavaScript what `judge` does (see `javascript.js`), and costs two starts of node.

What it protects against, for answers and for tests that somebody brings:
- Reading or changing anything of the machine: Landlock leaves reading of Python's standard library and of
  node, and writing of a scratch folder that vanishes; no variable and no descriptor of ours is there.
- Reaching others: seccomp refuses sockets (but an anonymous pair), new processes and programs, signals,
  tracing, shared memory, mounts, keys and whatever else a function does not need; capabilities are dropped.
  A process that becomes node may execute node, which stays in the jail, and nothing else.
- Using up the machine: CPU seconds, memory, bytes a file, open files, threads, and size and number of files
  in the scratch folder are limited; output is discarded; whatever a run leaves behind is killed.
- Forged verdicts, by `judge`: the answer's process has no way to say "passed", never sees the test, and what
  it returns is rebuilt from the standard library's own types before the test sees it.

Where the kernel permits namespaces, each run has its own for processes, and each server its own for users,
mounts, network and IPC; then nothing but Python's files and /proc is mounted, and the scratch folder is a
file system of a fixed size, a new one after every run that wrote to it. Where they are refused (Docker's
default) the rest holds, and the scratch folder is looked at every 20 ms: a run that passed its limit is
killed. Landlock and seccomp are always there, or nothing runs.

What it does not protect against: flaws in the kernel, in Python or in node; a run that uses all that its
limits allow; without namespaces, more files than allowed for some milliseconds, more threads likewise where
the user is not root, or is root and runs node, and learning names, sizes and times of files outside
(Landlock does not cover `stat`), or, with namespaces, the numbers of processes; by `run`, a program that
searches its own memory for the token with which its end is reported; by `judge`, an answer that tampers with
what `inside` looks at or that calls a test's fake object as everybody may; a test that lets wrong answers
pass.
"""

import atexit
import itertools
import json
import marshal
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from stages.common import forkserver, jail, remote, values
from stages.common.errors import PipelineError

Status = Literal["passed", "failed", "timeout"]
Content = Mapping[str, Any]  # what a process is given, as JSON


@dataclass(frozen=True)
class Limits:
    """What one process may use; a judged answer and its test are two, with one scratch folder."""

    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 64
    threads: int = 64
    disk_bytes: int = 16 << 20
    disk_files: int = 4096


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `passed` only when its last line was reached; `reason` says why not."""

    status: Status
    reason: str = ""


OLDEST_NODE = 18  # major version: the first with what javascript.js uses (Array.prototype.findLast)
WALL_SECONDS = 60  # far beyond the CPU limit, so that a busy machine does not change verdicts
GRACE = 30  # seconds beyond that in which the server must have answered
MODULES = ("stages", "stages.common", *(module.__name__ for module in (jail, values, remote, forkserver)))
START = """
import marshal, sys
with open(int(sys.argv[2]), "rb") as file:
    for name, code in marshal.load(file):
        module = sys.modules[name] = type(sys)(name)
        above, _, below = name.rpartition(".")
        if above:
            setattr(sys.modules[above], below, module)
        exec(code, vars(module))
module.main()
"""
# no -I, which would ignore PYTHONHASHSEED: here are its other parts; columns in tracebacks would take memory
FLAGS = ("-s", "-S", "-P", "-B", "-X", "no_debug_ranges")


def require() -> None:
    """Raise PipelineError, saying what is missing, unless programs can be confined on this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise PipelineError(
            f"sandbox: {sys.platform} on {platform.machine()}; expected Linux on x86-64 (use the container)"
        )
    abi = jail.landlock_abi()
    if abi < jail.MINIMUM_ABI:
        raise PipelineError(
            f"sandbox: Landlock ABI {abi}; expected {jail.MINIMUM_ABI} or more (Linux 6.2 with "
            "CONFIG_SECURITY_LANDLOCK); generated code does not run without it"
        )


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Run `program` alone; it passes by reaching its end.

    Raises PipelineError when the sandbox cannot be set up: nothing ever runs outside it.
    """
    token = secrets.token_hex(16)
    report, end = _executed("run", [{"program": program, "token": token}], limits or Limits())
    if end["reason"]:
        return _stopped(end["reason"])
    if not report:
        return Outcome("failed", f"ended before its last line with status {end['status']}")
    try:
        reply = json.loads(report)
        given, reason = reply["token"], str(reply["reason"])
    except (ValueError, KeyError, TypeError):
        return Outcome("failed", "wrote to the answer channel")
    return Outcome("passed") if given == token else Outcome("failed", reason)


def judge(answer: str, test: str, entry_point: str, head: str = "", limits: Limits | None = None) -> Outcome:
    """Run `answer` in one process and `test` in another; it passes when the test reaches its end.

    In the test `entry_point` is a proxy for the answer's function. `head` is trusted code that runs before
    the test, beside it: helpers that the test uses. `reason` begins with "answer: " where the answer raised
    what the test did not expect, or cannot be loaded. Raises PipelineError as `run` does.
    """
    given = [
        {"head": head, "test": test, "entry_point": entry_point, "answer": answer},
        {"answer": answer, "entry_point": entry_point},
    ]
    report, end = _executed("judge", given, limits or Limits())
    return _outcome(report, end)


def judge_by_node(program: str, answer: Content, test: Content, limits: Limits | None = None) -> Outcome:
    """Run `program` in two processes of node, one given an answer and one its test, which decides.

    Raises PipelineError as `run` does, and without node.
    """
    if node() is None:
        raise PipelineError(f"sandbox: no node; expected version {OLDEST_NODE} or more on the path")
    token = secrets.token_hex(16)  # known to the judge alone, should a test lend an answer what can write
    tasks = ({**test, "token": token}, answer)
    given = [{"program": program, "task": task} for task in tasks]
    report, end = _executed("node", given, limits or Limits())
    outcome = _outcome(report, end)
    if outcome.status == "passed" and token not in report:
        return Outcome("failed", "answer: wrote to the answer channel")
    return outcome


@cache
def node() -> str | None:
    """The path of the program `node`, None where there is none or one that is too old.

    Raises PipelineError where it does not say its version.
    """
    found = shutil.which("node")
    if found is None:
        return None
    path = str(Path(found).resolve())
    said = subprocess.run([path, "--version"], capture_output=True, text=True, env={}, check=False).stdout
    version = re.fullmatch(r"v(\d+)\.\S+\s*", said)
    if version is None:
        raise PipelineError(f"{path}: --version says {said[:80]!r}; expected v{OLDEST_NODE} or more")
    return path if int(version[1]) >= OLDEST_NODE else None


def _outcome(report: str, end: dict[str, Any]) -> Outcome:
    """What the judge reported, or how it ended without a report."""
    if not report:
        if end["reason"]:
            return _stopped(end["reason"])
        return Outcome("failed", f"test: ended before its last line with status {end['status']}")
    try:
        reply = json.loads(report)
        return Outcome(reply["status"], reply["reason"])
    except (ValueError, KeyError, TypeError):
        return Outcome("failed", "test: wrote to the answer channel")


def _stopped(reason: str) -> Outcome:
    if reason == "wall":
        return Outcome("timeout", f"no end after {WALL_SECONDS} s")
    return Outcome("timeout", "CPU limit") if reason == "CPU" else Outcome("failed", reason)


@dataclass(frozen=True)
class _Server:
    """A process that forks runs, one at a time, all under the same limits."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    bounds: tuple[Limits, float]  # and seconds until a run is stopped
    folder: str  # empty, the runs' scratch folder; where there are namespaces, they mount another one on it
    namespaces: bool


_lock = threading.Lock()
_idle: list[_Server] = []
_busy: list[_Server] = []
_starts = itertools.count()


def _executed(kind: str, programs: Sequence[Content], limits: Limits) -> tuple[str, dict[str, Any]]:
    """What a run reported, and how it ended."""
    require()
    for name, value in vars(limits).items():
        if value < 1:
            raise PipelineError(f"sandbox: {name}: {value}; expected 1 or more")
    server = _taken(limits)
    good = False
    try:
        result = _asked(server, kind, programs)
        if not server.namespaces:
            _emptied(server.folder)
        good = True
    except (OSError, EOFError, ValueError) as error:
        raise PipelineError(f"sandbox: its server fails ({error}); expected an answer") from error
    finally:
        _put_back(server, good)
    report, end = result
    entered, _, rest = report.partition("\n")
    # written before a program starts: none can take it back
    if entered.encode() + b"\n" != forkserver.ENTERED:
        with suppress(ValueError, KeyError, TypeError):
            entered = str(json.loads(entered)["error"])
        if end["reason"]:
            entered = entered or end["reason"]
        raise PipelineError(
            f"sandbox: {entered or 'status {}'.format(end['status'])}; expected the program to be confined"
        )
    return rest.partition("\n")[0], end


def _asked(server: _Server, kind: str, programs: Sequence[Content]) -> tuple[str, dict[str, Any]]:
    """Send a run's kind and programs, read the report and the end."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    descriptors = [write_end]
    try:
        for program in programs:
            descriptors.append(os.memfd_create("program", os.MFD_CLOEXEC))
            content = marshal.dumps(dict(program))
            if os.pwrite(descriptors[-1], content, 0) < len(content):
                raise OSError(f"a program of {len(content)} bytes does not fit into memory")
        socket.send_fds(server.control, [kind.encode()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        descriptors = []
        return _listened(server, read_end)
    finally:
        for descriptor in (*descriptors, read_end):
            os.close(descriptor)


def _listened(server: _Server, read_end: int) -> tuple[str, dict[str, Any]]:
    """Wait for the run's end, then read its report; a run that writes more than a pipe holds stops itself."""
    server.control.settimeout(server.bounds[1] + GRACE)
    message = server.control.recv(1 << 16)
    if not message:
        raise EOFError("it has ended")
    os.set_blocking(read_end, False)  # a process forked meanwhile may hold the other end open
    report = b""
    with suppress(BlockingIOError):
        while part := os.read(read_end, 1 << 16):
            report += part
    return report.decode(errors="replace"), json.loads(message)


def _taken(limits: Limits) -> _Server:
    """An idle server with these limits that lives, or a new one."""
    bounds = (limits, WALL_SECONDS)
    while True:
        with _lock:
            server = next((server for server in reversed(_idle) if server.bounds == bounds), None)
            if server:
                _idle.remove(server)
                _busy.append(server)
        if server is None:
            server = _started(bounds)
            with _lock:
                _busy.append(server)
            return server
        if server.process.poll() is None:
            return server
        _put_back(server, good=False)


def _put_back(server: _Server, good: bool) -> None:
    with _lock:
        if server in _busy:
            _busy.remove(server)
        if good:
            _idle.append(server)
    if not good:
        _stop(server)


def _started(bounds: tuple[Limits, float]) -> _Server:
    """Start a server and ask whether it may make namespaces."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = tempfile.mkdtemp(prefix="sandbox-")
    with theirs, os.fdopen(os.memfd_create("modules"), "w+b") as modules:
        modules.write(_modules())
        modules.seek(0)
        given = [theirs.fileno(), modules.fileno()]
        process = subprocess.Popen(
            [sys.executable, *FLAGS, "-c", START, *map(str, given)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "LD_BIND_NOW": "1"},
            pass_fds=given,
            start_new_session=True,
        )
    server = _Server(process, ours, bounds, folder, namespaces=False)
    try:
        ours.settimeout(GRACE)
        cpus = sorted(os.sched_getaffinity(0))  # on one, judge and suspect take turns without waking another
        hello: dict[str, Any] = {"scratch": folder, "readable": _readable(), "node": node() or ""}
        hello |= {"limits": vars(bounds[0]), "wall": bounds[1], "cpu": cpus[next(_starts) % len(cpus)]}
        ours.send(json.dumps(hello).encode())
        hello = json.loads(ours.recv(1 << 16))
        ours.settimeout(None)
        if "error" in hello:
            _stop(server)
            raise PipelineError(f"sandbox: {hello['error']}; expected the program to be confined")
        return _Server(process, ours, bounds, folder, hello["namespaces"])
    except (OSError, ValueError) as error:
        _stop(server)
        raise PipelineError(
            f"sandbox: its server did not start (status {process.returncode}, {error}); expected it to answer"
        ) from error


@cache
def _modules() -> bytes:
    """What a server consists of, compiled: compiling leaves gaps in memory, which every run would copy."""
    sources = {name: Path(str(sys.modules[name].__file__)) for name in MODULES}
    codes = [
        (name, compile(path.read_bytes(), path.name, "exec", dont_inherit=True))
        for name, path in sources.items()
    ]
    return marshal.dumps(codes)


def _stop(server: _Server) -> None:
    """End a server: it ends by itself, and its run with it, when it hears no more of us."""
    server.control.close()
    server.process.kill()
    server.process.wait()
    _removed(server.folder)


def _removed(folder: str) -> None:
    """Remove a folder, also one that nests too deep for `shutil`."""
    with suppress(OSError):
        with suppress(FileNotFoundError):  # its server may have done it
            os.rmdir(folder)  # noqa: PTH106 (the usual case: empty)
        return
    with suppress(OSError, RecursionError):
        shutil.rmtree(folder)
        return
    subprocess.run(["rm", "-rf", "--", folder], check=True)


def _emptied(folder: str) -> None:
    """Remove what is in a folder, which stays."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _removed(entry.path)
        else:
            os.unlink(entry.path)  # noqa: PTH108 (one call for a run that left nothing)


def close() -> None:
    """End every idle server; the next run starts another."""
    with _lock:
        servers, _idle[:] = list(_idle), []
    for server in servers:
        _stop(server)


def _forget() -> None:
    """In a forked child: the servers are the parent's."""
    global _lock
    _lock = threading.Lock()
    for server in (*_idle, *_busy):
        server.control.close()
        server.process.returncode = 0  # not ours to wait for
    _idle.clear()
    _busy.clear()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)


def _readable() -> list[str]:
    """What Python needs to import its standard library: its own folders and the C library's."""
    places = [
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        sys.base_prefix + "/lib",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/share/zoneinfo",
        "/dev/null",
        "/dev/urandom",
        "/usr/share/nodejs",  # where Debian and Ubuntu keep parts of node's own library
        *([path] if (path := node()) else []),
    ]
    return sorted({place for place in places if Path(place).exists()})
