"""What the page shows of each suite and source, as plain rows: shares, groups, outcomes."""

from collections.abc import Container, Mapping, Sequence

from stages.common import comparison, files, pictures
from stages.common.answers import Answer, Task
from stages.common.comparison import MODELS

BARS = ("pair_correct", "recall", "specificity")


def delivery(scores: Mapping[str, files.Row], tasks: Mapping[str, Sequence[Task]]) -> list[files.Row]:
    """A row a suite: answers that never became a judgement, of both models."""
    return [
        {
            "suite": suite,
            "tasks": len(mine),
            **{name: [scores[model][suite][name] for model in MODELS] for name in ("cut_off", "timeouts")},
            "invalid": [
                sum(answer.status == "invalid" for answer in column)
                for column in ([task.base for task in mine], [task.tuned for task in mine])
            ],
        }
        for suite, mine in tasks.items()
    ]


def grouped(
    both: Sequence[files.Row], by: str, names: Sequence[str], trained: Container[str] = ()
) -> list[files.Row]:
    """A row for each group of a suite: its size, and the metrics `names` of base and tuned."""
    groups = [row.get("groups", {}).get(by, {}) for row in both]
    rows = [
        {
            "name": name,
            "size": group.get("pairs", group.get("tasks")),
            "seen": name in trained,
            "values": {key: (group[key], groups[1][name][key]) for key in names},
            "outcomes": [outcomes(side[name]) for side in groups] if "pairs" in group else None,
        }
        for name, group in groups[0].items()
    ]
    return sorted(rows, key=lambda row: (int("".join(filter(str.isdigit, row["name"])) or 0), row["name"]))


def outcomes(row: files.Row) -> list[tuple[str, float]]:
    """What became of the pairs, as shares; the rest has a side without a verdict."""
    shares = [(name, float(row[f"pair_{name}"])) for name in comparison.OUTCOMES]
    return [*shares, ("invalid", max(0.0, 1 - sum(share for _, share in shares)))]


def detections(
    scores: Mapping[str, files.Row], tasks: Mapping[str, Sequence[Task]], trained: Container[str]
) -> list[files.Row]:
    """What the page shows of each detection suite; `trained` holds the CWEs of the training set."""
    result = []
    for suite, mine in tasks.items():
        both = [scores[model][suite] for model in MODELS]
        if both[0]["kind"] == "detection":
            result.append(
                {
                    "suite": suite,
                    "pairs": both[0]["pairs"],
                    "confusions": [row["confusion"] for row in both],
                    "outcomes": [outcomes(row) for row in both],
                    "groups": {
                        by: grouped(both, by, BARS, trained)
                        for by in ("training", "trait", "language", "cwe")
                    },
                    "roc": roc(mine),
                    "auc": [row.get("auc") for row in both],
                }
            )
    return result


def roc(tasks: Sequence[Task]) -> pictures.Plot | None:
    """The curves of both models, where log-odds were read of every answer."""
    lines = {}
    for place, model in enumerate(MODELS):
        judged = comparison.judged(tasks, place)
        odds = [(row.vulnerable, row.log_odds) for row in judged if row.log_odds is not None]
        if len(odds) < len(judged):
            return None
        sides = [[value for vulnerable, value in odds if vulnerable == side] for side in (True, False)]
        lines[model] = pictures.roc(*sides)
    return pictures.plot(lines, (0, 1), (0, 1), (240, 240))


def code(scores: Mapping[str, files.Row], tasks: Mapping[str, Sequence[Task]]) -> list[files.Row]:
    """What the page shows of each suite whose answers are code or prose: shares and groups."""
    result = []
    for suite, mine in tasks.items():
        both = [scores[model][suite] for model in MODELS]
        if both[0]["kind"] in ("detection", "reference"):
            continue
        others = [name for name in both[0].get("checks", {}) if name != "functional"]
        groups = {by: grouped(both, by, ("pass_rate",)) for by in both[0].get("groups", {})}
        result.append(
            {
                "suite": suite,
                "other": others[0] if len(others) == 1 else "several" if others else "",
                "tasks": len(mine),
                "shares": [shares([task.base for task in mine]), shares([task.tuned for task in mine])],
                "groups": {by: rows for by, rows in groups.items() if len(rows) > 1},
            }
        )
    return result


def shares(column: Sequence[Answer]) -> list[tuple[str, int]]:
    """Answers by what they passed: all, only the functional test, only the others, or nothing."""
    counts = dict.fromkeys(("all", "functional", "other", "none"), 0)
    for answer in column:
        rest = [passed for name, passed in answer.checks.items() if name != "functional"]
        works = answer.checks.get("functional", False)
        name = "functional" if works else "other" if rest and all(rest) else "none"
        counts["all" if answer.passed else name] += 1
    return list(counts.items())


def funnel(mix: files.Row, filters: Mapping[str, files.Row]) -> list[files.Row]:
    """A row a source: what came in, what was kept and why not, what was mixed."""
    return [
        {
            **counts,
            "name": name,
            **{key: filters[name][key] for key in ("rows", "kept", "rejected")},
            "reasons": {reason: count for reason, count in filters[name]["reasons"].items() if count},
        }
        for name, counts in mix["sources"].items()
    ]
