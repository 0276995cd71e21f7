"""The table that `selfalign metrics` prints: recalls of runs and ensembles, and what they show in words below it."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.figures import FIGURES
from eval.recall import CUTOFFS, RECALLS
from eval.report.recall_table import ensemble_rows, recall_rows
from eval.report.report import results, unevaluated
from eval.report.results import RunResult
from eval.report.verdict import verdict

WIDTH = 79  # of the sentences below a table


def metrics_table(
    runs: Mapping[str, dict],
    runs_dir: Path,
    ensembles: Mapping[str, Sequence[str]],
    ensembles_dir: Path,
) -> str:
    """One table a data set, for a terminal; the arguments are those of `eval.report.report.run`.

    A run without an evaluation, or an ensemble without figures, is no row: a line below says what makes one.
    """
    groups = results(runs, runs_dir)
    tables = []
    for data_set, group in groups.items():
        names = [name for name, members in ensembles.items() if runs[members[0]]["dataset"] == data_set]
        tables.append(_table(data_set, group, ensemble_rows(names, ensembles_dir, group[0])))
    left_out = unevaluated(runs, runs_dir)
    left_out += [
        f"{name} is left out: it has no figures yet (dvc repro ensemble@{name})"
        for name in ensembles
        if not (ensembles_dir / name / FIGURES).exists()
    ]
    return "\n\n".join([*tables, *(["\n".join(left_out)] if left_out else [])])


def _table(data_set: str, runs: Sequence[RunResult], averaged: Sequence[dict]) -> str:
    metrics, rows = runs[0].metrics, [*recall_rows(runs), *averaged]
    chance = metrics["chance"]

    def recalls(key: str) -> list[str]:
        return [f"{row['values'][key]:.1f}" for row in rows] + [f"{chance[key]:.1f}"]

    columns = [["run", *(row["name"] for row in rows), "a random order"], ["R@sum", *recalls("rsum")]]
    if len(rows) > 1:
        columns.append(["change", *(row.get("change", "") for row in rows), ""])
    above = {len(columns): "image → captions", len(columns) + len(CUTOFFS): "caption → images"}
    columns += [[f"R@{key.rpartition('_r')[2]}", *recalls(key)] for key in RECALLS]
    if share := metrics.get("correspondence"):
        known = [row["correspondence"] for row in rows]
        columns.append(
            ["words*", *(f"{own['accuracy']:.0%}" if own else "" for own in known), f"{share['chance']:.0%}"]
        )
    widths = [max(map(len, column)) for column in columns]
    names, *numbers = columns
    padded = [[cell.ljust(widths[0]) for cell in names]]
    padded += [[cell.rjust(width) for cell in column] for column, width in zip(numbers, widths[1:], strict=True)]
    lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    heads = ""
    for place, text in above.items():
        heads = heads.ljust(sum(widths[:place]) + 2 * place) + text
    rule = "─" * max(map(len, lines))
    title = f"{data_set}: {metrics['images']:,} {metrics['split']} images, {metrics['captions']:,} captions"
    notes = ["* words whose best region is the object that they mean"] if share else []
    sentences = [*notes, *(sentence.replace("`", "") for sentence in verdict(runs))]
    filled = [textwrap.fill(sentence, max(WIDTH, len(rule))) for sentence in sentences]
    return "\n".join([title, rule, heads, lines[0], rule, *lines[1:-1], rule, lines[-1], rule, *filled])
