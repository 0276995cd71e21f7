"""Draws the pictures of docs/ from the figures beside this file: docs/comparison.png and docs/study.png.

python -m benchmarks.draw
"""

import json
from pathlib import Path

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.report.matched_picture import INK, SOFT
from eval.report.templates import palette
from manifests.files import atomic

HERE = Path(__file__).parent
WAYS = {
    "student": ("one vector each", "o"),
    "teacher": ("word-region teacher", "s"),
    "reranked": ("best of one vector, in the teacher's order", "^"),
}
BASES = {"vsrn": "VSRN", "camera": "CAMERA", "vse_infinity": "VSE-infinity"}
COMPARED = [
    *("base", "InfoNCE (control)", "SelfAlign", "SelfAlign + InfoNCE (control)", "CUSA", "SelfAlign + CUSA", "ALADIN"),
    *("ALADIN + CUSA", "SelfAlign + ALADIN", "all three"),
]
STUDIED = [
    *("base", "+ InfoNCE (control)", "+ LCA", "+ CRA", "+ LCA + CRA", "+ InfoNCE + word-region"),
    *("+ InfoNCE + equal dimensions (control)", "+ InfoNCE + bag", "+ InfoNCE + bag + CRA"),
    "+ InfoNCE + equal dimensions + CRA (control)",
    "+ InfoNCE + equal dimensions + CRA + word-region + LCA",
    *("+ InfoNCE + bag + CRA + word-region", "+ InfoNCE + bag + CRA + word-region + LCA"),
]
CHANCE = 0.265  # of colour words 0.26, of shape words 0.27


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=HERE.parent / "docs", show_default=True)
def main(out: Path) -> None:
    """Draw both pictures into the folder OUT."""
    _save(
        comparison(json.loads((HERE / "comparison.json").read_text(encoding="utf-8"))["rows"]), out / "comparison.png"
    )
    _save(study(json.loads((HERE / "study.json").read_text(encoding="utf-8"))["bases"]), out / "study.png")


def comparison(rows: dict) -> Figure:
    """R@sum of every run and way to search, a line a run; the best way of each has its figure beside it."""
    figure = Figure(figsize=(11, 5.4), dpi=110, facecolor="white")
    axes = figure.add_axes((0.27, 0.12, 0.71, 0.74))
    _rows(axes, COMPARED)
    colours = dict(zip(WAYS, palette("run"), strict=False))
    best = {}
    for place, name in enumerate(COMPARED):
        for way, told in rows[name]["modes"].items():
            mean, sd = told["rsum"]["mean"], told["rsum"]["sd"]
            axes.errorbar(mean, -place, xerr=sd, fmt=WAYS[way][1], color=colours[way], markersize=8, linewidth=1.6)
            best[place] = max(best.get(place, (0.0, 0.0)), (mean, sd))
    for place, (mean, sd) in best.items():
        axes.text(mean + sd + 2, -place, f"{mean:.0f}", va="center", fontsize=10, color=INK)
    for way, x in zip(WAYS, (0.27, 0.44, 0.66), strict=True):
        name, marker = WAYS[way]
        figure.add_artist(_marker(x, 0.93, marker, colours[way]))
        figure.text(x + 0.012, 0.93, name, va="center", fontsize=10.5, color=INK)
    axes.set_xlabel("R@sum on the test split; line: one standard deviation over three seeds", color=SOFT)
    return figure


def study(bases: dict) -> Figure:
    """R@sum, and the share of words on a fitting object, of every row on each base."""
    names = STUDIED
    figure = Figure(figsize=(15, 5.6), dpi=110, facecolor="white")
    orange, blue = palette("run")[2], palette("run")[1]
    for place, (key, title) in enumerate(BASES.items()):
        rows, left = bases[key]["rows"], 0.3 + 0.235 * place
        recalls = figure.add_axes((left, 0.13, 0.105, 0.72))
        shares = figure.add_axes((left + 0.125, 0.13, 0.085, 0.72))
        for axes in (recalls, shares):
            _rows(axes, names if place == 0 and axes is recalls else [""] * len(names))
        figure.text(left, 0.95, title, fontsize=14, fontweight="bold", color=INK, va="center")
        base = rows["base"]["rsum"]["mean"]
        recalls.axvline(base, color=SOFT, linewidth=1, linestyle=":")
        recalls.text(base, 0.7, "base", ha="center", va="bottom", fontsize=9, color=SOFT)
        for line, name in enumerate(names):
            told = rows[name]["rsum"]
            recalls.errorbar(told["mean"], -line, xerr=told["sd"], fmt="o", color=INK, markersize=6, linewidth=1.4)
            for kind, colour, marker in (("shape", blue, "s"), ("colour", orange, "o")):
                share = rows[name]["kinds"][kind]
                shares.errorbar(
                    share["mean"],
                    -line + (0.13 if kind == "shape" else -0.13),
                    xerr=share["sd"],
                    fmt=marker,
                    color=colour,
                    markersize=5,
                )
        shares.axvline(CHANCE, color=SOFT, linewidth=1, linestyle=":")
        shares.text(CHANCE, 0.7, "chance", ha="center", va="bottom", fontsize=9, color=SOFT)
        for x, kind, colour, marker in ((0.005, "colour", orange, "o"), (0.052, "shape", blue, "s")):
            figure.add_artist(_marker(left + 0.125 + x, 0.91, marker, colour))
            figure.text(left + 0.132 + x, 0.91, kind, fontsize=9.5, color=INK, va="center")
        shares.set(xlim=(0, 1.08), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
        recalls.set_xlabel("R@sum", color=SOFT)
        recalls.margins(x=0.12)
        shares.set_xlabel("words on an object\nthat fits", color=SOFT, fontsize=9)
    return figure


def _rows(axes: Axes, names: list[str]) -> None:
    """A horizontal line a row, its name at the left."""
    axes.set(yticks=range(0, -len(names), -1), yticklabels=names, ylim=(-len(names) + 0.4, 0.6))
    axes.grid(axis="y", color="#e9edf1")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)


def _marker(x: float, y: float, marker: str, colour: str) -> Line2D:
    return Line2D([x], [y], marker=marker, color=colour, markersize=7, linestyle="")


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    click.echo(f"drawn: {path}")


if __name__ == "__main__":
    main()
