"""What ranks are counted from: scores of images and captions, a block at a time, exactly where it matters.

A matrix product rounds differently with every library, number of threads and block size. Two candidates that are equal,
or nearly so, may change places from one machine to the next. So a score has two forms. `block` is fast, with an error
of at most `tolerance`. `exact`, in float64, is for the few pairs that `block` leaves undecided. Exact scores within
`tie` of each other count as equal. The results don't depend on a block's precision, so it may be as coarse as bfloat16
where the processor multiplies that faster. N images, C captions.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch

from manifests.errors import InputError

DEVICE_NUMBERS = 1 << 25  # of both sides, in float64, that are on a GPU at a time: 256 MB
TIE = 1e-12  # of the largest possible score; float64's own rounding is below it


class Scores(Protocol):
    """Scores of N images and C captions, higher is better.

    Attributes
    ----------
    views : rows that an image takes in a matrix product.
    largest : no score is greater, either sign.
    """

    num_images: int
    num_captions: int
    views: int
    largest: float

    def tolerance(self, precision: torch.dtype) -> float:
        """The most by which a `block` is off."""
        ...

    def block(self, images: slice, captions: slice, precision: torch.dtype = torch.float32) -> np.ndarray:
        """The scores `[I, C]` of some images and captions, multiplied in float64, float32 or bfloat16; float64 or
        float32."""
        ...

    def exact(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """The scores of M pairs in float64, `[M]`."""
        ...

    def part(self, images: slice, captions: slice) -> "Scores":
        """The scores of some images and captions only."""
        ...


def rounding(dims: int, largest: float, precision: torch.dtype) -> float:
    """The largest error of a dot product over `dims` numbers whose factors' lengths multiply to `largest`.

    In `bfloat16` it is half a unit of the last of 8 bits of each factor and of the product, and a tenth more. In
    `float32` the errors of a sum add up like a random walk, and eight times that is more than any product shows. In
    `float64` it is less than a tie.
    """
    if precision == torch.bfloat16:
        return 1.1 * 3 * 2.0**-8 * largest
    return (8 * dims**0.5 * 2.0**-24 if precision == torch.float32 else TIE) * largest


def require_finite_scale(largest: float) -> float:
    """Give `largest` back; raise InputError where embeddings that hold NaN or infinite numbers made it so."""
    if not np.isfinite(largest):
        raise InputError(
            "the embeddings hold NaN or infinite numbers",
            where="evaluation",
            fix="train the run again with a lower learning rate or stronger gradient clipping",
        )
    return largest


@cache
def coarsest() -> torch.dtype:
    """bfloat16 where this machine multiplies it at least half as fast again as float32, otherwise float32."""
    left = torch.ones(512, 1024)

    def seconds(multiply: Callable[[], object]) -> float:
        start = time.perf_counter()
        multiply()
        return time.perf_counter() - start

    short = left.bfloat16()
    times = [(seconds(lambda: left @ left.T), seconds(lambda: short @ short.T)) for _ in range(4)]
    full, half = (min(column) for column in zip(*times, strict=True))
    return torch.bfloat16 if full > 1.5 * half else torch.float32


def tensor(array: np.ndarray, precision: torch.dtype) -> torch.Tensor:
    """Some rows of stored embeddings, in the precision to multiply in."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(precision)


def as_scores(found: torch.Tensor) -> torch.Tensor:
    """A block's scores in float32 at least, which numpy knows."""
    return found.float() if found.dtype == torch.bfloat16 else found


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
        self.largest = max(member.largest for member in members)

    def tolerance(self, precision: torch.dtype) -> float:
        averaging = 0 if precision == torch.float64 else self.largest * 2.0**-22
        return max(member.tolerance(precision) for member in self.members) + averaging

    def block(self, images: slice, captions: slice, precision: torch.dtype = torch.float32) -> np.ndarray:
        total = self.members[0].block(images, captions, precision)
        for member in self.members[1:]:
            total += member.block(images, captions, precision)
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
    largest = 1.001

    def __init__(self, vectors: np.ndarray):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        require_finite_scale(float(norms.max()))
        self.vectors = (vectors / np.maximum(norms, 1e-30)).astype(np.float32)
        self.num_images = self.num_captions = len(vectors)

    def tolerance(self, precision: torch.dtype) -> float:
        return rounding(self.vectors.shape[1], self.largest, precision)

    def block(self, images: slice, captions: slice, precision: torch.dtype = torch.float32) -> np.ndarray:
        scores = as_scores(
            tensor(self.vectors[images], precision) @ tensor(self.vectors[captions], precision).T
        ).numpy()
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
    if left.shape[1] > 1:  # several views are a matrix of their own, converted once for all its pairs
        order = np.argsort(rows, kind="stable")
        for pairs in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
            if len(pairs):
                result[pairs] = right[columns[pairs]].astype(np.float64) @ left[rows[pairs[0]]].astype(np.float64).T
        return result
    step = max(1, (1 << 20) // max(1, left.shape[2]))  # 8 MB at a time
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        result[part, 0] = np.einsum("me,me->m", left[rows[part], 0].astype(np.float64), right[columns[part]])
    return result


def paired_products_on_device(
    left: torch.Tensor, right: torch.Tensor, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """`paired_products` of tensors on a GPU, some thousand pairs at a time."""
    result = np.empty((len(rows), left.shape[1]))
    step = max(1, DEVICE_NUMBERS // max(1, (left.shape[1] + 1) * left.shape[2]))
    for start in range(0, len(rows), step):
        own = slice(start, start + step)
        row, column = (torch.from_numpy(places[own]).to(left.device) for places in (rows, columns))
        result[own] = torch.einsum("mke,me->mk", left[row].double(), right[column].double()).cpu().numpy()
    return result
