"""What the report shows of cost: time of encoding and search, and accuracy against the time of a search."""

import json
from collections.abc import Sequence
from pathlib import Path

from eval.report.charts import Spot, scatter_chart
from eval.report.results import RunResult
from manifests.host import measured_where
from train.data import RetrievalData

MEASURED_IMAGES = 128  # one batch of eval.cost, whose regions it counts


def cost_tables(runs: Sequence[RunResult], benchmarks: Path, data: RetrievalData) -> list[dict]:
    """What `selfalign cost` measured of these runs: in their folders, or of one in `benchmarks/search_cost.json`.

    The benchmark is shown where its run has that name, and as many numbers and regions an image. Regions are counted in
    `data`, the split that was evaluated.
    """
    kept = benchmarks / "search_cost.json"
    benchmark = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    found = []
    for run in runs:
        cost = run.cost
        if cost is None and benchmark.get("run") == run.name:
            cost = benchmark if (benchmark["dims"], benchmark["regions"]) == _sizes(run, data) else None
        if cost is not None:
            counts = [
                {
                    "candidates": int(count),
                    "search": searched,
                    "attention": cost["cross_attention_ms"][count],
                    "reckoned": count in cost["cross_attention_reckoned"],
                    "times": cost["times"][count],
                }
                for count, searched in cost["search_ms"].items()
                if count in cost["cross_attention_ms"] and count in cost["times"]
            ]
            where = measured_where(cost.get("made") if cost is run.cost else None)
            found.append(
                cost | {"name": run.name, "where": where, "rows": sorted(counts, key=lambda row: row["candidates"])}
            )
    return found


def _sizes(run: RunResult, data: RetrievalData) -> tuple[int, int]:
    """Numbers and regions an image, as `eval.cost` counts them."""
    parts, images = run.embeddings, range(min(MEASURED_IMAGES, len(data.images)))
    dims = parts.pooled.shape[1] * parts.pooled.shape[2] + parts.context.shape[1]
    return dims, round(sum(len(data.regions(image).boxes) for image in images) / len(images))


def trade_off(runs: Sequence[RunResult], colours: Sequence[str]) -> str:
    """R@sum against the time of a query, a spot for each way to search; nothing where no time is known."""
    spots = [
        Spot(mode_name(run, mode), colour, figures["query_ms"], figures["rsum"])
        for run, colour in zip(runs, colours, strict=True)
        for mode, figures in run.modes.items()
        if figures.get("query_ms")
    ]
    label = "R@sum against search time: " + "; ".join(f"{s.name} {s.y:.1f} in {s.x:.3g} ms" for s in spots)
    return scatter_chart(spots, label=label, x_name="ms a query") if spots else ""


def mode_name(run: RunResult, mode: str) -> str:
    """The name of one way to search: the run's, and the mode's where there are several."""
    return f"{run.name}, {mode}" if len(run.modes) > 1 else run.name
