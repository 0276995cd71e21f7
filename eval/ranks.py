"""The rank of the right answer, by counting (METHODS.md, "Evaluation protocol").

A rank is the number of candidates scored higher, plus those tied with a lower index: the lower index wins a tie, so
that the rank of equal scores is the same on every machine. No row is sorted. `ranks` takes a matrix at hand,
`retrieval_ranks` embeddings: both directions from one product, a block at a time. Q queries, N images, C captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.scores import Scores, exact_pairs
from manifests.errors import InputError

BLOCK_SCORES = 1 << 19  # scores looked at at a time: a block and its masks stay in the processor's cache
BLOCK_ROWS = 255  # as many as a byte can count

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
    """Both directions' ranks, from one pass over the scores in blocks; no more than some MB at any time.

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
    margin, tie = scores.tolerance, scores.tie  # not finite embeddings end here
    exact = scores.exact(images, captions)
    by_image = _Tally.of(images, captions, exact, scores.num_images, margin, tie)
    by_caption = _Tally.of(captions, images, exact, scores.num_captions, margin, tie)
    height = max(1, BLOCK_ROWS // scores.views)
    width = max(1, BLOCK_SCORES // BLOCK_ROWS)
    for top in range(0, scores.num_images, height):
        rows = slice(top, min(top + height, scores.num_images))
        for left in range(0, scores.num_captions, width):
            columns = slice(left, min(left + width, scores.num_captions))
            block = scores.block(rows, columns)
            high = block > by_image.above[rows, None]
            near = block >= by_image.below[rows, None]
            by_image.higher[rows] += [np.count_nonzero(row) for row in high]
            _settle(by_image, scores, rows, columns, np.not_equal(near, high, out=near), queries_are_images=True)
            np.greater(block, by_caption.above[columns], out=high)
            np.greater_equal(block, by_caption.below[columns], out=near)
            by_caption.higher[columns] += np.add.reduce(high.view(np.uint8), axis=0, dtype=np.uint8)
            _settle(by_caption, scores, rows, columns, np.not_equal(near, high, out=near), queries_are_images=False)
    (asked_images,), (asked_captions,) = np.nonzero(by_image.best >= 0), np.nonzero(by_caption.best >= 0)
    return Ranks(by_image.higher[asked_images], asked_images, by_caption.higher[asked_captions], asked_captions)


@dataclass(frozen=True)
class _Tally:
    """Of every query of one direction: its best relevant candidate and that one's exact score, the float32 bounds
    above and below which a candidate is surely better or worse, and how many better ones were counted so far.

    A query without a relevant candidate has best -1, and bounds that nothing reaches.
    """

    best: np.ndarray
    score: np.ndarray
    above: np.ndarray
    below: np.ndarray
    higher: np.ndarray

    @classmethod
    def of(
        cls, queries: np.ndarray, candidates: np.ndarray, exact: np.ndarray, count: int, margin: float, tie: float
    ) -> "_Tally":
        score = np.full(count, -np.inf)
        np.maximum.at(score, queries, exact)
        tied = exact >= score[queries] - tie
        best = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(best, queries[tied], candidates[tied])
        asked = np.isfinite(score)
        best[~asked], score[~asked] = -1, np.inf
        above, below = (np.float32(score + sign * margin) for sign in (1, -1))
        return cls(best, score, above, below, np.zeros(count, np.int64))


def _settle(
    tally: _Tally, scores: Scores, rows: slice, columns: slice, near: np.ndarray, *, queries_are_images: bool
) -> None:
    """Count those of a block's candidates `near [rows, columns]` to the best score that exactly are ahead of it."""
    places = np.flatnonzero(near)
    if not len(places):
        return
    images, captions = np.divmod(places, near.shape[1])
    images, captions = images + rows.start, captions + columns.start
    queries, candidates = (images, captions) if queries_are_images else (captions, images)
    others = candidates != tally.best[queries]
    queries, candidates, places = queries[others], candidates[others], places[others]
    if not len(places):
        return
    exact = exact_pairs(scores, rows, columns, places)
    score = tally.score[queries]
    ahead = (exact > score + scores.tie) | ((exact >= score - scores.tie) & (candidates < tally.best[queries]))
    np.add.at(tally.higher, queries[ahead], 1)


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
