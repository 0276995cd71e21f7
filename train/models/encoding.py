"""What a model makes of one side of a batch: for search, for the losses, and for looking at."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from train.precision import sum_dtype

Locals = Literal["projected", "contextual"]  # `Encoded.locals` or `Encoded.contextual`


@dataclass(frozen=True, slots=True)
class Encoded:
    """A base's view of B images or captions.

    mask ``[B, N]`` : true where there is a region or a word.
    locals ``[B, N, D]`` : projected regions or words before any context, of unit length: LCA's inputs.
    contextual ``[B, N, D]`` : the same after context: CRA's inputs.
    pooled ``[B, k, D]`` : the base's own embedding, k views of unit length (k is 1 but for CAMERA's images).
    view_weights ``[B, N, k]`` : what the views take of the regions, before any normalisation (CAMERA's images).
    """

    mask: Tensor
    locals: Tensor
    contextual: Tensor
    pooled: Tensor
    view_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Encoding(Encoded):
    """Images or captions as the whole model sees them.

    context ``[B, S]`` : the part of the final embedding that all views share; S is 0 without SelfAlign's context.
    context_locals ``[B, N, D]``, guided ``[B, D]`` : of unit length, what CRA contrasts; None without it.
    """

    context: Tensor = None  # type: ignore[assignment]
    context_locals: Tensor | None = None
    guided: Tensor | None = None

    @property
    def embedding(self) -> Tensor:
        """The final embedding: ``[B, D + S]``, or ``[B, k, D + S]`` with the context repeated in each of k views."""
        views = self.pooled.shape[1]
        joined = torch.cat([self.pooled, self.context[:, None].expand(-1, views, -1)], dim=-1)
        return joined.squeeze(1)


def similarity(images: Encoding, captions: Encoding) -> Tensor:
    """Scores ``[B_images, B_captions]``: the dot product of embeddings; for many views that of the best one.

    The context is shared by the views, so ``max over views (view · pooled) + context · context``.
    """
    dtype = sum_dtype(images.pooled)
    # Hinges compare scores by their last digits, so autocast doesn't enter.
    with torch.autocast(images.pooled.device.type, enabled=False):
        views = images.pooled.to(dtype) @ captions.pooled[:, 0].to(dtype).T
        return views.amax(1) + images.context.to(dtype) @ captions.context.to(dtype).T
