"""Charts as inline SVG that take their colours from the page, so that they work in light and in dark.

A chart needs two different points; of fewer there is none, and the page says the figure in words. Names stand at the
points, so that nobody has to tell colours apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 10, 34
LETTER, LINE = 6.1, 12  # of a name: a letter's width, and the least distance of two names
RUN_COLOURS = 10


def colour(index: int) -> str:
    """The style-sheet colour of the run at this place of its data set."""
    return f"var(--run{index % RUN_COLOURS})"


@dataclass(frozen=True)
class Line:
    """One line of a chart, without the points that have no value. `mark` is the x of a point to set a dot on. `ranges`
    are the ends of each point's interval; all points have one, or none."""

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
    """Values to places in a chart, and the chart's grid and ticks; `right` is the room behind the last point."""

    def __init__(self, x: Sequence[float], y: Sequence[float], *, log: bool = False, right: float = RIGHT):
        self.log, self.right = log, right
        self.x_low, self.x_high = min(x), max(x)
        if log:
            self.x_low, self.x_high = log10(self.x_low) - 0.12, log10(self.x_high) + 0.12
        self.y_ticks = ticks(min(y), max(y))
        self.y_low, self.y_high = self.y_ticks[0], self.y_ticks[-1]

    def across(self, x: float) -> float:
        at = log10(x) if self.log else x
        share = (at - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - self.right), 1)

    def down(self, y: float) -> float:
        share = (self.y_high - y) / (self.y_high - self.y_low) if self.y_high > self.y_low else 0.5
        return round(TOP + share * (HEIGHT - TOP - BOTTOM), 1)

    def svg(self, label: str, x_ticks: Sequence[float], x_name: str) -> list[str]:
        parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
        for tick in self.y_ticks:
            y = self.down(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - self.right:g}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{tick:g}</text>')
        for tick in x_ticks:
            place = f'x="{self.across(tick)}" y="{HEIGHT - 16}" text-anchor="middle"'
            parts.append(f'<text class="tick" {place}>{tick:,.10g}</text>')
        parts.append(
            f'<text class="tick" x="{WIDTH - self.right:g}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_name)}</text>'
        )
        return parts


def line_chart(
    lines: Sequence[Line], *, label: str, x_name: str = "epoch", log: bool = False, named: bool = False
) -> str:
    """An SVG of `lines` on shared axes, empty where no two points differ in x. `label` says what it shows to who can't
    see it. With `log` the points are evenly apart by factors, and each has its own tick and dot. With `named` each line
    has its name at its end."""
    points = {line.name: [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None] for line in lines}
    every = [point for line in points.values() for point in line]
    if len({x for x, _ in every}) < 2:
        return ""
    heights = [y for _, y in every] + [end for line in lines for ends in line.ranges or () for end in ends]
    right = min(0.4 * WIDTH, 12 + LETTER * max(len(line.name) for line in lines)) if named else RIGHT
    axes = _Axes([x for x, _ in every], heights, log=log, right=right)
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
            if x == line.mark or log:
                at = f'cx="{axes.across(x)}" cy="{axes.down(y)}"'
                spot = f'<circle class="best" style="fill:{line.colour}" {at} r="4.5">'
                parts.append(f"{spot}<title>{escape(line.name)}: {y:.1f} at {x_name} {x:g}</title></circle>")
    ends = [(line, *points[line.name][-1]) for line in lines if points[line.name]] if named else []
    heights = _spread([axes.down(y) + 4 for _, _, y in ends])
    for (line, x, _), height in zip(ends, heights, strict=True):
        longest = int((right - 10) / LETTER)
        name = line.name if len(line.name) <= longest else f"{line.name[: longest - 1]}…"
        place = f'x="{axes.across(x) + 8:.1f}" y="{height:.1f}"'
        parts.append(f'<text class="name" style="fill:{line.colour}" {place}>{escape(name)}</text>')
    return "".join(parts) + "</svg>"


def _spread(heights: Sequence[float]) -> list[float]:
    """Move the heights of names apart until no two are nearer than `LINE`, each as near to its own as the others let
    it. All stay within the chart as far as they fit."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    blocks: list[list[float]] = []  # of names that touch: the middle that each wants for the block, and how many
    for place in order:
        blocks.append([heights[place], 1])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < LINE * (blocks[-1][1] + blocks[-2][1]) / 2:
            middle, count = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + middle * count) / (blocks[-1][1] + count),
                blocks[-1][1] + count,
            ]
    moved = [middle + LINE * (number - (count - 1) / 2) for middle, count in blocks for number in range(int(count))]
    down = max(0.0, TOP + 4 - moved[0]) if moved else 0.0
    up = max(0.0, moved[-1] - (HEIGHT - BOTTOM + 4)) if moved else 0.0
    found = [0.0] * len(moved)
    for place, height in zip(order, moved, strict=True):
        found[place] = height + down - up
    return found


def scatter_chart(spots: Sequence[Spot], *, label: str, x_name: str) -> str:
    """An SVG of named points over a logarithmic x axis, empty where there are fewer than two; names that would meet are
    moved apart."""
    if len(spots) < 2:
        return ""
    axes = _Axes([spot.x for spot in spots], [spot.y for spot in spots], log=True)
    decades = range(floor(axes.x_low), floor(axes.x_high) + 2)
    steps = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    inside = [x for x in steps if axes.x_low <= log10(x) <= axes.x_high]
    x_ticks = inside if len(inside) < 7 else [x for x in inside if log10(x) == round(log10(x))]
    parts = axes.svg(label, x_ticks, x_name)
    heights = _spread([axes.down(spot.y) + 4 for spot in spots])
    for spot, height in zip(spots, heights, strict=True):
        x, y = axes.across(spot.x), axes.down(spot.y)
        left = x > WIDTH / 2
        place = f'x="{x - 9 if left else x + 9:.1f}" y="{height:.1f}" text-anchor="{"end" if left else "start"}"'
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
