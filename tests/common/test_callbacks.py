"""What happens beside training: when a loss is complained of, and which validation is the best."""

import math

import pytest

from stages.common import callbacks
from stages.common.callbacks import WINDOW


def logs(*losses: float) -> list[dict[str, float]]:
    return [{"loss": loss, "step": step} for step, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], ""),
        ([2.0, 1.0, 0.5], ""),
        ([2.0, math.nan], "the loss is nan"),
        ([2.0, math.inf], "the loss is inf"),
        ([1.0] + [0.0] * (WINDOW - 1), ""),
        ([1.0] + [0.0] * WINDOW, f"the loss has been 0 for {WINDOW} steps"),
        ([2.0] * WINDOW + [3.9] * WINDOW, ""),
        ([2.0] * WINDOW + [4.1] * WINDOW, f"the mean loss of {WINDOW} steps rose from 2.000 to 4.100"),
        ([2.0] * WINDOW + [9.0] * (WINDOW - 6), ""),  # too few to judge by
    ],
)
def test_a_loss_that_is_lost_is_told(losses: list[float], expected: str) -> None:
    assert callbacks.complaint(logs(*losses)) == expected


def test_lines_without_a_loss_do_not_count() -> None:
    found = [*logs(*[0.0] * (WINDOW - 1)), {"eval_fix_loss": 0.0, "step": 3}]
    assert callbacks.complaint(found) == ""


def test_a_validation_counts_when_all_its_kinds_are_there() -> None:
    rows = {"fix": 1, "write": 3}
    found = [
        {"step": 2, "eval_fix_loss": 4.0, "eval_fix_entropy": 9.0},
        {"step": 2, "eval_write_loss": 2.0},
        {"step": 4, "eval_fix_loss": 1.0},
    ]
    assert callbacks.validations(found, rows) == [(2, 2.5)]
    assert callbacks.validations(found, {"fix": 1}) == [(2, 4.0), (4, 1.0)]
