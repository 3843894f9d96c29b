"""Numbers out of verdicts: detection metrics, pass@k, intervals, paired tests; invalid answers are wrong."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.959964  # of the normal distribution
RESAMPLES = 2000  # of a bootstrap; Efron and Tibshirani (1993, p. 162) ask for 1,000 or more for intervals
SEED = 1


@dataclass(frozen=True)
class Judged:
    """One detection task: its pair, the right label and the verdict given (None: not a verdict)."""

    pair: str
    vulnerable: bool
    verdict: bool | None
    log_odds: float | None = None  # log p(VULNERABLE) - log p(SAFE), in nats, where it was read


def detection(judged: Iterable[Judged]) -> dict[str, float]:
    """The metrics of a detection suite, each in 0..1 but `mcc` in -1..1.

    recall: share of vulnerable snippets called vulnerable. specificity: share of fixed ones called safe.
    balanced_accuracy: their mean. mcc: Matthews' correlation, with an invalid answer taken as the wrong
    verdict; 0 where it is undefined. Of all pairs: pair_correct has both sides right, pair_vulnerable and
    pair_safe say the same of both, pair_reversed has both wrong (the four of PrimeVul, arXiv:2403.18624);
    what is left has an invalid side. invalid_rate: share of answers without a verdict line. auc, where
    log-odds were read: chance that a vulnerable snippet has higher ones than a fixed one.
    """
    sides = _sides(judged)
    metrics = _rates(
        dict(zip(TALLY, map(sum, zip(*map(_tally, sides), strict=True)), strict=True)) if sides else {}
    )
    odds = _odds(sides)
    return metrics if odds is None else metrics | {"auc": auc(*odds)}


def intervals(judged: Iterable[Judged]) -> dict[str, tuple[float, float]]:
    """The 95 % bootstrap intervals of `detection`, pairs drawn with replacement, both sides together."""
    return {name: interval(values) for name, values in resampled(judged).items()}


def resampled(judged: Iterable[Judged]) -> dict[str, Any]:
    """Every metric of `detection` in each of RESAMPLES resamples of the pairs, in the order given."""
    import numpy as np

    sides = _sides(judged)
    weights = draws(len(sides))
    sums = weights @ np.array([_tally(pair) for pair in sides])
    found = [_rates(dict(zip(TALLY, row, strict=True))) for row in sums.tolist()]
    result = {name: np.array([one[name] for one in found]) for name in found[0]}
    odds = _odds(sides)
    if odds is not None:
        positive, negative = (np.array(values) for values in odds)
        wins = (positive[:, None] > negative) + (positive[:, None] == negative) / 2
        result["auc"] = ((weights @ wins) * weights).sum(1) / len(sides) ** 2
    return result


def difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the second model's share minus the first's, tasks drawn as units."""
    import numpy as np

    change = np.array([after - before for before, after in zip(first, second, strict=True)])
    return interval(draws(len(change)) @ change / len(change))


TALLY = ("tp", "fn", "tn", "fp", "correct", "vulnerable", "safe", "reversed", "invalid", "pairs")
Pair = tuple[Judged, Judged]  # the vulnerable side and the fixed one


def _sides(judged: Iterable[Judged]) -> list[Pair]:
    rows = {(row.pair, row.vulnerable): row for row in judged}
    names = dict.fromkeys(pair for pair, _ in rows)
    return [(rows[name, True], rows[name, False]) for name in names]


def _tally(pair: Pair) -> tuple[int, ...]:
    said = tuple(row.verdict for row in pair)
    caught, cleared = said[0] is True, said[1] is False
    kinds = ((True, False), (True, True), (False, False), (False, True))
    return (caught, not caught, cleared, not cleared, *(said == kind for kind in kinds), said.count(None), 1)


def _rates(n: dict[str, float]) -> dict[str, float]:
    n = {name: n.get(name, 0) for name in TALLY}
    recall, specificity = share(n["tp"], n["pairs"]), share(n["tn"], n["pairs"])
    return {
        "balanced_accuracy": (recall + specificity) / 2,
        "recall": recall,
        "specificity": specificity,
        "mcc": _mcc(n),
        **{
            f"pair_{kind}": share(n[kind], n["pairs"])
            for kind in ("correct", "vulnerable", "safe", "reversed")
        },
        "invalid_rate": share(n["invalid"], 2 * n["pairs"]),
    }


def _odds(sides: list[Pair]) -> tuple[list[float], list[float]] | None:
    odds = [[row.log_odds for row in pair if row.log_odds is not None] for pair in sides]
    if not odds or any(len(both) < 2 for both in odds):
        return None
    return [both[0] for both in odds], [both[1] for both in odds]


def draws(units: int) -> Any:
    """How often each of RESAMPLES resamples holds each unit: (RESAMPLES, units), seeded."""
    import numpy as np

    if not units:
        raise ValueError("bootstrap: 0 units; expected some")
    drawn = np.random.default_rng(SEED).multinomial(units, [1 / units] * units, RESAMPLES)
    return drawn.astype(float)  # which multiplies ten times as fast as whole numbers


def interval(values: Any) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    import numpy as np

    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def confusion(judged: Iterable[Judged]) -> dict[str, int]:
    """Answers by label and verdict: `tp`, `fn`, `tn`, `fp`, and the invalid ones of either label."""
    names: dict[tuple[bool, bool | None], str] = {
        (True, True): "tp",
        (True, False): "fn",
        (False, False): "tn",
        (False, True): "fp",
    }
    names |= {(True, None): "invalid_vulnerable", (False, None): "invalid_fixed"}
    counts = dict.fromkeys(names.values(), 0)
    for row in judged:
        counts[names[row.vulnerable, row.verdict]] += 1
    return counts


def constant(judged: Iterable[Judged], verdict: bool) -> dict[str, float]:
    """What a judge that always says `verdict` would get on the same tasks."""
    return detection(Judged(row.pair, row.vulnerable, verdict) for row in judged)


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve (Mann-Whitney): the share of pairs in the right order, ties counting half.

    >>> auc([2.0, 0.5], [0.5, 0.0])
    0.875
    """
    if not positive or not negative:
        return 0.5
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased chance that one of k answers passes, from `passed` of `samples` (arXiv:2107.03374, eq. 1).

    Raises ValueError when k exceeds the samples: the estimator does not exist there.

    >>> pass_at_k(samples=4, passed=1, k=2)
    0.5
    """
    if not 1 <= k <= samples or not 0 <= passed <= samples:
        raise ValueError(f"pass@{k} of {passed} in {samples}; expected 1 <= k <= samples >= passed")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def wilson(passed: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score (1927); (0, 1) when there is nothing to count."""
    if total == 0:
        return 0.0, 1.0
    z = Z95
    part = passed / total
    centre = part + z * z / (2 * total)
    spread = z * math.sqrt(part * (1 - part) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The two-sided exact p-value that two models pass the same tasks equally often (McNemar 1947).

    Only tasks on which they differ count; 1 where there are none.

    >>> mcnemar([True] * 6, [False] * 6)
    0.03125
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    differing, fewer = only_first + only_second, min(only_first, only_second)
    tail: float = sum(math.comb(differing, count) for count in range(fewer + 1)) / 2**differing
    return min(1.0, 2 * tail)


def _mcc(counts: dict[str, float]) -> float:
    tp, fn, tn, fp = (counts[name] for name in ("tp", "fn", "tn", "fp"))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / below if below else 0.0


def share(part: float, whole: float) -> float:
    """A part of a whole, 0 of nothing."""
    return part / whole if whole else 0.0
