"""The picture of a sweep as SVG: the objective against each parameter, with the best trial marked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from stages.common import pictures

SIZE = (220, 150)  # of a panel's plot area
MARGIN = (64, 34, 20, 44)  # around it: left, top, right, bottom
ACROSS = 3  # panels in a row
STYLE = (
    "text{font:11px sans-serif}.best{fill:#0b57d0}.dot{fill:#fff}circle{stroke:#0b57d0;stroke-width:1.5}"
    ".failed{stroke:#b3261e;stroke-width:1.5}.head{font-size:14px}"
)


@dataclass(frozen=True)
class Dot:
    """One trial: its parameters, and its value; None where it failed."""

    name: str
    values: Mapping[str, object]
    value: float | None


def drawn(dots: Sequence[Dot], best: str, metric: str, logarithmic: Sequence[str]) -> str:
    """The picture: a panel over the order of trials, then one for each parameter."""
    good = [dot.value for dot in dots if dot.value is not None]
    up = pictures.rounded(min(good), max(good), 3)
    names = list(dots[0].values)
    panels = [_panel("trial", list(range(1, len(dots) + 1)), dots, best, up, False)]
    panels += [
        _panel(name, [dot.values[name] for dot in dots], dots, best, up, name in logarithmic)
        for name in names
    ]
    wide, high = SIZE[0] + MARGIN[0] + MARGIN[2], SIZE[1] + MARGIN[1] + MARGIN[3]
    rows = -(-len(panels) // ACROSS)
    placed = [
        f'<g transform="translate({wide * (place % ACROSS)},{40 + high * (place // ACROSS)})">{panel}</g>'
        for place, panel in enumerate(panels)
    ]
    width, height = wide * min(ACROSS, len(panels)), 40 + high * rows
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><title>{escape(metric)}</title><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="16" y="24" class="head">{escape(metric)} of {len(dots)} trials, the best filled: '
        f"{escape(best)}; failed ones are crosses</text>{''.join(placed)}</svg>\n"
    )


def scale(values: Sequence[object], logarithmic: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Where values lie on an axis of length 1, and its marks; what is no number stands in its own column.

    >>> scale([1, 100], logarithmic=True)
    ([0.0, 1.0], [(0.0, '1'), (0.5, '10'), (1.0, '100')])
    """
    numbers = [float(one) for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) < len(values):
        names = sorted(set(map(str, values)))
        places = {name: (number + 0.5) / len(names) for number, name in enumerate(names)}
        return [places[str(one)] for one in values], [(place, name) for name, place in places.items()]
    if logarithmic:
        low, high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
        high = max(high, low + 1)
        marks = [((power - low) / (high - low), f"{10.0**power:g}") for power in range(low, high + 1)]
        return [(math.log10(one) - low) / (high - low) for one in numbers], marks
    ends = pictures.rounded(min(numbers), max(numbers), 3)
    span = ends[-1] - ends[0]
    return [(one - ends[0]) / span for one in numbers], [((end - ends[0]) / span, f"{end:g}") for end in ends]


def _panel(
    name: str,
    values: Sequence[object],
    dots: Sequence[Dot],
    best: str,
    up: Sequence[float],
    logarithmic: bool,
) -> str:
    width, height = SIZE
    left, top = MARGIN[:2]
    places, marks = scale(values, logarithmic)
    parts = [f'<text x="{left}" y="{top - 10}" class="head">{escape(name)}</text>']
    for value in up:
        y = top + height * (1 - (value - up[0]) / (up[-1] - up[0]))
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for place, text in marks:
        x = left + width * place
        parts.append(f'<path d="M{x:.1f} {top + height}v4" stroke="#888"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + height + 17}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<path d="M{left} {top}v{height}h{width}" fill="none" stroke="#888"/>')
    order = sorted(zip(dots, places, strict=True), key=lambda one: one[0].name == best)  # the best on top
    for dot, place in order:
        x = left + width * place
        if dot.value is None:
            said = f"<title>{escape(dot.name)}: failed</title>"
            y = top + height
            parts.append(f'<path class="failed" d="M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8">{said}</path>')
            continue
        y = top + height * (1 - (dot.value - up[0]) / (up[-1] - up[0]))
        kind, size = ("best", 6) if dot.name == best else ("dot", 4)
        said = f"<title>{escape(dot.name)}: {dot.value:.6g}</title>"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{said}</circle>')
    return "".join(parts)
