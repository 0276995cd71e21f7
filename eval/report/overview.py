"""One wide figure of a comparison, for a README or a slide: words on their object, R@sum, and a matched picture."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.interval import interval
from eval.report.drawing import highlights, place
from eval.report.examples import Example, choose
from eval.report.matched_picture import INK, SOFT, draw_regions, write_caption
from eval.report.page import DataSet, compared
from eval.report.pictures import read_shown
from eval.report.results import RunResult
from eval.report.templates import palette
from extract.vision.decode import UnreadableImage
from manifests.files import atomic

TRACK = "#e9edf1"
RUN_COLOURS = palette("run")

WHY = {
    "better": "The caption whose rank improved most.",
    "worse": "The caption whose rank fell most; none improved.",
    "same": "No caption changed its rank.",
    "alone": "The caption that was found best.",
}


def draw_overview(source: DataSet, path: Path) -> None:
    """Write the figure of one data set as PNG: its bars, and the first example with the runs that are compared."""
    with matplotlib.rc_context({"font.family": "sans-serif", "font.size": 12, "text.color": INK}):
        figure = Figure(figsize=(14, 5.6), dpi=110, facecolor="white")
        known = [run for run in source.runs if "correspondence" in run.metrics]
        figure.text(0.03, 0.93, source.name, fontsize=19, fontweight="bold", va="center")
        metrics = source.runs[0].metrics
        under = f"{metrics['images']:,} {metrics['split']} images, {metrics['captions']:,} captions"
        figure.text(0.03, 0.87, under, color=SOFT, va="center")
        if known:
            _correspondence(figure.add_axes((0.13, 0.48, 0.28, 0.27)), source.runs)
        _rsum(figure.add_axes((0.13, 0.08 if known else 0.12, 0.28, 0.27 if known else 0.6)), source.runs)
        if examples := choose(compared(source.runs), 1):
            _example(figure, source, examples[0])
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _bars(axes: Axes, names: list[str], values: list[float], texts: list[str], chance: float, full: float) -> None:
    rows = np.arange(len(names))[::-1]
    colours = [RUN_COLOURS[place % len(RUN_COLOURS)] for place in range(len(names))]
    axes.barh(rows, full, height=0.62, color=TRACK)
    axes.barh(rows, values, height=0.62, color=colours)
    axes.plot([chance, chance], [-0.45, len(names) - 0.55], color=INK, linewidth=1.6, solid_capstyle="butt")
    axes.text(chance, -0.55, "chance", color=SOFT, fontsize=9.5, ha="center", va="top")
    for row, name, text in zip(rows, names, texts, strict=True):
        axes.text(-0.02 * full, row, name, ha="right", va="center", fontsize=11.5)
        axes.text(1.02 * full, row, text, va="center", fontsize=12, fontweight="bold")
    axes.set(xlim=(0, full), ylim=(-0.6, len(names) - 0.4))
    axes.axis("off")


def _rsum(axes: Axes, runs: list[RunResult]) -> None:
    ranges = [interval(run.draws) for run in runs]
    values = [run.metrics["rsum"] for run in runs]
    full = max(high for _, high in ranges) * 1.02 or 1.0
    texts = [f"{value:.1f}" for value in values]
    _bars(axes, [run.name for run in runs], values, texts, runs[0].metrics["chance"]["rsum"], full)
    for row, (low, high) in zip(range(len(runs))[::-1], ranges, strict=True):
        axes.plot([low, high], [row, row], color=INK, linewidth=1.6)
    axes.set_title("R@sum, with the 95 % interval over test images", loc="left", fontsize=11.5, color=SOFT, pad=6)


def _correspondence(axes: Axes, runs: list[RunResult]) -> None:
    shares = [run.metrics.get("correspondence", {}).get("accuracy", 0.0) for run in runs]
    chance = next(run.metrics["correspondence"]["chance"] for run in runs if "correspondence" in run.metrics)
    _bars(axes, [run.name for run in runs], shares, [f"{share:.0%}" for share in shares], chance, 1.0)
    axes.set_title("Words whose best region is the object they mean", loc="left", fontsize=11.5, color=SOFT, pad=6)


def _example(figure: Figure, source: DataSet, example: Example) -> None:
    caption = example.caption
    image = int(source.data.caption_image[caption])
    row = source.data.images[image]
    truth = source.truth.get(row.id)
    words = highlights(source.data, caption, truth)
    try:
        picture = read_shown(source.image_root / row.path)
    except (OSError, UnreadableImage):
        return
    below = write_caption(figure, source.data.caption_text(caption), words, left=0.5, top=0.93)
    for column, run in enumerate(compared(source.runs)):
        axes = figure.add_axes((0.5 + column * 0.245, 0.09, 0.235, below - 0.2))
        draw_regions(axes, picture, place(source.data, caption, words, run.matches, truth))
        rank = int(run.ranks["t2i"][caption]) + 1
        title = f"{run.name}: ranked {rank} of {len(source.data.images):,}"
        axes.set_title(title, fontsize=11.5, loc="left", color=INK, pad=6)
    note = WHY[example.kind] + (
        "" if truth is None else " Solid: the object that the word means. Dashed: another, or too little of it."
    )
    figure.text(0.5, 0.035, note, color=SOFT, fontsize=10)
