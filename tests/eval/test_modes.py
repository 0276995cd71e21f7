"""The teacher's scores against pairs scored one by one, and re-ranking against a plain sort, ties included."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eval import alignments
from eval.alignments import Alignments, Locals, embed_locals
from eval.embeddings import Embeddings
from eval.modes import mode_figures, reranked
from eval.ranks import retrieval_ranks
from eval.recall import recalls
from tests.eval.data_files import AttributeModel, draw_data_set, retrieval_data
from train.all_pairs import alignment_scores
from train.losses.alignment import Alignment, AlignmentSettings
from train.losses.loss import Shape

DIM = 6


def made_locals(counts: list[int], seed: int, distinct: bool = True) -> Locals:
    """Vectors of any length; whole numbers, few and small, unless `distinct`, so that many scores tie."""
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(sum(counts), DIM, generator=random)
    if not distinct:
        vectors = F.one_hot(torch.randint(0, 3, (sum(counts),), generator=random), DIM).float()
    count = np.array(counts)
    return Locals(vectors, np.cumsum(count) - count, count)


def one_by_one(teacher: Alignments) -> np.ndarray:
    scores = np.empty((teacher.num_images, teacher.num_captions))
    for image, caption in np.ndindex(*scores.shape):
        regions, words = (
            F.normalize(side.vectors[side.first[n] : side.first[n] + side.count[n]].double(), dim=-1)
            for side, n in ((teacher.regions, image), (teacher.words, caption))
        )
        cosines = words @ regions.T
        of_words, of_regions = cosines.amax(1).clamp(min=0), cosines.amax(0).clamp(min=0)
        scores[image, caption] = {
            "MrSw": of_words.sum(),
            "MrAVGw": of_words.mean(),
            "MwSr": of_regions.sum(),
            "symm": of_words.sum() + of_regions.sum(),
            "sum": cosines.sum(),
            "mean": cosines.mean(),
        }[teacher.aggregation]
    return scores


@pytest.fixture(params=["MrSw", "MrAVGw", "MwSr", "symm", "sum", "mean"])
def teacher(request: pytest.FixtureRequest) -> Alignments:
    return Alignments(made_locals([3, 1, 5, 2, 4], 0), made_locals([1, 4, 2, 6, 3, 1, 2], 1), request.param)


@pytest.mark.parametrize(("images", "cosines"), [(64, 1 << 25), (2, 1)], ids=["all at once", "few at a time"])
def test_scores_are_those_of_the_pairs(teacher: Alignments, images: int, cosines: int, monkeypatch) -> None:
    monkeypatch.setattr(alignments, "IMAGES", images)
    monkeypatch.setattr(alignments, "COSINES", cosines)
    monkeypatch.setattr(alignments, "EXACT_NUMBERS", cosines)
    expected = one_by_one(teacher)
    everything = slice(0, 5), slice(0, 7)
    assert np.abs(expected).max() < teacher.largest
    assert np.allclose(teacher.block(*everything, torch.float64), expected, atol=1e-12)
    for precision in (torch.float32, torch.bfloat16):
        block = teacher.block(*everything, precision)
        assert block.dtype == np.float32
        assert np.abs(block - expected).max() < teacher.tolerance(precision)
    assert np.allclose(teacher.block(slice(1, 4), slice(2, 7)), expected[1:4, 2:7], atol=1e-5)
    image, caption = np.divmod(np.arange(35), 7)
    assert np.allclose(teacher.exact(image, caption), expected.ravel(), atol=1e-12)
    part = teacher.part(slice(1, 4), slice(2, 7))
    assert np.allclose(part.exact(image[:5] * 0 + 1, np.arange(5)), expected[2, 2:7], atol=1e-12)


def test_scores_that_are_not_finite_are_refused(teacher: Alignments) -> None:
    teacher.words.vectors[3, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        Alignments(teacher.regions, teacher.words)


def plain_ranks(student: np.ndarray, teacher: np.ndarray, image_of: np.ndarray, count: int) -> tuple[list, list]:
    """0-based ranks after re-ranking, query by query: images' own captions, and each caption's image."""

    def rank(ours: np.ndarray, theirs: np.ndarray, right: set[int]) -> int:
        order = sorted(range(len(ours)), key=lambda n: (-round(ours[n], 9), n))
        best = sorted(order[:count], key=lambda n: (-round(theirs[n], 9), n))
        return min(place for place, n in enumerate([*best, *order[count:]]) if n in right)

    i2t = [
        rank(student[image], teacher[image], set(np.flatnonzero(image_of == image).tolist()))
        for image in sorted(set(image_of.tolist()))
    ]
    return i2t, [rank(student[:, c], teacher[:, c], {int(image)}) for c, image in enumerate(image_of)]


@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "tied"])
@pytest.mark.parametrize("count", [1, 3, 10, 99])
def test_reranking_is_a_sort_of_the_students_best(count: int, distinct: bool) -> None:
    rng = np.random.default_rng(3)
    image_of = np.sort(rng.integers(0, 12, 30))  # some images have no caption
    pooled, captions = (rng.standard_normal((n, 4)).astype(np.float32) for n in (12, 30))
    if not distinct:
        pooled, captions = np.sign(pooled), np.sign(captions)
    student = Embeddings(pooled[:, None], pooled[:, :0], captions)
    counts = rng.integers(1, 5, 42).tolist()
    teacher = Alignments(made_locals(counts[:12], 4, distinct), made_locals(counts[12:], 5, distinct))
    first = retrieval_ranks(student, image_of, np.arange(30))
    found = reranked(student, teacher, first, image_of, count)
    i2t, t2i = plain_ranks(pooled @ captions.T, one_by_one(teacher), image_of, count)
    assert (found.i2t.tolist(), found.t2i.tolist()) == (i2t, t2i)
    if count == 99:
        alone = retrieval_ranks(teacher, image_of, np.arange(30))
        assert np.array_equal(alone.i2t, found.i2t) and np.array_equal(alone.t2i, found.t2i)
    figures = mode_figures(student, teacher, first, image_of, count)
    assert figures["reranked"] == recalls(found.i2t, found.t2i) | {"candidates": count}
    assert figures["student"] == recalls(first.i2t, first.t2i)


def test_the_locals_of_a_split_are_the_models(tmp_path) -> None:
    folder = draw_data_set(tmp_path)
    model, data = AttributeModel(folder), retrieval_data(folder)
    model.alignment = Alignment(AlignmentSettings(locals="projected"), Shape(1, 1, 1, 1, (1, 2)), {})
    found = embed_locals(model, data, 7, quiet=True)
    seen = model.encode_images(data.region_batch(range(len(data.images))))
    read = model.encode_captions(data.word_batch(range(data.num_captions)))
    expected = alignment_scores(seen.locals, read.locals, seen.mask, read.mask).detach().numpy()
    assert np.allclose(found.block(slice(0, 8), slice(0, data.num_captions)), expected, atol=1e-5)
    ranks = retrieval_ranks(found, data.caption_image, np.arange(data.num_captions))
    assert recalls(ranks.i2t, ranks.t2i)["t2i_r1"] > 50
