"""Recalls from ranks: R@1, R@5, R@10, median and mean rank in both directions, and R@sum; and what chance gives.

Recalls are percentages; `rsum` is the sum of the six. Ranks are reported from 1. The median of an even number of ranks
is the lower middle one, rounded down, as in the field's published tables.
"""

from collections.abc import Sequence
from math import exp, lgamma

import numpy as np

from eval import ranks as counting
from eval.ranks import Relevance, embedding_ranks
from manifests.errors import InputError

CUTOFFS = (1, 5, 10)
DIRECTIONS = ("i2t", "t2i")


def recalls(i2t: np.ndarray, t2i: np.ndarray) -> dict[str, float]:
    """The recalls of 0-based `ranks`: image to text `i2t [images]`, text to image `t2i [captions]`.

    Keys: `{i2t,t2i}_{r1,r5,r10,median_rank,mean_rank}` and `rsum`.
    """
    table: dict[str, float] = {}
    for direction, ranks in zip(DIRECTIONS, (i2t, t2i), strict=True):
        if not len(ranks):
            raise InputError(
                f"there is no query in direction {direction}",
                where="evaluation",
                fix="give the split at least one image that has a caption",
            )
        table |= {f"{direction}_r{cutoff}": 100 * float(np.mean(ranks < cutoff)) for cutoff in CUTOFFS}
        table[f"{direction}_median_rank"] = float(np.floor(np.median(ranks)) + 1)
        table[f"{direction}_mean_rank"] = float(np.mean(ranks) + 1)
    table["rsum"] = sum(table[f"{direction}_r{cutoff}"] for direction in DIRECTIONS for cutoff in CUTOFFS)
    return {key: round(value, 4) for key, value in table.items()}


def chance_recalls(captions_per_image: Sequence[int]) -> dict[str, float]:
    """The expected recalls of a random order, exactly: a query with m of n candidates relevant finds one among the
    first k with probability 1 − C(n−m, k)/C(n, k). Same keys as `recalls`, without the rank figures."""
    counts = np.asarray(captions_per_image)
    images, captions = len(counts), int(counts.sum())
    table = {}
    for cutoff in CUTOFFS:
        found = [_found(captions, int(count), cutoff) for count in counts if count]
        table[f"i2t_r{cutoff}"] = 100 * sum(found) / len(found)
        table[f"t2i_r{cutoff}"] = 100 * _found(images, 1, cutoff)
    table["rsum"] = sum(table.values())
    return {key: round(value, 4) for key, value in table.items()}


def both_ranks(
    images: np.ndarray, captions: np.ndarray, captions_of: Relevance, image_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks in both directions from embeddings.

    Parameters
    ----------
    images, captions : `[N, E]` and `[C, E]`.
    captions_of : each image's caption indices; an image without a caption is no query but stays a candidate.
    image_of : each caption's image, `[C]`.

    Returns
    -------
    (image-to-text ranks `[M]`, the M images that were queries, text-to-image ranks `[C]`).
    """
    asked = np.array([index for index, own in enumerate(captions_of) if len(own)], np.int64)
    if images.ndim == 3:
        scores = np.max([view @ captions.T for view in images.transpose(1, 0, 2)], axis=0)
        i2t = counting.ranks(scores[asked], [captions_of[index] for index in asked])
        return i2t, asked, counting.ranks(np.ascontiguousarray(scores.T), np.asarray(image_of))
    i2t = embedding_ranks(images[asked], captions, [captions_of[index] for index in asked])
    return i2t, asked, embedding_ranks(captions, images, np.asarray(image_of))


def _found(candidates: int, relevant: int, cutoff: int) -> float:
    if candidates - relevant < cutoff:
        return 1.0
    return 1 - exp(_log_choose(candidates - relevant, cutoff) - _log_choose(candidates, cutoff))


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
