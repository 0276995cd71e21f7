"""Line charts as inline SVG that take their colours from the page, so that they work in light and in dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 10, 34
RUN_COLOURS = 10


def colour(index: int) -> str:
    """The style-sheet colour of the run at this place of its data set."""
    return f"var(--run{index % RUN_COLOURS})"


@dataclass(frozen=True)
class Line:
    """One line of a chart: points without a value are left out; `mark` is the x of a point to set a dot on, `ranges`
    the ends of each point's interval, which all points then have."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float | None]
    mark: float | None = None
    ranges: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class Spot:
    """One point of a scatter chart, with its name beside it."""

    name: str
    colour: str
    x: float
    y: float


class _Axes:
    """Values to places in a chart, and the chart's grid and ticks."""

    def __init__(self, x: Sequence[float], y: Sequence[float], *, log: bool = False):
        self.log = log
        self.x_low, self.x_high = min(x), max(x)
        if log:
            self.x_low, self.x_high = log10(self.x_low) - 0.12, log10(self.x_high) + 0.12
        self.y_ticks = ticks(min(y), max(y))
        self.y_low, self.y_high = self.y_ticks[0], self.y_ticks[-1]

    def across(self, x: float) -> float:
        at = log10(x) if self.log else x
        share = (at - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(self, y: float) -> float:
        share = (self.y_high - y) / (self.y_high - self.y_low) if self.y_high > self.y_low else 0.5
        return round(TOP + share * (HEIGHT - TOP - BOTTOM), 1)

    def svg(self, label: str, x_ticks: Sequence[float], x_name: str) -> list[str]:
        parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
        for tick in self.y_ticks:
            y = self.down(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{tick:g}</text>')
        for tick in x_ticks:
            place = f'x="{self.across(tick)}" y="{HEIGHT - 16}" text-anchor="middle"'
            parts.append(f'<text class="tick" {place}>{tick:,.10g}</text>')
        parts.append(
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_name)}</text>'
        )
        return parts


def line_chart(lines: Sequence[Line], *, label: str, x_name: str = "epoch", log: bool = False) -> str:
    """An SVG of `lines` on shared axes; `label` says what it shows to who can't see it. With `log` the points are
    evenly apart by factors, and each has its own tick and dot."""
    points = {line.name: [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None] for line in lines}
    every = [point for line in points.values() for point in line]
    if not every:
        return ""
    heights = [y for _, y in every] + [end for line in lines for ends in line.ranges or () for end in ends]
    axes = _Axes([x for x, _ in every], heights, log=log)
    if log:
        x_ticks = sorted({x for x, _ in every})
    else:
        x_ticks = [x for x in ticks(axes.x_low, axes.x_high) if axes.x_low <= x <= axes.x_high and x == int(x)]
    parts = axes.svg(label, x_ticks, x_name)
    for line in lines:
        if path := "L".join(f"{axes.across(x)} {axes.down(y)}" for x, y in points[line.name]):
            title = f"<title>{escape(line.name)}</title>"
            parts.append(f'<path class="line" style="stroke:{line.colour}" d="M{path}">{title}</path>')
        for x, (low, high) in zip(line.x, line.ranges or (), strict=False):
            parts.append(f'<path class="whisker" d="M{axes.across(x)} {axes.down(low)}V{axes.down(high)}"/>')
        for x, y in points[line.name]:
            if x == line.mark or log or len(points[line.name]) == 1:
                at = f'cx="{axes.across(x)}" cy="{axes.down(y)}"'
                spot = f'<circle class="best" style="fill:{line.colour}" {at} r="4.5">'
                parts.append(f"{spot}<title>{escape(line.name)}: {y:.1f} at {x_name} {x:g}</title></circle>")
    return "".join(parts) + "</svg>"


def scatter_chart(spots: Sequence[Spot], *, label: str, x_name: str) -> str:
    """An SVG of named points over a logarithmic x axis; names that would meet are moved apart."""
    axes = _Axes([spot.x for spot in spots], [spot.y for spot in spots], log=True)
    decades = range(floor(axes.x_low), floor(axes.x_high) + 2)
    steps = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    inside = [x for x in steps if axes.x_low <= log10(x) <= axes.x_high]
    x_ticks = inside if len(inside) < 7 else [x for x in inside if log10(x) == round(log10(x))]
    parts = axes.svg(label, x_ticks, x_name)
    taken: list[float] = []
    for spot in sorted(spots, key=lambda spot: -spot.y):
        x, y = axes.across(spot.x), axes.down(spot.y)
        height = y + 4
        for other in sorted(taken):
            if abs(other - height) < 13:
                height = other + 13
        taken.append(height)
        left = x > WIDTH / 2
        place = f'x="{x - 9 if left else x + 9}" y="{height}" text-anchor="{"end" if left else "start"}"'
        title = f"<title>{escape(spot.name)}: {spot.y:.1f}, {spot.x:.3g} {escape(x_name)}</title>"
        parts.append(f'<circle class="best" style="fill:{spot.colour}" cx="{x}" cy="{y}" r="5.5">{title}</circle>')
        parts.append(f'<text class="name" {place}>{escape(spot.name)}</text>')
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
