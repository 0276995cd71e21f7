"""What the report shows of studies: the rows of each as a chart and a table."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from eval.report.charts import Line, line_chart
from eval.report.takeaways import study
from eval.report.written import StudyRow, read_table
from eval.study.settings import StudySettings, label
from eval.study.table import TEXTS
from manifests.typed import checked

_NEEDED = ("row", "seeds", "rsum", "low", "high")


def study_panels(studies: Mapping[str, StudySettings], folder: Path) -> list[dict]:
    """Each study that has a table (`S/table.csv` in `folder`); a chart where its rows are two numbers or more."""
    return [
        _panel(settings, rows)
        for name, settings in studies.items()
        if (rows := _read(folder / name / "table.csv", fix=f"run `dvc repro study@{name}` again"))
    ]


def _panel(settings: StudySettings, rows: list[dict]) -> dict:
    numbers = all(_is_number(row["row"]) for row in rows)
    if numbers:
        rows = sorted(rows, key=lambda row: float(row["row"]))
    return {
        "title": settings.title,
        "takeaway": study(settings.title, rows),
        "run": settings.run,
        "keys": list(settings.vary),
        "changes": {key: "null" if value is None else label(value) for key, value in settings.changes.items()},
        "rows": rows,
        "chart": _chart(settings, rows) if numbers and len(rows) > 1 and float(rows[0]["row"]) > 0 else None,
        "full": max(row["high"] for row in rows) * 1.02 or 1.0,
    }


def _chart(settings: StudySettings, rows: list[dict]) -> str:
    line = Line(
        settings.title,
        "var(--run1)",
        [float(row["row"]) for row in rows],
        [row["rsum"] for row in rows],
        ranges=[(row["low"], row["high"]) for row in rows],
    )
    return line_chart([line], label=f"R@sum by {settings.title.lower()}", x_name=settings.title.lower(), log=True)


def _read(path: Path, *, fix: str) -> list[dict]:
    """The rows of a table, numbers as such; none where there is no file."""
    if not path.exists():
        return []
    rows = read_table(path, _NEEDED, TEXTS, fix=fix)
    for place, row in enumerate(rows, 1):
        checked(row, StudyRow, where=f"{path} row {place}", fix=fix)
    return rows


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False
