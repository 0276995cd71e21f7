"""Three ways to search with one model (ALADIN, docs/methods-compared.md): student, teacher, and re-ranking.

The student compares vectors. The teacher's word-region scores are those that it was distilled from. Re-ranking takes
the teacher's scores of the student's best candidates.

N images, C captions; ranks as in `eval.ranks`.
"""

import numpy as np

from eval.alignments import Alignments
from eval.nearest import nearest_captions, nearest_images
from eval.ranks import Ranks, retrieval_ranks
from eval.recall import recalls
from eval.scores import TIE, Scores


def mode_figures(student: Scores, teacher: Alignments, first: Ranks, image_of: np.ndarray, count: int) -> dict:
    """`{student, teacher, reranked}`: the recalls of each; `reranked` says how many candidates, `count`.

    `first` is what the student gives; `image_of [C]` is each caption's image.
    """
    by_teacher = retrieval_ranks(teacher, image_of, np.arange(len(image_of)))
    again = reranked(student, teacher, first, image_of, count)
    figures = {
        mode: recalls(ranks.i2t, ranks.t2i)
        for mode, ranks in (("student", first), ("teacher", by_teacher), ("reranked", again))
    }
    figures["reranked"]["candidates"] = count
    return figures


def reranked(student: Scores, teacher: Scores, first: Ranks, image_of: np.ndarray, count: int) -> Ranks:
    """Ranks once the student's `count` best candidates of every query are put in the teacher's order.

    The others stay behind them as they were, so a right answer that is not among them keeps the rank of `first`.
    """
    captions = nearest_captions(student, count)[first.images]
    scores = _exact(teacher, np.broadcast_to(first.images[:, None], captions.shape), captions)
    i2t = _ranks(scores, captions, image_of[captions] == first.images[:, None], first.i2t, TIE * teacher.largest)

    images = nearest_images(student, count)[first.captions]
    scores = _exact(teacher, images, np.broadcast_to(first.captions[:, None], images.shape))
    right = images == image_of[first.captions][:, None]
    return Ranks(i2t, first.images, _ranks(scores, images, right, first.t2i, TIE * teacher.largest), first.captions)


def _exact(teacher: Scores, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    return teacher.exact(images.ravel(), captions.ravel()).reshape(images.shape)


def _ranks(scores: np.ndarray, candidates: np.ndarray, right: np.ndarray, before: np.ndarray, tie: float) -> np.ndarray:
    """The rank of the best right one among `candidates [Q, k]`, by scores and lower index; `before` without any."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    level = scores >= best - tie
    lowest = np.where(right & level, candidates, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
    ahead = (scores > best + tie) | (level & (candidates < lowest))
    return np.where(right.any(axis=1), np.count_nonzero(ahead, axis=1), before)
