"""Ranks of a matrix: parity with the published figures, ties, several right answers, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from eval.ranks import ranks
from manifests.errors import InputError

GOLDEN = Path(__file__).parents[1] / "data" / "losses.npz"


def slow_rank(scores: np.ndarray, relevant: list[int]) -> int:
    """The definition, by sorting: score falling, index rising."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return min(order.index(index) for index in relevant)


def test_golden_ranks_both_ways():
    with np.load(GOLDEN) as golden:
        scores = golden["rec_rand_sims"]
        captions_of = [np.arange(5 * image, 5 * image + 5) for image in range(200)]
        assert np.array_equal(ranks(scores, captions_of), golden["rec_rand_i2t_ranks"])
        assert np.array_equal(ranks(scores.T, np.repeat(np.arange(200), 5)), golden["rec_rand_t2i_ranks"])


def test_the_lower_index_wins_a_tie():
    scores = np.array([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert [int(ranks(scores, np.array([index]))[0]) for index in range(5)] == [3, 0, 1, 2, 4]


def test_all_scores_equal_ranks_by_index():
    assert ranks(np.zeros((4, 4)), np.arange(4)).tolist() == [0, 1, 2, 3]


def test_the_best_of_several_relevant_candidates_counts():
    scores = np.array([[0.1, 0.9, 0.5, 0.9, 0.7]])
    assert ranks(scores, [[4, 0]])[0] == 2
    assert ranks(scores, [[3, 1]])[0] == 0  # tied with each other: the one that ranks first
    assert ranks(scores, [[2, 3]])[0] == 1  # tied with a lower index that isn't relevant


def test_ragged_relevance_with_many_ties_follows_the_definition():
    random = np.random.default_rng(3)
    scores = random.integers(0, 6, size=(60, 40)).astype(np.float32)
    relevant = [random.choice(40, size=size, replace=False).tolist() for size in random.choice([1, 5, 7], size=60)]
    assert ranks(scores, relevant).tolist() == [slow_rank(row, own) for row, own in zip(scores, relevant, strict=True)]


def test_a_matrix_larger_than_one_block_is_ranked_whole(monkeypatch: pytest.MonkeyPatch):
    scores = np.random.default_rng(5).normal(size=(50, 30))
    expected = ranks(scores, np.arange(50) % 30)
    monkeypatch.setattr("eval.ranks.BLOCK_SCORES", 64)
    assert np.array_equal(ranks(scores, np.arange(50) % 30), expected)


def test_infinite_scores_are_scores():
    assert ranks(np.array([[-np.inf, np.inf, 0.0]]), np.array([0])).tolist() == [2]


@pytest.mark.parametrize(
    ("relevant", "message"),
    [([[0], []], "query 1: the query has no relevant"), ([[0], [9]], "query 1: .*9"), ([[0]], "1 lists .* 2 queries")],
)
def test_a_query_without_an_answer_is_refused(relevant: list[list[int]], message: str):
    with pytest.raises(InputError, match=message):
        ranks(np.zeros((2, 3)), relevant)


def test_nan_is_refused_and_its_query_named():
    scores = np.ones((5, 4), np.float32)
    scores[3, 1] = np.nan
    with pytest.raises(InputError, match="query 3: a score is NaN"):
        ranks(scores, np.zeros(5, np.int64))
