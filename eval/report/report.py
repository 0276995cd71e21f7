"""The report stage: a page for each comparison, that is each data set with its runs, and one figure for a README.

`index.html` is the page of the first data set, `D.html` that of each other one; every page holds all it needs (style,
script, photographs, charts) and asks no network for anything. `overview.png` shows R@sum and one matched picture of
the first data set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.recall import CUTOFFS
from eval.report.overview import draw_overview
from eval.report.page import open_data_set, section
from eval.report.recall_table import RECALLS, recall_rows
from eval.report.results import RunResult
from eval.report.templates import render
from eval.report.verdict import verdict
from eval.settings import ReportSettings
from eval.study.settings import StudySettings
from manifests.errors import InputError
from manifests.files import whole_folder, write_text
from manifests.locks import one_writer


@one_writer("report")
def run(
    *,
    runs: Mapping[str, dict],
    runs_dir: Path,
    data_dir: Path,
    image_roots: Mapping[str, Path],
    ensembles: Mapping[str, Sequence[str]],
    ensembles_dir: Path,
    studies: Mapping[str, StudySettings],
    studies_dir: Path,
    benchmarks: Path,
    commit: str | None,
    settings: ReportSettings,
    out: Path,
) -> None:
    """Write the pages and `overview.png` to `out`.

    Parameters
    ----------
    runs : each run's settings in the order of `params.yaml`; `dataset` names its data set. The first run of a data set
        is the one that the others are measured against.
    runs_dir, data_dir, ensembles_dir, studies_dir : the folders that hold `R/`, `D/`, `E/` and `S/`.
    ensembles : the runs of each. One that isn't made isn't shown.
    image_roots : each data set's folder of pictures. Pictures that aren't there are shown as empty tiles.
    benchmarks : the project's folder of measured figures; what isn't there isn't shown.
    commit : of the code, if it is known.
    """
    groups = results(runs, runs_dir)
    if not groups:
        raise InputError("there is no run to report", where="params.yaml, runs", fix="add a run")
    sources = [open_data_set(name, data_dir / name, image_roots[name], group) for name, group in groups.items()]
    files = {source.name: f"{source.name}.html" if place else "index.html" for place, source in enumerate(sources)}
    with whole_folder(out) as folder:
        for source in sources:
            shown = section(
                source,
                settings,
                ensembles=[name for name, members in ensembles.items() if runs[members[0]]["dataset"] == source.name],
                ensembles_dir=ensembles_dir,
                studies={name: study for name, study in studies.items() if study.dataset == source.name},
                studies_dir=studies_dir,
                benchmarks=benchmarks,
                commit=commit,
            )
            write_text(folder / files[source.name], render("comparison.html", s=shown, pages=files))
        draw_overview(sources[0], folder / "overview.png")


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
    columns = [*RECALLS, "rsum"]
    lines = [header]
    for row in recall_rows(runs):
        share = row["correspondence"]
        values = [f"{row['values'][column]:.1f}" for column in columns]
        lines.append([row["name"], *values, row.get("change", ""), f"{share['accuracy']:.0%}" if share else "–"])
    share = metrics.get("correspondence")
    values = [f"{chance[column]:.1f}" for column in columns]
    lines.append(["chance", *values, "", f"{share['chance']:.0%}" if share else "–"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    cells = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    text = ["  ".join(line) for line in cells]
    rule = "─" * len(text[0])
    title = f"{data_set}: {metrics['images']:,} {metrics['split']} images, {metrics['captions']:,} captions"
    told = [sentence.replace("`", "") for sentence in verdict(runs)]
    body = [line.rstrip() for line in text]
    return "\n".join([title, rule, body[0], rule, *body[1:-1], rule, body[-1], rule, *told])
