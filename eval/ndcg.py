"""NDCG: how good a ranking is where relevance has degrees (Järvelin & Kekäläinen, 2002; ALADIN's second metric).

Gains are `2^relevance - 1`, discounts `log2(place + 1)`, places from 1, cut off at K. Relevance is how alike captions
are (Messina et al., ALADIN, 2022, section 4.2). Of a caption c and an image i it is ROUGE-L of c with i's own captions.
Of two images it is the greatest of the one's captions with the other. So an image that would do as well as the right
one counts nearly as much. N images, C captions, K results.
"""

import numpy as np

from eval.rouge import RougeL
from manifests.progress import progress

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


def likeness_ndcg(
    rouge: RougeL, image_of: np.ndarray, num_images: int, rankings: dict[str, np.ndarray]
) -> dict[str, float]:
    """The mean NDCG over the queries of each ranking, in percent.

    Parameters
    ----------
    rouge : of all C captions.
    image_of : each caption's image, `[C]`, rising.
    rankings : by direction, candidates best first: `i2t [N, K]`, `t2i [C, K]`, `i2i [N, K]`, `t2t [C, K]`, any of
        them. In the last two an item is no candidate of its own query. Images without a caption are no queries.
    """
    owners, starts = np.unique(image_of, return_index=True)
    found: dict[str, list[float]] = {direction: [] for direction in rankings}
    stops = [*starts[1:].tolist(), len(image_of)]
    for image, start, stop in progress(
        zip(owners.tolist(), starts.tolist(), stops, strict=True), what="ndcg", unit="images", total=len(owners)
    ):
        common, lengths = np.stack([rouge.common(c) for c in range(start, stop)]), rouge.lengths[start:stop]
        images = np.zeros((stop - start, num_images))
        images[:, owners] = rouge.of_groups(common, lengths, starts)
        if "i2t" in found:
            found["i2t"].append(ndcg_at(rouge.with_group(common, lengths), rankings["i2t"][image]))
        if "t2i" in found:
            found["t2i"] += map(ndcg_at, images, rankings["t2i"][start:stop])
        if "i2i" in found:
            others = images.max(axis=0)
            others[image] = 0
            found["i2i"].append(ndcg_at(others, rankings["i2i"][image]))
        if "t2t" in found:
            texts = rouge.of_pairs(common, lengths)
            texts[np.arange(stop - start), np.arange(start, stop)] = 0
            found["t2t"] += map(ndcg_at, texts, rankings["t2t"][start:stop])
    return {direction: round(100 * float(np.mean(values)), 4) for direction, values in found.items()}


def relevance_ndcg(relevance: np.ndarray, i2t: np.ndarray, t2i: np.ndarray) -> dict[str, float]:
    """The same from a matrix of relevance `[C, N]` at hand, for `i2t [N, K]` and `t2i [C, K]`; images to which no
    caption is relevant are no queries."""
    asked = np.flatnonzero(relevance.max(axis=0) > 0)
    return {
        "i2t": round(100 * float(np.mean([ndcg_at(relevance[:, image], i2t[image]) for image in asked])), 4),
        "t2i": round(100 * float(np.mean(list(map(ndcg_at, relevance, t2i)))), 4),
    }
