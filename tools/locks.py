"""What the locks pin, and whether what is installed is that."""

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name
from packaging.version import Version

from stages.common.errors import PipelineError
from stages.common.program import Pin, parsed

ROOT = Path(__file__).parents[1]
CUDA = ("requirements.lock",)
CPU = ("requirements-cpu-torch.lock", "requirements-cpu.lock")
PYTHONS = ("3.11", "3.12")  # pyproject's requires-python


def read(path: Path) -> list[Pin]:
    """The entries of a lock file; raises PipelineError where it is missing or holds something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError(f"{path.name}: no such file; expected a lock (make lock)") from None
    return [pin for pins in parsed(text, path.name).pins.values() for pin in pins]


def linux(python: str) -> dict[str, str]:
    """What markers are asked about on Linux x86-64 with that Python, say "3.12"."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def applied(pins: Iterable[Pin], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Versions by name where the markers hold; without an environment, in the running one.

    Raises PipelineError where two entries give one package two versions.
    """
    found: dict[str, str] = {}
    for pin in pins:
        if pin.marker and not Marker(pin.marker).evaluate(dict(environment) if environment else None):
            continue
        if found.setdefault(pin.name, pin.version) != pin.version:
            raise PipelineError(f"{pin.name}: {found[pin.name]} and {pin.version}; expected one version")
    return found


def installed() -> dict[str, str]:
    """Versions of the installed packages by name."""
    return {canonicalize_name(found.name): found.version for found in metadata.distributions()}


def differing(locked: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What is missing or has another version, a line each. A build tag as in 2.13.0+cpu is no difference."""
    lines = []
    for name, version in sorted(locked.items()):
        has = there.get(name)
        if has is None:
            lines.append(f"{name}: not installed; expected {version}")
        elif Version(has).public != Version(version).public:
            lines.append(f"{name}: {has}; expected {version}")
    return lines


def chosen(there: Mapping[str, str]) -> tuple[str, ...]:
    """The locks that an environment was made of: the CUDA set-up has Triton, the CPU one has not."""
    return CUDA if "triton" in there else CPU
