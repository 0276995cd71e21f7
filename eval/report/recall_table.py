"""The headline table: the recalls of runs, of ways to search with a run, and of ensembles, with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.figures import FIGURES, read_ranks
from eval.interval import interval, rsum_draws
from eval.recall import DIRECTIONS, RECALLS
from eval.report.charts import colour
from eval.report.results import RunResult
from eval.report.speed import mode_name
from eval.report.verdict import difference, signed
from eval.report.written import EnsembleMetrics, read_json

COLUMNS = ["rsum", *RECALLS]
_RELEVANCE = {"rouge_l": "ROUGE-L", "spice": "SPICE"}
_WAYS = {
    "i2t": "captions for an image",
    "t2i": "images for a caption",
    "i2i": "images for an image",
    "t2t": "captions for a caption",
}
_NAMES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "ndcg": "NDCG@25", "map_at_r": "mAP@R", "rprecision": "R-precision"}
_DRAWN = ("i2t", "i2t_images", "t2i", "caption_image")


def recall_rows(runs: Sequence[RunResult]) -> list[dict]:
    """Every run's R@sum and recalls with their intervals, the difference to the first run, and correspondence. `best`
    names the columns where a run's interval lies above what every other run reaches."""
    rows = []
    for place, run in enumerate(runs):
        row = _row(run.name, run.metrics) | {"colour": colour(place)}
        row["correspondence"] = run.metrics.get("correspondence")
        row["query_ms"] = next(iter(run.modes.values())).get("query_ms") if len(run.modes) == 1 else None
        others = [other.metrics for other in runs if other is not run]
        row["best"] = {
            column
            for column, (low, _) in row["intervals"].items()
            if others and low > max(metrics[column] for metrics in others)
        }
        if place:
            row |= _change(*difference(run, runs[0]))
        rows.append(row)
    return rows


def metric_rows(runs: Sequence[RunResult]) -> list[dict]:
    """A row for each figure that a metric beside the recalls gave: its name, and every run's value or None."""
    figures_of_runs = [_metric_figures(run.metrics) for run in runs]
    names = dict.fromkeys(name for figures in figures_of_runs for name in figures)
    return [{"name": name, "values": [figures.get(name) for figures in figures_of_runs]} for name in names]


def _metric_figures(metrics: Mapping) -> dict[str, float]:
    """By metric and name, as they are read."""
    below = {f"NDCG@25 by {_RELEVANCE.get(name, name)}": own for name, own in metrics.get("ndcg", {}).items()}
    below |= {"Uni-modal": metrics.get("unimodal", {}), "ECCV Caption": metrics.get("eccv", {})}
    below |= metrics.get("others", {})
    figures = ((f"{metric}: {_named(name)}", value) for metric, own in below.items() for name, value in _ordered(own))
    return {name: value for name, value in figures if not isinstance(value, str)}


def _ordered(figures: Mapping) -> list[tuple]:
    """Figures by name, R@5 before R@10."""
    return sorted(figures.items(), key=lambda item: (item[0].rstrip("0123456789"), len(item[0]), item[0]))


def _named(key: str) -> str:
    """A figure's key as a reader sees it: ``t2t_r1`` is captions for a caption, R@1."""
    way, _, rest = key.partition("_")
    if way not in _WAYS:
        return _NAMES.get(key, key.replace("_", " "))
    return f"{_WAYS[way]}, {_NAMES.get(rest, rest.replace('_', ' '))}" if rest else _WAYS[way]


def mode_rows(runs: Sequence[RunResult]) -> list[dict]:
    """A row for each way to search with a run that has several: its recalls as far as they are known, and its time."""
    return [
        _row(mode_name(run, mode), figures) | {"colour": colour(place), "query_ms": figures.get("query_ms")}
        for place, run in enumerate(runs)
        if len(run.modes) > 1
        for mode, figures in run.modes.items()
    ]


def ensemble_rows(names: Sequence[str], folder: Path, base: RunResult) -> list[dict]:
    """A row for each ensemble that is made, with its difference to `base`; `folder` holds `E/`."""
    rows = []
    for name in names:
        if not (folder / name / FIGURES).exists():
            continue
        again = f"dvc repro ensemble@{name}"
        metrics = read_json(folder / name / FIGURES, EnsembleMetrics, fix=again)
        ranks = read_ranks(folder / name / "ranks.npz", fix=again)
        draws = rsum_draws(*(ranks[key] for key in _DRAWN), num_images=len(ranks["image_ids"]))
        change = metrics["rsum"] - base.metrics["rsum"], *interval(draws - base.draws)
        rows.append(_row(name, metrics) | _change(*change) | {"members": metrics["runs"]})
    return rows


def _row(name: str, figures: Mapping) -> dict:
    intervals = figures.get("interval", {})
    ranks = {key: figures[key] for way in DIRECTIONS if (key := f"{way}_median_rank") in figures}
    ranks |= {key: figures[key] for way in DIRECTIONS if (key := f"{way}_mean_rank") in figures}
    return {
        "name": name,
        "values": {column: figures.get(column) for column in COLUMNS},
        "intervals": {column: intervals[column] for column in COLUMNS if column in intervals},
        "ranks": ranks,
        "best": set(),
        "colour": None,
        "members": [],
        "correspondence": None,
        "query_ms": None,
    }


def _change(change: float, low: float, high: float) -> dict:
    return {
        "change": signed(change),
        "range": f"{signed(low)} to {signed(high)}",
        "certain": low > 0 or high < 0,
    }
