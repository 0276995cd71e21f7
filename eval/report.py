"""The report stage: one HTML page that compares the runs, and one figure for a README.

`index.html` holds everything it needs (style, script, photographs, charts) and asks no network for anything.
`overview.png` shows R@sum and one matched picture of the first data set.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from eval.overview import draw_overview
from eval.page import open_data_set, recall_rows, section
from eval.pictures import Pictures
from eval.recall import CUTOFFS
from eval.results import RunResult
from eval.settings import ReportSettings
from eval.verdict import verdict
from manifests.errors import InputError
from manifests.files import write_text

PAGES = Path(__file__).parent / "pages"


def run(
    *,
    runs: Mapping[str, dict],
    runs_dir: Path,
    data_dir: Path,
    image_roots: Mapping[str, Path],
    settings: ReportSettings,
    out: Path,
) -> None:
    """Write `out/index.html` and `out/overview.png`.

    Parameters
    ----------
    runs : each run's settings in the order of `params.yaml`; `dataset` names its data set. The first run of a data set
        is the one that the others are measured against.
    runs_dir, data_dir : the folders that hold `R/` and `D/`.
    image_roots : each data set's folder of pictures. Pictures that aren't there are shown as empty tiles.
    """
    groups = results(runs, runs_dir)
    if not groups:
        raise InputError("there is no run to report", where="params.yaml, runs", fix="add a run")
    sources = [open_data_set(name, data_dir / name, image_roots[name], group) for name, group in groups.items()]
    pictures = Pictures()
    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["names"] = _names
    environment.filters["plain"] = lambda text: Markup(text)  # HTML of our own making: charts, drawings, captions
    page = environment.get_template("index.html").render(
        sections=[section(source, settings, pictures) for source in sources],
        style=(PAGES / "style.css").read_text(encoding="utf-8"),
        script=(PAGES / "page.js").read_text(encoding="utf-8"),
        pictures=pictures,
    )
    write_text(out / "index.html", page)
    draw_overview(sources[0], out / "overview.png")


def results(runs: Mapping[str, dict], runs_dir: Path) -> dict[str, list[RunResult]]:
    """The runs of each data set, both in the order given."""
    groups: dict[str, list[RunResult]] = {}
    for name, settings in runs.items():
        groups.setdefault(settings["dataset"], []).append(RunResult(name, dict(settings), runs_dir / name))
    return groups


def metrics_table(runs: Mapping[str, dict], runs_dir: Path) -> str:
    """The headline table as plain text for a terminal, with what it shows in words below it."""
    return "\n\n".join(_plain_table(name, group) for name, group in results(runs, runs_dir).items())


def _plain_table(data_set: str, runs: Sequence[RunResult]) -> str:
    metrics = runs[0].metrics
    header = ["run", *(f"i→t R@{k}" for k in CUTOFFS), *(f"t→i R@{k}" for k in CUTOFFS), "R@sum", "change", "words"]
    chance = metrics["chance"]
    lines = [header]
    for row in recall_rows(runs):
        share = row["correspondence"]
        values = [f"{value:.1f}" for value in row["values"].values()]
        lines.append([row["name"], *values, row.get("change", ""), f"{share['accuracy']:.0%}" if share else "–"])
    share = metrics.get("correspondence")
    values = [f"{chance[key]:.1f}" for key in recall_rows(runs)[0]["values"]]
    lines.append(["chance", *values, "", f"{share['chance']:.0%}" if share else "–"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    cells = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    text = ["  ".join(line) for line in cells]
    rule = "─" * len(text[0])
    title = f"{data_set}: {metrics['images']:,} {metrics['split']} images, {metrics['captions']:,} captions"
    told = [sentence.replace("`", "") for sentence in verdict(runs)]
    body = [line.rstrip() for line in text]
    return "\n".join([title, rule, body[0], rule, *body[1:-1], rule, body[-1], rule, *told])


def _names(text: str) -> Markup:
    """Sentences with run names between backticks, as HTML."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))
