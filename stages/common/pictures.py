"""The geometry of pictures: points on a plot area and round marks on its axes; the page draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 170  # of a plot area, in the units of its picture
POINTS = 600  # that a line has at most: more cannot be told apart on that width

Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A place on an axis, in the units of the picture, and what is written there."""

    place: float
    text: str


@dataclass(frozen=True)
class Plot:
    """Lines over two axes; y grows downwards, as on a screen."""

    width: float
    height: float
    lines: dict[str, str]  # by name: points as SVG writes them
    across: list[Mark]
    up: list[Mark]


def plot(
    series: Mapping[str, Sequence[Point]],
    across: tuple[float, float],
    up: tuple[float, float],
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Plot:
    """Draw every series on axes that span `across` and `up`, made wider to end on round numbers."""
    width, height = size
    x_marks, y_marks = rounded(*across), rounded(*up)
    x_low, x_span = x_marks[0], x_marks[-1] - x_marks[0]
    y_low, y_span = y_marks[0], y_marks[-1] - y_marks[0]

    def x(value: float) -> float:
        return width * (value - x_low) / x_span

    def y(value: float) -> float:
        return height - height * (value - y_low) / y_span

    return Plot(
        width,
        height,
        {name: " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in thinned(line)) for name, line in series.items()},
        [Mark(x(value), f"{value:g}") for value in x_marks],
        [Mark(y(value), f"{value:g}") for value in y_marks],
    )


def rounded(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` steps of 1, 2 or 5 times a power of ten that enclose `low` and `high`.

    >>> rounded(0, 68)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    if not math.isfinite(high - low):
        raise ValueError(f"{low} to {high}; expected finite numbers")
    span = high - low if high > low else max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / count * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [float(f"{place * step:.10g}") for place in range(first, max(last, first + 1) + 1)]


def thinned(line: Sequence[Point]) -> list[Point]:
    """At most POINTS points of a line, evenly chosen, with its first and last."""
    if len(line) <= POINTS:
        return list(line)
    return [line[place * (len(line) - 1) // (POINTS - 1)] for place in range(POINTS)]


def roc(positive: Sequence[float], negative: Sequence[float]) -> list[Point]:
    """The receiver operating characteristic: false and true positive rates as the threshold falls.

    >>> roc([2.0, 0.0], [1.0])
    [(0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0)]
    """
    counts: dict[float, list[int]] = {}
    for place, values in enumerate((negative, positive)):
        for value in values:
            counts.setdefault(value, [0, 0])[place] += 1
    line, false, true = [(0.0, 0.0)], 0, 0
    for value in sorted(counts, reverse=True):
        false, true = false + counts[value][0], true + counts[value][1]
        line.append((false / max(len(negative), 1), true / max(len(positive), 1)))
    return line
