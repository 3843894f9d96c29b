"""The image's recipe and the way to it, as far as they can be looked at without an engine."""

import os
import re
import subprocess
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from conftest import ROOT

BASE = (
    "docker.io/nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04"
    "@sha256:14d94b039cb94bbd5da559f303b46bc4b0d5d6c24ab1a9d7b186e566ed3400dc"
)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: name and the rest, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined if line]


def given(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def ignored(path: str, patterns: list[str]) -> bool:
    """What .dockerignore says of a path: the last pattern that names it, or a folder it lies in, decides."""
    named = [path, *(folder.as_posix() for folder in Path(path).parents)]
    verdict = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        anywhere = plain.removeprefix("**/")
        if any(fnmatchcase(Path(name).name if anywhere != plain else name, anywhere) for name in named):
            verdict = not pattern.startswith("!")
    return verdict


def patterns() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_one_base_pinned_by_digest() -> None:
    assert given("FROM") == [BASE]


def test_the_last_user_is_no_root_and_a_number() -> None:
    assert given("USER") == ["1000:1000"]
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("CMD")


def test_packages_come_from_the_locks_with_hashes_alone() -> None:
    (install,) = [rest for rest in given("RUN") if "pip install" in rest]
    assert install.count("pip install") == 1
    assert {"--require-hashes", "--no-deps", "--no-build-isolation", "--no-cache-dir"} <= set(install.split())


def test_packages_are_a_layer_before_the_code() -> None:
    copied = [index for index, (name, _) in enumerate(instructions()) if name == "COPY"]
    installed = next(index for index, (_, rest) in enumerate(instructions()) if "pip install" in rest)
    assert instructions()[copied[0]][1] == "requirements*.lock ./"
    assert copied[0] < installed < copied[1]


def test_no_secret_is_an_argument_or_a_variable() -> None:
    names = re.findall(r"(\w+)=", " ".join([*given("ARG"), *given("ENV")]))
    assert {"LOCKS", "HF_HOME"} <= set(names)
    assert [name for name in names if re.search("TOKEN|SECRET|KEY|PASS", name)] == []


def test_labels() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', " ".join(given("LABEL"))))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["version"] == project["version"]
    assert labels["base.name"] == BASE.partition("@")[0]
    assert labels["licenses"] == "Apache-2.0"


@pytest.mark.parametrize(
    ("path", "out"),
    [
        (".git/config", True),
        (".env", True),
        ("stages/.env", True),
        ("stages/common/.env.local", True),
        (".dvc/cache/files/md5/00/11", True),
        (".dvc/config.local", True),
        ("data/raw/coding.jsonl", True),
        ("models/base/model.safetensors", True),
        ("stages/__pycache__/train.cpython-312.pyc", True),
        ("tests/conftest.py", True),
        ("stages/train.py", False),
        ("stages/common/javascript.js", False),
        (".dvc/config", False),
        ("data/benchmarks/detection.jsonl", False),
        ("requirements-cpu.lock", False),
    ],
)
def test_what_reaches_the_image(path: str, out: bool) -> None:
    assert ignored(path, patterns()) == out


def test_the_context_is_small() -> None:
    rules = patterns()
    sizes = {}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in (".git", ".venv", "models", ".partial")]
        for name in names:
            path = Path(folder, name)
            if not ignored(str(path.relative_to(ROOT)), rules):
                sizes[path] = path.stat().st_size
    assert max(sizes.values()) < 2 << 20
    assert 1 << 20 < sum(sizes.values()) < 8 << 20


def test_every_needed_file_is_let_through() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split("\0") if name]
    kept = {name for name in names if not ignored(name, patterns())}
    assert {"dvc.yaml", "dvc.lock", "params.yaml", "Makefile", "LICENSE", "pyproject.toml"} <= kept
    for folder in ("stages/", "tools/", "conf/", "data/handmade/", "data/benchmarks/"):
        assert {name for name in names if name.startswith(folder)} <= kept


# The Makefile, with `echo` in the engine's place. ----------------------------------------------------------


def said(*arguments: str, **variables: str) -> str:
    """What make would run, told by an engine that only repeats its arguments."""
    left_out = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "IN", "DVC_CACHE", "HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        ["make", "--no-print-directory", "ENGINE=echo", *arguments],
        cwd=ROOT,
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("target", ["repro", "params", "test", "lint", "health"])
def test_a_target_runs_in_the_image_on_the_checkout(target: str) -> None:
    told = said(target, "IN=container", "GPU=")
    assert told.startswith("run --rm --init --interactive ")
    assert f"--volume {ROOT}:/workspace " in told
    assert f"--user {os.getuid()}:{os.getgid()} " in told
    assert re.search(rf" coder-agent:cpu-[0-9a-f]{{12}} make {target} IN=image$", told.strip())


def test_a_gpu_is_asked_for_only_where_one_is() -> None:
    assert "gpu" not in said("repro", "IN=container", "GPU=")
    assert "--gpus all" in said("repro", "IN=container", "GPU=/usr/bin/nvidia-smi")
    podman = said("repro", "IN=container", "GPU=/usr/bin/nvidia-smi", "ENGINE=echo podman")
    assert "--device nvidia.com/gpu=all" in podman
    assert "--userns keep-id" in podman


def test_secrets_go_by_name() -> None:
    told = said("repro", "IN=container", HF_TOKEN="hf_hunter2")  # noqa: S106
    assert "--env HF_TOKEN " in told
    assert "hunter2" not in told


def test_a_shared_cache_is_mounted_in_the_checkouts_place(tmp_path: Path) -> None:
    assert "/.dvc/cache" not in said("repro", "IN=container")
    told = said("repro", "IN=container", f"DVC_CACHE={tmp_path / 'cache'}")
    assert f"--volume {tmp_path}/cache:/workspace/.dvc/cache " in told
    assert (tmp_path / "cache").is_dir()  # an engine would make it as root


def test_the_tag_follows_the_locks(tmp_path: Path) -> None:
    for name in ["Makefile", "Dockerfile", *(path.name for path in ROOT.glob("requirements*.lock"))]:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    def tag() -> str:
        command = ["make", "-C", str(tmp_path), "--no-print-directory", "ENGINE=echo", "image"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return re.findall(r"--tag (coder-agent:\S+)", done.stdout)[0]

    before = tag()
    assert tag() == before
    with (tmp_path / "requirements.lock").open("a") as lock:
        lock.write("# another\n")
    assert tag() != before


def test_in_the_image_no_environment_is_made() -> None:
    told = said("-n", "setup", "repro", "IN=image")
    assert "venv" not in told and "dvc repro" in told
