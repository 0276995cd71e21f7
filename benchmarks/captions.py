"""Recall of a study's rows by kind of caption: captions that name an object of COCO's 80 categories, and the others.

    python -m benchmarks.captions photographs-words --out benchmarks/captions.json

Every row is trained with its seeds, or comes out of the cache of runs (`SELFALIGN_CACHE`). A caption names a category
by the last word of its name or by a common word for the same ("woman", "bike"). Figures are recalls of the right image,
in percent: the mean and deviation over seeds, and the gain over the row that a row is compared with, seed by seed.
"""

import json
import re
import tempfile
from pathlib import Path
from statistics import mean, stdev

import click
import numpy as np

from eval.figures import recall_figures
from eval.recall import direction_recalls
from eval.study.points import Points, settings_sha256
from eval.study.stage import Study
from eval.survey import survey
from manifests.files import write_json
from pipeline import places
from pipeline.cli import study_work
from pipeline.machine import Machine
from train.checkpoint import load_model
from train.data import RetrievalData

WORDS = """
    person people man men woman women boy girl child children kid baby lady ladies guy player rider skier surfer
    skateboarder snowboarder crowd couple male female bicycle bike trike car motorcycle motorbike airplane plane jet
    bus train truck boat light hydrant sign meter bench bird parrot pigeon duck cat kitten dog puppy puppies horse
    sheep lamb cow cattle elephant bear zebra giraffe backpack umbrella handbag purse tie suitcase luggage frisbee ski
    skis snowboard ball kite bat glove skateboard surfboard racket racquet bottle glass cup fork knife knives spoon
    bowl banana apple sandwich orange broccoli carrot pizza donut doughnut cake chair couch sofa plant bed table
    toilet tv television monitor laptop computer mouse remote keyboard phone cellphone microwave oven stove toaster
    sink refrigerator fridge book clock vase scissors teddy dryer toothbrush
"""
NAMES = frozenset(WORDS.split())
KINDS = ("names a category", "names none")
MEASURES = ("t2i_r1", "t2i_r5", "t2i_r10")


@click.command()
@click.argument("study")
@click.option("--row", "rows", multiple=True, help="a row of the study; all of them by default")
@click.option("--out", type=click.Path(path_type=Path))
def main(study: str, rows: tuple[str, ...], out: Path | None) -> None:
    """Tell the recalls of a study's rows by kind of caption."""
    machine = Machine.from_environment()
    points = Points(machine.staging / f"study-{study}", places.study(study) / "points.jsonl")
    work = Study(**study_work(study, machine), points=points)
    told: dict[str, dict] = {}
    found: dict[str, list[dict[str, float]]] = {}
    for row, chosen in work.measured(work.choose()).items():
        if rows and row not in rows:
            continue
        figures = []
        for point in chosen:
            with tempfile.TemporaryDirectory() as folder:
                model = load_model(work.trained(point, Path(folder)), work.device)
                figures.append(of_kinds(model, work.data(point), work.batch_size))
        found[row] = figures
        settings = work.settings.table[row]
        over = settings.against or settings.extends
        told[row] = summary(figures, found.get(over or "")) | {"over": over if over in found else None}
        told[row]["settings"] = [settings_sha256(point.settings) for point in chosen]
        click.echo(f"{row}: {json.dumps(told[row]['recalls'])}")
    if out:
        counts = {kind: int(sum(kinds)) for kind, kinds in zip(KINDS, _kinds(work.data(point)), strict=True)}
        chose = "".join(f' --row "{row}"' for row in rows)
        command = f"python -m benchmarks.captions {study}{chose} --out {out}"
        write_json(out, {"command": command, "study": study, "captions": counts, "rows": told})


def names_category(caption: str) -> bool:
    """Whether a word of an English caption, or its singular, is one of `NAMES`."""
    words = re.findall("[a-z]+", caption.lower())
    return any(form in NAMES for word in words for form in (word, word.removesuffix("s"), word.removesuffix("es")))


def _kinds(data: RetrievalData) -> tuple[np.ndarray, np.ndarray]:
    named = np.array([names_category(data.caption_text(caption)) for caption in range(data.num_captions)])
    return named, ~named


def of_kinds(model, data: RetrievalData, batch_size: int) -> dict[str, float]:
    """The recalls of `MEASURES` by kind, "KIND, MEASURE": among all images of the split."""
    seen = survey(model, data, batch_size, run="captions", quiet=True)
    ranks, _ = recall_figures(seen.embeddings, data.caption_image, folds=1)
    found = {}
    for kind, chosen in zip(KINDS, _kinds(data), strict=True):
        table = direction_recalls("t2i", ranks.t2i[chosen[ranks.captions]])
        found |= {f"{kind}, {measure}": table[measure] for measure in MEASURES}
    return found


def summary(figures: list[dict[str, float]], over: list[dict[str, float]] | None) -> dict:
    """Mean and deviation of each recall, and of its gain over another row's, seed by seed."""
    told = {"recalls": {key: _spread([one[key] for one in figures]) for key in figures[0]}}
    if over:
        pairs = list(zip(figures, over, strict=True))
        told["gains"] = {key: _spread([own[key] - other[key] for own, other in pairs]) for key in figures[0]}
    return told


def _spread(values: list[float]) -> list[float]:
    return [round(mean(values), 2), round(stdev(values), 2) if len(values) > 1 else 0.0]


if __name__ == "__main__":
    main()
