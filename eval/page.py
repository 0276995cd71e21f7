"""The report's contents: everything that the templates in `eval/pages/` show of one data set, as plain values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.charts import Line, line_chart
from eval.drawing import caption_html, draw, marks
from eval.examples import Example, choose
from eval.interval import interval
from eval.pictures import Pictures
from eval.recall import CUTOFFS, DIRECTIONS
from eval.results import RunResult
from eval.settings import ReportSettings
from eval.verdict import difference, signed, verdict
from extract.stores.regions import RegionStore
from manifests.errors import InputError
from manifests.grounding import Grounding, read_grounding
from manifests.schema import read_manifest
from train.data import RetrievalData

RUN_COLOURS = 6
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
    data = RetrievalData(folder / "manifest" / "manifest.jsonl", folder / "regions", folder / "tokens", split)
    ids = [image.id for image in data.images]
    for run in runs:
        if run.metrics["split"] != split or run.ranks["image_ids"].tolist() != ids:
            raise InputError(
                f"run {run.name} was evaluated on other images than {runs[0].name} or than the data set now has",
                where=run.folder / "metrics.json",
                fix=f"dvc repro evaluate@{run.name}",
            )
    truth = folder / "manifest" / "grounding.jsonl"
    return DataSet(name, folder, image_root, runs, data, read_grounding(truth) if truth.exists() else {})


def section(source: DataSet, settings: ReportSettings, pictures: Pictures) -> dict:
    """What the templates show of one data set; adds the photographs it needs to `pictures`."""
    runs, metrics = source.runs, source.runs[0].metrics
    return {
        "name": source.name,
        "split": metrics["split"],
        "images": metrics["images"],
        "captions": metrics["captions"],
        "verdict": verdict(runs),
        "runs": [run.name for run in runs],
        "rsum": _rsum_bars(runs),
        "correspondence": _correspondence_bars(runs),
        "table": recall_rows(runs),
        "cutoffs": CUTOFFS,
        "curves": _curves(runs),
        "examples": [_example(source, example, settings, pictures) for example in choose(runs, settings.examples)],
        "provenance": _provenance(source),
    }


def colour(index: int) -> str:
    """The style-sheet colour of the run at this place of its data set."""
    return f"var(--run{index % RUN_COLOURS})"


def recall_rows(runs: Sequence[RunResult]) -> list[dict]:
    """The headline table: every run's recalls, its R@sum with the difference to the first run, and correspondence;
    `best` names the columns where a run is the highest of several."""
    columns = [f"{direction}_r{cutoff}" for direction in DIRECTIONS for cutoff in CUTOFFS] + ["rsum"]
    top = {column: max(run.metrics[column] for run in runs) for column in columns}
    rows = []
    for place, run in enumerate(runs):
        row = {"name": run.name, "colour": colour(place), "correspondence": run.metrics.get("correspondence")}
        row["values"] = {column: run.metrics[column] for column in columns}
        row["medians"] = {direction: run.metrics[f"{direction}_median_rank"] for direction in DIRECTIONS}
        row["best"] = {column for column in columns if len(runs) > 1 and run.metrics[column] == top[column]}
        if place:
            change, low, high = difference(run, runs[0])
            row["change"], row["range"] = signed(change), f"{signed(low)} to {signed(high)}"
            row["certain"] = low > 0 or high < 0
        rows.append(row)
    return rows


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
        Line(run.name, colour(place), run.epochs["epoch"], run.epochs["val_rsum"], mark=run.record["best_epoch"])
        for place, run in enumerate(runs)
        if "val_rsum" in run.epochs
    ]
    title = "R@sum on the validation split"
    charts = [{"title": title, "svg": line_chart(lines, label=f"{title} per epoch")}]
    terms = list(dict.fromkeys(name for run in runs for name in run.losses if name != "loss"))
    for term in terms or ["loss"]:
        lines = [
            Line(run.name, colour(place), run.epochs["epoch"], run.epochs[term])
            for place, run in enumerate(runs)
            if term in run.epochs
        ]
        svg = line_chart(lines, label=f"Loss {term} per epoch")
        charts.append({"title": f"Loss: {term.replace('_', ' ')}", "svg": svg})
    return [chart for chart in charts if chart["svg"]]


def _example(source: DataSet, example: Example, settings: ReportSettings, pictures: Pictures) -> dict:
    data, caption = source.data, example.caption
    right_image = int(data.caption_image[caption])
    truth = source.truth.get(data.images[right_image].id)
    words = marks(data, caption, truth)

    def picture(image: int) -> str:
        return pictures.name(source.image_root / data.images[image].path)

    views = []
    for place, run in enumerate(source.runs):
        drawing = draw(data, caption, words, run.matches, truth)
        views.append({
            "name": run.name,
            "colour": colour(place),
            "rank": int(run.ranks["t2i"][caption]) + 1,
            "picture": picture(right_image),
            "drawing": drawing,
            "found": [
                {"picture": picture(image), "right": image == right_image, "id": data.images[image].id}
                for image in run.found(caption, settings.retrieved)
            ],
        })  # fmt: skip
    return {
        "kind": example.kind,
        "caption": caption_html(data.caption_text(caption), words),
        "text": data.caption_text(caption),
        "known": truth is not None,
        "runs": views,
        "images": len(data.images),
    }


def _provenance(source: DataSet) -> dict:
    store = RegionStore(source.folder / "regions")
    rows = read_manifest(source.folder / "manifest" / "manifest.jsonl")
    flat = [_flat(run.settings) for run in source.runs]
    keys = sorted({key for settings in flat for key, value in settings.items() if value is not None})
    differing = [key for key in keys if len({_shown(settings.get(key)) for settings in flat}) > 1]
    return {
        "recipe_hash": store.recipe_hash,
        "recipe": json.dumps(store.recipe, indent=2, sort_keys=True, ensure_ascii=False),
        "detector": _detector(store.recipe),
        "dimensions": store.dim,
        "splits": [
            {
                "name": split,
                "images": sum(row.split == split for row in rows),
                "captions": sum(len(row.captions) for row in rows if row.split == split),
            }
            for split in ("train", "val", "test")
        ],
        "left_out": source.data.left_out,
        "records": [
            {
                "name": run.name,
                "colour": colour(place),
                "parameters": run.record["parameters"],
                "best_epoch": run.record["best_epoch"],
                "seconds": run.epochs["seconds"][-1],
            }
            for place, run in enumerate(source.runs)
        ],
        "settings": {
            "differing": [(key, [_shown(settings.get(key)) for settings in flat]) for key in differing],
            "same": [(key, _shown(flat[0].get(key))) for key in keys if key not in differing],
        },
        "credits": _credits(source),
    }


def _credits(source: DataSet) -> str | None:
    """The licence text that lies beside the photographs, without its table; None if there is none."""
    path = source.image_root / "ATTRIBUTION.md"
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line for line in lines if line.strip() and not line.startswith(("#", "|")))


def _detector(recipe: dict) -> str:
    detector = recipe.get("detector", "unknown")
    return detector if isinstance(detector, str) else str(detector.get("name", detector))


def _flat(settings: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested settings as one level of dotted keys."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: object) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
