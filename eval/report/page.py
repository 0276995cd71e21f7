"""The report's contents: everything that the templates in `pages/` show of one data set, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.interval import interval
from eval.recall import CUTOFFS
from eval.report import takeaways
from eval.report.charts import Line, colour, line_chart
from eval.report.drawing import caption_html, draw, highlights
from eval.report.examples import Example, choose
from eval.report.pictures import Pictures
from eval.report.provenance import provenance
from eval.report.recall_table import COLUMNS, ensemble_rows, metric_rows, mode_rows, recall_rows
from eval.report.results import RunResult
from eval.report.speed import cost_tables, trade_off
from eval.report.study_pages import study_panels
from eval.report.verdict import by_validation, verdict
from eval.report.vocabulary_page import codebooks, speech_rows
from eval.settings import ReportSettings
from eval.study.settings import StudySettings
from manifests.errors import InputError
from manifests.grounding import Grounding, read_grounding
from train.data import RetrievalData

PICTURE_SIDE, FOUND_SIDE = 360, 160
KIND_ORDER = ("shape", "colour", "texture", "size", "phrase")


@dataclass(frozen=True)
class DataSet:
    """One data set of the report: its runs, the split they were evaluated on, and where its pictures are."""

    name: str
    folder: Path
    image_root: Path
    runs: Sequence[RunResult]
    data: RetrievalData
    truth: Mapping[str, Grounding]


def open_data_set(name: str, folder: Path, image_root: Path, runs: Sequence[RunResult]) -> DataSet:
    """Open `data/D` for the split that all `runs` were evaluated on; InputError if they weren't on the same images."""
    split = runs[0].metrics["split"]
    data = RetrievalData(folder / "manifest", folder / "regions", folder / "tokens", split)
    for run in runs:
        if run.metrics["split"] != split:
            raise InputError(
                f"run {run.name} was evaluated on other images than {runs[0].name}",
                where=run.folder / "evaluation",
                fix=f"dvc repro evaluate@{run.name}",
            )
        run.require_fits(data)
    truth = folder / "manifest" / "grounding.jsonl"
    return DataSet(name, folder, image_root, runs, data, read_grounding(truth) if truth.exists() else {})


def section(
    source: DataSet,
    settings: ReportSettings,
    *,
    ensembles: Sequence[str],
    ensembles_dir: Path,
    studies: Mapping[str, StudySettings],
    studies_dir: Path,
    benchmarks: Path,
    commit: str | None,
) -> dict:
    """What the templates show of one data set. `ensembles` and `studies` are those of its runs, `benchmarks` the
    project's folder."""
    runs, metrics = source.runs, source.runs[0].metrics
    colours = [colour(place) for place in range(len(runs))]
    pictures = Pictures()
    shown = compared(runs)
    books = codebooks(runs, colours, source.data, source.image_root, pictures)
    costs = cost_tables(runs, benchmarks, source.data)
    made = provenance(source.folder, source.image_root, runs, source.data.left_out, commit)
    return {
        "name": source.name,
        "split": metrics["split"],
        "images": metrics["images"],
        "captions": metrics["captions"],
        "verdict": verdict(runs),
        "takeaways": {
            "pictures": takeaways.pictures(shown),
            "words": takeaways.words(runs),
            "concepts": takeaways.concepts(books),
            "speed": takeaways.speed(costs),
            "training": takeaways.training(runs),
            "provenance": takeaways.provenance(made["differing"], len(runs)),
        },
        "runs": [{"name": run.name, "colour": colour} for run, colour in zip(runs, colours, strict=True)],
        "rsum": _rsum_bars(runs),
        "correspondence": _correspondence_bars(runs),
        "table": [*recall_rows(runs), *mode_rows(runs), *ensemble_rows(ensembles, ensembles_dir, runs[0])],
        "columns": COLUMNS,
        "metrics": metric_rows(runs),
        "chance": metrics["chance"],
        "timed": any(run.modes for run in runs),
        "cutoffs": CUTOFFS,
        "curves": _curves(runs),
        "compared": [run.name for run in shown],
        "examples": [
            _example(source, example, shown, settings, pictures) for example in choose(shown, settings.examples)
        ],
        "speech": speech_rows(runs),
        "codebooks": books,
        "studies": study_panels(studies, studies_dir),
        "trade_off": trade_off(runs, colours),
        "costs": costs,
        "provenance": made,
    }


def compared(runs: Sequence[RunResult]) -> list[RunResult]:
    """The runs whose answers are shown side by side: the first, and the best of the others on the validation split."""
    return [runs[0], *by_validation(runs[1:])[:1]]


def _rsum_bars(runs: Sequence[RunResult]) -> dict:
    ranges = [interval(run.draws) for run in runs]
    full = max(high for _, high in ranges) * 1.02 or 1.0
    bars = [
        _bar(run.name, place, run.metrics["rsum"], full, text=f"{run.metrics['rsum']:.1f}", low=low, high=high)
        for place, (run, (low, high)) in enumerate(zip(runs, ranges, strict=True))
    ]
    return {"bars": bars, "chance": 100 * runs[0].metrics["chance"]["rsum"] / full}


def _correspondence_bars(runs: Sequence[RunResult]) -> list[dict]:
    every = [(place, run.metrics.get("correspondence")) for place, run in enumerate(runs)]
    known = [(place, found) for place, found in every if found is not None]
    if not known:
        return []
    kinds = [kind for kind in KIND_ORDER if any(kind in found["kinds"] for _, found in known)]
    panels = []
    for kind in [None, *kinds]:
        shares = [(place, found if kind is None else found["kinds"].get(kind)) for place, found in known]
        shares = [(place, share) for place, share in shares if share]
        panels.append({
            "title": "all words" if kind is None else f"{kind} words",
            "words": shares[0][1]["words"],
            "chance": 100 * shares[0][1]["chance"],
            "bars": [
                _bar(runs[place].name, place, share["accuracy"], 1, text=f"{share['accuracy']:.0%}")
                for place, share in shares
            ],
        })  # fmt: skip
    return panels


def _bar(
    name: str, place: int, value: float, full: float, *, text: str, low: float | None = None, high: float | None = None
) -> dict:
    bar = {"name": name, "colour": colour(place), "width": 100 * value / full, "text": text}
    return bar if low is None or high is None else bar | {"low": 100 * low / full, "high": 100 * high / full}


def _curves(runs: Sequence[RunResult]) -> list[dict]:
    """Validation R@sum of every run in one chart, then one chart a loss term."""
    lines = [
        Line(run.name, colour(place), _numbers(run), run.epochs["val_rsum"], mark=(run.record["best_epoch"] or 0) + 1)
        for place, run in enumerate(runs)
        if "val_rsum" in run.epochs
    ]
    title = "R@sum on the validation split"
    charts = [{"title": title, "svg": line_chart(lines, label=f"{title} per epoch", named=len(runs) > 1)}]
    terms = list(dict.fromkeys(name for run in runs for name in run.losses if name != "loss"))
    for term in terms or ["loss"]:
        lines = [
            Line(run.name, colour(place), _numbers(run), run.epochs[term])
            for place, run in enumerate(runs)
            if term in run.epochs
        ]
        svg = line_chart(lines, label=f"Loss {term} per epoch", named=len(runs) > 1)
        charts.append({"title": f"Loss: {term.replace('_', ' ')}", "svg": svg})
    return [chart for chart in charts if chart["svg"]]


def _numbers(run: RunResult) -> list[float]:
    """A run's epochs, counted from 1."""
    return [(epoch or 0) + 1 for epoch in run.epochs["epoch"]]


def _example(
    source: DataSet, example: Example, runs: Sequence[RunResult], settings: ReportSettings, pictures: Pictures
) -> dict:
    data, caption = source.data, example.caption
    right_image = int(data.caption_image[caption])
    truth = source.truth.get(data.images[right_image].id)
    words = highlights(data, caption, truth)

    def picture(image: int, side: int) -> str | None:
        return pictures.whole(source.image_root / data.images[image].path, side)

    whole = picture(right_image, PICTURE_SIDE)
    views = [
        {
            "name": run.name,
            "colour": colour(source.runs.index(run)),
            "rank": int(run.ranks["t2i"][caption]) + 1,
            "drawing": draw(data, caption, words, run.matches, truth),
            "words": run.pair(caption)["words"],
            "found": [
                {"picture": picture(image, FOUND_SIDE), "right": image == right_image, "id": data.images[image].id}
                for image in run.found(caption, settings.retrieved)
            ],
        }
        for run in runs
    ]
    return {
        "kind": example.kind,
        "caption": caption_html(data.caption_text(caption), words),
        "text": data.caption_text(caption),
        "known": truth is not None,
        "picture": whole,
        "runs": views,
        "images": len(data.images),
    }
