"""A shell that notes what a command does to files and sockets, whatever language it is written in.

DVC runs the command of every stage by `$SHELL -c <command>`. Where that is the script of `install`, the
command runs under a seccomp filter whose listener is this process: the kernel stops every process of the
command at each call that opens, makes, changes, removes or executes a file, or names the other end of a
socket, and lets it go on when the call has been noted. So native code and other programs are seen like
Python, and nothing is changed for the command (Landlock would refuse what is undeclared, but tell neither
which file it was nor of a second one). It needs no privilege; Linux 5.19 on x86-64.

The log gets a line of JSON `[stage, what, name]` for each thing done, once. `what` is one of

    reads, lists     a file, a folder; `seeks` where there is nothing of that name
    makes            a file, a folder or a link; `gone` if it is not there at the end
    writes           to a file, or sets its mode, owner or times; `kept` if it is as it was at the end
                     (SQLite opens for writing what it only reads)
    removes          it, or gives it another name
    runs             a program
    connects, binds  host:port, or a Unix socket that lies in a folder
    leaves           a process that runs on after its end
    hides            calls of a process whose memory the user may not read: the sandbox's, where not root

It finds mistakes, not malice: a thread can change a path in memory after it has been noted. Not seen: `stat`
and its like (whether a file exists), variables of the environment, the clock, descriptors that DVC hands on
(its terminal), and what programs do that were running before. Refused, so that nothing is missed: io_uring
(programs then do without), opening by handle, system calls of other architectures.
"""

import ctypes
import fcntl
import json
import os
import select
import shlex
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stages.common import jail
from stages.common.errors import PipelineError

PROJECT = Path(__file__).resolve().parents[1]
SHELL = "/bin/sh"
LOG, ROOT = "HERMETIC_LOG", "HERMETIC_ROOT"  # variables: where to note, and the project's folder
STAGE = "DVC_STAGE"  # set by DVC: whose command it is
GRACE = 2.0  # seconds in which processes may end that outlive the command

# seccomp (uapi/linux/seccomp.h)
SECCOMP, SET_MODE_FILTER = 317, 1
NEW_LISTENER, WAIT_KILLABLE = 1 << 3, 1 << 5  # the second: a signal does not repeat a call that is noted
NOTIFY, GO_ON = 0x7FC00000, 1
RECEIVE, SEND = 0xC0502100, 0xC0182101
NOTIFICATION, REPLY = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")

HERE = 0xFFFFFF9C  # AT_FDCWD as the low half of a register

# System calls (arch/x86/entry/syscalls/syscall_64.tbl): of each path, the argument that holds the descriptor
# of its folder (None: the working folder) and the one that holds the path.
Paths = tuple[tuple[int | None, int], ...]
PLAIN, BESIDE = ((None, 0),), ((0, 1),)
OPEN: dict[int, Paths] = {2: PLAIN, 85: PLAIN, 257: BESIDE, 437: BESIDE}
CREAT, OPENAT2 = 85, 437
FLAGS = {2: 1, 257: 2, 437: 2}  # the argument that holds them; of openat2, their address
EXECUTE: dict[int, Paths] = {59: PLAIN, 322: BESIDE}
CHANGE: dict[int, Paths] = {  # truncate; modes, owners, times, attributes: of what is there
    **dict.fromkeys((76, 90, 92, 94, 132, 188, 189, 197, 198, 235), PLAIN),
    **dict.fromkeys((260, 261, 268, 280, 452), BESIDE),
}
MAKE: dict[int, Paths] = {83: PLAIN, 258: BESIDE, 133: PLAIN, 259: BESIDE, 88: ((None, 1),), 266: ((1, 2),)}
REMOVE: dict[int, Paths] = {84: PLAIN, 87: PLAIN, 263: BESIDE}
TWO: dict[int, Paths] = {  # an old and a new name
    **{82: ((None, 0), (None, 1)), 264: ((0, 1), (2, 3)), 316: ((0, 1), (2, 3))},  # rename
    **{86: ((None, 0), (None, 1)), 265: ((0, 1), (2, 3))},  # link
}
LINKS = (86, 265)
ADDRESS = {42: (1, 2), 49: (1, 2), 44: (4, 5)}  # connect, bind, sendto: the arguments of address and length
BIND = 49
MESSAGE = (46, 307)  # sendmsg, sendmmsg: the address lies in the message
REFUSED = {425: jail.ENOSYS, 304: jail.EPERM}  # io_uring_setup, open_by_handle_at
NOTED = sorted({*OPEN, *EXECUTE, *CHANGE, *MAKE, *REMOVE, *TWO, *ADDRESS, *MESSAGE})

CLONE_FILES = 0x400
LONGEST = 4096  # bytes of a path (PATH_MAX)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def program() -> bytes:
    """The filter: noted calls wait for the listener, refused ones fail, the rest passes."""

    def op(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, jump_true, jump_false, value)

    def when(number: int, action: int) -> bytes:
        return op(jail.JUMP_EQUAL, 0, 1, number) + op(jail.RETURN, 0, 0, action)

    foreign = op(jail.RETURN, 0, 0, jail.ERRNO | jail.ENOSYS)
    return b"".join(
        (
            op(jail.LOAD, 0, 0, 4),  # architecture
            op(jail.JUMP_EQUAL, 1, 0, jail.X86_64),
            foreign,
            op(jail.LOAD, 0, 0, 0),  # system call number
            op(jail.JUMP_GREATER_EQUAL, 0, 1, jail.X32_BIT),
            foreign,
            *(when(number, NOTIFY) for number in NOTED),
            *(when(number, jail.ERRNO | error) for number, error in REFUSED.items()),
            op(jail.RETURN, 0, 0, jail.ALLOW),
        )
    )


def listen() -> int:
    """Put this process and all that it starts under the filter; returns the listener's descriptor.

    Raises OSError where the kernel does not let it.
    """
    code = program()
    buffer = ctypes.create_string_buffer(code, len(code))
    given = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    jail.checked(jail.libc.prctl(jail.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    flags = NEW_LISTENER | WAIT_KILLABLE
    return jail.checked(jail.libc.syscall(SECCOMP, SET_MODE_FILTER, flags, given), "seccomp listener")


@dataclass(frozen=True)
class Call:
    """A system call that waits, and a look into the memory of the thread that made it."""

    number: int
    thread: int
    arguments: tuple[int, ...]

    def memory(self, address: int, size: int) -> bytes:
        """So much of the memory as there is; raises OSError where it may not be read."""
        descriptor = os.open(f"/proc/{self.thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, size, address)
        finally:
            os.close(descriptor)

    def path(self, folder: int | None, name: int) -> str:
        """The absolute path that two arguments name, with the links of its folder followed; or nothing."""
        address = self.arguments[name]
        text = os.fsdecode(self.memory(address, LONGEST).partition(b"\0")[0]) if address else ""
        if text.startswith(("/proc/self/", "/proc/thread-self/")):
            text = f"/proc/{self.thread}/{text.split('/', 3)[3]}"
        if not text.startswith("/"):
            number = HERE if folder is None else self.arguments[folder] & 0xFFFFFFFF
            link = f"/proc/{self.thread}/" + ("cwd" if number == HERE else f"fd/{number}")
            above = os.readlink(link)  # noqa: PTH115
            if not text:  # the descriptor itself
                return above if above.startswith("/") else ""
            text = f"{above}/{text}"
        above, last = os.path.split(text.rstrip("/"))
        if last in ("", ".", ".."):
            return os.path.realpath(text)
        return os.path.join(os.path.realpath(above), last)  # noqa: PTH118

    def address(self) -> tuple[bytes, str]:
        """The address that a call names, and what is done with it; nothing where it names none."""
        if self.number in MESSAGE:
            where, size = struct.unpack("=QI", self.memory(self.arguments[1], 12))
        else:
            where, size = (self.arguments[number] for number in ADDRESS[self.number])
        given = self.memory(where, min(size & 0xFFFFFFFF, 128)) if where else b""
        return given, "binds" if self.number == BIND else "connects"


Done = tuple[str, str]  # what, and the name


def opened(path: str, flags: int) -> Iterator[Done]:
    """What opening a path does."""
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        return  # a file without a name
    there = os.path.lexists(path)
    if flags & WRITING and (there or flags & os.O_CREAT):
        yield "writes" if there else "makes", path
    elif there:
        yield "lists" if os.path.isdir(path) else "reads", path  # noqa: PTH112
    else:
        yield "seeks", path


def talked(call: Call) -> Iterator[Done]:
    """Which socket a call names: those of the Internet, and Unix sockets that lie in a folder."""
    given, what = call.address()
    family = struct.unpack("=H", given[:2])[0] if len(given) > 2 else 0
    if family == socket.AF_UNIX and given[2:3] != b"\0":
        name = os.fsdecode(given[2:].partition(b"\0")[0])
        above = os.readlink(f"/proc/{call.thread}/cwd")  # noqa: PTH115
        yield what, os.path.join(above, name)  # noqa: PTH118
    elif family in (socket.AF_INET, socket.AF_INET6):
        port = struct.unpack("!H", given[2:4])[0]
        host = given[4:8] if family == socket.AF_INET else given[8:24]
        if what == "connects" or port:  # port 0: asks what the machine can do, as urllib3 does at import
            yield what, f"{socket.inet_ntop(family, host)}:{port}"


def effects(call: Call) -> Iterator[Done]:
    """What a system call is about to do. Raises OSError where the thread is gone or cannot be looked at."""
    number = call.number
    if number in ADDRESS or number in MESSAGE:
        yield from talked(call)
    elif number in OPEN:
        flags = WRITING if number == CREAT else call.arguments[FLAGS[number]]
        if number == OPENAT2:
            flags = struct.unpack("=Q", call.memory(flags, 8))[0]
        for place in OPEN[number]:
            yield from opened(call.path(*place), flags)
    elif number in EXECUTE:
        paths = (call.path(*place) for place in EXECUTE[number])
        yield from (("runs", path) for path in paths if os.path.isfile(path))  # noqa: PTH113
    elif number in TWO:
        old, new = (call.path(*place) for place in TWO[number])
        if os.path.lexists(old):
            yield "reads" if number in LINKS else "removes", old
            yield "writes" if os.path.lexists(new) else "makes", new
    else:
        kinds = ((CHANGE, "writes", True), (MAKE, "makes", False), (REMOVE, "removes", True))
        table, what, there = next(kind for kind in kinds if number in kind[0])
        paths = (call.path(*place) for place in table[number])
        yield from ((what, path) for path in paths if path and os.path.lexists(path) == there)


@dataclass
class Notes:
    """What was done so far."""

    stage: str
    root: str
    log: int
    seen: set[Done] = field(default_factory=set)
    before: dict[str, int] = field(default_factory=dict)  # when each file that is written was changed

    def add(self, done: Done) -> None:
        """Note it, once."""
        if done not in self.seen:
            self.seen.add(done)
            os.write(self.log, (json.dumps([self.stage, *done]) + "\n").encode())

    def look(self, done: list[Done]) -> None:
        """Remember how the files were before they are opened for writing."""
        self.before |= {
            name: changed(name) for what, name in done if what == "writes" and name not in self.before
        }

    def close(self) -> None:
        """Note what was made and is gone, and what was opened for writing and is unchanged."""
        for what, name in sorted(self.seen):
            if what == "makes" and not os.path.lexists(name):
                self.add(("gone", name))
            elif what == "writes" and changed(name) == self.before[name]:
                self.add(("kept", name))


def changed(path: str) -> int:
    """When a file or what is known of it was changed last, which nobody can set; 0 where there is none."""
    try:
        return os.stat(path, follow_symlinks=False).st_ctime_ns  # noqa: PTH116
    except FileNotFoundError:
        return 0


def secluded(thread: int, root: str) -> bool:
    """Whether a thread lives among other mounts, where the project is not."""
    own, its = (os.stat(f"/proc/{name}/ns/mnt").st_ino for name in ("self", thread))  # noqa: PTH116
    return own != its and not os.path.exists(f"/proc/{thread}/root{root}")  # noqa: PTH110


def answer(listener: int, notes: Notes) -> None:
    """Take one call, note it and let it go on."""
    buffer = bytearray(NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, RECEIVE, buffer)
    except OSError:  # the thread was killed in the meantime
        return
    number, thread, _, call, _, _, *arguments = NOTIFICATION.unpack(buffer)
    done: list[Done] = []
    try:
        if not secluded(thread, notes.root):
            done += effects(Call(call, thread, tuple(arguments)))
    except PermissionError:
        done.append(("hides", Path(f"/proc/{thread}/comm").read_text(encoding="utf-8").strip()))
    except OSError:
        pass  # it is gone, or gave an address that the kernel will refuse, too
    notes.look(done)
    with suppress(OSError):  # it was killed: the call is not made
        fcntl.ioctl(listener, SEND, REPLY.pack(number, 0, 0, GO_ON))
        for each in done:
            notes.add(each)


def supervise(listener: int, process: int, notes: Notes) -> int:
    """Note until the command and all that it started have ended; returns the command's exit status."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    pidfd = os.pidfd_open(process)
    waiting.register(pidfd, select.POLLIN)
    status, ended = 0, False
    while events := dict(waiting.poll(GRACE * 1000 if ended else None)):
        if events.get(listener, 0) & select.POLLIN:
            answer(listener, notes)
        elif not ended:
            ended, status = True, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            waiting.unregister(pidfd)
        else:  # nobody is left who could call
            break
    else:
        notes.add(("leaves", "a process that runs on"))
    os.close(pidfd)
    notes.close()
    return status


def start(command: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Start a shell with the command under the filter; returns the listener and the shell's process.

    Raises PipelineError where the kernel has no such listener to give.
    """
    reading, writing = os.pipe()
    jail.before_fork()
    # sharing descriptors until it executes the shell: so the listener that it makes is ours, too
    process = jail.system_call(jail.CLONE, CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0, 0)
    if process == 0:
        jail.awake()
        try:
            os.write(writing, str(listen()).encode())
            os.execve(SHELL, [SHELL, "-c", command], environment)  # noqa: S606
        except OSError as error:
            os.write(writing, f" {error}".encode())
        os._exit(126)
    jail.after_fork()
    said = os.read(reading, 1000).decode()
    os.close(reading)
    os.close(writing)
    if not said.isdigit():
        os.waitpid(process, 0)
        raise PipelineError(
            f"hermetic: {said.strip()}; expected Linux 5.19 or newer on x86-64, and a process that nobody "
            "else listens to like this"
        )
    return int(said), process


def install(folder: Path, root: Path, log: Path) -> dict[str, str]:
    """Write the script into a folder; returns the variables with which DVC runs its stages by it."""
    script = folder / "watched"
    begin = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from {__name__} import main; main()"
    line = f'exec {shlex.quote(sys.executable)} -c {shlex.quote(begin)} "$@"'
    script.write_text(f"#!{SHELL}\n{line}\n", encoding="utf-8")
    script.chmod(0o755)
    return {"SHELL": str(script), LOG: str(log), ROOT: str(root.resolve())}


def main() -> None:
    """Be a shell: `-c <command>`."""
    environment = dict(os.environ)
    log, root = environment.pop(LOG), environment.pop(ROOT)  # `install` sets them
    stage = environment.pop(STAGE)  # without it no stage checks, and so reads, all its inputs
    notes = Notes(stage, root, os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC))
    try:
        listener, process = start(sys.argv[2], {**environment, "SHELL": SHELL})
    except PipelineError as error:
        sys.exit(f"error: {error}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command gets it from the terminal, too
    signal.signal(signal.SIGTERM, lambda *_: os.kill(process, signal.SIGTERM))
    status = supervise(listener, process, notes)
    sys.exit(status if status >= 0 else 128 - status)
