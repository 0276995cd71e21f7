"""What the report shows of studies: the points of each as a chart and a table."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from eval.report.charts import Line, line_chart
from eval.report.written import Point, read_table
from eval.study_settings import StudySettings, label
from manifests.typed import checked


def study_panels(studies: Mapping[str, StudySettings], folder: Path) -> list[dict]:
    """Each study that has points, from the stage (`points.csv`) and from DVC's queue (`queued.csv`).

    Points with the study's changes and points of the run as it is are not comparable: each is a series of its own.
    """
    panels = []
    for name, settings in studies.items():
        made = [point | {"of": "study"} for point in _read(folder / name / "points.csv")]
        queued = _read(folder / name / "queued.csv")
        series = []
        for of in ("run", "study"):
            own = [p for p in made + queued if not settings.changes or p.get("of", "run") == of]
            if own and not (series and not settings.changes):
                series.append(_series(settings, own, settings.changes if of == "study" else {}))
        if series:
            panels.append({"title": settings.title, "key": settings.key, "run": settings.run, "series": series})
    return panels


def _series(settings: StudySettings, points: Sequence[Mapping], changes: Mapping[str, Any]) -> dict:
    """Comparable points, each value once (the first of several), as a chart or bars and a table."""
    rows = list({point["value"]: point for point in reversed(points)}.values())[::-1]
    numbers = all(_is_number(row["value"]) for row in rows)
    if numbers:
        rows.sort(key=lambda row: float(row["value"]))
    return {
        "changes": {key: label(value) if value is not None else "null" for key, value in changes.items()},
        "points": rows,
        "chart": _chart(settings, rows) if numbers and len(rows) > 1 and float(rows[0]["value"]) > 0 else None,
        "full": max(float(row["high"]) for row in rows) * 1.02 or 1.0,
    }


def _chart(settings: StudySettings, points: Sequence[Mapping]) -> str:
    line = Line(
        settings.title,
        "var(--run1)",
        [float(point["value"]) for point in points],
        [point["rsum"] for point in points],
        ranges=[(point["low"], point["high"]) for point in points],
    )
    return line_chart([line], label=f"R@sum by {settings.title.lower()}", x_name=settings.title.lower(), log=True)


def _read(path: Path) -> list[dict]:
    """The rows of a file of points, numbers as such; none where there is no file."""
    if not path.exists():
        return []
    fix = "run the study again, or collect it"
    rows = read_table(path, ("value", "rsum", "low", "high"), ("value", "of"), fix=fix)
    for place, row in enumerate(rows, 1):
        checked(row, Point, where=f"{path} row {place}", fix=fix)
    return rows


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False
