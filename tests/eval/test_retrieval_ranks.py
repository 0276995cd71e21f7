"""Ranks over embeddings: multi-view parity, several right answers, ties that no block size moves, and ensembles."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import eval.ranks
from eval.embeddings import Embeddings
from eval.nearest import nearest_captions, nearest_images
from eval.ranks import Ranks, ranks, retrieval_ranks
from eval.scores import Ensemble, Siblings, paired_products, paired_products_on_device, rounding
from manifests.errors import InputError

GOLDEN = Path(__file__).parents[1] / "data" / "losses.npz"


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"], autouse=True)
def coarsest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine begins with must not matter."""
    monkeypatch.setattr("eval.ranks.coarsest", lambda: request.param)


def whole(n: int) -> slice:
    return slice(0, n)


def made(seed: int, *, images: int = 40, captions: int = 130, views: int = 3, context: int = 5) -> Embeddings:
    """Small whole numbers: products are exact in any order, and there are many ties."""
    random = np.random.default_rng(seed)
    return Embeddings(
        random.integers(-2, 3, (images, views, 6)).astype("f4"),
        random.integers(-2, 3, (images, context)).astype("f4"),
        random.integers(-2, 3, (captions, 6 + context)).astype("f4"),
    )


def matrix(embeddings: Embeddings) -> np.ndarray:
    """The definition of a score, one pair at a time."""
    dims = embeddings.pooled.shape[2]
    return np.array(
        [
            [
                max(view @ caption[:dims] for view in pooled.astype(float)) + context @ caption[dims:]
                for caption in embeddings.captions.astype(float)
            ]
            for pooled, context in zip(embeddings.pooled, embeddings.context.astype(float), strict=True)
        ]
    )


def expected(scores: np.ndarray, images: np.ndarray, captions: np.ndarray) -> Ranks:
    asked, described = np.unique(images), np.unique(captions)
    return Ranks(
        ranks(scores[asked], [captions[images == image] for image in asked]),
        asked,
        ranks(scores.T[described], [images[captions == caption] for caption in described]),
        described,
    )


def small_blocks(monkeypatch: pytest.MonkeyPatch, *, rows: int, columns: int, strip: int) -> None:
    for name, size in (("BLOCK_ROWS", rows), ("BLOCK_SCORES", rows * columns), ("STRIP_ROWS", min(strip, 255))):
        monkeypatch.setattr(f"eval.ranks.{name}", size)


def same(first: Ranks, second: Ranks) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in vars(first))


def test_golden_multi_view_scores():
    with np.load(GOLDEN) as golden:
        views, captions, scores = golden["mvm_imgs"], golden["mvm_caps"], golden["mvm_loop"]
    embeddings = Embeddings(views, np.empty((8, 0), "f4"), captions)
    assert np.allclose(embeddings.block(whole(8), whole(40)), scores, atol=1e-6)
    image, caption = np.divmod(np.arange(320), 40)
    assert np.allclose(embeddings.exact(image, caption), scores.ravel(), atol=1e-6)


def test_golden_ranks_both_ways_from_embeddings():
    with np.load(GOLDEN) as golden:
        scores = golden["rec_rand_sims"]
        # Images as rows of the matrix, captions as unit vectors: every product is one of the golden scores.
        embeddings = Embeddings(scores[:, None], np.empty((200, 0), "f4"), np.eye(1000, dtype="f4"))
        found = retrieval_ranks(embeddings, np.repeat(np.arange(200), 5), np.arange(1000))
        assert np.array_equal(found.i2t, golden["rec_rand_i2t_ranks"])
        assert np.array_equal(found.t2i, golden["rec_rand_t2i_ranks"])
        assert np.array_equal(nearest_captions(embeddings, 1)[:, 0], golden["rec_rand_i2t_top1"])
        assert np.array_equal(nearest_images(embeddings, 1)[:, 0], golden["rec_rand_t2i_top1"])


@pytest.mark.parametrize("views", [1, 3, 300])
@pytest.mark.parametrize("context", [0, 5])
@pytest.mark.parametrize("rows", [1, 4, 1020])
def test_blocks_and_many_right_answers_follow_the_definition(
    views: int, context: int, rows: int, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch, rows=rows, columns=7, strip=2)
    embeddings = made(1, images=9, captions=23, views=views, context=context)
    scores = matrix(embeddings)
    assert np.allclose(embeddings.block(whole(9), whole(23)), scores)
    random = np.random.default_rng(2)
    images, captions = np.nonzero(random.random((9, 23)) < 0.1)  # some with several, some with none, on both sides
    assert len(np.unique(captions)) < len(captions) and len(np.unique(images)) < len(images)
    assert same(retrieval_ranks(embeddings, images, captions), expected(scores, images, captions))


def near_tied() -> tuple[Embeddings, np.ndarray]:
    """60 images and 300 captions whose scores differ by less than a float32 product can hold; and those scores."""
    random = np.random.default_rng(3)
    base = random.normal(size=64)
    images = (base + 1e-7 * random.normal(size=(60, 64))).astype("f4")
    embeddings = Embeddings(images[:, None], images[:, :0], np.tile(base.astype("f4"), (300, 1)))
    truth = (images.astype(float) @ embeddings.captions.astype(float).T).round(12)
    assert len(np.unique(truth[:, 0])) > 50
    return embeddings, truth


def test_near_ties_are_decided_exactly():
    embeddings, truth = near_tied()
    image_of = np.repeat(np.arange(60), 5)
    assert same(retrieval_ranks(embeddings, image_of, np.arange(300)), expected(truth, image_of, np.arange(300)))


def test_near_ties_are_sorted_exactly():
    embeddings, truth = near_tied()
    assert np.array_equal(nearest_images(embeddings, 7), np.argsort(-truth.T, axis=1, kind="stable")[:, :7])
    assert np.array_equal(nearest_captions(embeddings, 7), np.tile(np.arange(7), (60, 1)))


def test_equal_items_rank_by_index_wherever_the_blocks_end(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(4)
    vector, other = random.normal(size=(2, 100)).astype("f4")
    images = np.stack([vector if image % 3 else other for image in range(50)])
    embeddings = Embeddings(images[:, None], np.empty((50, 0), "f4"), images)
    equal = [np.flatnonzero((images == row).all(1)) for row in images]
    for size in (1, 3, 49, 2000):
        small_blocks(monkeypatch, rows=size + 1, columns=size, strip=size)
        found = retrieval_ranks(embeddings, np.arange(50), np.arange(50))
        place = [int(np.flatnonzero(group == image)[0]) for image, group in enumerate(equal)]
        ahead = found.t2i - place
        assert np.array_equal(found.i2t, found.t2i) and set(ahead.tolist()) == {0}


def test_collapsed_embeddings_rank_by_index():
    ones = np.ones((70, 1, 8), "f4")
    embeddings = Embeddings(ones, ones[:, 0, :0], np.ones((70, 8), "f4"))
    assert retrieval_ranks(embeddings, np.arange(70), np.arange(70)).t2i.tolist() == list(range(70))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64])
def test_a_block_is_off_by_no_more_than_it_says(precision: torch.dtype):
    random = np.random.default_rng(11)
    views = random.normal(size=(20, 2, 33)).astype("f4")
    views[0], views[1, 0, 1:] = 1 + 2.0**-9, 0  # all rounded alike; and only one number
    captions = random.normal(size=(50, 40)).astype("f4")
    captions[0], captions[1, 1:] = 1 + 2.0**-9, 0
    embeddings = Embeddings(views, random.normal(size=(20, 7)).astype("f4"), captions)
    for scores in (embeddings, Ensemble([embeddings, embeddings.part(whole(20), whole(50))])):
        off = np.abs(scores.block(whole(20), whole(50), precision) - matrix(embeddings)).max()
        assert off <= scores.tolerance(precision)
        assert precision != torch.bfloat16 or off > 1e-3


def test_an_ensemble_averages_scores():
    members = [made(5), made(6, views=1, context=0)]
    scores = np.mean([matrix(member) for member in members], axis=0)
    pairs = np.repeat(np.arange(26), 5), np.arange(130)  # the last images have no caption
    assert same(retrieval_ranks(Ensemble(members), *pairs), expected(scores, *pairs))
    with pytest.raises(InputError, match="splits of different sizes"):
        Ensemble([made(5), made(5, images=3)])


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_nearest_are_sorted_by_score_then_index(count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eval.nearest.BLOCK_SCORES", 900)
    embeddings = made(7)
    scores = matrix(embeddings)
    assert np.array_equal(nearest_captions(embeddings, count), np.argsort(-scores, axis=1, kind="stable")[:, :count])
    assert np.array_equal(nearest_images(embeddings, count), np.argsort(-scores.T, axis=1, kind="stable")[:, :count])


def test_an_item_is_no_candidate_of_its_own_query():
    vectors = np.random.default_rng(8).normal(size=(30, 5))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    siblings = Siblings(vectors)
    query = np.arange(30)
    answer = np.arange(30) ^ 1
    assert np.array_equal(retrieval_ranks(siblings, query, answer).i2t, ranks(cosine, answer))
    assert np.array_equal(nearest_captions(siblings, 4), np.argsort(-cosine, axis=1, kind="stable")[:, :4])


def test_parts_that_do_not_fit_and_pairs_outside_are_refused():
    with pytest.raises(InputError, match="don't fit together: pooled .2, 1, 3., context .2, 1., captions .4, 3."):
        Embeddings(np.ones((2, 1, 3)), np.ones((2, 1)), np.ones((4, 3)))
    with pytest.raises(InputError, match="relevant caption is outside the split's 130"):
        retrieval_ranks(made(1), np.array([0]), np.array([130]))


def test_not_finite_embeddings_are_refused():
    embeddings = made(9)
    embeddings.context[4, 2] = np.nan
    with pytest.raises(InputError, match="run a-b, image 4 of the split: 1 of 40 image embeddings"):
        embeddings.require_finite("a-b")
    with pytest.raises(InputError, match="NaN"):
        retrieval_ranks(embeddings, np.arange(40), np.arange(40))


def test_embeddings_survive_their_files(tmp_path: Path):
    embeddings = made(10, context=0)
    embeddings.save(tmp_path)
    stored = Embeddings.open(tmp_path, run="r")
    assert isinstance(stored.pooled, np.memmap) and stored.context.shape == (40, 0)
    pairs = np.arange(40), np.arange(40)
    assert same(retrieval_ranks(stored, *pairs), retrieval_ranks(embeddings, *pairs))
    with pytest.raises(InputError, match="run r .*Fix: dvc repro evaluate@r"):
        Embeddings.open(tmp_path / "none", run="r")


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_no_product_is_off_by_more_than_its_precision_allows(precision: torch.dtype) -> None:
    worst = 1 + (2.0**-8 if precision == torch.bfloat16 else 2.0**-24)  # halfway: rounds to 1
    vectors = torch.full((1, 64), worst, dtype=torch.float64)
    largest = float(vectors.norm()) ** 2
    product = (vectors.to(precision) @ vectors.to(precision).T).double()
    off = float((product - vectors @ vectors.T).abs())
    assert 0 < off <= rounding(64, largest, precision)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["ties", "drawn"])
def test_ranks_counted_on_the_device_are_those_of_the_processor(
    seed: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, random = made(seed), np.random.default_rng(seed)
    if kind == "drawn":
        parts = embeddings.pooled, embeddings.context, embeddings.captions
        embeddings = Embeddings(*(random.standard_normal(part.shape, np.float32) for part in parts))
    images, captions = np.append(np.arange(40), [3, 7]), random.integers(0, 130, 42)
    on_cpu = retrieval_ranks(embeddings, images, captions)
    calls = []
    there = eval.ranks._compare_on_device
    monkeypatch.setattr("eval.ranks._compare", lambda *block: calls.append(block) or there(*block))
    monkeypatch.setattr("eval.ranks.BLOCK_ROWS", 33)
    monkeypatch.setattr("eval.ranks.BLOCK_SCORES", 33 * 50)
    found = retrieval_ranks(embeddings, images, captions)
    assert len(calls) > 4
    for own, other in zip(dataclasses.astuple(found), dataclasses.astuple(on_cpu), strict=True):
        assert np.array_equal(own, other)


@pytest.mark.parametrize("views", [1, 3])
def test_a_gpus_products_of_pairs_are_the_processors(views: int, monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    left, right = random.standard_normal((7, views, 5), np.float32), random.standard_normal((9, 5), np.float32)
    rows, columns = random.integers(0, 7, 40), random.integers(0, 9, 40)
    tensors = torch.from_numpy(left), torch.from_numpy(right)
    exact = paired_products(left, right, rows, columns)
    for at_a_time in (1, 100, 1 << 25):
        monkeypatch.setattr("eval.scores.DEVICE_NUMBERS", at_a_time)
        found = paired_products_on_device(*tensors, rows, columns)
        np.testing.assert_allclose(found, exact, rtol=1e-14, atol=1e-14)
