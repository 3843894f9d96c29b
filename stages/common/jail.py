"""The walls of the sandbox: namespaces, limits, Landlock, seccomp. Standard library only, Linux on x86-64.

`stages.common.forkserver` calls these in the processes that are to be confined.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

# Landlock (uapi/linux/landlock.h)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ABI_QUERY, PATH_BENEATH = 1, 1
MINIMUM_ABI = 3  # from here on truncation is handled too (Linux 6.2)
EXECUTE = 1 << 0
READ_ONLY = (1 << 2) | (1 << 3)  # read a file, list a folder
FS_RIGHTS = {3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}  # every right that the ABI knows
SCRATCH_RIGHTS = ((1 << 15) - 1) & ~(1 << 0)  # all but execution
FILE_RIGHTS = EXECUTE | (1 << 1) | (1 << 2)  # of these, those that a rule for a file can give: write and read
NO_TCP = 0b11  # bind and connect (ABI 4)
SCOPED = 0b11  # abstract Unix sockets and signals of processes outside (ABI 6)

# prctl and seccomp (uapi/linux/prctl.h, seccomp.h, filter.h, audit.h)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 1, 4, 22, 36
PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 38, 2
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_BIT_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38
X86_64, X32_BIT, CLONE_THREAD = 0xC000003E, 0x40000000, 0x00010000
CLOSE, IOCTL, SENDTO, CLONE, EXECVE, FCNTL = 3, 16, 44, 56, 59, 72
SETSID, CAPSET, PRCTL, PRLIMIT, CLONE3 = 112, 126, 157, 302, 435

# namespaces (uapi/linux/sched.h) and mounts (uapi/linux/mount.h)
NEW_MOUNT, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
FOR_SERVER = NEW_USER | NEW_MOUNT | NEW_IPC | NEW_NET
PIVOT_ROOT = 155
UNUSED_USERS = 1 << 30  # far above what systems give to people, and to containers' ranges
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 2, 4, 8, 1 << 10
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
OWN, NO_CAPABILITY = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # version 3 of the call, this process

DENIED = {
    "network (an anonymous socketpair is left, asyncio needs it)": [
        *(41, 42, 43, 46, 47, 49, 50, 288, 299, 307),
    ],
    "processes": [57, 58, EXECVE, 322],
    "leaving the process group, or outliving the parent": [109, 112, 157],
    "identities and capabilities": [105, 106, 113, 114, 116, 117, 119, 122, 123, 126],
    "signals": [62, 129, 200, 234, 297, 424, 434, 438],
    "other processes' memory and scheduling": [
        *(101, 141, 142, 144, 203, 251, 256, 279, 310, 311, 312, 314, 440),
    ],
    "shared memory and message queues": [29, 30, 31, 64, 65, 66, 68, 69, 70, 71, 220, 240, 241, 319, 447],
    "modes, owners, times and attributes of files": [
        *(90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 197, 198, 199, 235, 259, 260, 261, 268, 280, 452)
    ],
    "limits": [160, 302],
    "mounts and namespaces": [155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442],
    "file handles": [303, 304],
    "the kernel": [
        *(103, 135, 159, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 227, 246),
        *(298, 300, 305, 313, 320, 321, 323),
    ],
    "keys and io_uring": [248, 249, 250, 425, 426, 427],
}
DENIED_COMMANDS = {  # the second argument says what is to be done
    IOCTL: [
        *(0x40086602, 0x401C5820),  # set a file's flags, its extended flags
        *(0x5412, 0x8901, 0x8902),  # type into a terminal, choose who gets a descriptor's signals
    ],
    FCNTL: [8, 10, 15],  # choose who gets a descriptor's signals, and which
}

libc = ctypes.CDLL(None, use_errno=True)
system_call = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the interpreter's lock during a call
before_fork, after_fork = ctypes.pythonapi.PyOS_BeforeFork, ctypes.pythonapi.PyOS_AfterFork_Parent
awake = ctypes.pythonapi.PyOS_AfterFork_Child  # looked up here: a forked process would have to copy more


def landlock_abi() -> int:
    """The kernel's Landlock ABI, 0 or less when there is none."""
    return int(libc.syscall(CREATE_RULESET, None, 0, ABI_QUERY))


def checked(result: int, what: str) -> int:
    """The result of a system call; raises OSError, naming the call, when it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def fork(own: bool, pair: bool = False) -> tuple[int, int]:
    """Fork, into a session and if wanted a PID namespace of the child's own; for single-threaded processes.

    A child that is to be a `pair` forks at once, before its interpreter has written to any memory that the
    two would then have to copy. Returns the child's number, 0 in the child, and there the number of the
    child's own child, 0 in that. Raises OSError where a namespace is not permitted.
    """
    before_fork()
    child = system_call(CLONE, signal.SIGCHLD | (NEW_PID if own else 0), 0, 0, 0, 0, 0)
    if child == 0:
        system_call(SETSID, 0, 0, 0, 0, 0, 0)
        below = system_call(CLONE, signal.SIGCHLD, 0, 0, 0, 0, 0) if pair else -1
        awake()
        return 0, below
    error = ctypes.get_errno()
    after_fork()
    ctypes.set_errno(error)
    return checked(child, "clone"), -1


def hide_identity() -> bool:
    """Take a real user id of one's own where the process is root; the effective id, for files, stays.

    The limit on threads does not hold for root, and counts per real user id. Returns whether it was done.
    """
    return os.getuid() == 0 and libc.setresuid(UNUSED_USERS + os.getpid(), 0, 0) == 0


def _be(user: tuple[int, int]) -> None:
    """In a fresh user namespace: be this user and group, and nobody else can be."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user[0]} {user[0]} 1"),
        ("gid_map", f"{user[1]} {user[1]} 1"),
    ):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    result = libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode())
    checked(result, f"mount {target}")


def seclude(root: str, readable: list[str], user: tuple[int, int]) -> None:
    """Move into namespaces without network where nothing but `readable`, /proc and an empty `root` exists.

    `root` is an empty folder. Raises OSError where that is not permitted.
    """
    checked(libc.unshare(FOR_SERVER), "unshare")
    _be(user)
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=1m,nr_inodes=1000,mode=755")
    places: list[str] = []
    for place in sorted([*readable, "/proc"]):
        if any(place.startswith(f"{above}/") for above in places):
            continue
        places.append(place)
        target = root + place
        if os.path.isdir(place):  # noqa: PTH112
            os.makedirs(target, exist_ok=True)  # noqa: PTH103
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        _mount(place, target, "none", MS_BIND | MS_REC)
    os.makedirs(root + root, exist_ok=True)  # noqa: PTH103
    os.chdir(root)
    checked(libc.syscall(PIVOT_ROOT, b".", b"."), "pivot_root")  # the old root then lies over the new one
    checked(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def furnish(scratch: str, size: int, files: int) -> None:
    """In namespaces of `seclude`: mount an empty file system of `size` bytes and `files` on `scratch`."""
    options = f"size={size},nr_inodes={files},mode=700"
    _mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, options)


def clear(scratch: str) -> None:
    """Take away what `furnish` mounted, with all that lies in it."""
    checked(libc.umount2(os.fsencode(scratch), MNT_DETACH), "umount")


def die_with_parent() -> None:
    """Be killed when the parent ends, however it ends."""
    checked(system_call(PRCTL, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0, 0), "parent's death")


def seal_memory() -> None:
    """Let no other process of the same user look into this one's memory, nor its children's."""
    checked(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that all can be waited for."""
    checked(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")


def ruleset(scratch: str, readable: list[str], programs: Sequence[str] = ()) -> int:
    """The descriptor of Landlock's rules: no TCP, reading what `readable` names, writing below `scratch`.

    `programs` are files that may be read and executed.
    """
    abi = landlock_abi()
    attributes = struct.pack("=QQQ", FS_RIGHTS[min(abi, 5)], NO_TCP, SCOPED)
    attributes = attributes[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    rules = checked(libc.syscall(CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    allowances = [(scratch, SCRATCH_RIGHTS), *((path, READ_ONLY) for path in readable)]
    for path, allowed in [*allowances, *((path, READ_ONLY | EXECUTE) for path in programs)]:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = allowed if os.path.isdir(path) else allowed & FILE_RIGHTS  # noqa: PTH112 (starts fast)
        rule = struct.pack("=Qi", rights, descriptor)
        checked(libc.syscall(ADD_RULE, rules, PATH_BENEATH, rule, 0), "landlock_add_rule")
        os.close(descriptor)
    return rules


Instruction = bytes


def _op(code: int, jump_true: int, jump_false: int, value: int) -> Instruction:
    return struct.pack("=HBBI", code, jump_true, jump_false, value)


REFUSE, PASS = _op(RETURN, 0, 0, ERRNO | EPERM), _op(RETURN, 0, 0, ALLOW)


def _chosen_by_command(commands: list[int]) -> list[Instruction]:
    checks = (part for command in commands for part in (_op(JUMP_EQUAL, 0, 1, command), REFUSE))
    return [_op(LOAD, 0, 0, 24), *checks, PASS]  # the second argument


CHOSEN = {  # system calls whose arguments decide
    **{number: _chosen_by_command(commands) for number, commands in DENIED_COMMANDS.items()},
    SENDTO: [  # to the other end of a pair only: with no address
        _op(LOAD, 0, 0, 48),
        _op(JUMP_EQUAL, 0, 2, 0),
        _op(LOAD, 0, 0, 52),
        _op(JUMP_EQUAL, 1, 0, 0),
        REFUSE,
        PASS,
    ],
    CLONE: [_op(LOAD, 0, 0, 16), _op(JUMP_BIT_SET, 1, 0, CLONE_THREAD), REFUSE, PASS],
    CLONE3: [_op(RETURN, 0, 0, ERRNO | ENOSYS)],  # its flags lie in memory: the C library falls back to clone
}


def decision(number: int, executes: bool = False) -> tuple[Instruction, ...]:
    """The instructions that decide on a system call."""
    if executes and number == EXECVE:
        return (PASS,)
    if number in CHOSEN:
        return tuple(CHOSEN[number])
    return (REFUSE,) if any(number in group for group in DENIED.values()) else (PASS,)


def _tree(ranges: list[tuple[int, tuple[Instruction, ...]]]) -> list[Instruction]:
    """Instructions that find the range, by its first number, in which a system call lies."""
    if len(ranges) == 1:
        return list(ranges[0][1])
    middle = len(ranges) // 2
    low, high = _tree(ranges[:middle]), _tree(ranges[middle:])
    return [_op(JUMP_GREATER_EQUAL, len(low), 0, ranges[middle][0]), *low, *high]


@cache
def seccomp_filter(executes: bool = False) -> bytes:
    """The BPF program: refuse what is DENIED with EPERM, new processes too, let threads and the rest pass.

    With `executes` programs pass too, for Landlock to decide on: they stay in the jail.
    A search tree: the kernel runs the program once for every system call when it is installed.
    """
    ranges = [(0, decision(0))]
    for number in range(1, 512):
        if decision(number, executes) != ranges[-1][1]:
            ranges.append((number, decision(number, executes)))
    program = [
        _op(LOAD, 0, 0, 4),  # architecture
        _op(JUMP_EQUAL, 1, 0, X86_64),
        _op(RETURN, 0, 0, KILL),
        _op(LOAD, 0, 0, 0),  # system call number
        _op(JUMP_GREATER_EQUAL, 0, 1, X32_BIT),
        _op(RETURN, 0, 0, KILL),
        *_tree(ranges),
    ]
    return b"".join(program)


class Walls(NamedTuple):
    """What confines a run, made ready before it is forked: so it has little memory to copy."""

    rules: int  # Landlock's, a descriptor
    calls: list[tuple[str, tuple[Any, ...]]]  # system calls, by what they do: number and six arguments
    pointed: list[Any]  # what these point to


def walls(
    scratch: str,
    readable: list[str],
    limits: dict[str, int],
    beside: int | None,
    programs: Sequence[str] = (),
) -> Walls:
    """Every door to be closed, in the order in which each still can be.

    `scratch`, `readable` and `programs` are as for `ruleset`. `limits`: CPU seconds, bytes of memory, bytes a
    file, open files, and threads, which the kernel counts by user; `beside`: how many of these are others',
    None when that is not known. One that may execute `programs` is limited in the memory that it can write
    to: an engine of JavaScript reserves much more than it uses.
    """
    pointed: list[Any] = []

    def address(content: bytes) -> ctypes.c_void_p:
        pointed.append(ctypes.create_string_buffer(content, len(content)))
        return ctypes.c_void_p(ctypes.addressof(pointed[-1]))

    bounds = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_DATA if programs else resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        **({} if beside is None else {resource.RLIMIT_NPROC: limits["threads"] + beside}),
        resource.RLIMIT_CORE: 0,
    }
    rules = ruleset(scratch, readable, programs)
    code = seccomp_filter(executes=bool(programs))
    program = struct.pack("=HxxxxxxQ", len(code) // 8, address(code).value)
    calls = [
        *(
            ("limit", (PRLIMIT, 0, kind, address(struct.pack("=QQ", *[most] * 2))))
            for kind, most in bounds.items()
        ),
        ("capset", (CAPSET, address(OWN), address(NO_CAPABILITY))),
        ("dumpable", (PRCTL, PR_SET_DUMPABLE, 0)),
        ("no_new_privs", (PRCTL, PR_SET_NO_NEW_PRIVS, 1)),
        ("landlock_restrict_self", (RESTRICT_SELF, rules)),
        ("close", (CLOSE, rules)),
        ("seccomp", (PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address(program))),
    ]
    return Walls(rules, [(what, (*call, *[0] * (7 - len(call)))) for what, call in calls], pointed)


def enter(walls: Walls) -> None:
    """Confine this process for good; raises OSError, naming the call, where one fails."""
    for what, call in walls.calls:
        checked(system_call(*call), what)
