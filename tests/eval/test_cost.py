"""What retrieval costs: the search that is timed finds the best, cross-attention is SCAN's, and figures are whole."""

import math

import pytest
import torch

from eval.cost import search, search_again, word_region_scores
from eval.cross_attention import cross_attention_scores
from train.all_pairs import alignment_scores


def test_search_finds_the_best_in_several_passes():
    random = torch.Generator().manual_seed(0)
    items, query = torch.randn(30, 8, generator=random), torch.randn(8, generator=random)
    values, rows = search(items, query, 1, 8, 75)
    scores = (items @ query).repeat(3)[:75]
    assert torch.allclose(values, scores.topk(10).values) and torch.allclose(scores[rows], values)


def test_search_takes_the_best_view_and_the_shared_context():
    random = torch.Generator().manual_seed(1)
    items, query = torch.randn(20, 3 * 4 + 2, generator=random), torch.randn(4 + 2, generator=random)
    values, rows = search(items, query, 3, 4, 20)
    scores = torch.stack(
        [max(row[4 * v : 4 * v + 4] @ query[:4] for v in range(3)) + row[12:] @ query[4:] for row in items]
    )
    assert torch.allclose(values, scores.topk(10).values) and torch.allclose(scores[rows], values)


def test_cross_attention_is_scans():
    """Lee et al., eq. 1 to 5, a word and a region at a time."""
    random = torch.Generator().manual_seed(2)
    regions = torch.nn.functional.normalize(torch.randn(3, 4, 6, generator=random), dim=-1)
    words = torch.nn.functional.normalize(torch.randn(5, 6, generator=random), dim=-1)
    for image, score in zip(regions, cross_attention_scores(regions, words), strict=True):
        cosine = [[float(word @ region) for word in words] for region in image]
        cut = [[value if value > 0 else 0.1 * value for value in row] for row in cosine]
        weight = [[value / math.sqrt(sum(x * x for x in row)) for value in row] for row in cut]
        relevances = []
        for number, word in enumerate(words):
            exponents = [math.exp(9 * row[number]) for row in weight]
            attended = sum(e / sum(exponents) * region for e, region in zip(exponents, image, strict=True))
            relevances.append(float(word @ attended / attended.norm()))
        assert float(score) == pytest.approx(sum(relevances) / len(relevances), abs=1e-5)


def test_the_teacher_that_is_timed_is_the_one_that_is_trained():
    random = torch.Generator().manual_seed(3)
    regions, words = (
        torch.nn.functional.normalize(torch.randn(*n, 6, generator=random), dim=-1) for n in ((9, 4), (5,))
    )
    scores = word_region_scores(regions, words)
    assert torch.allclose(scores, alignment_scores(regions, words[None])[:, 0], atol=1e-6)

    items, query = torch.randn(9, 8, generator=random), torch.randn(8, generator=random)
    best = (items @ query).topk(4).indices
    values, rows = search_again(items, query, 1, 8, regions, words, 4)
    assert torch.allclose(values, scores[best].sort(descending=True).values) and torch.equal(scores[rows], values)
