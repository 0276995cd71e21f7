"""One sentence a section of the report, computed from its figures: what a reader should take away.

Run names stand between backticks, as in `eval.report.verdict`.
"""

from collections.abc import Sequence

import numpy as np

from eval.report.results import RunResult
from eval.report.verdict import listed

AGREEING, MEANINGFUL = 0.1, 0.5  # above chance by less is mostly chance; from the second on concepts carry meaning
MANY = 100_000  # candidates that a search is judged at


def pictures(runs: Sequence[RunResult]) -> str:
    """How many captions of the split find their image sooner with the second of two runs; of one run, how soon."""
    ranks = [run.ranks["t2i"] for run in runs]
    if len(runs) == 1:
        middle = int(np.sort(ranks[0])[(len(ranks[0]) - 1) // 2]) + 1
        return (
            f"Half of the captions have their image among the first {middle:,} of {len(runs[0].ranks['image_ids']):,}."
        )
    sooner, later = int((ranks[1] < ranks[0]).sum()), int((ranks[1] > ranks[0]).sum())
    return (
        f"Of {len(ranks[0]):,} captions, {sooner:,} find their image sooner with `{runs[1].name}` than with "
        f"`{runs[0].name}`, {later:,} later, and {len(ranks[0]) - sooner - later:,} as soon."
    )


def words(runs: Sequence[RunResult]) -> str:
    """Which run's words find their objects most often, and which kinds do; without true objects, that nobody knows."""
    known = [run for run in runs if "correspondence" in run.metrics]
    if not known:
        return (
            "This data set tells no true objects: the cosines below say how sure a match is, not whether it is right."
        )
    best = max(known, key=lambda run: run.metrics["correspondence"]["accuracy"])
    found = best.metrics["correspondence"]
    sentence = f"Words find the object that they mean most often with `{best.name}`: {found['accuracy']:.0%}"
    sentence += f", where a random region is right in {found['chance']:.0%}"
    kinds = sorted(found["kinds"].items(), key=lambda item: -item[1]["accuracy"])
    if len(kinds) > 1:
        (first, most), (last, least) = kinds[0], kinds[-1]
        sentence += f"; {first} words do best ({most['accuracy']:.0%}), {last} words worst ({least['accuracy']:.0%})"
    return f"{sentence}."


def concepts(books: Sequence[dict]) -> str:
    """Whether the concepts of the codebooks mean anything: how often a word and its region share one."""
    sentences = []
    for book in books:
        usage = book["usage"]
        agree, chance = usage["agreement"], usage["agreement_chance"]
        shares = f"a word and its region share a concept in {agree:.1%} of all words, {chance:.1%} by chance"
        if agree - chance < AGREEING:
            sentences.append(f"Mostly chance with `{book['name']}`: {shares}.")
        elif agree < MEANINGFUL:
            sentences.append(f"Partly meaningful with `{book['name']}`: {shares}.")
        else:
            sentences.append(f"Meaningful with `{book['name']}`: {shares}.")
    return " ".join(sentences)


def study(title: str, rows: Sequence[dict]) -> str:
    """Which row of a study is best, and whether its interval stands clear of the next one's."""
    if len(rows) < 2:
        return f"One row alone: there is nothing to compare it with ({title.lower()})."
    best, second = sorted(rows, key=lambda row: -row["rsum"])[:2]
    clear = best["low"] > second["high"]
    beyond = f"clear of {second['row']}" if clear else f"but its interval overlaps that of {second['row']}"
    return f"{best['row']} has the highest R@sum, {best['rsum']:.1f}, {beyond} ({second['rsum']:.1f})."


def speed(costs: Sequence[dict]) -> str:
    """How long a search takes, and how many times as long scoring every pair would."""
    if not costs or not (rows := costs[0]["rows"]):
        return ""
    row = next((row for row in rows if row["candidates"] >= MANY), rows[-1])
    return (
        f"A search among {row['candidates']:,} images takes {row['search']:,} ms with `{costs[0]['name']}`; "
        f"word-region attention on every pair would take {row['times']:,} times as long."
    )


def training(runs: Sequence[RunResult]) -> str:
    """Each run's best epoch, and which runs were still rising in their last one."""
    epochs = {run.name: len(run.epochs.get("epoch", ())) for run in runs}
    best = {run.name: (run.record["best_epoch"] or 0) + 1 for run in runs}
    epoch_list = ", ".join(f"`{name}` {best[name]} of {count}" for name, count in epochs.items())
    rising = [f"`{name}`" for name, count in epochs.items() if count > 1 and best[name] == count]
    more = f"; more epochs may help {listed(rising)}" if rising else ""
    return f"Best epoch on the validation split: {epoch_list}{more}."


def provenance(differing: Sequence[tuple], runs: int) -> str:
    """In how many settings the runs differ."""
    if runs == 1:
        return "One run: the settings below, with the data and the features named here, make it again."
    settings = "setting" if len(differing) == 1 else "settings"
    return f"The {runs} runs share their data and features and differ in {len(differing)} {settings}."
