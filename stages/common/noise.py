"""Seed noise: how far apart trainings come out that differ in their seed alone.

`tools.noise` measures it once and leaves it in data/noise.json, which is committed; `report` sets it beside
every difference. It holds of the training that was measured, which `facts` tell from others. `{}` stands for
nothing measured, as DVC wants the file to be there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.common import comparison, files
from stages.common.comparison import Measure
from stages.common.params import params, validate

FILE = Path("data/noise.json")
LEARNED = (
    "loss",
    "valid_loss",
    "token_accuracy",
    "entropy",
)  # what a seed moves of a metrics.json's training
ROUNDING = 1e-9  # two shares that are the same on paper differ by less, and two of a suite by more


@params
class Measured:
    """The metrics of trainings that differ in their seed alone."""

    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]  # the commit that was trained
    seeds: Annotated[list[int], Field(min_length=2)]
    facts: dict[str, Any]
    values: dict[str, list[float]]  # by dotted name, in the order of the seeds

    def __post_init__(self) -> None:
        """Refuse seeds that repeat, and metrics that do not have a value of each."""
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"each seed once; found {self.seeds}")
        for name, values in self.values.items():
            if len(values) != len(self.seeds):
                raise ValueError(
                    f"a value of each of {len(self.seeds)} seeds; values.{name} has {len(values)}"
                )


@dataclass(frozen=True)
class Noise:
    """What a report needs of it."""

    floors: Mapping[str, float]  # greatest difference between two seeds, by dotted name; empty: not known
    brief: str  # why there are none, in two or three words
    words: str  # where they come from, or why there are none, in a sentence

    def of(self, measure: Measure) -> float | None:
        """The noise of a measure's difference: the base has no seed. A share, as the difference is."""
        floor = self.floors.get(f"{measure.name}.tuned")
        return floor / measure.size if floor is not None and measure.counted else floor


def facts(metrics: files.Row, mix: files.Row) -> files.Row:
    """What tells a recipe, a scale and limits of suites from others, out of a metrics.json and a mix.json.

    The kinds of examples tell the recipe, the trained parameters and the steps the scale.
    """
    training = metrics["training"]
    sizes = {name: group.get("pairs", group.get("tasks")) for name, group in metrics.items()}
    return {
        "kinds": sorted(mix["kinds"]),
        "steps": training["steps"],
        "trainable_parameters": training.get("trainable_parameters"),
        "sizes": {name: size for name, size in sorted(sizes.items()) if size is not None},
    }


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The first fact that is not the same, and how; "" where all are.

    >>> differing({"steps": 67, "sizes": {"coding": 41}}, {"steps": 67, "sizes": {"coding": 164}})
    'sizes.coding: 41 and 164'
    """
    for name in [*first, *(name for name in second if name not in first)]:
        one, other = first.get(name), second.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if found := differing(one, other):
                return f"{name}.{found}"
        elif one != other:
            return f"{name}: {one} and {other}"
    return ""


def moved(metrics: files.Row) -> dict[str, float]:
    """What a seed can move of a metrics.json: all of the tuned model, and what training reports of itself."""
    known = {f"training.{name}" for name in LEARNED}
    return {
        name: value
        for name, value in comparison.leaves(metrics).items()
        if name.endswith(".tuned") or name in known
    }


def read(path: Path) -> Measured:
    """What was measured; raises PipelineError naming the file and the key that is wrong."""
    return validate(files.read_json(path), "noise", Measured, path)


def known(path: Path, here: Mapping[str, Any]) -> Noise:
    """The noise of a training with these facts, where it was measured."""
    if not path.exists() or not files.read_json(path):
        return Noise({}, "not measured", "Seed noise was not measured (make noise).")
    measured = read(path)
    if found := differing(measured.facts, here):
        sentence = (
            f"Seed noise was measured of another training ({found} here), so none is shown (make noise)."
        )
        return Noise({}, "of another training", sentence)
    floors = {name: max(values) - min(values) for name, values in measured.values.items()}
    seeds = ", ".join(map(str, measured.seeds))
    return Noise(
        floors,
        "",
        f"Seed noise: how far {len(measured.seeds)} trainings that differ in their seed alone ({seeds}; "
        f"commit {measured.revision[:10]}) lie apart at most. Another seed may give a difference within it. "
        "Few seeds show too little of it rather than too much.",
    )


def beside(difference: float, floor: float | None, form: str) -> str:
    """The noise as it stands beside a difference: `beside(0.02, 0.05, ".3f") == "within 0.050"`."""
    if floor is None:
        return ""
    within = 0 < abs(difference) <= floor + ROUNDING
    return f"{'within ' if within else ''}{floor:{form}}"
