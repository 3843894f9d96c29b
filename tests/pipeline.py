"""A pipeline of four stages in a folder of its own, behind our edge; and damage that DVC does not see."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, Clone, write_yaml

WRITE = """
import sys
from pathlib import Path

from stages.common.errors import run


def main():
    Path("data").mkdir(exist_ok=True)
    Path("data", sys.argv[1] + ".txt").write_text(sys.argv[1] * 100)


run(main)
"""
BASE = """
from pathlib import Path

from stages.common.errors import run


def main():
    Path("models/base/deep").mkdir(parents=True)
    for name in ("manifest.json", "weights", "deep/more"):
        Path("models/base", name).write_text(name * 100)


run(main)
"""
USE = """
import os
from pathlib import Path

from stages.common.errors import run


def main():
    exec(os.environ.get("MEDDLE", ""))  # somebody is at work while the stage runs
    Path("used.txt").write_text("used")


run(main)
"""
PIPELINE = {
    "stages": {
        "write": {
            "foreach": "${write}",
            "do": {
                "cmd": "python -m stages.write ${key}",
                "params": ["write.${key}"],
                "outs": ["data/${key}.txt"],
            },
        },
        "base": {"cmd": "python -m stages.base", "params": ["base"], "outs": ["models/base"]},
        "use": {
            "cmd": "python -m stages.use",
            "deps": ["stages/use.py", "conf/${use.name}.yaml", "given", "data", "models/base"],
            "params": ["use"],
            "outs": ["used.txt"],
        },
        "card": {
            "cmd": "python -m stages.card",
            "deps": ["models/base/manifest.json"],
            "outs": [{"card.txt": {"cache": False}}],
        },
    }
}
PARAMS = {"write": {"one": {}, "two": {}}, "base": 1, "use": {"name": "plain", "seed": 42}, "other": 1}
GIVEN = {
    "conf/plain.yaml": "plain",
    "given/a.txt": "given",
    ".dvcignore": "*.part\n",
    ".gitignore": "used.txt\n",
}


def finish(scratch: Path) -> Clone:
    """Make it and run it; all of it is committed."""
    root = scratch / "project"
    (root / "stages/common").mkdir(parents=True)
    for name in ("__init__", "common/__init__", "common/errors", "common/integrity"):
        shutil.copyfile(ROOT / f"stages/{name}.py", root / f"stages/{name}.py")
    scripts = {"write": WRITE, "base": BASE, "use": USE, "card": USE.replace("used", "card")}
    given = GIVEN | {f"stages/{name}.py": text for name, text in scripts.items()}
    for name, text in given.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    write_yaml(root / "dvc.yaml", PIPELINE)
    write_yaml(root / "params.yaml", PARAMS)
    made = Clone(root, scratch)
    made.checked("git", "init", "-q")
    made.checked("dvc", "init", "-q")
    made.checked("dvc", "repro", "-q")
    made.checked("git", "add", "-A")
    made.checked("git", "commit", "-q", "-m", "Run")
    return made


def copied(finished: Clone, scratch: Path) -> Clone:
    """A copy of it with the same times."""
    shutil.copytree(finished.root, scratch / "project", symlinks=True)
    return Clone(scratch / "project", scratch)


def quietly(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's bytes and put its times and mode back: what DVC and git look at stays as it was."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        data = change(stream.read())
        stream.seek(0)
        stream.write(data)
        stream.truncate()
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]
