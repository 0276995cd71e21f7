"""A study's table, `studies/S/table.csv`: a row a set of runs that differ in their seeds alone."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.study.settings import RowSettings, StudySettings
from manifests.files import canonical_json, write_text

SPREAD = ("val_rsum", "rsum", "teacher_rsum", "reranked_rsum", "fitting", "gain")
PLAIN = ("i2t_r1", "t2i_r1", "fitting_chance", "agreement", "agreement_chance", "in_use", "effective")
TEXTS = ("row", "chosen", "against")
COLUMNS = (
    *("row", "seeds", "chosen"),
    *("val_rsum", "val_rsum_sd", "rsum", "rsum_sd", "low", "high", "against", "gain", "gain_sd"),
    *("teacher_rsum", "teacher_rsum_sd", "reranked_rsum", "reranked_rsum_sd", "fitting", "fitting_sd"),
    *PLAIN,
)
Figures = Mapping[str, Any]


def table(settings: StudySettings, measured: Mapping[str, Sequence[Figures]], chosen: Mapping[str, Any]) -> list[dict]:
    """The rows of `COLUMNS`: means over seeds, and standard deviations (`_sd`) where there are several.

    Parameters
    ----------
    measured : of every row the figures of its seeds, in the order of `settings.seeds`.
    chosen : of every row that has some, the values that the validation split chose.

    With one seed `low` and `high` are the 95 % interval over the split's images, with several one deviation about the
    mean. `gain` is the mean difference of R@sum to the row `against`, seed by seed.
    """
    rows = []
    for name, row in settings.table.items():
        runs = [_flat(figures) for figures in measured[name]]
        against = against_row(row)
        if against is not None:
            for run, other in zip(runs, measured[against], strict=True):
                run["gain"] = run["rsum"] - other["rsum"]
        known = {key: [run[key] for run in runs if key in run] for key in (*SPREAD, *PLAIN)}
        mean = {key: statistics.mean(values) if values else None for key, values in known.items()}
        spread = {f"{key}_sd": statistics.stdev(known[key]) if len(known[key]) > 1 else None for key in SPREAD}
        low, high = measured[name][0]["interval"]
        if spread["rsum_sd"] is not None:
            low, high = mean["rsum"] - spread["rsum_sd"], mean["rsum"] + spread["rsum_sd"]
        rows.append(
            {"row": name, "seeds": len(runs), "chosen": canonical_json(chosen[name]) if name in chosen else None}
            | {key: None if value is None else round(value, 4) for key, value in (mean | spread).items()}
            | {"low": round(low, 2), "high": round(high, 2), "against": against}
        )
    return rows


def against_row(row: RowSettings) -> str | None:
    return row.against or row.extends


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of `COLUMNS` as CSV, atomically; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for a terminal: figures with their deviation over seeds, columns that no row has left out."""
    heads = {"row": "row", "seeds": "seeds", "val_rsum": "val R@sum", "rsum": "R@sum", "gain": "gain"}
    heads |= {"against": "over", "teacher_rsum": "teacher", "reranked_rsum": "re-ranked", "fitting": "words fit"}
    heads |= {"chosen": "chosen"}
    shown = {key: head for key, head in heads.items() if any(row[key] is not None for row in rows)}
    lines = [list(shown.values()), *([_cell(row, key) for key in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if value is None or isinstance(value, str | int):
        return "" if value is None else str(value)
    sign, digits = "+" if key == "gain" else "", 3 if key == "fitting" else 1
    deviation = row[f"{key}_sd"]
    return f"{value:{sign}.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _flat(figures: Figures) -> dict[str, float]:
    """A point's figures by the names of the columns, as far as they are known."""
    found = {key: figures[key] for key in ("val_rsum", "rsum", "i2t_r1", "t2i_r1")}
    modes, matched = figures.get("modes", {}), figures.get("correspondence", {})
    found |= {f"{mode}_rsum": modes[mode]["rsum"] for mode in ("teacher", "reranked") if mode in modes}
    found |= {key: matched[key] for key in ("fitting", "fitting_chance") if key in matched}
    return found | figures.get("concepts", {})
