"""Recalls from ranks: R@1, R@5, R@10, median and mean rank in both directions, and R@sum; and what chance gives.

Recalls are percentages; `rsum` is the sum of the six. Ranks are reported from 1. The median of an even number of ranks
is the lower middle one, rounded down, as in the field's published tables.
"""

from collections.abc import Sequence
from math import exp, lgamma

import numpy as np

from eval.ranks import retrieval_ranks
from eval.scores import Scores
from manifests.errors import InputError

CUTOFFS = (1, 5, 10)
DIRECTIONS = ("i2t", "t2i")
RECALLS = tuple(f"{direction}_r{cutoff}" for direction in DIRECTIONS for cutoff in CUTOFFS)


def recalls(i2t: np.ndarray, t2i: np.ndarray) -> dict[str, float]:
    """The recalls of 0-based `ranks`: image to text `i2t [images]`, text to image `t2i [captions]`.

    Keys: `{i2t,t2i}_{r1,r5,r10,median_rank,mean_rank}` and `rsum`.
    """
    table = direction_recalls("i2t", i2t) | direction_recalls("t2i", t2i)
    table["rsum"] = round(sum(table[name] for name in RECALLS), 4)
    return table


def direction_recalls(direction: str, ranks: np.ndarray) -> dict[str, float]:
    """`{direction}_{r1,r5,r10,median_rank,mean_rank}` of 0-based ranks `[Q]`. Raises InputError where there is none."""
    if not len(ranks):
        raise InputError(
            f"there is no query in direction {direction}",
            where="evaluation",
            fix="give the split at least one image that has a caption",
        )
    table = {f"{direction}_r{cutoff}": 100 * float(np.mean(ranks < cutoff)) for cutoff in CUTOFFS}
    table[f"{direction}_median_rank"] = float(np.floor(np.median(ranks)) + 1)
    table[f"{direction}_mean_rank"] = float(np.mean(ranks) + 1)
    return {key: round(value, 4) for key, value in table.items()}


def fold_recalls(scores: Scores, image_of: np.ndarray, folds: int) -> dict[str, float]:
    """The mean of `recalls` over `folds` parts of the images, in order: COCO 1K is five folds of COCO 5K.

    Parts are of equal size, or differ by one image. A fold's candidates are its own images and their captions.
    `image_of [C]` is each caption's image, rising. Raises InputError for more folds than images.
    """
    if folds > scores.num_images:
        raise InputError(
            f"{scores.num_images} images can't be cut into {folds} folds",
            where="params.yaml, evaluate.folds",
            fix="use fewer folds",
        )
    edges = [scores.num_images * number // folds for number in range(folds + 1)]
    tables = []
    for first, last in zip(edges, edges[1:], strict=False):
        captions = slice(*np.searchsorted(image_of, (first, last)).tolist())
        fold = scores.part(slice(first, last), captions)
        found = retrieval_ranks(fold, image_of[captions] - first, np.arange(fold.num_captions))
        tables.append(recalls(found.i2t, found.t2i))
    return {key: round(float(np.mean([table[key] for table in tables])), 4) for key in tables[0]}


def chance_recalls(captions_per_image: Sequence[int]) -> dict[str, float]:
    """Compute the expected recalls of a random order exactly. A query with m of n candidates relevant finds one among
    the first k with probability 1 − C(n−m, k)/C(n, k). Same keys as `recalls`, without the rank figures."""
    counts = np.asarray(captions_per_image)
    images, captions = len(counts), int(counts.sum())
    table = {}
    for cutoff in CUTOFFS:
        found = [_found(captions, int(count), cutoff) for count in counts if count]
        table[f"i2t_r{cutoff}"] = 100 * sum(found) / len(found)
        table[f"t2i_r{cutoff}"] = 100 * _found(images, 1, cutoff)
    table["rsum"] = sum(table.values())
    return {key: round(value, 4) for key, value in table.items()}


def _found(candidates: int, relevant: int, cutoff: int) -> float:
    if candidates - relevant < cutoff:
        return 1.0
    return 1 - exp(_log_choose(candidates - relevant, cutoff) - _log_choose(candidates, cutoff))


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
