"""Metrics: exact values on small tables, and bounds on random ones."""

import math
import random

import pytest

from stages.common import metrics
from stages.common.metrics import Judged


def pairs(*verdicts: tuple[bool | None, bool | None]) -> list[Judged]:
    """Pairs with the verdicts given on the vulnerable and on the fixed side."""
    return [
        Judged(f"p{number}", vulnerable, verdict)
        for number, both in enumerate(verdicts)
        for vulnerable, verdict in zip((True, False), both, strict=True)
    ]


RIGHT, WRONG, ALWAYS, NEVER, INVALID = (
    (True, False),
    (False, True),
    (True, True),
    (False, False),
    (None, None),
)


@pytest.mark.parametrize(
    ("verdicts", "recall", "specificity", "mcc", "pair_correct", "invalid"),
    [
        ([RIGHT] * 4, 1, 1, 1, 1, 0),
        ([WRONG] * 4, 0, 0, -1, 0, 0),
        ([ALWAYS] * 4, 1, 0, 0, 0, 0),
        ([NEVER] * 4, 0, 1, 0, 0, 0),
        ([INVALID] * 4, 0, 0, -1, 0, 1),
        ([RIGHT, RIGHT, RIGHT, WRONG], 0.75, 0.75, 0.5, 0.75, 0),
        ([RIGHT, ALWAYS], 1, 0.5, 1 / math.sqrt(3), 0.5, 0),
        ([(True, None), (None, False)], 0.5, 0.5, 0, 0, 0.5),
        ([], 0, 0, 0, 0, 0),
    ],
)
def test_values_worked_out_by_hand(verdicts, recall, specificity, mcc, pair_correct, invalid):
    assert metrics.detection(pairs(*verdicts)) == pytest.approx(
        {
            "balanced_accuracy": (recall + specificity) / 2,
            "recall": recall,
            "specificity": specificity,
            "mcc": mcc,
            "pair_correct": pair_correct,
            "invalid_rate": invalid,
        }
    )


def test_bounds_order_and_invalid_answers_on_random_tables():
    random_ = random.Random(3)
    for _ in range(300):
        rows = pairs(*(random_.choices([True, False, None], k=2) for _ in range(random_.randrange(1, 20))))
        found = metrics.detection(rows)
        shuffled = random_.sample(rows, len(rows))
        assert metrics.detection(shuffled) == pytest.approx(found)
        assert all(0 <= value <= 1 for name, value in found.items() if name != "mcc")
        assert -1 <= found["mcc"] <= 1 and all(map(math.isfinite, found.values()))
        assert found["pair_correct"] <= min(found["recall"], found["specificity"])
        wrong = [
            Judged(r.pair, r.vulnerable, not r.vulnerable if r.verdict is None else r.verdict) for r in rows
        ]
        assert metrics.detection(wrong) == pytest.approx({**found, "invalid_rate": 0})


def test_coin_tosses_score_chance():
    random_ = random.Random(5)
    found = metrics.detection(pairs(*(random_.choices([True, False], k=2) for _ in range(5000))))
    assert found["mcc"] == pytest.approx(0, abs=0.05) and found["pair_correct"] == pytest.approx(
        0.25, abs=0.03
    )


@pytest.mark.parametrize("verdict", [True, False])
def test_constant_judge_scores_chance_whatever_was_answered(verdict):
    found = metrics.constant(pairs(RIGHT, WRONG, INVALID), verdict)
    assert (found["balanced_accuracy"], found["mcc"], found["pair_correct"]) == (0.5, 0, 0)


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [
        (0, 0, 0, 1),
        (0, 10, 0, 0.2775),
        (10, 10, 0.7225, 1),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_interval(passed, total, low, high):
    assert metrics.wilson(passed, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_holds_the_share_and_narrows():
    widths = []
    for total in (4, 40, 400):
        low, high = metrics.wilson(total // 4, total)
        assert 0 <= low <= 0.25 <= high <= 1
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
