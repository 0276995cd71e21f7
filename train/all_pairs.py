"""Word-region scores of all pairs of a batch: ALADIN's alignment head (Messina et al., CBMI 2022, section 3.2).

``MrSw`` is the default: ``A_ij`` is the sum over the words of caption j of each one's largest cosine with a region of
image i. A word that no region resembles (no cosine above 0) adds 0. The published code gets that 0 from
padded regions, where there are any. Here it holds for every image, so a score doesn't depend on the batch.

A backward of its own, since autograd keeps the cosines ``[C, T, I, R]``: 2.2 GB at 128 pairs of 36 regions and 32 words
in float32. Here they are made a few captions at a time and dropped. The gradient keeps which region each word took, 1
MB. It adds up those rows alone, R times fewer than the products of the plain form.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from train.precision import matmul_dtype, sum_dtype

Aggregation = Literal["MrSw", "MrAVGw", "MwSr", "symm", "sum", "mean"]
# Cosines are made a sixteenth at a time, but no fewer than this.
_PARTS, _AT_LEAST = 16, 1 << 18


def alignment_scores(
    regions: Tensor,
    words: Tensor,
    region_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    aggregation: Aggregation = "MrSw",
) -> Tensor:
    """Scores ``[I, C]`` of every image with every caption.

    Parameters
    ----------
    regions, words : ``[I, R, D]`` and ``[C, T, D]``, vectors of any length, since cosines are taken.
    region_mask, word_mask : ``[I, R]`` and ``[C, T]``, false at padding; None means true everywhere.
    aggregation : of the cosines of a pair. ``MrSw`` is the sum over words of the largest over regions, ``MrAVGw`` its
        mean over words. ``MwSr`` is the sum over regions of the largest over words, ``symm`` that of MrSw and MwSr.
        ``sum`` and ``mean`` are over all cosines.

    Where several regions are equally similar to a word, the gradient goes to one of them. Without images, or without
    captions, there are no scores: ``[0, C]``, ``[I, 0]``.
    """
    if not (len(regions) and len(words)):
        both = (x.sum((1, 2), dtype=sum_dtype(x)) for x in (regions, words))
        return torch.outer(*both)
    if aggregation in ("sum", "mean"):
        return _all_cosines(regions, words, region_mask, word_mask, aggregation == "mean")
    region_scale, word_scale = _inverse_lengths(regions, region_mask), _inverse_lengths(words, word_mask)
    scores = 0
    if aggregation != "MwSr":
        scores = _AlignmentScores.apply(regions, words, region_scale, word_scale)
    if aggregation in ("MwSr", "symm"):
        scores = scores + _AlignmentScores.apply(words, regions, word_scale, region_scale).T
    if aggregation == "MrAVGw":
        count = words.shape[1] if word_mask is None else word_mask.sum(1)
        scores = scores / count
    return scores


def _all_cosines(
    regions: Tensor, words: Tensor, region_mask: Tensor | None, word_mask: Tensor | None, mean: bool
) -> Tensor:
    """The sum, or the mean, of the cosines of each pair: the product of summed unit vectors."""

    def summed(x: Tensor, mask: Tensor | None) -> Tensor:
        unit = F.normalize(x, dim=-1)
        unit = unit if mask is None else unit * mask[..., None]
        total = unit.sum(1, dtype=sum_dtype(x))
        if not mean:
            return total
        return total / (x.shape[1] if mask is None else mask.sum(1, keepdim=True))

    return summed(regions, region_mask) @ summed(words, word_mask).T


@torch.no_grad()
def _inverse_lengths(x: Tensor, mask: Tensor | None) -> Tensor:
    """1 / length of every vector of ``[B, N, D]``; 0 for padding and for zeros, which then resemble nothing."""
    lengths = torch.linalg.vector_norm(x, dim=-1, dtype=sum_dtype(x))
    exists = lengths > 1e-12 if mask is None else mask & (lengths > 1e-12)
    return torch.where(exists, 1 / lengths, 0)


class _AlignmentScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, regions: Tensor, words: Tensor, region_scale: Tensor, word_scale: Tensor) -> Tensor:
        images, captions = len(regions), len(words)
        dtype = matmul_dtype(regions)
        unit = (regions * region_scale[..., None]).to(dtype).flatten(0, 1)
        scores = torch.empty(captions, images, dtype=region_scale.dtype, device=regions.device)
        taken = torch.empty(captions, words.shape[1], images, dtype=torch.int16, device=regions.device)
        for part in _parts(regions, words):
            some = (words[part] * word_scale[part][..., None]).to(dtype)
            # One product: of words that aren't contiguous, batched ones would copy the regions once a caption.
            cosines = (some.flatten(0, 1) @ unit.T).view(*some.shape[:2], images, -1)
            best, region = cosines.max(-1)
            scores[part] = best.clamp(min=0).sum(1, dtype=scores.dtype)
            taken[part] = region.masked_fill_(best <= 0, -1)
        ctx.save_for_backward(regions, words, region_scale, word_scale, taken)
        return scores.T

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        regions, words, region_scale, word_scale, taken = ctx.saved_tensors
        images, per_image, _ = regions.shape
        device = regions.device
        region = taken.flatten(0, 1).long()
        weight = torch.where(region >= 0, grad.T.repeat_interleave(words.shape[1], 0), 0).flatten()
        region = region.clamp_(min=0).add_(torch.arange(images, device=device) * per_image).flatten()
        starts = torch.arange(0, len(region), images, device=device)
        grad_words = _weighted_sums(regions, region_scale, region, weight, starts)
        # The other way round: the words that took each region. Narrow numbers are sorted up to four times faster.
        narrow = torch.int16 if images * per_image < 1 << 15 else torch.int32
        region, order = region.to(narrow).sort()
        starts = torch.searchsorted(region, torch.arange(images * per_image, dtype=narrow, device=device))
        grad_regions = _weighted_sums(words, word_scale, order // images, weight[order], starts)
        return (
            _through_scaling(grad_regions.view_as(regions), regions, region_scale),
            _through_scaling(grad_words.view_as(words), words, word_scale),
            None,
            None,
        )


def _weighted_sums(x: Tensor, scale: Tensor, rows: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    """Sums of rows of ``[B, N, D]`` brought to unit length, a sum from every one of `starts` to the next."""
    weight = weight * scale.flatten()[rows]
    return F.embedding_bag(rows, x.flatten(0, 1), starts, mode="sum", per_sample_weights=weight.to(x.dtype))


def _parts(regions: Tensor, words: Tensor) -> list[slice]:
    """Captions whose cosines are made together."""
    captions = len(words)
    per_caption = regions.shape[0] * regions.shape[1] * words.shape[1]
    step = max(-(-captions // _PARTS), -(-_AT_LEAST // max(per_caption, 1)))
    return [slice(start, start + step) for start in range(0, captions, step)]


def _through_scaling(grad: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """In place, for ``y = x * scale`` of unit length: dL/dx from dL/dy, by taking out what is along y."""
    step = -(-len(x) // _PARTS)
    for part in [slice(start, start + step) for start in range(0, len(x), step)]:
        along = (grad[part] * x[part]).sum(-1) * scale[part] ** 2
        grad[part].addcmul_(x[part], along[..., None], value=-1).mul_(scale[part][..., None])
    return grad
