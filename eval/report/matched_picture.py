"""A picture with the regions that a caption's words matched, and the caption in the words' colours, by matplotlib."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from eval.report.drawing import Highlight, Placed
from eval.report.templates import palette

INK, SOFT = "#15202b", "#566472"
WORD_COLOURS = palette("k")
CHARACTER = 0.11  # inches that a caption's character takes


def draw_regions(axes: Axes, picture: np.ndarray, placed: Sequence[Placed]) -> None:
    """Show `picture [H, W, 3]` with boxes: dashed where it is known not to be the object that the words mean."""
    axes.imshow(picture, interpolation="lanczos")
    axes.axis("off")
    axes.set_anchor("NW")
    for match in placed:
        x1, y1, x2, y2 = match.box
        axes.add_patch(
            Rectangle(
                (x1, y1),
                max(1, x2 - x1),
                max(1, y2 - y1),
                fill=False,
                edgecolor=WORD_COLOURS[match.words[match.shown].colour],
                linewidth=2.4,
                linestyle="--" if match.right[match.shown] is False else "-",
                path_effects=[withStroke(linewidth=5, foreground="#ffffffe0")],
            )
        )


def write_caption(figure: Figure, text: str, words: Sequence[Highlight], *, left: float, top: float) -> float:
    """Write a caption with coloured words from (left, top), shares of the figure's sides, wrapped at its right end.
    Gives the height of its last line."""
    colours = {}
    for highlight in words:
        colours |= dict.fromkeys(range(highlight.start, highlight.end), WORD_COLOURS[highlight.colour])
    width, height = figure.get_size_inches()
    x, y, at = left, top, 0
    for word in text.split(" "):
        length = CHARACTER * (len(word) + 1) / width
        if x + length > 0.985:
            x, y = left, y - 0.336 / height
        colour = next((colours[index] for index in range(at, at + len(word)) if index in colours), INK)
        weight = "bold" if colour != INK else "normal"
        figure.text(x, y, word, fontsize=13, color=colour, fontweight=weight, va="center", family="monospace")
        x, at = x + length, at + len(word) + 1
    return y
