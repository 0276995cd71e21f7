"""Recalls and chance: parity with the published figures, ragged captions, and exact expectations."""

from pathlib import Path

import numpy as np
import pytest

from eval.embeddings import Embeddings
from eval.interval import interval, recall_draws, rsum_draws
from eval.ranks import ranks, retrieval_ranks
from eval.recall import chance_recalls, fold_recalls, recalls
from manifests.errors import InputError

GOLDEN = Path(__file__).parents[1] / "data" / "losses.npz"


def single(images: np.ndarray, captions: np.ndarray) -> Embeddings:
    """Embeddings of one view and no context."""
    return Embeddings(images[:, None].astype("f4"), np.empty((len(images), 0), "f4"), captions.astype("f4"))


def test_golden_recalls_both_ways():
    with np.load(GOLDEN) as golden:
        table = recalls(golden["rec_rand_i2t_ranks"], golden["rec_rand_t2i_ranks"])
        for direction in ("i2t", "t2i"):
            figures = [table[f"{direction}_{key}"] for key in ("r1", "r5", "r10", "median_rank", "mean_rank")]
            assert figures == pytest.approx(golden[f"rec_rand_{direction}"], abs=1e-4)
        six = [*golden["rec_rand_i2t"][:3], *golden["rec_rand_t2i"][:3]]
        assert table["rsum"] == pytest.approx(sum(six), abs=1e-3)


def test_images_with_one_five_seven_and_no_captions():
    image_of = np.array([0] + [1] * 5 + [3] * 7)
    images = np.eye(4, dtype=np.float32)
    captions = images[image_of]
    captions[6] = images[2]  # this caption looks like the image that has none
    found = retrieval_ranks(single(images, captions), image_of, np.arange(13))
    assert found.images.tolist() == [0, 1, 3] and found.captions.tolist() == list(range(13))
    assert found.i2t.tolist() == [0, 0, 0]
    assert found.t2i.tolist() == [0] * 6 + [3] + [0] * 6
    assert recalls(found.i2t, found.t2i)["t2i_r1"] == pytest.approx(100 * 12 / 13, abs=1e-4)


def test_a_split_of_one_image():
    found = retrieval_ranks(single(np.ones((1, 2)), np.ones((3, 2))), np.zeros(3, np.int64), np.arange(3))
    assert recalls(found.i2t, found.t2i)["rsum"] == 600
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


def test_folds_are_parts_of_the_images_in_order():
    random = np.random.default_rng(2)
    image_of = np.repeat(np.arange(11), random.choice([1, 5, 7], 11))
    images = random.normal(size=(11, 4))
    captions = images[image_of] + random.normal(size=(len(image_of), 4))
    tables = []
    for first, last in ((0, 3), (3, 7), (7, 11)):
        own = np.flatnonzero((image_of >= first) & (image_of < last))
        found = retrieval_ranks(single(images[first:last], captions[own]), image_of[own] - first, np.arange(len(own)))
        tables.append(recalls(found.i2t, found.t2i))
    mean = fold_recalls(single(images, captions), image_of, 3)
    assert mean == {key: pytest.approx(np.mean([table[key] for table in tables]), abs=1e-3) for key in tables[0]}
    with pytest.raises(InputError, match="11 images can't be cut into 12 folds"):
        fold_recalls(single(images, captions), image_of, 12)


def test_every_recall_has_draws_around_it():
    random = np.random.default_rng(3)
    image_of = np.repeat(np.arange(300), 5)
    i2t, t2i = random.integers(0, 12, 300), random.integers(0, 12, 1500)
    draws = recall_draws(i2t, np.arange(300), t2i, image_of, 300)
    table = recalls(i2t, t2i)
    assert set(draws) == {key for key in table if not key.endswith("_rank")}
    for key, drawn in draws.items():
        low, high = interval(drawn)
        assert low < table[key] < high and np.mean(drawn) == pytest.approx(table[key], abs=1)
    assert np.array_equal(draws["rsum"], rsum_draws(i2t, np.arange(300), t2i, image_of, 300))
