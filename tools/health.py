"""Say what a run would find: versions, device, sandbox, and whether what is installed is what is locked.

    python -m tools.health               # make health; in the image: make health IN=container

Ends with status 1 where something is missing that the pipeline needs.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable

from packaging.specifiers import SpecifierSet

from stages.common.errors import PipelineError, run
from tools import locks

SHOWN = ("dvc", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")

Found = tuple[bool, str]  # whether the pipeline can work with it, and what it is


def python() -> Found:
    """The interpreter, by the range that pyproject.toml names."""
    project = tomllib.loads((locks.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version, asked = platform.python_version(), project["requires-python"]
    good = version in SpecifierSet(asked)
    return good, version if good else f"{version}; expected {asked}"


def packages() -> Found:
    """Whether what is installed is what the lock says."""
    there = locks.installed()
    names = locks.chosen(there)
    wanted = locks.applied([pin for name in names for pin in locks.read(locks.ROOT / name)])
    odd = locks.differing(wanted, there)
    told = f"{len(wanted)} as in {names[-1]}" if not odd else f"{len(odd)} differ: {'; '.join(odd[:3])}"
    return not odd, told


def versions() -> Found:
    """The packages that decide most."""
    there = locks.installed()
    missing = [name for name in SHOWN if name not in there]
    return not missing, ", ".join(f"{name} {there.get(name, 'missing')}" for name in SHOWN)


def device() -> Found:
    """The GPUs that torch sees, or the CPU; not well where a GPU is there and torch cannot use it."""
    import torch

    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if torch.cuda.is_available():
        parts = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        told = ", ".join(f"{part.name} ({part.total_memory / 2**30:.0f} GiB)" for part in parts)
        return True, f"{told}, CUDA {torch.version.cuda}, driver {driver or 'unknown'}"
    cores = f"CPU, {len(os.sched_getaffinity(0))} cores, {torch.backends.cpu.get_cpu_capability()}"
    if torch.version.cuda is None or driver is None:
        return True, cores
    return (
        False,
        f"{cores}; expected a GPU: its driver is {driver}, torch was built for CUDA {torch.version.cuda}",
    )


def sandbox() -> Found:
    """Whether answers can be executed; without a sandbox none is."""
    from stages.common import jail, sandbox

    outcome = sandbox.run("assert 1 + 1 == 2")
    told = f"Landlock ABI {jail.landlock_abi()}, seccomp"
    return outcome.status == "passed", told if outcome.status == "passed" else f"{told}: {outcome.reason}"


def node() -> Found:
    """What runs answers in JavaScript; without it they are read, and the verdicts say so."""
    from stages.common import sandbox

    path = sandbox.node()
    return True, path or "not found: answers in JavaScript are read, not run"


def git() -> Found:
    """What DVC's experiments and diffs ask for."""
    said = _said("git", "--version")
    return said is not None, said or "not found on the path"


def _said(*command: str) -> str | None:
    """The first line that a program prints; None where it is not there or fails."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else None


CHECKS: dict[str, Callable[[], Found]] = {
    "Python": python,
    "packages": packages,
    "versions": versions,
    "device": device,
    "sandbox": sandbox,
    "node": node,
    "git": git,
}


def told(checks: dict[str, Callable[[], Found]]) -> tuple[bool, list[str]]:
    """Whether all is well, and a line for every check."""
    all_good, lines = True, []
    for name, check in checks.items():
        try:
            good, text = check()
        except PipelineError as error:
            good, text = False, str(error)
        all_good &= good
        lines.append(f"{name:<9} {'ok ' if good else 'BAD'}  {text}")
    return all_good, lines


def main() -> None:
    """Print a line for every check."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    good, lines = told(CHECKS)
    print("\n".join(lines))
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
