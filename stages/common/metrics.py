"""Detection metrics: from right labels and given verdicts to numbers; an invalid answer counts as wrong."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Judged:
    """One detection task: its pair, the right label and the verdict given (None: not a verdict)."""

    pair: str
    vulnerable: bool
    verdict: bool | None


def detection(judged: Iterable[Judged]) -> dict[str, float]:
    """The metrics of a detection suite, each in 0..1 but `mcc` in -1..1.

    recall: share of vulnerable snippets called vulnerable. specificity: share of fixed ones called safe.
    balanced_accuracy: their mean. mcc: Matthews' correlation, with an invalid answer taken as the wrong
    verdict; 0 where it is undefined. pair_correct: share of pairs with both sides right. invalid_rate:
    share of answers without a verdict line.
    """
    rows = list(judged)
    counts = {"tp": 0, "fn": 0, "tn": 0, "fp": 0}
    for row in rows:
        right = row.verdict == row.vulnerable
        counts[("tp" if right else "fn") if row.vulnerable else ("tn" if right else "fp")] += 1
    recall = _share(counts["tp"], counts["tp"] + counts["fn"])
    specificity = _share(counts["tn"], counts["tn"] + counts["fp"])
    pairs: dict[str, bool] = {}
    for row in rows:
        pairs[row.pair] = pairs.get(row.pair, True) and row.verdict == row.vulnerable
    return {
        "balanced_accuracy": (recall + specificity) / 2,
        "recall": recall,
        "specificity": specificity,
        "mcc": _mcc(counts),
        "pair_correct": _share(sum(pairs.values()), len(pairs)),
        "invalid_rate": _share(sum(row.verdict is None for row in rows), len(rows)),
    }


def constant(judged: Iterable[Judged], verdict: bool) -> dict[str, float]:
    """What a judge that always says `verdict` would get on the same tasks."""
    return detection(Judged(row.pair, row.vulnerable, verdict) for row in judged)


def wilson(passed: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score (1927); (0, 1) when there is nothing to count."""
    if total == 0:
        return 0.0, 1.0
    z = 1.959964
    share = passed / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _mcc(counts: Mapping[str, int]) -> float:
    tp, fn, tn, fp = (counts[name] for name in ("tp", "fn", "tn", "fp"))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / below if below else 0.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
