"""Recalls and chance: parity with the published figures, ragged captions, and exact expectations."""

from pathlib import Path

import numpy as np
import pytest

from eval.interval import interval, rsum_draws
from eval.ranks import ranks
from eval.recall import both_ranks, chance_recalls, recalls
from manifests.errors import InputError

GOLDEN = Path(__file__).parents[1] / "data" / "losses.npz"


def test_golden_recalls_both_ways():
    with np.load(GOLDEN) as golden:
        table = recalls(golden["rec_rand_i2t_ranks"], golden["rec_rand_t2i_ranks"])
        for direction in ("i2t", "t2i"):
            figures = [table[f"{direction}_{key}"] for key in ("r1", "r5", "r10", "median_rank", "mean_rank")]
            assert figures == pytest.approx(golden[f"rec_rand_{direction}"], abs=1e-4)
        six = [*golden["rec_rand_i2t"][:3], *golden["rec_rand_t2i"][:3]]
        assert table["rsum"] == pytest.approx(sum(six), abs=1e-3)


def test_images_with_one_five_seven_and_no_captions():
    captions_of = [[0], [1, 2, 3, 4, 5], [], [6, 7, 8, 9, 10, 11, 12]]
    image_of = np.array([0] + [1] * 5 + [3] * 7)
    images = np.eye(4, dtype=np.float32)
    captions = images[image_of]
    captions[6] = images[2]  # this caption looks like the image that has none
    i2t, asked, t2i = both_ranks(images, captions, captions_of, image_of)
    assert asked.tolist() == [0, 1, 3]
    assert i2t.tolist() == [0, 0, 0]
    assert t2i.tolist() == [0] * 6 + [3] + [0] * 6
    assert recalls(i2t, t2i)["t2i_r1"] == pytest.approx(100 * 12 / 13, abs=1e-4)


def test_a_split_of_one_image():
    i2t, _, t2i = both_ranks(np.ones((1, 2)), np.ones((3, 2)), [[0, 1, 2]], np.zeros(3, np.int64))
    assert recalls(i2t, t2i)["rsum"] == 600
    assert chance_recalls([3])["rsum"] == 600


def test_no_query_is_an_error_that_says_so():
    with pytest.raises(InputError, match="no query in direction i2t"):
        recalls(np.empty(0), np.empty(0))


def test_chance_is_what_random_orders_give():
    counts = [1, 5, 7, 0, 2]
    owner = np.repeat(np.arange(5), counts)
    captions_of = [np.flatnonzero(owner == image) for image in range(5)]
    random = np.random.default_rng(0)
    asked = [own for own in captions_of if len(own)]
    i2t = np.concatenate([ranks(random.normal(size=(4, 15)), asked) for _ in range(4000)])
    t2i = np.concatenate([ranks(random.normal(size=(15, 5)), owner) for _ in range(1000)])
    drawn, expected = recalls(i2t, t2i), chance_recalls(counts)
    for key, value in expected.items():
        assert drawn[key] == pytest.approx(value, abs=2.5 if key == "rsum" else 1), key


def test_the_interval_holds_the_figure_and_narrows_with_more_images():
    random = np.random.default_rng(1)

    def width(images: int) -> float:
        image_of = np.repeat(np.arange(images), 5)
        i2t, t2i = random.integers(0, 12, images), random.integers(0, 12, 5 * images)
        draws = rsum_draws(i2t, np.arange(images), t2i, image_of, images)
        low, high = interval(draws)
        assert low < recalls(i2t, t2i)["rsum"] < high
        return high - low

    assert width(40) > 2 * width(400)


def test_equal_runs_have_no_difference_on_any_draw():
    image_of, ranks_ = np.repeat(np.arange(6), 2), np.arange(12)
    draws = [rsum_draws(np.arange(6), np.arange(6), ranks_, image_of, 6) for _ in range(2)]
    assert np.array_equal(*draws)
