"""What the report shows of studies: the points of each as a chart and a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.report.charts import Line, line_chart
from eval.study_settings import StudySettings


def study_panels(studies: Mapping[str, StudySettings], folder: Path) -> list[dict]:
    """Each study that has points: from the stage (`points.csv`) and from DVC's queue (`queued.csv`)."""
    panels = []
    for name, settings in studies.items():
        points = [point for file in ("points.csv", "queued.csv") for point in _read(folder / name / file)]
        if not points:
            continue
        numbers = all(_is_number(point["value"]) for point in points)
        if numbers:
            points.sort(key=lambda point: float(point["value"]))
        panels.append(
            {
                "name": name,
                "title": settings.title,
                "key": settings.key,
                "run": settings.run,
                "epochs": settings.changes.get("epochs"),
                "points": points,
                "chart": _chart(settings, points) if numbers and len(points) > 1 else None,
                "full": max(float(point["high"]) for point in points) * 1.02 or 1.0,
            }
        )
    return panels


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
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {key: value if key == "value" else float(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
