"""All-pairs word-region scores (stand-in until the exact, lean form is merged)."""

import torch
from torch import Tensor


def alignment_scores(regions: Tensor, words: Tensor, region_mask: Tensor, word_mask: Tensor) -> Tensor:
    """``[B, B]``: of image i and caption j the sum over words of the largest cosine over regions."""
    valid = words[word_mask]
    images, count = region_mask.shape
    cosines = (valid @ regions.reshape(images * count, -1).T).view(-1, images, count)
    best = cosines.masked_fill(~region_mask, -torch.inf).amax(-1)
    caption = torch.arange(len(words), device=words.device)[:, None].expand_as(word_mask)[word_mask]
    return best.new_zeros(len(words), images).index_add(0, caption, best).T
