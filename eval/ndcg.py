"""NDCG: how good a ranking is where relevance has degrees (Järvelin & Kekäläinen, 2002; ALADIN's second metric).

Relevance here is the likeness of captions: an image is as relevant to a caption as the most similar of the image's own
captions is. Gains are `2^relevance - 1`, discounts `log2(place + 1)`, places from 1, cut off at K.
"""

import numpy as np

CUTOFF = 25


def ndcg_at(relevance: np.ndarray, ranking: np.ndarray) -> float:
    """NDCG of the first K results.

    Parameters
    ----------
    relevance : `[candidates]`, of every candidate, 0 or more.
    ranking : `int [K]`, the candidates found, best first.

    Returns
    -------
    0 to 1; 0 where no candidate is relevant.
    """
    relevance = np.asarray(relevance, np.float64)
    ideal = np.partition(relevance, len(relevance) - len(ranking))[len(relevance) - len(ranking) :]
    best = _gain(np.sort(ideal)[::-1])
    return _gain(relevance[np.asarray(ranking)]) / best if best > 0 else 0.0


def _gain(relevance: np.ndarray) -> float:
    return float(np.sum((2.0**relevance - 1) / np.log2(np.arange(len(relevance)) + 2)))
