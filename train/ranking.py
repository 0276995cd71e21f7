"""Ranking by a batch's scores ``[B, B]``: image i against caption j, matching pairs on the diagonal.

The triplet with the hardest negative is VSE++'s (Faghri et al., BMVC 2018, eq. 6). `same` marks pairs that match as
well (two captions of one picture): they are neither positives' rivals nor negatives.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _hinges(scores: Tensor, margin: float, same: Tensor | None) -> tuple[Tensor, Tensor]:
    """Hinges ``[B, B]`` of captions against each image's own, and of images against each caption's own."""
    own = scores.diagonal()
    excluded = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    if same is not None:
        excluded = excluded | same
    captions = (margin + scores - own[:, None]).clamp(min=0).masked_fill(excluded, 0)
    images = (margin + scores - own[None, :]).clamp(min=0).masked_fill(excluded, 0)
    return captions, images


def hardest_triplet(scores: Tensor, margin: float, same: Tensor | None = None) -> Tensor:
    """Triplet loss with the hardest negative of the batch, both directions, summed over the batch; a scalar."""
    captions, images = _hinges(scores, margin, same)
    return captions.amax(1).sum() + images.amax(0).sum()


def triplet(scores: Tensor, margin: float, same: Tensor | None, hardest: bool) -> Tensor:
    """`hardest_triplet` or `all_pairs_triplet`."""
    return (hardest_triplet if hardest else all_pairs_triplet)(scores, margin, same)


def all_pairs_triplet(scores: Tensor, margin: float, same: Tensor | None = None) -> Tensor:
    """Triplet loss over all negatives of the batch, both directions, summed; a scalar.

    The first epochs run on it: with hardest negatives from the first step training can collapse.
    """
    captions, images = _hinges(scores, margin, same)
    return captions.sum() + images.sum()


def info_nce(scores: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE over the batch, the mean over pairs and both directions; a scalar."""
    logits = scores / temperature
    if same is not None:
        off_diagonal = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        logits = logits.masked_fill(same & off_diagonal, -torch.inf)
    target = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
