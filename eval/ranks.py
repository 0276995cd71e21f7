"""The rank of the right answer, by counting (METHODS.md, "Evaluation protocol").

A rank is the number of candidates scored strictly higher, plus those tied with a lower index: the lower index wins a
tie, so the rank of equal scores is the same on every machine. No row is sorted. Q queries, C candidates, E dimensions.
"""

from collections.abc import Sequence

import numpy as np

from manifests.errors import InputError

BLOCK_SCORES = 1 << 18  # scores compared at a time: a block and its masks stay in the processor's cache

Relevance = Sequence[np.ndarray] | Sequence[Sequence[int]] | np.ndarray


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
    flat, counts = _flatten(relevant, *scores.shape)
    return _ranks(scores, flat, counts, first=0)


def embedding_ranks(
    queries: np.ndarray, candidates: np.ndarray, relevant: Relevance, *, chunk: int = 256
) -> np.ndarray:
    """`ranks` of the dot products `queries [Q, E] · candidates [C, E]`, `chunk` queries at a time.

    Only `[chunk, C]` scores exist at any moment.
    """
    flat, counts = _flatten(relevant, len(queries), len(candidates))
    ends = np.concatenate([[0], np.cumsum(counts)])
    result = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), chunk):
        stop = min(start + chunk, len(queries))
        scores = queries[start:stop] @ candidates.T
        result[start:stop] = _ranks(scores, flat[ends[start] : ends[stop]], counts[start:stop], first=start)
    return result


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


def _ranks(scores: np.ndarray, flat: np.ndarray, counts: np.ndarray, *, first: int) -> np.ndarray:
    num_queries, num_candidates = scores.shape
    result = np.empty(num_queries, np.int64)
    ends = np.concatenate([[0], np.cumsum(counts)])
    rows = max(1, BLOCK_SCORES // max(1, num_candidates))
    for start in range(0, num_queries, rows):
        stop = min(start + rows, num_queries)
        block = scores[start:stop]
        missing = np.isnan(block.max(axis=1))
        if missing.any():
            raise InputError(
                "a score is NaN",
                where=f"query {first + start + int(np.argmax(missing))}",
                fix="look for NaN or infinite values in the embeddings; the training has probably diverged",
            )
        best, score = _best(block, flat[ends[start] : ends[stop]], counts[start:stop])
        higher = np.count_nonzero(block > score[:, None], axis=1)
        as_high = np.count_nonzero(block >= score[:, None], axis=1)
        for row in np.flatnonzero(as_high - higher > 1):
            higher[row] += np.count_nonzero(block[row, : best[row]] == score[row])
        result[start:stop] = higher
    return result


def _best(scores: np.ndarray, flat: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's relevant candidate of highest score (the lowest index of a tie), and that score."""
    starts = np.cumsum(counts) - counts
    values = scores[np.repeat(np.arange(len(counts)), counts), flat]
    score = np.maximum.reduceat(values, starts)
    best = np.minimum.reduceat(np.where(values == np.repeat(score, counts), flat, scores.shape[1]), starts)
    return best, score
