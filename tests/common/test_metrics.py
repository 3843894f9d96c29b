"""Metrics: exact values on small tables, brute force beside every formula, and bounds on random ones."""

import itertools
import math
import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
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


def weighed(*odds: tuple[float | None, float | None]) -> list[Judged]:
    """Pairs with the log-odds given, and the verdicts that follow from them."""
    return [
        Judged(f"p{number}", vulnerable, None if value is None else value > 0, value)
        for number, both in enumerate(odds)
        for vulnerable, value in zip((True, False), both, strict=True)
    ]


def drawn(random_: random.Random, count: int, levels: int = 4) -> list[Judged]:
    """Random pairs with log-odds, of which many are equal."""
    return [
        Judged(
            f"p{number}",
            vulnerable,
            random_.choice([True, False, None]),
            random_.randrange(levels) + 0.5 * vulnerable,
        )
        for number in range(count)
        for vulnerable in (True, False)
    ]


RIGHT, REVERSED, ALWAYS, NEVER, INVALID = (
    (True, False),
    (False, True),
    (True, True),
    (False, False),
    (None, None),
)
PAIRED = ("pair_correct", "pair_vulnerable", "pair_safe", "pair_reversed")


# Detection. ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "recall", "specificity", "mcc", "paired", "invalid"),
    [
        ([RIGHT] * 4, 1, 1, 1, (1, 0, 0, 0), 0),
        ([ALWAYS] * 4, 1, 0, 0, (0, 1, 0, 0), 0),
        ([NEVER] * 4, 0, 1, 0, (0, 0, 1, 0), 0),
        ([REVERSED] * 4, 0, 0, -1, (0, 0, 0, 1), 0),
        ([INVALID] * 4, 0, 0, -1, (0, 0, 0, 0), 1),
        ([RIGHT, ALWAYS, NEVER, REVERSED], 0.5, 0.5, 0, (0.25, 0.25, 0.25, 0.25), 0),
        ([RIGHT, RIGHT, RIGHT, REVERSED], 0.75, 0.75, 0.5, (0.75, 0, 0, 0.25), 0),
        ([RIGHT, ALWAYS], 1, 0.5, 1 / math.sqrt(3), (0.5, 0.5, 0, 0), 0),
        ([RIGHT, NEVER], 0.5, 1, 1 / math.sqrt(3), (0.5, 0, 0.5, 0), 0),
        ([(True, None), (None, False)], 0.5, 0.5, 0, (0, 0, 0, 0), 0.5),
        ([(True, None), (None, True), RIGHT, INVALID], 0.5, 0.25, -0.25819889, (0.25, 0, 0, 0), 0.5),
        ([], 0, 0, 0, (0, 0, 0, 0), 0),
    ],
)
def test_values_worked_out_by_hand(verdicts, recall, specificity, mcc, paired, invalid):
    assert metrics.detection(pairs(*verdicts)) == pytest.approx(
        {
            "balanced_accuracy": (recall + specificity) / 2,
            "recall": recall,
            "specificity": specificity,
            "mcc": mcc,
            **dict(zip(PAIRED, paired, strict=True)),
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
        sides = zip(rows[::2], rows[1::2], strict=True)
        torn = sum(None in (weak.verdict, fixed.verdict) for weak, fixed in sides) / (len(rows) / 2)
        assert sum(found[name] for name in PAIRED) + torn == pytest.approx(1)
        wrong = [
            Judged(r.pair, r.vulnerable, not r.vulnerable if r.verdict is None else r.verdict) for r in rows
        ]
        same = ("balanced_accuracy", "recall", "specificity", "mcc", "pair_correct")
        taken = metrics.detection(wrong)
        assert {name: taken[name] for name in same} == pytest.approx({name: found[name] for name in same})
        assert taken["invalid_rate"] == 0


def test_coin_tosses_score_chance():
    random_ = random.Random(5)
    found = metrics.detection(pairs(*(random_.choices([True, False], k=2) for _ in range(5000))))
    assert found["mcc"] == pytest.approx(0, abs=0.05)
    assert [found[name] for name in PAIRED] == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize("verdict", [True, False])
def test_constant_judge_scores_chance_whatever_was_answered(verdict):
    found = metrics.constant(pairs(RIGHT, REVERSED, INVALID), verdict)
    assert (found["balanced_accuracy"], found["mcc"], found["pair_correct"]) == (0.5, 0, 0)
    assert found["pair_vulnerable" if verdict else "pair_safe"] == 1 and "auc" not in found


@pytest.mark.parametrize("side", [True, False])
def test_a_pair_without_its_other_side_is_refused(side):
    rows = [row for row in pairs(RIGHT, RIGHT) if (row.pair, row.vulnerable) != ("p1", side)]
    for use in (metrics.detection, metrics.intervals):
        with pytest.raises(KeyError, match="p1"):
            use(rows)


@pytest.mark.parametrize(
    ("verdicts", "counts"),
    [
        ([], (0, 0, 0, 0, 0, 0)),
        ([RIGHT, RIGHT, ALWAYS, NEVER, REVERSED], (3, 2, 3, 2, 0, 0)),
        ([RIGHT, (True, None), (None, None)], (2, 0, 1, 0, 1, 2)),
        ([(None, True), (False, None), (None, False)], (0, 1, 1, 1, 2, 1)),
    ],
)
def test_confusion_counts_every_answer_once(verdicts, counts):
    rows = pairs(*verdicts)
    found = metrics.confusion(rows)
    assert found == dict(
        zip(("tp", "fn", "tn", "fp", "invalid_vulnerable", "invalid_fixed"), counts, strict=True)
    )
    assert sum(found.values()) == len(rows)


# The area under the curve. -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [
        ([], [], 0.5),
        ([1], [], 0.5),
        ([], [1], 0.5),
        ([1], [0], 1),
        ([0], [1], 0),
        ([1], [1], 0.5),
        ([3, 2], [1, 0], 1),
        ([1, 1, 1], [1, 1], 0.5),
        ([2, 0], [1], 0.5),
        ([2, 1, 0], [1, -1], 4.5 / 6),
        ([math.inf, 0], [-math.inf, 0], 3.5 / 4),
    ],
)
def test_area_by_hand(positive, negative, area):
    assert metrics.auc(positive, negative) == area


def ranked(positive: list[float], negative: list[float]) -> float:
    """The area from the ranks of all values, equal ones sharing their mean (Mann and Whitney's U)."""
    values = sorted(positive + negative)
    first = {value: values.index(value) for value in values}
    rank = {value: first[value] + (values.count(value) + 1) / 2 for value in values}
    return (sum(rank[p] for p in positive) - len(positive) * (len(positive) + 1) / 2) / (
        len(positive) * len(negative)
    )


def test_area_is_that_of_the_ranks():
    random_ = random.Random(7)
    for _ in range(200):
        positive, negative = (
            [random_.randrange(6) / 2 for _ in range(random_.randrange(1, 12))] for _ in range(2)
        )
        area = metrics.auc(positive, negative)
        assert area == pytest.approx(ranked(positive, negative))
        assert metrics.auc(negative, positive) == pytest.approx(1 - area)
        assert metrics.auc([3 * p + 1 for p in positive], [3 * n + 1 for n in negative]) == area


def test_area_of_noise_is_half():
    random_ = random.Random(9)
    noise = [[random_.random() for _ in range(700)] for _ in range(2)]
    assert metrics.auc(*noise) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("odds", "area"),
    [
        ([(1.0, -1.0)], 1),
        ([(5.0, 4.0), (1.0, -1.0)], 3 / 4),
        ([(0.0, 0.0)], 0.5),
        ([(1.0, None)], None),
        ([(None, 1.0), (2.0, 1.0)], None),
        ([(None, None)], None),
    ],
)
def test_area_joins_the_metrics_where_all_odds_were_read(odds, area):
    found = metrics.detection(weighed(*odds))
    assert found.get("auc") == area and ("auc" in metrics.intervals(weighed(*odds))) == (area is not None)


# pass@k. -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "passed", "k"),
    [(n, passed, k) for n in range(1, 8) for passed in range(n + 1) for k in range(1, n + 1)],
)
def test_pass_at_k_is_the_share_of_combinations_that_hold_a_pass(samples, passed, k):
    found = [any(one) for one in itertools.combinations([True] * passed + [False] * (samples - passed), k)]
    assert metrics.pass_at_k(samples, passed, k) == pytest.approx(sum(found) / len(found))


def test_pass_at_k_of_many_samples_stays_exact():
    exact = 1 - Fraction(math.comb(9_900, 100), math.comb(10_000, 100))
    assert metrics.pass_at_k(10_000, 100, 100) == pytest.approx(float(exact), rel=1e-12)
    assert metrics.pass_at_k(200, 1, 1) == pytest.approx(1 / 200)


@pytest.mark.parametrize(("samples", "passed", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_that_does_not_exist_is_refused(samples, passed, k):
    with pytest.raises(ValueError, match=f"^pass@{k} of {passed} in {samples}; expected 1 <= k <= samples"):
        metrics.pass_at_k(samples, passed, k)


# Intervals. ----------------------------------------------------------------------------------------------


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


def test_wilson_ends_are_where_the_score_test_turns():
    for total in (1, 7, 40, 263):
        for passed in range(total + 1):
            share = passed / total
            for end in metrics.wilson(passed, total):
                spread = math.sqrt(end * (1 - end) / total)
                assert abs(share - end) == pytest.approx(metrics.Z95 * spread, abs=1e-7)


def test_wilson_holds_the_share_and_narrows():
    widths = []
    for total in (4, 40, 400):
        low, high = metrics.wilson(total // 4, total)
        assert 0 <= low <= 0.25 <= high <= 1
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


def test_bootstrap_holds_the_estimate_in_bounds_and_repeats_itself():
    random_ = random.Random(11)
    for count in (1, 2, 5, 40):
        rows = drawn(random_, count)
        point, found = metrics.detection(rows), metrics.intervals(rows)
        assert list(found) == list(point) and found == metrics.intervals(rows)
        for name, (low, high) in found.items():
            assert (-1 if name == "mcc" else 0) <= low <= high <= 1
            assert low <= point[name] <= high or count < 5, name


@pytest.mark.parametrize("verdicts", [RIGHT, ALWAYS, NEVER, REVERSED, INVALID])
def test_bootstrap_of_equal_pairs_has_no_width(verdicts):
    rows = pairs(*[verdicts] * 9)
    assert metrics.intervals(rows) == {
        name: (value, value) for name, value in metrics.detection(rows).items()
    }


def test_bootstrap_is_the_metrics_of_resampled_pairs(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 60)
    rows = drawn(random.Random(13), 12)
    again = [
        metrics.detection(
            Judged(f"{one.pair} {copy}", one.vulnerable, one.verdict, one.log_odds)
            for unit, times in enumerate(weights)
            for copy in range(times)
            for one in rows[2 * unit : 2 * unit + 2]
        )
        for weights in metrics.draws(12).astype(int).tolist()
    ]
    for name, interval in metrics.intervals(rows).items():
        assert interval == pytest.approx(tuple(np.quantile([one[name] for one in again], (0.025, 0.975)))), (
            name
        )


def test_bootstrap_draws_every_unit_as_often_as_any():
    draws = metrics.draws(7)
    assert draws.shape == (metrics.RESAMPLES, 7) and set(draws.sum(1).tolist()) == {7}
    assert draws.mean(0) == pytest.approx(np.ones(7), abs=0.1)


@pytest.mark.parametrize("use", [lambda: metrics.intervals([]), lambda: metrics.difference([], [])])
def test_bootstrap_of_nothing_is_refused(use):
    with pytest.raises(ValueError, match=r"^bootstrap: 0 units; expected some$"):
        use()


def covered(
    trials: int, truth: float, interval: Callable[[random.Random], tuple[float, float]], seed: int
) -> float:
    """The share of simulated experiments whose interval holds the truth."""
    random_ = random.Random(seed)
    found = [interval(random_) for _ in range(trials)]
    return sum(low <= truth <= high for low, high in found) / trials


def test_intervals_hold_the_truth_nineteen_times_in_twenty(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 400)

    def of_detection(random_: random.Random) -> tuple[float, float]:
        kinds = random_.choices([RIGHT, ALWAYS, NEVER, REVERSED], [6, 2, 1, 1], k=90)
        return metrics.intervals(pairs(*kinds))["balanced_accuracy"]

    def of_area(random_: random.Random) -> tuple[float, float]:
        odds = [(random_.gauss(1, 1), random_.gauss(0, 1)) for _ in range(80)]
        return metrics.intervals(weighed(*odds))["auc"]

    def of_difference(random_: random.Random) -> tuple[float, float]:
        both = random_.choices(
            [(True, True), (True, False), (False, True), (False, False)], [4, 1, 2, 3], k=200
        )
        return metrics.difference(*map(list, zip(*both, strict=True)))

    def of_wilson(random_: random.Random) -> tuple[float, float]:
        return metrics.wilson(sum(random_.random() < 0.2 for _ in range(60)), 60)

    # within three standard errors of such a share, 0.045 of 210 trials
    assert covered(210, 0.75, of_detection, 1) == pytest.approx(0.95, abs=0.045)
    assert covered(210, 0.5 + math.erf(1 / 2) / 2, of_area, 2) == pytest.approx(0.95, abs=0.045)
    assert covered(210, 0.1, of_difference, 3) == pytest.approx(0.95, abs=0.045)
    assert covered(4000, 0.2, of_wilson, 4) == pytest.approx(0.95, abs=0.02)


# Two models on the same tasks. ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "centre", "width"),
    [
        ([True] * 5, [True] * 5, 0, 0),
        ([False] * 5, [True] * 5, 1, 0),
        ([True] * 5, [False] * 5, -1, 0),
        ([True, False] * 50, [False, True] * 50, 0, 0.4),  # +-1: 2 x 1.96 / sqrt(100)
        ([False] * 100, [True] * 50 + [False] * 50, 0.5, 0.196),
    ],
)
def test_difference_is_of_the_second_to_the_first(first, second, centre, width):
    low, high = metrics.difference(first, second)
    assert (low + high) / 2 == pytest.approx(centre, abs=0.03) and high - low == pytest.approx(
        width, abs=0.03
    )
    assert (low, high) == metrics.difference(first, second)
    back = metrics.difference(second, first)
    assert back == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("use", [metrics.difference, metrics.mcnemar])
@pytest.mark.parametrize("second", [[], [True], [True, False, True]])
def test_two_models_on_other_tasks_are_refused(use, second):
    with pytest.raises(ValueError, match="zip"):
        use([True, False], second)


def binomial(first: int, second: int) -> Fraction:
    """The chance of a split of coin tosses at least as far from even, over every outcome of the tosses."""
    tosses = first + second
    outcomes = [sum(one) for one in itertools.product((0, 1), repeat=tosses)]
    far = sum(abs(2 * heads - tosses) >= abs(first - second) for heads in outcomes)
    return Fraction(far, len(outcomes))


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in range(7) for b in range(7)])
def test_mcnemar_is_the_binomial_sum(first, second):
    left = [True] * first + [False] * second + [True, False, True]
    right = [False] * first + [True] * second + [True, False, True]
    assert metrics.mcnemar(left, right) == pytest.approx(float(binomial(first, second)))
    assert metrics.mcnemar(right, left) == metrics.mcnemar(left, right)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ([], [], 1),
        ([True, False], [True, False], 1),
        ([True] * 5000, [False] * 5000, 0),
        ([True] * 600 + [False] * 600, [False] * 600 + [True] * 600, 1),
    ],
)
def test_mcnemar_at_the_ends(first, second, value):
    assert metrics.mcnemar(first, second) == value


def test_mcnemar_seldom_errs_where_nothing_differs():
    random_ = random.Random(17)
    trials = [
        metrics.mcnemar(*([random_.random() < 0.5 for _ in range(60)] for _ in range(2))) for _ in range(1000)
    ]
    assert sum(value <= 0.05 for value in trials) / len(trials) <= 0.05
    assert sum(value <= 0.5 for value in trials) / len(trials) > 0.3


@pytest.mark.parametrize(("part", "whole", "value"), [(0, 0, 0), (3, 0, 0), (1, 4, 0.25), (4, 4, 1)])
def test_share(part, whole, value):
    assert metrics.share(part, whole) == value
