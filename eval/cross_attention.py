"""Word-region cross-attention, the costly way to score a pair: SCAN, text to image, averaged (Lee et al., ECCV 2018).

Every word attends to every region of every candidate, so nothing can be computed before the query is known. Here only
to say what independent embeddings save; no model of this project is trained with it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 9.0


def cross_attention_scores(regions: Tensor, words: Tensor) -> Tensor:
    """The scores `[N]` of one caption's words `[T, D]` with the regions `[N, R, D]` of N images, all of unit length.

    Section 3.1: attention over regions is the softmax of 9 times their similarities to a word. These are cut at zero (a
    leaky cut of slope 0.1, as published) and normalised over words. A word's score is its cosine with the attended
    regions.
    """
    similarity = F.normalize(F.leaky_relu(regions @ words.T, 0.1), dim=2)
    attended = torch.softmax(TEMPERATURE * similarity, dim=1).transpose(1, 2) @ regions
    return F.cosine_similarity(attended, words[None], dim=2).mean(dim=1)
