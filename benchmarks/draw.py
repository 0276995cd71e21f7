"""Draws docs/studies.png: what each row of the studies on photographs gains over its InfoNCE control, seed by seed.

python -m benchmarks.draw
"""

import json
import statistics
from pathlib import Path

import click
from matplotlib.figure import Figure

from eval.report.matched_picture import INK, SOFT
from eval.report.templates import palette
from manifests.files import atomic

HERE = Path(__file__).parent
STUDIES = {
    "photographs-vse-infinity": "VSE-infinity over a sentence encoder's states",
    "photographs-vsrn": "VSRN over learned words",
    "photographs-words": "VSE-infinity over learned words",
    "photographs-camera": "CAMERA over a sentence encoder's states",
}
CONTROL = "+ InfoNCE (control)"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=HERE.parent / "docs" / "studies.png", show_default=True)
def main(out: Path) -> None:
    """Draw the picture OUT from `benchmarks/studies`."""
    studies = {title: HERE / "studies" / name / "points.jsonl" for name, title in STUDIES.items()}
    figure = picture({title: gains(path) for title, path in studies.items() if path.is_file()})
    with atomic(out) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    click.echo(f"drawn: {out}")


def gains(points: Path) -> dict[str, list[float]]:
    """Of each row the R@sum of each seed, less that of the control's same seed."""
    found: dict[str, dict[int, float]] = {}
    for line in map(json.loads, points.read_text(encoding="utf-8").splitlines()):
        if line["chooses"] is None:
            found.setdefault(line["row"], {})[line["seed"]] = line["figures"]["rsum"]
    control = found[CONTROL]
    return {row: [seeds[seed] - control[seed] for seed in sorted(seeds)] for row, seeds in found.items()}


def picture(studies: dict[str, dict[str, list[float]]]) -> Figure:
    """A line a row, in groups: the mean gain, one standard deviation, and each seed's as a dot."""
    lines = sum(len(rows) + 1.4 for rows in studies.values())
    figure = Figure(figsize=(11, 0.34 * lines + 1.0), dpi=110, facecolor="white")
    bottom = 0.62 / figure.get_figheight()
    axes = figure.add_axes((0.36, bottom, 0.56, 0.985 - bottom))
    orange, blue = palette("run")[2], palette("run")[1]
    place, ticks, names = 0.0, [], []
    for title, rows in studies.items():
        axes.text(-0.62, place, title, transform=axes.get_yaxis_transform(), fontweight="bold", color=INK, va="center")
        place -= 1
        for name, values in rows.items():
            ticks.append(place)
            names.append(name)
            mean = round(statistics.mean(values), 4)  # as table.csv has it
            if name == CONTROL:
                axes.text(1.01, place, "0", transform=axes.get_yaxis_transform(), va="center", color=INK)
            else:
                colour = blue if mean > 0 else orange
                axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.3, markersize=5, linewidth=0)
                axes.errorbar(mean, place, xerr=statistics.stdev(values), fmt="o", color=colour, markersize=7)
                axes.text(
                    1.01,
                    place,
                    f"{mean:+.1f}".replace("-", "−"),
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    color=INK,
                )
            place -= 1
        place -= 0.4
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set(yticks=ticks, yticklabels=names, ylim=(place + 0.6, 0.6))
    axes.set_xlabel(
        "R@sum above (blue) or below (orange) InfoNCE with 256 numbers; dots: seeds, line: one standard deviation",
        color=SOFT,
    )
    axes.grid(axis="y", color="#e9edf1")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    return figure


if __name__ == "__main__":
    main()
