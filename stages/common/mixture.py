"""The mixture: how much of each source, in which order, and what is left out, as parameters and as counts."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from stages.common.errors import PipelineError
from stages.common.overlap import Overlap
from stages.common.params import params

VALUED = ("counts", "weights")  # strategies that need a value for every source


@params
class MixParams:
    """How much of each source, in which order, and what is left out."""

    seed: Annotated[int, Field(ge=0)]
    # How `sources` is read: see `wanted`.
    strategy: Literal["counts", "weights", "proportional", "equal", "temperature"]
    sources: Annotated[dict[str, Annotated[float, Field(ge=0)] | None], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0)] | None  # shares ~ size ** (1 / temperature); 1 is proportional
    rows: Annotated[int, Field(ge=1)] | None  # examples in all; null: as many as the shares allow
    repeats: Annotated[int, Field(ge=1)]  # how often an example may stand in the mix
    max_chars: Annotated[int, Field(ge=1)]  # of prompt and answer; longer examples are left out, not cut
    order: Literal["shuffled", "paired", "curriculum"]  # see stages.common.ordering
    valid_share: Annotated[float, Field(ge=0, lt=1)]  # of the examples
    floors: dict[str, Annotated[float, Field(gt=0, lt=1)]]  # least share of a kind or of a source
    below_floor: Literal["warn", "fail"]
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | None  # MinHash similarity across sources
    contaminated: Literal["drop", "report"]
    overlap: Overlap


def check(chosen: MixParams) -> None:
    """Refuse a value that the strategy does not use, and the lack of one that it needs."""

    def refuse(key: str, value: object, expected: str) -> None:
        found = int(value) if isinstance(value, float) and value.is_integer() else value
        shown = "null" if found is None else found
        raise PipelineError(
            f'mix.{key}: {shown}; expected {expected} with strategy "{chosen.strategy}" (params.yaml)'
        )

    for source, value in chosen.sources.items():
        if (value is None) == (chosen.strategy in VALUED):
            refuse(f"sources.{source}", value, "a number" if value is None else "null")
        if chosen.strategy == "counts" and value is not None and not value.is_integer():
            refuse(f"sources.{source}", value, "a whole number")
    if (chosen.temperature is None) == (chosen.strategy == "temperature"):
        refuse("temperature", chosen.temperature, "a number" if chosen.temperature is None else "null")
    if chosen.strategy == "counts" and chosen.rows is not None:
        refuse("rows", chosen.rows, "null")
    if chosen.strategy in VALUED and not any(chosen.sources.values()):
        refuse("sources", 0, "a sum of more than 0")


def wanted(chosen: MixParams, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many examples of each source stand in the mix, given how many there are of each.

    counts        exactly the number given
    weights       in proportion to the number given
    proportional  in proportion to the source's size
    equal         the same of each
    temperature   in proportion to size ** (1 / temperature)

    Raises PipelineError when a source has fewer than its share, taken `repeats` times.
    """
    parts = shares(chosen, sizes)
    most = {source: sizes[source] * chosen.repeats for source in chosen.sources}
    advice = ""
    if chosen.strategy == "counts":
        counts = {source: int(part) for source, part in parts.items()}
    else:
        total = sum(parts.values())
        limit, scarce = min(
            ((int(most[source] * total / part), source) for source, part in parts.items() if part),
            default=(0, min(sizes)),
        )
        if not limit:
            raise PipelineError(f"mix.sources.{scarce}: no example left to mix; expected some (params.yaml)")
        counts = quotas(parts, limit if chosen.rows is None else chosen.rows)
        advice = f"; {limit} would do for mix.rows"
    for source, count in counts.items():
        if count > most[source]:
            raise PipelineError(
                f"mix.sources.{source}: {count} wanted; expected at most {most[source]}, its {sizes[source]} "
                f"examples {chosen.repeats} times each{advice} (params.yaml)"
            )
    return counts


def shares(chosen: MixParams, sizes: Mapping[str, int]) -> dict[str, Fraction]:
    """The relative share of each source, exact."""
    if chosen.strategy in VALUED:
        return {source: Fraction(str(value)) for source, value in chosen.sources.items()}
    if chosen.strategy == "equal":
        return {source: Fraction(sizes[source] > 0) for source in chosen.sources}
    power = 1 / (chosen.temperature or 1)
    return {
        source: Fraction(sizes[source]) if power == 1 else Fraction(sizes[source] ** power)
        for source in chosen.sources
    }


def quotas(shares: Mapping[str, Fraction], rows: int) -> dict[str, int]:
    """Split `rows` by share, rounded by largest remainder so that the sum is exact.

    >>> quotas({"coding": Fraction(3), "fixes": Fraction(1)}, 10)
    {'coding': 8, 'fixes': 2}
    """
    total = sum(shares.values())
    exact = {source: rows * share / total for source, share in shares.items()}
    counts = {source: int(share) for source, share in exact.items()}
    by_remainder = sorted(exact, key=lambda source: (counts[source] - exact[source], source))
    for source in by_remainder[: rows - sum(counts.values())]:
        counts[source] += 1
    return counts
