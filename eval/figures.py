"""The figures of one split that follow from scores and from which captions belong to which image.

What `evaluate@R` tells of a run, and `ensemble@E` of several runs' mean scores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval.arrays import read_arrays, save_arrays
from eval.interval import interval, recall_draws
from eval.ranks import Ranks, retrieval_ranks
from eval.recall import RECALLS, chance_recalls, fold_recalls, recalls
from eval.scores import Scores
from manifests.errors import InputError

FIGURES = "figures.json"
_RANKS = dict.fromkeys(("i2t", "i2t_images", "t2i", "caption_image"), ("i", 1)) | {"image_ids": ("U", 1)}


def recall_figures(scores: Scores, image_of: np.ndarray, folds: int) -> tuple[Ranks, dict]:
    """Ranks of all queries, and the recalls that follow from them.

    `image_of [C]` is each caption's image, rising; `folds` the number of parts whose mean is reported too, 1 for none.
    Returns the ranks and a dictionary: the recalls of the whole split, `interval` (95 %, by name), `folds`, `chance`,
    `images` and `captions`.
    """
    ranks = retrieval_ranks(scores, image_of, np.arange(scores.num_captions))
    draws = recall_draws(ranks.i2t, ranks.images, ranks.t2i, image_of, scores.num_images)
    figures = recalls(ranks.i2t, ranks.t2i) | {
        "images": scores.num_images,
        "captions": scores.num_captions,
        "chance": chance_recalls(np.bincount(image_of, minlength=scores.num_images).tolist()),
        "interval": {name: [round(end, 2) for end in interval(drawn)] for name, drawn in draws.items()},
    }
    if folds > 1:
        figures["folds"] = fold_recalls(scores, image_of, folds) | {"count": folds}
    return ranks, figures


def headline(figures: Mapping[str, Any]) -> dict[str, float]:
    """What DVC shows as a run's metrics, all in percent: R@sum, the six recalls and, where known, `words_on_object`."""
    found = {name: figures[name] for name in ("rsum", *RECALLS)}
    if "correspondence" in figures:
        found["words_on_object"] = round(100 * figures["correspondence"]["accuracy"], 2)
    return found


def read_ranks(path: Path, *, fix: str) -> dict[str, np.ndarray]:
    """What `save_ranks` wrote, by name. Raises InputError, with `fix`, where it isn't whole."""
    found = read_arrays(path, _RANKS, fix=fix)
    images, captions = len(found["image_ids"]), len(found["caption_image"])
    for name, count, end in (
        *(("i2t", len(found["i2t_images"]), captions), ("i2t_images", len(found["i2t"]), images)),
        *(("t2i", captions, images), ("caption_image", len(found["t2i"]), images)),
    ):
        values = found[name]
        if len(values) != count or not ((values >= 0) & (values < end)).all():
            raise InputError(f"{name} isn't {count} numbers below {end}", where=path, fix=fix)
    if (np.diff(found["caption_image"]) < 0).any():
        raise InputError("caption_image doesn't rise", where=path, fix=fix)
    return found


def save_ranks(path: Path, ranks: Ranks, image_of: np.ndarray, image_ids: list[str]) -> None:
    """Write `ranks.npz`: every query's rank with the split's image ids."""
    save_arrays(
        path,
        {
            "i2t": ranks.i2t,
            "i2t_images": ranks.images,
            "t2i": ranks.t2i,
            "caption_image": image_of,
            "image_ids": np.array(image_ids),
        },
    )


def evaluation_text(name: str, data_set: str, figures: Mapping[str, Any]) -> str:
    """The recalls of an evaluation beside those of a random order, and the next commands, in five lines."""
    chance = figures["chance"]
    lines = [
        f"{name}: {figures['images']:,} {figures['split']} images, {figures['captions']:,} captions of {data_set}",
        f"  R@sum {figures['rsum']:.1f} of 600; a random order has {chance['rsum']:.1f}",
    ]
    for kind, what in (("t2i", "captions find their image"), ("i2t", "images find a caption of theirs")):
        r1, r10 = (f"{figures[f'{kind}_r{k}']:.0f} % (by chance {chance[f'{kind}_r{k}']:.0f})" for k in (1, 10))
        lines.append(f"  {what} first: {r1}; among the first ten: {r10}")
    return "\n".join([*lines, f"next: selfalign metrics; selfalign index {name} {data_set}; selfalign serve"])
