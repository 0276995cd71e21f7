"""Recall of a study's rows by kind of caption: captions that name one of COCO's 80 categories, and the others.

    python -m benchmarks.captions photographs-words --out benchmarks/captions.json

Every row is trained with its seeds, or comes out of the cache of runs (`SELFALIGN_CACHE`). A caption names a category
by the last word of its name or by a common word for the same ("woman", "bike"): `WORDS` decides. Figures are recalls of
the right image, in percent: mean and deviation over seeds, and the gain over the row that a row is compared with, seed
by seed. The deviation doesn't hold the luck of the captions.
"""

import json
import re
import tempfile
from pathlib import Path
from statistics import mean, stdev

import click
import numpy as np

from eval.ranks import retrieval_ranks
from eval.recall import direction_recalls
from eval.study.points import Point, Points, settings_sha256
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
    skateboarder snowboarder crowd male female bicycle bike trike car motorcycle motorbike airplane plane jet bus
    train truck boat hydrant sign meter bench bird parrot pigeon duck cat kitten dog puppy puppies horse sheep lamb
    cow cattle elephant bear zebra giraffe backpack umbrella handbag purse tie suitcase luggage frisbee ski skis
    snowboard ball kite bat glove skateboard surfboard racket racquet bottle glass cup fork knife knives spoon bowl
    banana apple sandwich broccoli carrot pizza donut doughnut cake chair couch sofa plant bed table toilet tv
    television monitor laptop computer mouse remote keyboard phone cellphone microwave oven stove toaster sink
    refrigerator fridge book clock vase scissors teddy dryer toothbrush drier mice babies toddler cyclist hotdog
    airliner geese van motorist
"""
NAMES = frozenset(WORDS.split())
KINDS = ("names a category", "names none")
MEASURES = ("r1", "r5", "r10")


@click.command()
@click.argument("study")
@click.option("--row", "rows", multiple=True, help="a row of the study; all of them by default")
@click.option("--out", type=click.Path(path_type=Path))
def main(study: str, rows: tuple[str, ...], out: Path | None) -> None:
    """Tell the recalls of a study's rows by kind of caption."""
    machine = Machine.from_environment()
    points = Points(machine.staging / f"study-{study}", places.study(study) / "points.jsonl")
    work = Study(**study_work(study, machine), points=points)
    table = work.settings.table
    if unknown := ", ".join(sorted(set(rows) - set(table))):
        raise click.BadParameter(f"the study has no row {unknown}; its rows are: {', '.join(table)}")
    measured = {row: made for row, made in work.measured(work.choose()).items() if row in (rows or table)}
    found: dict[str, list[dict[str, float]]] = {}
    told = {}
    for row, made in measured.items():
        found[row] = [_measured(work, point) for point in made]
        over = table[row].against or table[row].extends
        told[row] = {
            "recalls": {key: _spread([one[key] for one in found[row]]) for key in found[row][0]},
            "over": over if over in found else None,
            "gains": _gains(found[row], found[over]) if over in found else None,
            "settings": [settings_sha256(point.settings) for point in made],
        }
        click.echo(f"{row}: {json.dumps(told[row])}")
    if out:
        one = next(iter(measured.values()))[0]
        counts = {kind: int(sum(chosen)) for kind, chosen in _kinds(work.data(one)).items()}
        asked = "".join(f' --row "{row}"' for row in rows)
        command = f"python -m benchmarks.captions {study}{asked} --out {out}"
        write_json(out, {"command": command, "study": study, "captions": counts, "rows": told})


def names_category(caption: str) -> bool:
    """Whether a word of an English caption, or its singular, is one of `NAMES`."""
    for word in re.findall("[a-z]+", caption.lower()):
        if {word, word.removesuffix("s"), re.sub("(s|x|z|ch|sh)es$", r"\1", word)} & NAMES:
            return True
    return False


def _kinds(data: RetrievalData) -> dict[str, np.ndarray]:
    named = np.array([names_category(data.caption_text(caption)) for caption in range(data.num_captions)])
    return dict(zip(KINDS, (named, ~named), strict=True))


def _measured(work: Study, point: Point) -> dict[str, float]:
    """The recalls of a run by kind, "KIND, MEASURE": among all images of the split."""
    data = work.data(point)
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(work.trained(point, Path(folder)), work.device)
        scores = survey(model, data, work.batch_size, run=str(point), quiet=True).embeddings
    ranks = retrieval_ranks(scores, data.caption_image, np.arange(data.num_captions))
    found = {}
    for kind, chosen in _kinds(data).items():
        recalls = direction_recalls("t2i", ranks.t2i[chosen[ranks.captions]])
        found |= {f"{kind}, {measure}": recalls[f"t2i_{measure}"] for measure in MEASURES}
    return found


def _gains(rows: list[dict[str, float]], over: list[dict[str, float]]) -> dict[str, list[float | None]]:
    pairs = list(zip(rows, over, strict=True))
    return {key: _spread([own[key] - other[key] for own, other in pairs]) for key in rows[0]}


def _spread(values: list[float]) -> list[float | None]:
    """Mean and deviation; one value has none."""
    return [round(mean(values), 4) + 0.0, round(stdev(values), 4) if len(values) > 1 else None]


if __name__ == "__main__":
    main()
