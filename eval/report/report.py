"""The report stage: a page for each comparison, that is each data set with its runs, and one figure for a README.

`index.html` is the page of the first data set, `D.html` that of each other one. Every page holds all it needs (style,
script, photographs, charts) and asks no network for anything. `overview.png` shows R@sum and one matched picture of the
first data set.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.report.overview import draw_overview
from eval.report.page import open_data_set, section
from eval.report.results import RunResult
from eval.report.templates import render
from eval.settings import ReportSettings
from eval.study.settings import StudySettings
from manifests.errors import InputError
from manifests.files import whole_folder, write_text
from manifests.locks import one_writer

log = logging.getLogger(__name__)


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
    runs : each run's settings in the order of `params.yaml`; `dataset` names its data set. The first evaluated run of
        a data set is the one that the others are measured against. A run without an evaluation is left out, and named.
    runs_dir, data_dir, ensembles_dir, studies_dir : the folders that hold `R/`, `D/`, `E/` and `S/`.
    ensembles : the runs of each. One that isn't made isn't shown.
    image_roots : each data set's folder of pictures. Pictures that aren't there are shown as empty tiles.
    benchmarks : the project's folder of measured figures; what isn't there isn't shown.
    commit : of the code, if it is known.
    """
    groups = results(runs, runs_dir)
    if not groups:
        fix = "run `dvc repro`" if runs else "add a run"
        raise InputError("there is no evaluated run to report", where="params.yaml, runs", fix=fix)
    left_out = unevaluated(runs, runs_dir)
    for sentence in left_out:
        log.warning("%s", sentence)
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
            write_text(folder / files[source.name], render("comparison.html", s=shown, pages=files, left_out=left_out))
        draw_overview(sources[0], folder / "overview.png")


def results(runs: Mapping[str, dict], runs_dir: Path) -> dict[str, list[RunResult]]:
    """The evaluated runs of each data set, both in the order given."""
    groups: dict[str, list[RunResult]] = {}
    for name, settings in runs.items():
        run = RunResult(name, dict(settings), runs_dir / name)
        if run.evaluated:
            groups.setdefault(settings["dataset"], []).append(run)
    return groups


def unevaluated(runs: Mapping[str, dict], runs_dir: Path) -> list[str]:
    """A sentence about each run that has no evaluation: what makes one."""
    sentences = []
    for name in runs:
        if not RunResult(name, {}, runs_dir / name).evaluated:
            figures = runs_dir / name / "metrics.json"
            why = "it has no evaluation yet"
            if figures.is_file():
                why = f"of its evaluation only {figures} is here"
            sentences.append(f"{name} is left out: {why} (dvc repro evaluate@{name})")
    return sentences
