"""Concept bag: which entries of a codebook an image or a caption contains, as a part of its embedding.

Not in the paper, whose codebook is used in training only. Regions and words are read by one codebook on their own, so
encoders stay independent: an image has every concept that one of its regions has, a caption the mean of its words'.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.masking import masked_mean


class ConceptBag(nn.Module):
    """Unit-length vectors of K numbers from unit-length locals of D.

    Parameters
    ----------
    codebook : false reads the locals through a linear layer for each side instead of a shared codebook with a softmax:
        the control with equal dimensions.
    """

    def __init__(self, dim: int, num_concepts: int, temperature: float, codebook: bool = True):
        super().__init__()
        self.temperature = temperature
        self.codebook = nn.Parameter(F.normalize(torch.randn(num_concepts, dim), dim=-1)) if codebook else None
        self.image_layer = None if codebook else nn.Linear(dim, num_concepts)
        self.caption_layer = None if codebook else nn.Linear(dim, num_concepts)

    def images(self, locals_: Tensor, mask: Tensor) -> Tensor:
        """``[B, K]`` from regions ``[B, R, D]``: the most of any region."""
        read = self._read(locals_, self.image_layer)
        return F.normalize(read.masked_fill(~mask[..., None], -torch.inf).amax(1), dim=-1)

    def captions(self, locals_: Tensor, mask: Tensor) -> Tensor:
        """``[B, K]`` from words ``[B, T, D]``: the mean over words."""
        return F.normalize(masked_mean(self._read(locals_, self.caption_layer), mask), dim=-1)

    def _read(self, locals_: Tensor, layer: nn.Linear | None) -> Tensor:
        if layer is not None:
            return layer(locals_)
        return (locals_ @ F.normalize(self.codebook, dim=-1).T / self.temperature).softmax(-1)
