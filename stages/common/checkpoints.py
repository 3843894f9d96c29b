"""Checkpoints of one training run: complete ones only, of the same inputs only, hashed before use.

A run's folder is named by a hash of all that its result depends on, so that nothing else can be resumed
from it. A checkpoint counts once its folder has its final name, which it gets after its manifest of hashes
has been written and everything has reached the disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.common import files
from stages.common.errors import PipelineError

MANIFEST = "manifest.json"
PREFIX = "step-"


def key(facts: dict[str, Any], inputs: Iterable[Path]) -> str:
    """A name for the run with these facts (anything that JSON can hold) and these input files."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in inputs:
        digest.update(f"{path.name} {files.sha256(path)}\n".encode())
    return digest.hexdigest()[:32]


def seal(unfinished: Path, step: int, facts: dict[str, Any]) -> Path:
    """Give a checkpoint its manifest and then its final name; returns where it lies."""
    hashes = {name: files.sha256(unfinished / name) for name in held(unfinished)}
    files.write_json(unfinished / MANIFEST, {"step": step, **facts, "files": hashes})
    for path in [*unfinished.rglob("*"), unfinished]:
        flush(path)
    final = unfinished.with_name(f"{PREFIX}{step}")
    if final.exists():
        shutil.rmtree(final)
    unfinished.replace(final)
    flush(final.parent)
    return final


def held(point: Path) -> list[str]:
    """The files of a checkpoint by name; in a folder of its own lies what DeepSpeed adds."""
    return sorted(path.relative_to(point).as_posix() for path in point.rglob("*") if path.is_file())


def flush(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete(folder: Path) -> list[Path]:
    """The checkpoints with a final name, the newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def manifest(point: Path) -> files.Row:
    """What a checkpoint says of itself, after its files were found to be as they were written.

    Raises PipelineError naming the file that is missing, spare or changed.
    """
    said = files.read_json(point / MANIFEST)
    hashes = said.get("files")
    if not isinstance(hashes, dict) or f"{PREFIX}{said.get('step')}" != point.name:
        raise PipelineError(f"{point / MANIFEST}: not that of {point.name}; expected its step and files")
    there = set(held(point)) - {MANIFEST}
    for name in sorted(there ^ set(hashes)):
        raise PipelineError(
            f"{point / name}: {'not listed' if name in there else 'missing'}; expected as saved"
        )
    for name, expected in hashes.items():
        if files.sha256(point / name) != expected:
            raise PipelineError(f"{point / name}: bytes have changed; expected SHA-256 {expected}")
    return said


def latest(folder: Path) -> tuple[Path, files.Row] | None:
    """The newest sound checkpoint with its manifest; says which are skipped, and why."""
    for point in complete(folder):
        try:
            return point, manifest(point)
        except (PipelineError, OSError) as error:
            print(f"train: {point.name} is skipped: {error}")
    return None


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints."""
    for point in complete(folder)[keep:]:
        shutil.rmtree(point)


def sweep(folder: Path) -> None:
    """Remove what a killed run left unfinished."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def clear(folder: Path) -> None:
    """Remove a run's folder with all its checkpoints."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.rmdir()


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Turn what writing to a full or read-only disk raises, in three libraries, into a PipelineError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise PipelineError(
            f"{folder}: {str(error).splitlines()[0]}; expected a writable folder with room for a checkpoint "
            "(complete checkpoints are kept: run again to go on)"
        ) from error
