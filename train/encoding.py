"""What a model makes of one side of a batch: for search, for the losses, and for looking at."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor

from train.precision import sum_dtype, unit, without_autocast

Kind = Literal["projected", "contextual"]  # locals before or after context
READABLE = ("locals", "contextual", "pooled", "context", "view_weights")
EMBEDDING = frozenset({"pooled", "context"})
FIELD: dict[Kind, str] = {"projected": "locals", "contextual": "contextual"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A base's view of B images or captions.

    mask : ``[B, N]``, true where there is a region or a word.
    locals : ``[B, N, D]``, projected regions or words before any context, of unit length: LCA's inputs.
    contextual : ``[B, N, D]``, the same after context, of any length: CRA's inputs.
    pooled : ``[B, k, D]``, the base's own embedding, k views of unit length (k is 1 but for CAMERA's images).
    view_weights : ``[B, N, k]``, the views' weights of the regions, before any normalisation (CAMERA's images).
    """

    mask: Tensor
    locals: Tensor
    contextual: Tensor
    pooled: Tensor
    view_weights: Tensor | None = None

    def unit(self, kind: Kind) -> Tensor:
        """The locals ``[B, N, D]`` before or after context, of unit length."""
        return self.locals if kind == "projected" else unit(self.contextual)


@dataclass(frozen=True, slots=True)
class Encoding(Encoded):
    """Images or captions as the whole model sees them.

    context ``[B, S]`` : the part of the final embedding that all views share; S is 0 where a run adds none.
    parts : what a loss needs of its own extension of the embedding, by name, each with B rows.
    """

    context: Tensor = None  # type: ignore[assignment]
    parts: dict[str, Tensor] = field(default_factory=dict)

    def only(self, fields: Collection[str]) -> Self:
        """The same with the other ones of `READABLE` emptied: ``[B, 0, ...]``."""
        emptied = {name: getattr(self, name) for name in READABLE if name not in fields}
        return replace(self, **{name: x[:, :0] for name, x in emptied.items() if x is not None})

    @property
    def embedding(self) -> Tensor:
        """The final embedding: ``[B, D + S]``, or ``[B, k, D + S]`` with the context repeated in each of k views."""
        views = self.pooled.shape[1]
        joined = torch.cat([self.pooled, self.context[:, None].expand(-1, views, -1)], dim=-1)
        return joined.squeeze(1)

    @property
    def one_vector(self) -> Tensor:
        """``[B, D + S]``: the embedding with the mean of the views."""
        return torch.cat([self.pooled.mean(1), self.context], dim=-1)


def similarity(images: Encoding, captions: Encoding) -> Tensor:
    """Scores ``[B_images, B_captions]``: the dot product of embeddings; for many views that of the best one.

    The context is shared by the views, so ``max over views (view · pooled) + context · context``.
    """
    dtype = sum_dtype(images.pooled)
    # Hinges compare scores by their last digits, so autocast doesn't enter.
    with without_autocast(images.pooled):
        views = images.pooled.to(dtype) @ captions.pooled[:, 0].to(dtype).T
        return views.amax(1) + images.context.to(dtype) @ captions.context.to(dtype).T
