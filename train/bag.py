"""Concept bag: which entries of a codebook an image or a caption contains, as a part of its embedding.

Not in the paper, whose codebook is used in training only. One codebook reads regions and words on their own, so
encoders stay independent. An image has every concept that one of its regions has, a caption the mean of its words'.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.typed import Settings
from train.masking import masked_mean
from train.precision import unit


class ConceptBagSettings(Settings):
    """The concept bag; not in the paper."""

    num_concepts: int = Field(256, ge=1)
    temperature: float = Field(0.1, gt=0)
    codebook: bool = Field(True, description="false: the control, as many dimensions pooled alike without a codebook")


class ConceptBag(nn.Module):
    """Unit-length vectors of K numbers from unit-length locals of D.

    Without a codebook, a linear layer a side reads the locals. It stands in the place of a shared codebook with a
    softmax, as the control with equal dimensions.
    """

    def __init__(self, dim: int, settings: ConceptBagSettings):
        super().__init__()
        count, self.temperature = settings.num_concepts, settings.temperature
        self.codebook = nn.Parameter(F.normalize(torch.randn(count, dim), dim=-1)) if settings.codebook else None
        self.image_layer = None if settings.codebook else nn.Linear(dim, count)
        self.caption_layer = None if settings.codebook else nn.Linear(dim, count)

    def images(self, locals_: Tensor, mask: Tensor) -> Tensor:
        """``[B, K]`` from regions ``[B, R, D]``: the most of any region."""
        read = self._read(locals_, self.image_layer)
        return unit(read.masked_fill(~mask[..., None], -torch.inf).amax(1))

    def captions(self, locals_: Tensor, mask: Tensor) -> Tensor:
        """``[B, K]`` from words ``[B, T, D]``: the mean over words."""
        return unit(masked_mean(self._read(locals_, self.caption_layer), mask))

    def _read(self, locals_: Tensor, layer: nn.Linear | None) -> Tensor:
        if layer is not None:
            return layer(locals_)
        return (locals_ @ F.normalize(self.codebook, dim=-1).T / self.temperature).softmax(-1)
