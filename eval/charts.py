"""Line charts as inline SVG that take their colours from the page, so that they work in light and in dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 26


@dataclass(frozen=True)
class Line:
    """One line of a chart: points without a value are left out; `mark` is the x of a point to set a dot on."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float | None]
    mark: float | None = None


def line_chart(lines: Sequence[Line], *, label: str, x_name: str = "epoch") -> str:
    """An SVG of `lines` on shared axes; `label` says what it shows to who can't see it."""
    points = {line.name: [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None] for line in lines}
    every = [point for line in points.values() for point in line]
    if not every:
        return ""
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_ticks = ticks(min(y for _, y in every), max(y for _, y in every))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        share = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in y_ticks:
        y = down(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{tick:g}</text>')
    x_ticks = [tick for tick in ticks(x_low, x_high) if x_low <= tick <= x_high and tick == int(tick)]
    for tick in x_ticks:
        parts.append(f'<text class="tick" x="{across(tick)}" y="{HEIGHT - 10}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT}" text-anchor="end">{escape(x_name)}</text>')
    for line in lines:
        if path := "L".join(f"{across(x)} {down(y)}" for x, y in points[line.name]):
            title = f"<title>{escape(line.name)}</title>"
            parts.append(f'<path class="line" style="stroke:{line.colour}" d="M{path}">{title}</path>')
        for x, y in points[line.name]:
            if x == line.mark or len(points[line.name]) == 1:
                spot = f'<circle class="best" style="fill:{line.colour}" cx="{across(x)}" cy="{down(y)}" r="4.5">'
                parts.append(f"{spot}<title>{escape(line.name)}: {y:.1f} at {x_name} {x:g}</title></circle>")
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that enclose `[low, high]`, about that many."""
    if high <= low:
        high = low + (abs(low) or 1)
    raw = (high - low) / about
    unit = 10 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    first, last = floor(low / step), -floor(-high / step)
    return [round(index * step, 10) for index in range(first, last + 1)]
