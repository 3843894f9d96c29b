"""What a comparison is worth: the limits that a tuned model must keep, and the verdict in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stages.common.comparison import Measure


@dataclass(frozen=True)
class Gate:
    """A limit that the tuned model must keep."""

    parameter: str  # "report.floors.detection.specificity"
    found: str
    expected: str
    held: bool

    def __str__(self) -> str:
        return f"{self.parameter}: {self.found}; expected {self.expected} (params.yaml)"


def gates(
    found: Sequence[Measure],
    significance: float,
    no_drop: Sequence[str],
    floors: Mapping[str, float],
    ceilings: Mapping[str, float],
) -> list[Gate]:
    """Every gate, held or missed; one on a metric that does not exist is missed."""
    known = {measure.name: measure for measure in found}
    result = [_no_drop(name, known, significance) for name in no_drop]
    for kind, limits in (("floors", floors), ("ceilings", ceilings)):
        result += [_limit(kind, name, limit, known) for name, limit in limits.items()]
    return result


def _no_drop(name: str, known: Mapping[str, Measure], significance: float) -> Gate:
    parameter, measure = f"report.no_drop.{name}", known.get(name)
    if measure is None:
        return _unknown(parameter, known)
    before, after = measure.reported
    found = f"{before:.4g} to {after:.4g} (p = {measure.p:.2g})"
    return Gate(parameter, found, f"no drop with p below {significance:g}", measure.change(significance) >= 0)


def _limit(kind: str, name: str, limit: float, known: Mapping[str, Measure]) -> Gate:
    parameter, measure = f"report.{kind}.{name}", known.get(name)
    if measure is None:
        return _unknown(parameter, known)
    value = measure.reported[1]
    held = value >= limit if kind == "floors" else value <= limit
    texts = (f"{value:.3f}", f"{limit:.3f}")
    if texts[0] == texts[1] and not held:
        texts = (repr(value), repr(limit))
    return Gate(parameter, texts[0], f"at {'least' if kind == 'floors' else 'most'} {texts[1]}", held)


def _unknown(parameter: str, known: Mapping[str, Measure]) -> Gate:
    return Gate(parameter, "no such metric", f"one of {', '.join(known)}", held=False)


def verdict(found: Sequence[Measure], passed: Sequence[Gate], significance: float) -> list[str]:
    """What the numbers say, in sentences."""
    marked = {mark: [one for one in found if one.change(significance) == mark] for mark in (1, -1, 0)}
    sentences = [overall(found, significance)]
    for mark, word in ((1, "Better"), (-1, "Worse")):
        if marked[mark]:
            sentences.append(f"{word}: {_listed(marked[mark], _told)}.")
    if marked[0]:
        sentences.append(f"No significant change: {_listed(marked[0], lambda one: one.label)}.")
    return [*sentences, *against_constants(found), held(passed)]


def overall(found: Sequence[Measure], significance: float) -> str:
    """How many measures got better and worse."""
    changes = [measure.change(significance) for measure in found]
    return (
        f"Of {len(found)} measures, the tuned model is significantly better than the base in "
        f"{changes.count(1)} and significantly worse in {changes.count(-1)} (p < {significance:g})."
    )


def held(passed: Sequence[Gate]) -> str:
    """How many gates hold."""
    missed = sum(not gate.held for gate in passed)
    if not passed:
        return "No gate is set."
    if missed:
        return f"{missed} of {len(passed)} gates missed."
    return f"All {len(passed)} gates hold." if len(passed) > 1 else "The one gate holds."


def against_constants(found: Sequence[Measure]) -> list[str]:
    """Of each detection suite, whether the tuned judge knows more than one that always says the same."""
    return [_against_constants(measure) for measure in found if measure.metric == "balanced_accuracy"]


def _listed(found: Sequence[Measure], told: Callable[[Measure], str]) -> str:
    """Measures by group: "detection (recall, specificity), coding (pass@1)"."""
    groups: dict[str, list[str]] = {}
    for measure in found:
        groups.setdefault(measure.group.replace("_", " "), []).append(told(measure))
    return ", ".join(f"{group} ({', '.join(words)})" for group, words in groups.items())


def _told(measure: Measure) -> str:
    return f"{measure.label} {measure.values[0]:.2f} → {measure.values[1]:.2f}"


def _against_constants(measure: Measure) -> str:
    low, high = measure.intervals[1]
    best = max(measure.constants)
    interval = f"95 % interval {low:.2f} to {high:.2f}"
    numbers = f"balanced accuracy {measure.values[1]:.2f} ({interval}) against {best:.2f}"
    where = f"As a judge ({measure.group.replace('_', ' ')}) the tuned model"
    if low > best:
        return f"{where} beats both constant judges: {numbers}."
    if high < best:
        return f"{where} does worse than a constant judge: {numbers}."
    return f"{where} cannot be told from one that always says the same: {numbers}."
