"""The sandbox: a program passes only by reaching its end, and nothing of the machine is within its reach."""

import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest

from stages.common import jail, sandbox
from stages.common.errors import PipelineError

QUICK = sandbox.Limits(cpu_seconds=1, memory_bytes=256 << 20)


def status(program: str) -> str:
    """How a program ends under small limits."""
    return sandbox.run(program, QUICK).status


@pytest.mark.parametrize(
    "program",
    [
        "",
        "assert 1 + 1 == 2",
        "import json, re, math, decimal, hashlib, sqlite3, csv, logging, datetime, collections, tempfile",
        "open('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'",
        "import os\nos.mkdir('d')\nos.rename('d', 'e')\nos.rmdir('e')",
        "import tempfile\nwith tempfile.TemporaryFile() as file: file.write(b'x')",
        "import threading\nfound = []\nthread = threading.Thread(target=found.append, args=[1])\n"
        "thread.start()\nthread.join()\nassert found == [1]",
        "import asyncio\n\nasync def one():\n    return 1\n\nassert asyncio.run(one()) == 1",
        "import shutil\nopen('a', 'w').close()\nshutil.copyfile('a', 'b')",
        "import sys\nprint('x' * 100000)\nprint('y' * 100000, file=sys.stderr)",
        "try:\n    raise SystemExit\nexcept SystemExit:\n    pass",
        "import zoneinfo, datetime, tracemalloc, random, itertools, functools, unittest.mock",
        "if __name__ == '__main__': x = 1\nassert x",
    ],
)
def test_ordinary_program_passes(program):
    assert sandbox.run(program, QUICK) == sandbox.Outcome("passed")


@pytest.mark.parametrize(
    "ending",
    [
        "raise ValueError('no')",
        "assert False",
        "this is not Python",
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "exit()",
        "quit(0)",
        "raise SystemExit(0)",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "print('passed'); import os; os._exit(0)",
        "import os; os.write(1, b'passed'); os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        'import os\nfor n in range(3, 64):\n try: os.write(n, b\'{"token": "", "reason": ""}\')\n'
        " except OSError: pass\nos._exit(0)",
        "import os\nfor n in range(3, 64):\n try: os.write(n, b'passed')\n except OSError: pass\nos._exit(0)",
        "import os\nos.closerange(3, 64)",
        "def f(): f()\nf()",
        "x = '\\ud800'.encode()",
        "a = 1\0",
        "x = " + "-" * 50_000 + "1",
    ],
)
def test_early_end_never_passes(ending):
    assert status(ending) == "failed"
    assert status(f"x = 1\n{ending}\nassert x == 1") == "failed"


@pytest.mark.parametrize(
    "program", ["while True: pass", "import re; re.match('(a+)+b', 'a' * 60)", "10 ** 10 ** 10"]
)
def test_endless_program_never_passes(program):
    outcome = sandbox.run(program, QUICK)
    assert outcome.status == "timeout" and "CPU" in outcome.reason


def test_sleeping_program_is_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 1)
    assert status("import time; time.sleep(1000)") == "timeout"


@pytest.mark.parametrize(
    "program", ["x = bytearray(1 << 30)", "x = []\nwhile True: x.append(' ' * 1000000 + str(len(x)))"]
)
def test_memory_is_limited(program):
    assert "MemoryError" in sandbox.run(program, QUICK).reason


SYSCALL = (
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\ninfo = (ctypes.c_int * 32)(0, 0, -1)\n"
)
REFUSED = {
    "read the password file": "open('/etc/passwd').read()",
    "read a process": "open('/proc/self/environ').read()",
    "read the parent's environment": "import os; open(f'/proc/{os.getppid()}/environ').read()",
    "read the parent's memory": "import os; open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "list the root": "import os; os.listdir('/')",
    "read this repository": f"open({str(Path(__file__).resolve())!r}).read()",
    "list the temporary folder": f"import os; os.listdir({tempfile.gettempdir()!r})",
    "write beside the scratch folder": "open('../escaped', 'w')",
    "make a folder outside": "import os; os.mkdir('/tmp/escaped')",
    "remove a file outside": "import os, sysconfig; os.unlink(sysconfig.get_path('stdlib') + '/os.py')",
    "write into Python": "import sysconfig; open(sysconfig.get_path('stdlib') + '/os.py', 'a')",
    "link out": "import os; os.link('/etc/passwd', 'here')",
    "read through a symbolic link": "import os; os.symlink('/etc/passwd', 'here'); open('here').read()",
    "TCP": "import socket; socket.socket()",
    "UDP": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "Unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "fork": "import os; os.fork()",
    "vfork by number": SYSCALL + "if libc.syscall(58) < 0: raise OSError",
    "clone by number": SYSCALL + "if libc.syscall(56, 17, 0, 0, 0, 0) < 0: raise OSError",
    "subprocess": "import subprocess; subprocess.run(['true'])",
    "shell": "import os\nif os.system('true') != 0: raise OSError",
    "popen": "import os; os.popen('true').read()",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start()",
    "chmod": "import os; open('a', 'w').close(); os.chmod('a', 0o777)",
    "chown": "import os; open('a', 'w').close(); os.chown('a', 1, 1)",
    "signal the parent": "import os; os.kill(os.getppid(), 0)",
    "signal itself": "import os; os.kill(os.getpid(), 9)",
    "queue a signal to the parent": SYSCALL
    + "if libc.syscall(129, os.getppid(), 0, info) < 0: raise OSError",
    "queue a signal to the parent's thread": SYSCALL
    + "if libc.syscall(297, os.getppid(), os.getppid(), 0, info) < 0: raise OSError",
    "renice the parent": "import os; os.setpriority(0, os.getppid(), os.getpriority(0, os.getppid()))",
    "trace the parent": SYSCALL + "if libc.ptrace(16, os.getppid(), 0, 0) < 0: raise OSError",
    "raise its limits": "import resource as r\ntry: r.setrlimit(r.RLIMIT_CPU, (-1, -1))\n"
    "except ValueError: raise OSError",
    "a large file": "open('a', 'wb').write(b'x' * (2 << 20))",
    "many open files": "import os\nfiles = [open(str(n), 'w') for n in range(100)]",
    "mount": SYSCALL + "if libc.mount(b'x', b'.', b'tmpfs', 0, 0) < 0: raise OSError",
    "new namespace": SYSCALL + "if libc.unshare(0x10000000) < 0: raise OSError",
    "shared memory": "from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=9)",
    "make a file immutable": "import fcntl\nfile = open('a', 'w')\n"
    "for flag in (16, 0): fcntl.ioctl(file, 0x40086602, bytes([flag]) + bytes(7))",
}


@pytest.mark.parametrize("program", REFUSED.values(), ids=REFUSED)
def test_refused(program):
    tried = f"try:\n    exec({program!r}, {{}})\nexcept OSError:\n    pass\n"
    tried += "else:\n    raise RuntimeError('not refused')"
    assert sandbox.run(tried, QUICK) == sandbox.Outcome("passed")


def test_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "not for generated code")
    allowed = {"TMPDIR", "HOME", "PYTHONHASHSEED", "LC_ALL"}
    program = f"import os\nassert set(os.environ) == {allowed!r}, sorted(os.environ)"
    assert sandbox.run(program, QUICK) == sandbox.Outcome("passed")


def test_only_the_standard_library_can_be_imported():
    assert "ModuleNotFoundError" in sandbox.run("import pytest", QUICK).reason
    assert "ModuleNotFoundError" in sandbox.run("import stages", QUICK).reason


def test_scratch_folder_is_empty_and_vanishes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "import os\nassert os.listdir() == []\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')"
    assert [status(program), status(program)] == ["passed", "passed"]
    assert list(tmp_path.iterdir()) == []


def test_deep_scratch_folders_neither_stop_the_judge_nor_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"
    try:
        assert status(program) == "passed"
        assert list(tmp_path.iterdir()) == []
    finally:
        os.system(f"rm -rf '{tmp_path}'/sandbox-*")  # noqa: S605 (pytest's own cleaning would recurse)


def test_flood_of_error_output_does_not_fill_the_judge_s_memory():
    tracemalloc.start()
    try:
        status("import os\nfor _ in range(512): os.write(2, b'x' * 65536)")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_error_output_that_looks_like_a_broken_sandbox_is_only_a_failure():
    program = "import os\nos.write(2, b'File \"x\", line 1, in enter\\nOSError: no\\n')\nos._exit(1)"
    assert status(program) == "failed"


def test_reason_names_the_error():
    assert sandbox.run("raise ValueError('seven')", QUICK).reason == "ValueError: seven"
    assert len(sandbox.run("raise ValueError('x' * 10000)", QUICK).reason) <= 200


@pytest.mark.parametrize("abi", [0, -1, 1, jail.MINIMUM_ABI - 1])
def test_refuses_to_run_without_landlock(monkeypatch, abi):
    monkeypatch.setattr(jail, "landlock_abi", lambda: abi)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(PipelineError, match=f"Landlock ABI {abi}; expected {jail.MINIMUM_ABI}"):
        sandbox.run("pass")


@pytest.mark.parametrize(
    ("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")]
)
def test_refuses_other_machines(monkeypatch, system, machine):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(PipelineError, match=f"{system} on {machine}.*expected Linux"):
        sandbox.require()


def test_sandbox_that_cannot_be_entered_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr(sandbox, "_readable", lambda: ["/absent/folder"])
    with pytest.raises(PipelineError, match="expected the program to be confined"):
        sandbox.run("pass", QUICK)


def test_sandbox_that_cannot_be_started_is_an_error_and_no_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr(jail, "__file__", str(tmp_path / "absent.py"))
    with pytest.raises(PipelineError, match="sandbox"):
        sandbox.run("pass", QUICK)


def test_filter_is_a_whole_program_of_eight_byte_instructions():
    code = jail.seccomp_filter()
    numbers = [number for group in jail.DENIED.values() for number in group]
    assert len(code) % 8 == 0 and len(code) // 8 == 6 + 2 * len(numbers) + 3 + 2 * len(jail.DENIED_IOCTLS) + 7
    assert len(numbers) == len(set(numbers))
