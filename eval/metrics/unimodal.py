"""Metric `unimodal`: captions by captions of the same image, and images by images.

A caption's right answers are the other captions of its image. No manifest says which images belong together, so images
are judged by NDCG alone, with their captions' likeness as relevance (`eval.ndcg`); captions by both. Scores are
cosines of the whole embeddings; an image's is the mean of its views beside its context.
"""

import numpy as np

from eval.evaluated import Evaluated
from eval.metrics import METRICS
from eval.metrics.metric import Metric
from eval.ranks import retrieval_ranks
from eval.recall import direction_recalls
from eval.scores import Siblings


@METRICS.add("unimodal")
class Unimodal(Metric):
    place = ("unimodal",)

    def figures(self, run: Evaluated) -> dict[str, float]:
        graded = {f"{direction}_ndcg": run.likeness[direction] for direction in run.within}
        return graded | (caption_recalls(run.vectors["captions"], run.data.caption_image) or {})


def caption_recalls(captions: np.ndarray, image_of: np.ndarray) -> dict[str, float] | None:
    """`t2t_{r1,r5,r10,median_rank,mean_rank}` of captions `[C, E]`; None where no image has two captions."""
    starts = np.searchsorted(image_of, image_of, side="left")
    stops = np.searchsorted(image_of, image_of, side="right")
    pairs = [
        (caption, other)
        for caption in range(len(captions))
        for other in range(starts[caption], stops[caption])
        if other != caption
    ]
    if not pairs:
        return None
    query, answer = np.array(pairs).T
    return direction_recalls("t2t", retrieval_ranks(Siblings(captions), query, answer).i2t)
