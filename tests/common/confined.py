"""Run a Python program as Docker's default profile would let it run: new namespaces and mounts are refused.

python tests/common/confined.py program.py arguments
"""

import ctypes
import runpy
import struct
import sys

REFUSED = (155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442)  # mounts, chroot, unshare, setns
CLONE, CLONE3, NEW_NAMESPACES = 56, 435, 0x7E020000


def op(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    """An instruction of BPF."""
    return struct.pack("=HBBI", code, jump_true, jump_false, value)


def confine() -> None:
    """Refuse them from here on, with EPERM as Docker does (clone3 with ENOSYS)."""
    program = [op(0x20, 0, 0, 0)]
    for number in REFUSED:
        program += [op(0x15, 0, 1, number), op(0x06, 0, 0, 0x00050001)]
    program += [op(0x15, 0, 1, CLONE3), op(0x06, 0, 0, 0x00050026)]
    program += [op(0x15, 0, 3, CLONE), op(0x20, 0, 0, 16), op(0x45, 0, 1, NEW_NAMESPACES)]
    program += [op(0x06, 0, 0, 0x00050001), op(0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)), 0, 0) == 0


if __name__ == "__main__":
    confine()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
