"""The pictures of the two committed studies, for docs/: NAME is study or comparison.

    python -m benchmarks.draw NAME # benchmarks/NAME.json -> docs/NAME.png

What a JSON doesn't hold yet is left out.
"""

import json
from pathlib import Path
from typing import Any

import click
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import comparison, study
from eval.report.matched_picture import INK, SOFT
from eval.report.overview import RUN_COLOURS
from manifests.files import atomic

BASES = {"vsrn": "VSRN", "camera": "CAMERA", "vse_infinity": "VSE-infinity"}
KINDS = {"colour": RUN_COLOURS[2], "shape": RUN_COLOURS[1]}
MODES = {
    "student": ("o", "search with the student"),
    "teacher": ("s", "search with the teacher"),
    "reranked": ("^", "student's best, put in the teacher's order"),
}
STYLE = {"font.family": "sans-serif", "font.size": 10.5, "text.color": INK, "axes.edgecolor": SOFT}


def draw_study(found: dict[str, Any]) -> Figure:
    """For each base R@sum and the share of colour and shape words on a fitting object, mean and standard deviation."""
    figure = Figure(figsize=(14, 5), dpi=110, facecolor="white")
    names = list(study.ADDED)
    # Chance is that of the scenes' test split, whatever the model.
    chance = json.loads(Path("runs/vsrn/metrics.json").read_text(encoding="utf-8"))["correspondence"]["kinds"]
    for column, base in enumerate(base for base in BASES if base in found["bases"]):
        told, left = found["bases"][base]["rows"], 0.262 + column * 0.248
        rows = {name: told[name] for name in names if name in told}
        places = [len(names) - names.index(name) for name in rows]
        recall, words = (figure.add_axes((left + at, 0.13, width, 0.7)) for at, width in ((0, 0.13), (0.138, 0.09)))
        recall.axvline(rows["base"]["rsum"]["mean"], color=SOFT, linewidth=1, linestyle=":")
        _dots(recall, places, [row["rsum"] for row in rows.values()], RUN_COLOURS[0])
        for kind, colour in KINDS.items():
            _dots(words, places, [row["kinds"][kind] for row in rows.values()], colour)
            words.axvline(chance[kind]["fitting_chance"], color=colour, linewidth=1, linestyle=":")
        words.set(xlim=(-0.03, 1.03), xticks=(0, 0.5, 1))
        recall.set_title(BASES[base], loc="left", fontsize=13, fontweight="bold", pad=22)
        recall.locator_params(axis="x", nbins=4, prune="upper")
        recall.set_xlabel("R@sum")
        words.set_xlabel("on a fitting object")
        for axes in (recall, words):
            axes.set(ylim=(0.4, len(names) + 0.6), yticks=[])
            axes.hlines(range(1, len(names) + 1), *axes.get_xlim(), color="#edf0f3", linewidth=1, zorder=0)
        for place, (kind, colour) in enumerate(KINDS.items()):
            words.text(0.5 * place, len(names) + 0.8, kind, color=colour, fontsize=10.5)
    for place, name in enumerate(names):
        at = 0.13 + 0.7 * (len(names) - place - 0.4) / (len(names) + 0.2)
        figure.text(0.255, at, name, ha="right", va="center")
    return figure


def draw_comparison(found: dict[str, Any]) -> Figure:
    """R@sum against the time of a search, for every run and way to search."""
    figure = Figure(figsize=(11, 5.6), dpi=110, facecolor="white")
    axes = figure.add_axes((0.07, 0.12, 0.6, 0.82))
    for colour, name in zip(RUN_COLOURS, comparison.ADDED, strict=False):
        if name not in found["rows"]:
            continue
        for mode, figures in found["rows"][name]["modes"].items():
            rsum, (marker, _) = figures["rsum"], MODES[mode]
            axes.errorbar(
                figures["query_ms"],
                rsum["mean"],
                rsum["sd"] or 0.0,
                fmt=marker,
                color=colour,
                markersize=9,
                label=name if mode == "student" else None,
            )
    for marker, label in MODES.values():
        axes.plot([], [], marker, color=SOFT, markersize=8, label=label)
    axes.set(xscale="log", xlabel="ms a caption among 500 images (logarithmic)", ylabel="R@sum")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.grid(color="#edf0f3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def _dots(axes: Axes, places: list[int], values: list[dict[str, float]], colour: str) -> None:
    means, deviations = (np.array([value[key] or 0.0 for value in values]) for key in ("mean", "sd"))
    axes.errorbar(means, places, xerr=deviations, fmt="o", color=colour, markersize=6, linewidth=1.4)
    axes.spines[["top", "right", "left"]].set_visible(False)


@click.command()
@click.argument("name", type=click.Choice(("study", "comparison")))
def main(name: str) -> None:
    """Draw docs/NAME.png."""
    found = json.loads(Path(f"benchmarks/{name}.json").read_text(encoding="utf-8"))
    with matplotlib.rc_context(STYLE), atomic(Path(f"docs/{name}.png")) as temporary:
        figure = (draw_study if name == "study" else draw_comparison)(found)
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    main()
