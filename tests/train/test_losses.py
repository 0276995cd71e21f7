"""Losses against plain transcriptions of their formulas, in values and gradients."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from train.losses import alignment_scores, hardest_triplet

DISTILLATION = dict(np.load(Path(__file__).parents[1] / "data" / "distillation.npz"))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def up_to(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def same_with_gradients(ours: Callable, plain: Callable, *inputs: Tensor) -> None:
    """Both functions' values and gradients in the inputs agree to 1e-6."""
    results = []
    for function in (ours, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        weight = torch.arange(1, 1 + value.numel(), dtype=value.dtype).view(value.shape)
        gradients = torch.autograd.grad((value * weight).sum(), leaves, allow_unused=True)
        results.append(
            (value.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)))
        )
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


def plain_alignment(regions: Tensor, words: Tensor, region_mask: Tensor, word_mask: Tensor) -> Tensor:
    rows = []
    for image, regions_there in zip(regions, region_mask, strict=True):
        row = []
        for caption, words_there in zip(words, word_mask, strict=True):
            cosines = F.normalize(caption[words_there], dim=-1) @ F.normalize(image[regions_there], dim=-1).T
            row.append(cosines.amax(1).clamp(min=0).sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("case", ["a", "b"])
def test_alignment_scores_are_the_published_ones(case: str) -> None:
    def golden(name: str) -> Tensor:
        return torch.tensor(DISTILLATION[f"aladin_{case}_{name}"])

    regions, words = (golden(name).double().requires_grad_() for name in ("regions", "words"))
    region_mask = torch.arange(regions.shape[1]) < golden("num_regions")[:, None]
    word_mask = torch.arange(words.shape[1]) < golden("num_words")[:, None]
    scores = alignment_scores(regions, words, region_mask, word_mask)
    loss = hardest_triplet(scores, 0.2)
    loss.backward()
    found = {"scores": scores, "loss": loss, "grad_regions": regions.grad, "grad_words": words.grad}
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), golden(name).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("region_lengths", "word_lengths"),
    [([5, 3, 1], [4, 1, 2, 4]), ([1], [1]), ([2, 5], [3])],
    ids=["ragged", "one pair", "fewer captions than images"],
)
@pytest.mark.parametrize("at_least", [1, 1 << 18], ids=["a caption at a time", "all at once"])
def test_alignment_scores(region_lengths: list[int], word_lengths: list[int], at_least: int, monkeypatch) -> None:
    monkeypatch.setattr("train.losses.alignment._AT_LEAST", at_least)
    masks = up_to(region_lengths, 5), up_to(word_lengths, 4)
    regions = unit(len(region_lengths), 5, 3) * 3
    words = unit(len(word_lengths), 4, 3, seed=1) * 0.5
    same_with_gradients(
        lambda r, w: alignment_scores(r, w, *masks), lambda r, w: plain_alignment(r, w, *masks), regions, words
    )


def test_alignment_scores_do_not_depend_on_padding() -> None:
    regions, words = unit(3, 4, 3), unit(3, 6, 3, seed=1)
    wider = F.pad(regions, (0, 0, 0, 2), value=7.0), F.pad(words, (0, 0, 0, 2), value=7.0)
    scores = alignment_scores(*wider, up_to([4] * 3, 6), up_to([6] * 3, 8))
    torch.testing.assert_close(scores, alignment_scores(regions, words))


def test_alignment_scores_of_zero_vectors_are_zero_with_finite_gradients() -> None:
    regions, words = torch.zeros(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    scores = alignment_scores(regions, words)
    scores.sum().backward()
    assert not scores.any() and not regions.grad.any() and not words.grad.any()


def test_alignment_scores_under_autocast() -> None:
    regions, words = unit(4, 5, 64).float().requires_grad_(), unit(4, 6, 64, seed=1).float().requires_grad_()
    exact = alignment_scores(regions, words)
    gradient = torch.autograd.grad(exact.sum(), words)[0]
    with torch.autocast("cpu", torch.bfloat16):
        scores = alignment_scores(regions, words)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=0.02, atol=0.02)
    cosine = F.cosine_similarity(torch.autograd.grad(scores.sum(), words)[0].flatten(), gradient.flatten(), dim=0)
    assert cosine > 0.95


def test_alignment_scores_of_half_precision() -> None:
    regions, words = unit(4, 5, 64), unit(4, 6, 64, seed=1)
    exact = alignment_scores(regions, words).float()
    regions, words = regions.bfloat16().requires_grad_(), words.bfloat16().requires_grad_()
    scores = alignment_scores(regions, words)
    scores.sum().backward()
    torch.testing.assert_close(scores, exact, rtol=0.02, atol=0.02)
    assert words.grad.dtype == regions.grad.dtype == torch.bfloat16
