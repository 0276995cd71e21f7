"""The best candidates of every query in order, in both directions: what NDCG, ECCV Caption and the report look at.

Higher scores first, ties by lower index, with the same care for near ties as `eval.ranks`; a block at a time.
"""

import numpy as np
import torch

from eval.scores import TIE, Scores

BLOCK_SCORES = 1 << 22


def nearest_captions(scores: Scores, count: int) -> np.ndarray:
    """Each image's `count` best captions (or all there are), best first: `int64 [N, K]`."""
    everything = slice(0, scores.num_captions)
    height = max(1, BLOCK_SCORES // max(1, scores.num_captions * scores.views))
    found = [
        _best(scores, slice(top, min(top + height, scores.num_images)), everything, count, queries_are_images=True)
        for top in range(0, scores.num_images, height)
    ]
    return np.concatenate(found)


def nearest_images(scores: Scores, count: int) -> np.ndarray:
    """Each caption's `count` best images (or all there are), best first: `int64 [C, K]`."""
    everything = slice(0, scores.num_images)
    width = max(1, BLOCK_SCORES // max(1, scores.num_images * scores.views))
    found = [
        _best(scores, everything, slice(left, min(left + width, scores.num_captions)), count, queries_are_images=False)
        for left in range(0, scores.num_captions, width)
    ]
    return np.concatenate(found)


def _best(scores: Scores, images: slice, captions: slice, count: int, *, queries_are_images: bool) -> np.ndarray:
    """The best candidates `[Q, K]` of the queries of one block, which holds all their candidates."""
    block = scores.block(images, captions)
    table = block if queries_are_images else np.ascontiguousarray(block.T)
    candidates = table.shape[1]
    count = min(count, candidates)
    margin = 2 * scores.tolerance(torch.float32)
    last = np.partition(table, candidates - count, axis=1)[:, candidates - count]
    query, candidate = np.nonzero(table >= (last - margin)[:, None])
    score = table[query, candidate].astype(np.float64)

    order = np.lexsort((-score, query))
    query, candidate, score = query[order], candidate[order], score[order]
    close = (np.diff(query) == 0) & (-np.diff(score) <= margin)
    doubtful = np.flatnonzero(np.append(close, False) | np.append(False, close))
    rows, columns = (query[doubtful], candidate[doubtful])[:: 1 if queries_are_images else -1]
    if len(doubtful) * 32 > block.size:  # much of it is as good as tied
        score[doubtful] = scores.block(images, captions, torch.float64)[rows, columns]
    else:
        score[doubtful] = scores.exact(images.start + rows, captions.start + columns)

    order = np.lexsort((-score, query))
    query, candidate, score = query[order], candidate[order], score[order]
    separate = (np.diff(query) > 0) | (-np.diff(score) > TIE * scores.largest)
    query, candidate = (ids[np.lexsort((candidate, np.cumsum(np.append(0, separate))))] for ids in (query, candidate))
    place = np.arange(len(query)) - np.searchsorted(query, query)
    return candidate[place < count].reshape(-1, count)
