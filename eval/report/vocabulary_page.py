"""What the report shows of words and concepts: figures by part of speech, entries of each codebook with pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.report.pictures import Pictures
from eval.report.results import RunResult
from train.data import RetrievalData

FEWEST_WORDS = 20
CARDS, CROPS, CROP_SIDE = 12, 6, 72


def speech_rows(runs: Sequence[RunResult]) -> list[dict]:
    """The parts of speech of at least `FEWEST_WORDS` words, most frequent first, with each run's figures."""
    every = [run.correspondence["parts_of_speech"] for run in runs]
    tags = [tag for tag, own in every[0].items() if own["words"] >= FEWEST_WORDS]
    return [
        {"tag": tag, "words": every[0][tag]["words"], "runs": [own.get(tag, {}) for own in every]}
        for tag in sorted(tags, key=lambda tag: -every[0][tag]["words"])
    ]


def codebooks(
    runs: Sequence[RunResult], colours: Sequence[str], data: RetrievalData, image_root: Path, pictures: Pictures
) -> list[dict]:
    """Each run's codebook: how it is used, and as cards the entries whose words agree with their regions most often.

    An entry without words or without regions has no card; `others` counts those that have one of the two. Entries of
    `FEWEST_WORDS` words come first: of fewer, a share says little.
    """
    found = []
    for run, colour in zip(runs, colours, strict=True):
        usage = run.correspondence.get("concepts")
        if usage is None or run.concepts is None:
            continue
        used = [entry for entry in usage["entries"] if entry["words"] or entry["regions"]]
        both = [entry for entry in used if entry["words"] and entry["regions"]]
        entries = sorted(both, key=_by_agreement)
        cards = [
            entry | {"crops": _crops(run, entry["concept"], data, image_root, pictures)} for entry in entries[:CARDS]
        ]
        found.append(
            {
                "name": run.name,
                "colour": colour,
                "usage": usage,
                "cards": cards,
                "both": len(both),
                "others": len(used) - len(both),
            }
        )
    return found


def _by_agreement(entry: dict) -> tuple:
    above = entry.get("agreement", 0) - entry.get("agreement_chance", 0)
    return entry["words"] < FEWEST_WORDS, -above, -min(entry["words"], entry["regions"]), entry["concept"]


def _crops(run: RunResult, concept: int, data: RetrievalData, image_root: Path, pictures: Pictures) -> list[str]:
    """Some regions of a concept as pictures, spread over the split, one an image."""
    rows = np.flatnonzero(run.concepts.concept == concept)
    images, places = np.unique(np.searchsorted(run.concepts.first, rows, side="right") - 1, return_index=True)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(CROPS, len(images))).astype(int)) if len(images) else []
    found = []
    for number in chosen:
        image = int(images[number])
        box = data.regions(image).boxes[rows[places[number]] - run.concepts.first[image]]
        found.append(pictures.crop(image_root / data.images[image].path, box, CROP_SIDE))
    return [crop for crop in found if crop is not None]
