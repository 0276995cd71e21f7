"""Metric `eccv`: ECCV Caption (Chun et al., ECCV 2022), recall that knows COCO's unmarked matches.

COCO's test captions fit many more images than they were written for. ECCV Caption lists those that people confirmed,
for 1,261 images and 1,332 captions of the 5,000 and 25,000. Metrics mAP@R and R-Precision look at as many results as a
query has matches (R), R@1 at the first. The authors' package `eccv_caption` is optional: `pip install selfalign[coco]`.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from eval.evaluated import Evaluated
from eval.metrics import METRICS
from eval.metrics.metric import Metric
from eval.nearest import nearest_captions, nearest_images
from eval.scores import Scores
from manifests.errors import InputError

_THEIRS = {"map_at_r": "eccv_map_at_r", "rprecision": "eccv_rprecision", "r1": "eccv_r1"}


@METRICS.add("eccv")
class ECCVCaption(Metric):
    """Asked where images and captions have COCO's ids."""

    place = ("eccv",)

    def figures(self, run: Evaluated) -> dict[str, float] | str | None:
        listed, data = run.manifest, run.data
        ids = listed.caption_ids(0, listed.num_captions)
        if None in ids or not ids:
            return None
        ends = listed.first_caption.tolist()
        for image in data.images:
            if not image.id.isdecimal():
                message = f"its captions have COCO's ids, and image {image.id!r} has none"
                raise InputError(message, where=listed.place, fix="run the manifest stage again")
        caption_ids = [id for row in data.image_rows.tolist() for id in ids[ends[row] : ends[row + 1]]]
        return eccv_recalls(run.embeddings, [int(image.id) for image in data.images], caption_ids)


def eccv_recalls(scores: Scores, image_ids: Sequence[int], caption_ids: Sequence[int]) -> dict[str, float] | str:
    """`{i2t,t2i}_{map_at_r,rprecision,r1}` in percent; or why there are none.

    Parameters
    ----------
    image_ids, caption_ids : COCO's own, of the N images and the C captions of `scores`: `cocoid` and `sentid` in
        Karpathy's file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it advises another JSON reader
            from eccv_caption import Metrics
    except ImportError:
        return "the package eccv_caption is not installed"
    metrics = Metrics()
    images, captions = np.asarray(image_ids), np.asarray(caption_ids)
    known_images, known_captions = metrics.eccv_gts["i2t"], metrics.eccv_gts["t2i"]
    missing = len(metrics.coco_gts["i2t"].keys() ^ set(images.tolist()))
    missing += len(metrics.coco_gts["t2i"].keys() - set(captions.tolist()))
    if missing:
        return f"the split is not COCO's test split, whole and nothing more: {missing} images and captions differ"
    depth = [max(map(len, known.values())) for known in (known_images, known_captions)]
    found = {
        "i2t": _answers(nearest_captions(scores, depth[0]), images, captions, known_images),
        "t2i": _answers(nearest_images(scores, depth[1]), captions, images, known_captions),
    }
    table = metrics.compute_all_metrics(found["i2t"], found["t2i"], target_metrics=tuple(_THEIRS.values()))
    return {
        f"{direction}_{name}": round(100 * float(table[metric][direction]), 4)
        for direction in found
        for name, metric in _THEIRS.items()
    }


def _answers(
    nearest: np.ndarray, query_ids: np.ndarray, candidate_ids: np.ndarray, known: dict[int, list[int]]
) -> dict[int, list[int]]:
    """The ids found for each query that ECCV Caption knows, best first."""
    return {
        int(query): candidate_ids[row].tolist() for query, row in zip(query_ids, nearest, strict=True) if query in known
    }
