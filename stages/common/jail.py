"""The inside of the sandbox: give up every privilege, then run one Python program.

Started by `stages.common.sandbox` in a fresh interpreter; reads a JSON request from stdin and answers
on the file descriptor that the request names. Standard library only, Linux on x86-64 only.
"""

import ctypes
import json
import os
import resource
import struct
import sys
from typing import Any

# Landlock (uapi/linux/landlock.h)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ABI_QUERY, PATH_BENEATH = 1, 1
MINIMUM_ABI = 3  # from here on truncation is handled too (Linux 6.2)
READ_ONLY = (1 << 2) | (1 << 3)  # read a file, list a folder
FS_RIGHTS = {3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}  # every right that the ABI knows
SCRATCH_RIGHTS = ((1 << 15) - 1) & ~(1 << 0)  # all but execution

# prctl and seccomp (uapi/linux/seccomp.h, filter.h, audit.h)
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 4, 22, 38, 2
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_BIT_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38
X86_64, X32_BIT, CLONE_THREAD = 0xC000003E, 0x40000000, 0x00010000
IOCTL, CLONE, CLONE3 = 16, 56, 435
DENIED_IOCTLS = [
    0x40086602,
    0x401C5820,
    0x5412,
]  # set a file's flags, its extended flags, type into a terminal

DENIED = {
    "network (an anonymous socketpair is left, asyncio needs it)": [41, 42, 43, 44, 49, 50, 288],
    "processes": [57, 58, 59, 322],
    "signals": [62, 129, 200, 234, 297, 424, 434, 438],
    "other processes' memory and scheduling": [101, 141, 144, 203, 251, 256, 279, 310, 311, 314, 440],
    "shared memory and message queues": [29, 64, 68, 240, 319, 447],
    "modes, owners, times and attributes of files": [
        *(90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 197, 198, 199, 235, 259, 260, 261, 268, 280, 452)
    ],
    "limits": [160, 302],
    "mounts and namespaces": [155, 161, 165, 166, 272, 308, 428, 429, 430, 432, 442],
    "file handles": [303, 304],
    "the kernel": [
        *(135, 159, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 227, 246),
        *(298, 300, 305, 313, 320, 321, 323),
    ],
    "keys and io_uring": [248, 249, 250, 425, 426, 427],
}

libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """The kernel's Landlock ABI, 0 or less when there is none."""
    return int(libc.syscall(CREATE_RULESET, None, 0, ABI_QUERY))


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def limit(limits: dict[str, int]) -> None:
    """Set CPU seconds, bytes of memory, bytes per file and open files; no core dump."""
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def close_files(scratch: str, readable: list[str]) -> None:
    """Leave reading below `readable` and writing below `scratch`; nothing else, and no TCP, from here on."""
    abi = landlock_abi()
    rights = FS_RIGHTS[min(abi, 5)]
    network = 0b11 if abi >= 4 else 0  # bind and connect TCP
    attributes = struct.pack("=QQ", rights, network)[: 16 if abi >= 4 else 8]
    ruleset = _checked(
        libc.syscall(CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset"
    )
    for path, allowed in [(scratch, SCRATCH_RIGHTS), *((path, READ_ONLY) for path in readable)]:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):  # noqa: PTH112 (this module starts fast)
            allowed &= (1 << 1) | (1 << 2)
        rule = struct.pack("=Qi", allowed, descriptor)
        _checked(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
        os.close(descriptor)
    _checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def seccomp_filter() -> bytes:
    """The BPF program: refuse DENIED with EPERM, new processes too, let threads and the rest pass."""

    def op(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, jump_true, jump_false, value)

    refuse = op(RETURN, 0, 0, ERRNO | EPERM)
    program = [
        op(LOAD, 0, 0, 4),  # architecture
        op(JUMP_EQUAL, 1, 0, X86_64),
        op(RETURN, 0, 0, KILL),
        op(LOAD, 0, 0, 0),  # system call number
        op(JUMP_GREATER_EQUAL, 0, 1, X32_BIT),
        op(RETURN, 0, 0, KILL),
    ]
    for numbers in DENIED.values():
        for number in numbers:
            program += [op(JUMP_EQUAL, 0, 1, number), refuse]
    program += [
        op(JUMP_EQUAL, 0, 2 + 2 * len(DENIED_IOCTLS), IOCTL),
        op(LOAD, 0, 0, 24),  # which ioctl
        *(part for command in DENIED_IOCTLS for part in (op(JUMP_EQUAL, 0, 1, command), refuse)),
        op(RETURN, 0, 0, ALLOW),
        op(JUMP_EQUAL, 0, 1, CLONE3),  # its flags lie in memory: the C library falls back to clone
        op(RETURN, 0, 0, ERRNO | ENOSYS),
        op(JUMP_EQUAL, 0, 3, CLONE),
        op(LOAD, 0, 0, 16),  # clone's flags
        op(JUMP_BIT_SET, 1, 0, CLONE_THREAD),
        refuse,
        op(RETURN, 0, 0, ALLOW),
    ]
    return b"".join(program)


def close_system_calls() -> None:
    """Install the filter; it holds for good."""
    code = seccomp_filter()
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    _checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


def enter(request: dict[str, Any]) -> None:
    """Close every door, in the order in which each still can be closed."""
    _checked(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    limit(request["limits"])
    _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    close_files(request["scratch"], request["readable"])
    close_system_calls()


def main() -> None:
    """Read the request, enter the jail and say so, run the program, answer."""
    request = json.load(sys.stdin)
    answer = os.fdopen(request["answer"], "w")
    token = request.pop("token")
    try:
        enter(request)
    except OSError as error:
        answer.write(f"{error}\n")
        return
    answer.write("entered\n")
    answer.flush()
    try:
        exec(compile(request["program"], "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except BaseException as error:  # noqa: BLE001 (whatever the program raises is its result)
        detail = f"{type(error).__name__}: {error}"[:200]
        json.dump({"token": "", "reason": detail}, answer)
    else:
        json.dump({"token": token, "reason": ""}, answer)
    answer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
