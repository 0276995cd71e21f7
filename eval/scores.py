"""What ranks are counted from: scores of images and captions, a block at a time, exactly where it matters.

A matrix product in float32 rounds differently with every library, number of threads and block size, so two candidates
that are equal, or nearly so, may change places from one machine to the next. So a score has two forms: `block`, fast
and off by at most `tolerance`, and `exact`, in float64, for the few pairs that `block` can't tell apart. Exact scores
within `tie` of each other count as equal. N images, C captions.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from manifests.errors import InputError


class Scores(Protocol):
    """Scores of N images and C captions, higher is better.

    Attributes
    ----------
    tolerance : the most by which a float32 `block` is off.
    tie : exact scores as near as this are equal; float64's own rounding is below it.
    """

    num_images: int
    num_captions: int
    views: int
    tolerance: float
    tie: float

    def block(self, images: slice, captions: slice, dtype: type = np.float32) -> np.ndarray:
        """The scores of some images and captions, `dtype [I, C]`."""
        ...

    def exact(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """The scores of M pairs in float64, `[M]`."""
        ...

    def part(self, images: slice, captions: slice) -> "Scores":
        """The scores of some images and captions only."""
        ...


def rounding(dims: int, largest: float) -> tuple[float, float]:
    """`(tolerance, tie)` of dot products over `dims` numbers whose value is at most `largest`.

    The rounding errors of a float32 sum add up like a random walk; eight times that is more than any product shows.
    """
    if not np.isfinite(largest):
        raise InputError(
            "the embeddings hold NaN or infinite numbers",
            where="evaluation",
            fix="train the run again with a lower learning rate or stronger gradient clipping",
        )
    return 8 * dims**0.5 * 2.0**-24 * largest, 1e-12 * largest


def exact_pairs(scores: Scores, images: np.ndarray, captions: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Exact scores, flat, of the places `near` in the block of rows `images` and columns `captions`.

    A few places are gathered; where much of a block is as good as tied, all of it is multiplied in float64.
    """
    rows, columns = np.divmod(near, captions.stop - captions.start)
    if len(near) * 32 > (images.stop - images.start) * (captions.stop - captions.start):
        return scores.block(images, captions, np.float64)[rows, columns]
    return scores.exact(images.start + rows, captions.start + columns)


class Ensemble:
    """Several runs on the same split: the mean of their scores."""

    def __init__(self, members: Sequence[Scores]):
        sizes = {(member.num_images, member.num_captions) for member in members}
        if len(sizes) != 1:
            raise InputError(
                f"its runs have splits of different sizes: {sorted(sizes)}",
                where="ensemble",
                fix="combine runs of one data set, evaluated with the same parameters",
            )
        self.members = list(members)
        ((self.num_images, self.num_captions),) = sizes
        self.views = max(member.views for member in members)
        self.tolerance = 2 * max(member.tolerance for member in members)
        self.tie = max(member.tie for member in members)

    def block(self, images: slice, captions: slice, dtype: type = np.float32) -> np.ndarray:
        total = self.members[0].block(images, captions, dtype)
        for member in self.members[1:]:
            total += member.block(images, captions, dtype)
        total /= len(self.members)
        return total

    def exact(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        return sum(member.exact(images, captions) for member in self.members) / len(self.members)

    def part(self, images: slice, captions: slice) -> "Ensemble":
        return Ensemble([member.part(images, captions) for member in self.members])


class Siblings:
    """Items of one kind scored against each other by cosine; an item is no candidate of its own query (-inf).

    Images and captions are the same items here, so that whatever ranks the one by the other serves.
    """

    views = 1

    def __init__(self, vectors: np.ndarray):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = (vectors / np.maximum(norms, 1e-30)).astype(np.float32)
        self.num_images = self.num_captions = len(vectors)
        self.tolerance, self.tie = rounding(vectors.shape[1], float(np.linalg.norm(self.vectors, axis=1).max()))

    def block(self, images: slice, captions: slice, dtype: type = np.float32) -> np.ndarray:
        scores = self.vectors[images].astype(dtype, copy=False) @ self.vectors[captions].astype(dtype, copy=False).T
        both = np.arange(max(images.start, captions.start), min(images.stop, captions.stop))
        scores[both - images.start, both - captions.start] = -np.inf
        return scores

    def exact(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        found = paired_products(self.vectors[:, None], self.vectors, images, captions)[:, 0]
        return np.where(images == captions, -np.inf, found)

    def part(self, images: slice, captions: slice) -> "Siblings":
        if images != captions:
            raise ValueError("the same items stand for images and captions")
        return Siblings(self.vectors[images])


def paired_products(left: np.ndarray, right: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Float64 dot products `[M, k]` of `left [N, k, E]` at `rows [M]` with `right [C, E]` at `columns [M]`."""
    result = np.empty((len(rows), left.shape[1]))
    step = max(1, (1 << 20) // max(1, left.shape[1] * left.shape[2]))  # 8 MB at a time
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        a = left[rows[part]].astype(np.float64)
        result[part] = (a @ right[columns[part]].astype(np.float64)[:, :, None])[:, :, 0]
    return result
