"""The rank of the right answer, by counting (docs/evaluation.md, "Protocol").

A rank is the number of candidates scored higher, plus those tied with a lower index. The lower index wins a tie, so
ranks are the same on every machine. No row is sorted. `ranks` takes a matrix at hand, `retrieval_ranks` embeddings:
both directions from one product, a block at a time. Q queries, N images, C captions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eval.scores import TIE, Scores, coarsest
from manifests.errors import InputError

BLOCK_SCORES = 1 << 21  # scores made at a time: matrix products want large blocks
BLOCK_ROWS = 1020
DEVICE_SCORES, DEVICE_ROWS = 1 << 25, 1 << 14  # the same where a GPU makes and counts them
UNDECIDED = 64  # one score in so many may be computed again one by one; with more, the block is computed more precisely
STRIP_ROWS = 255  # rows compared at a time: they and their masks stay in the cache, and a byte can count them

Relevance = Sequence[np.ndarray] | Sequence[Sequence[int]] | np.ndarray


@dataclass(frozen=True)
class Ranks:
    """0-based ranks in both directions: `i2t [M]` of the M images `images` that have a caption, `t2i [L]` of the L
    captions `captions` that have an image."""

    i2t: np.ndarray
    images: np.ndarray
    t2i: np.ndarray
    captions: np.ndarray


def ranks(scores: np.ndarray, relevant: Relevance) -> np.ndarray:
    """The 0-based rank of each query's best-ranked relevant candidate, `int64 [Q]`.

    Parameters
    ----------
    scores : `[Q, C]`, higher is better.
    relevant : the indices of each query's relevant candidates, one array a query; or an integer array `[Q]` where
        every query has just one.

    Raises
    ------
    InputError for a query without a relevant candidate, an index outside the candidates, or a score that is NaN.
    """
    scores = np.asarray(scores)
    num_queries, num_candidates = scores.shape
    flat, counts = _flatten(relevant, num_queries, num_candidates)
    ends = np.concatenate([[0], np.cumsum(counts)])
    result = np.empty(num_queries, np.int64)
    ahead = np.empty(num_candidates, bool)
    rows = max(1, BLOCK_SCORES // max(1, num_candidates))
    for start in range(0, num_queries, rows):
        stop = min(start + rows, num_queries)
        block = np.ascontiguousarray(scores[start:stop])
        bests, values = _best(block, flat[ends[start] : ends[stop]], counts[start:stop])
        for number, (row, best, value) in enumerate(zip(block, bests.tolist(), values, strict=True), start):
            if np.isnan(row.max()):
                raise InputError(
                    "a score is NaN",
                    where=f"query {number}",
                    fix="look for NaN or infinite values in the embeddings; the training has probably diverged",
                )
            # Before the best an equal score is ahead of it, after it only a higher one.
            np.greater_equal(row[:best], value, out=ahead[:best])
            np.greater(row[best:], value, out=ahead[best:])
            result[number] = np.count_nonzero(ahead)
    return result


def retrieval_ranks(scores: Scores, images: np.ndarray, captions: np.ndarray) -> Ranks:
    """Both directions' ranks, from one pass over the scores in blocks: some MB on a processor, some hundred on a GPU.

    Parameters
    ----------
    images, captions : `[M]` each: the relevant pairs. An image or caption in none of them is no query but stays a
        candidate; one in several counts by the pair that ranks best.

    Raises
    ------
    InputError for a pair outside the split and for embeddings that are not finite.
    """
    images, captions = np.asarray(images, np.int64), np.asarray(captions, np.int64)
    for kind, items, count in (("image", images, scores.num_images), ("caption", captions, scores.num_captions)):
        if len(items) and not 0 <= items.min() <= items.max() < count:
            raise InputError(
                f"a relevant {kind} is outside the split's {count}", where="relevance", fix="count them from 0"
            )
    tie = TIE * scores.largest  # embeddings that are not finite end here
    exact = scores.exact(images, captions)
    by_image = _Tally.of(images, captions, exact, scores.num_images, tie)
    by_caption = _Tally.of(captions, images, exact, scores.num_captions, tie)
    on_device = getattr(scores, "device", "cpu") != "cpu"
    finest = 2 if on_device or coarsest() == torch.float32 else 3
    precisions = [torch.float64, torch.float32, torch.bfloat16][:finest]
    most, most_rows = (DEVICE_SCORES, DEVICE_ROWS) if on_device else (BLOCK_SCORES, BLOCK_ROWS)
    height = max(1, most_rows // scores.views)
    width = max(1, most // most_rows)
    compare = _compare_on_device if on_device else _compare
    for top in range(0, scores.num_images, height):
        rows = slice(top, min(top + height, scores.num_images))
        for left in range(0, scores.num_captions, width):
            columns = slice(left, min(left + width, scores.num_captions))
            while not _count_block(scores, rows, columns, precisions[-1], by_image, by_caption, compare):
                precisions.pop()  # where many scores are nearly equal, the next blocks' will be, too
    (asked_images,), (asked_captions,) = np.nonzero(by_image.best >= 0), np.nonzero(by_caption.best >= 0)
    return Ranks(by_image.higher[asked_images], asked_images, by_caption.higher[asked_captions], asked_captions)


@dataclass(frozen=True)
class _Tally:
    """The state of every query of one direction: the best relevant candidate, its exact score, and the number of higher
    scores so far. A query without a relevant candidate has best -1 and an infinite score."""

    best: np.ndarray
    score: np.ndarray
    higher: np.ndarray
    tie: float

    @classmethod
    def of(cls, queries: np.ndarray, candidates: np.ndarray, exact: np.ndarray, count: int, tie: float) -> "_Tally":
        score = np.full(count, -np.inf)
        np.maximum.at(score, queries, exact)
        tied = exact >= score[queries] - tie
        best = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(best, queries[tied], candidates[tied])
        asked = np.isfinite(score)
        best[~asked], score[~asked] = -1, np.inf
        return cls(best, score, np.zeros(count, np.int64), tie)

    def count_ahead(self, queries: np.ndarray, candidates: np.ndarray, exact: np.ndarray) -> None:
        """Count the candidates whose exact scores rank them ahead of their query's best."""
        score = self.score[queries]
        ahead = (exact > score + self.tie) | ((exact >= score - self.tie) & (candidates < self.best[queries]))
        np.add.at(self.higher, queries[ahead], 1)


@dataclass(frozen=True)
class _Comparison:
    """A block `[I, C]` of scores compared with the bounds of its queries.

    `rows` and `columns` count the scores that are surely higher. `near_rows` and `near_columns` are the places in the
    flattened block of those that are too near to decide. `at` gives scores of the block by row and column.
    """

    rows: np.ndarray
    columns: np.ndarray
    near_rows: np.ndarray
    near_columns: np.ndarray
    at: Callable[[np.ndarray, np.ndarray], np.ndarray]


Bounds = tuple[np.ndarray, np.ndarray]  # above the first a score is surely higher, below the second surely not
Compare = Callable[[Scores, slice, slice, torch.dtype, Bounds, Bounds], _Comparison]


def _compare(
    scores: Scores, rows: slice, columns: slice, precision: torch.dtype, of_image: Bounds, of_caption: Bounds
) -> _Comparison:
    block = scores.block(rows, columns, precision)
    of_image, of_caption = ([bound.astype(block.dtype) for bound in bounds] for bounds in (of_image, of_caption))
    higher, near_images, near_captions = [], [], []
    in_columns = np.zeros(block.shape[1], np.int64)
    for first in range(0, len(block), STRIP_ROWS):
        strip = block[first : first + STRIP_ROWS]
        offset = first * block.shape[1]
        above, below = (bound[first : first + STRIP_ROWS, None] for bound in of_image)
        high, near = strip > above, strip >= below
        higher += [np.count_nonzero(row) for row in high]
        near_images.append(offset + np.flatnonzero(np.not_equal(near, high, out=near)))
        above, below = of_caption
        np.greater(strip, above, out=high)
        np.greater_equal(strip, below, out=near)
        in_columns += np.add.reduce(high.view(np.uint8), axis=0, dtype=np.uint8)
        near_captions.append(offset + np.flatnonzero(np.not_equal(near, high, out=near)))
    near = np.concatenate(near_images), np.concatenate(near_captions)
    return _Comparison(np.array(higher), in_columns, *near, lambda row, column: block[row, column])


def _compare_on_device(
    scores: Scores, rows: slice, columns: slice, precision: torch.dtype, of_image: Bounds, of_caption: Bounds
) -> _Comparison:
    """`_compare` on the device of the scores: only counts and the places of few scores are copied from it."""
    block = scores.block_on_device(rows, columns, precision)

    def counted(bounds: Bounds, axis: int) -> tuple[np.ndarray, np.ndarray]:
        above, below = (torch.from_numpy(bound).to(block.dtype).to(block.device).unsqueeze(axis) for bound in bounds)
        high = block > above
        near = (block >= below) ^ high
        return high.sum(axis).cpu().numpy(), near.flatten().nonzero().squeeze(1).cpu().numpy()

    def at(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        places = (torch.from_numpy(place).to(block.device) for place in (row, column))
        return block[tuple(places)].cpu().numpy()

    (in_rows, near_rows), (in_columns, near_columns) = counted(of_image, 1), counted(of_caption, 0)
    return _Comparison(in_rows, in_columns, near_rows, near_columns, at)


def _count_block(
    scores: Scores,
    rows: slice,
    columns: slice,
    precision: torch.dtype,
    by_image: _Tally,
    by_caption: _Tally,
    compare: Compare,
) -> bool:
    """Add one block's counts to both directions' tallies. Returns False, adding none, where too many are undecided."""
    margin = scores.tolerance(precision)
    bounds = [
        (tally.score[part] + margin, tally.score[part] - margin)
        for tally, part in ((by_image, rows), (by_caption, columns))
    ]
    found = compare(scores, rows, columns, precision, *bounds)
    width = columns.stop - columns.start
    undecided = len(found.near_rows) + len(found.near_columns)
    if precision != torch.float64 and undecided * UNDECIDED > width * (rows.stop - rows.start):
        return False
    by_image.higher[rows] += found.rows
    by_caption.higher[columns] += found.columns
    for tally, near in ((by_image, found.near_rows), (by_caption, found.near_columns)):
        images, captions = np.divmod(near, width)
        queries, candidates = images + rows.start, captions + columns.start
        if tally is by_caption:
            queries, candidates = candidates, queries
        others = candidates != tally.best[queries]
        images, captions, queries, candidates = (of[others] for of in (images, captions, queries, candidates))
        if precision == torch.float64:
            exact = found.at(images, captions)
        else:
            exact = scores.exact(images + rows.start, captions + columns.start)
        tally.count_ahead(queries, candidates, exact)
    return True


def _flatten(relevant: Relevance, num_queries: int, num_candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """All relevant indices one after the other, and how many each query has; both checked."""
    if len(relevant) != num_queries:
        raise InputError(
            f"{len(relevant)} lists of relevant candidates for {num_queries} queries",
            where="relevance",
            fix="give one list a query",
        )
    if isinstance(relevant, np.ndarray) and relevant.ndim == 1 and relevant.dtype.kind in "iu":
        flat, counts = relevant.astype(np.int64), np.ones(num_queries, np.int64)
    else:
        lists = [np.asarray(items, dtype=np.int64).reshape(-1) for items in relevant]
        counts = np.array([len(items) for items in lists], np.int64)
        flat = np.concatenate(lists) if lists else np.empty(0, np.int64)
    if (counts == 0).any():
        raise InputError(
            "the query has no relevant candidate",
            where=f"query {int(np.argmin(counts))}",
            fix="leave queries without an answer out of the ranking",
        )
    outside = (flat < 0) | (flat >= num_candidates)
    if outside.any():
        query = int(np.repeat(np.arange(num_queries), counts)[outside][0])
        raise InputError(
            f"relevant candidate {int(flat[outside][0])} is not among the {num_candidates} candidates",
            where=f"query {query}",
            fix="index the candidates from 0",
        )
    return flat, counts


def _best(scores: np.ndarray, flat: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's relevant candidate of highest score (the lowest index of a tie), and that score."""
    starts = np.cumsum(counts) - counts
    values = scores[np.repeat(np.arange(len(counts)), counts), flat]
    score = np.maximum.reduceat(values, starts)
    best = np.minimum.reduceat(np.where(values == np.repeat(score, counts), flat, scores.shape[1]), starts)
    return best, score
