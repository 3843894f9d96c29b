"""Run a generated Python program where it can do no harm, and say whether it ran to its end.

Each program gets a fresh interpreter (isolated, standard library only), an empty environment, an empty
scratch folder that vanishes, and limits on CPU time, memory, file size and open files. Landlock leaves
reading of the Python installation and writing of the scratch folder; seccomp refuses sockets, new
processes, signals, tracing, mounts and the like. Without both the sandbox refuses to run anything.

What it does not protect against: flaws in the kernel or in Python itself; a program that uses its CPU
seconds to the full, or the scratch folder's disk with many files; and an answer that cheats its own test
inside the interpreter they share, by searching its memory for the token with which success is reported, or
with objects that are equal to everything. Printing "passed" or exiting early is never taken for success.
"""

import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from stages.common import jail
from stages.common.errors import PipelineError

Status = Literal["passed", "failed", "timeout"]


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `passed` only when its last line was reached; `reason` says why not."""

    status: Status
    reason: str = ""


WALL_SECONDS = 60  # far beyond the CPU limit, so that a busy machine does not change verdicts


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
    """Run `program` to its end in a sandbox of its own.

    Raises PipelineError when the sandbox cannot be set up: nothing ever runs outside it.
    """
    require()
    token = secrets.token_hex(16)
    read_end, write_end = os.pipe()
    scratch = tempfile.mkdtemp(prefix="sandbox-")
    request = {
        "program": program,
        "token": token,
        "answer": write_end,
        "scratch": scratch,
        "readable": _readable(),
        "limits": asdict(limits or Limits()),
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", jail.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=scratch,
        env={"TMPDIR": scratch, "HOME": scratch, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
        pass_fds=[write_end],
        start_new_session=True,
    )
    os.close(write_end)
    try:
        process.communicate(json.dumps(request).encode(), timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome("timeout", f"no end after {WALL_SECONDS} s")
    finally:
        _kill(process)
        with os.fdopen(read_end, encoding="utf-8", errors="replace") as stream:
            answer = stream.read(4096)
        subprocess.run(
            ["rm", "-rf", "--", scratch], check=True
        )  # also where folders nest too deep for shutil
    return _outcome(answer, token, process.returncode)


def _outcome(answer: str, token: str, code: int) -> Outcome:
    entered, _, result = answer.partition("\n")
    if entered != "entered":  # written before the program starts, so no program can take it back
        raise PipelineError(f"sandbox: {entered or f'status {code}'}; expected the program to be confined")
    if not result:
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return Outcome("timeout", "CPU limit")
        return Outcome("failed", f"ended before its last line with status {code}")
    try:
        reply = json.loads(result)
        given, reason = reply["token"], str(reply["reason"])
    except (ValueError, KeyError, TypeError):
        return Outcome("failed", "wrote to the answer channel")
    return Outcome("passed") if given == token else Outcome("failed", reason)


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
    ]
    return sorted({place for place in places if Path(place).exists()})


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
