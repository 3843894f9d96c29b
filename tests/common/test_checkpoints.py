"""Checkpoints: complete, sound and of the same inputs, or not used."""

from pathlib import Path

import pytest

from stages.common import checkpoints
from stages.common.errors import PipelineError


def written(folder: Path, step: int) -> Path:
    """A checkpoint as the trainer leaves it."""
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "weights").write_text(f"weights {step}", encoding="utf-8")
    (made / "state").write_text(f"state {step}", encoding="utf-8")
    return made


def sealed(folder: Path, *steps: int) -> list[Path]:
    return [checkpoints.seal(written(folder, step), step, {"seconds": 1.5}) for step in steps]


def test_only_sealed_ones_count_the_newest_first(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "absent") is None
    nine, ten = sealed(tmp_path, 9, 10)
    written(tmp_path, 11)
    assert checkpoints.complete(tmp_path) == [ten, nine]
    found = checkpoints.latest(tmp_path)
    assert found and found[0] == ten and found[1]["seconds"] == 1.5
    checkpoints.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]


def test_a_step_that_was_saved_before_is_replaced(tmp_path: Path) -> None:
    (point,) = sealed(tmp_path, 3)
    (point / "weights").write_text("damaged", encoding="utf-8")
    assert sealed(tmp_path, 3) == [point]
    assert checkpoints.manifest(point)["step"] == 3


def test_old_ones_go(tmp_path: Path) -> None:
    sealed(tmp_path, 1, 2, 3, 4)
    checkpoints.rotate(tmp_path, 2)
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["step-4", "step-3"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda point: (point / "weights").write_text("weights 6", encoding="utf-8"),
            "weights: bytes have changed",
        ),
        (lambda point: (point / "state").unlink(), "state: missing"),
        (lambda point: (point / "more").touch(), "more: not listed"),
        (lambda point: (point / "manifest.json").write_text("{}", encoding="utf-8"), "not that of step-5"),
        (lambda point: (point / "manifest.json").unlink(), "not found"),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(
    damage: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = sealed(tmp_path, 4, 5)
    damage(newer)  # type: ignore[operator]
    with pytest.raises(PipelineError, match=message):
        checkpoints.manifest(newer)
    found = checkpoints.latest(tmp_path)
    assert found and found[0] == older
    assert "step-5 is skipped" in capsys.readouterr().out


def test_one_that_was_renamed_is_not_taken_for_another_step(tmp_path: Path) -> None:
    (point,) = sealed(tmp_path, 5)
    point.rename(tmp_path / "step-50")
    assert checkpoints.latest(tmp_path) is None


def test_the_key_follows_facts_names_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"one")
    first = checkpoints.key({"a": 1, "b": 2}, [path])
    assert checkpoints.key({"b": 2, "a": 1}, [path]) == first
    assert checkpoints.key({"a": 1, "b": 3}, [path]) != first
    path.write_bytes(b"two")
    assert checkpoints.key({"a": 1, "b": 2}, [path]) != first
    path.write_bytes(b"one")
    assert checkpoints.key({"a": 1, "b": 2}, [path.rename(tmp_path / "other")]) != first


def test_what_a_full_disk_raises_is_told(tmp_path: Path) -> None:
    errors = (OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file"))
    for error in errors:
        with pytest.raises(PipelineError, match="expected a writable folder"), checkpoints.storage(tmp_path):
            raise error
    with pytest.raises(RuntimeError, match="other"), checkpoints.storage(tmp_path):
        raise RuntimeError("other")
