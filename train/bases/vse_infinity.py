"""VSE-infinity: learned pooling over regions and words (Chen et al., CVPR 2021), the strong plain baseline.

The generalized pooling operator (section 4) sorts each dimension and weighs the places; which weights, a small GRU
decides from the number of places. Padding is sorted behind everything and weighs nothing.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from train.bases import BASES
from train.bases.augmentation import fewer_regions, noisy_words
from train.bases.base import Base, BaseSettings, Published
from train.batches import RegionBatch, WordBatch
from train.encoding import Encoded
from train.masking import MaskedBatchNorm
from train.precision import GRU, unit
from train.words import Words

SHARPNESS = 0.1  # temperature of the places' weights, as in the authors' code


class VSEInfinitySettings(BaseSettings):
    dim: int = Field(1024, ge=2, multiple_of=2, description="D, the joint dimension")
    position_dim: int = Field(32, ge=2, multiple_of=2, description="size of the pooling operator's positions and GRU")
    size_augmentation: float = Field(
        0.2, ge=0, lt=1, description="share of regions dropped, and of words masked, replaced or dropped, in training"
    )


class GeneralizedPooling(nn.Module):
    """Weights for the 1st, 2nd … largest value of each dimension, generated from the places' encodings (eq. 5 to 7)."""

    def __init__(self, position_dim: int):
        super().__init__()
        self.position_dim = position_dim
        self.gru = GRU(position_dim, position_dim, bidirectional=True)
        self.out = nn.Linear(position_dim, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` with its mask ``[B, N]`` to ``[B, D]``."""
        lengths = mask.sum(1)
        ordered = x.masked_fill(~mask[..., None], -torch.inf).sort(1, descending=True).values
        places = torch.arange(mask.shape[1], device=x.device) < lengths[:, None]
        weights = self.weights(mask.shape[1])[lengths - 1]
        return (ordered.masked_fill(~places[..., None], 0) * weights[..., None]).sum(1)

    def weights(self, width: int) -> Tensor:
        """The weights ``[width, width]`` of the places of sequences of 1, 2 … `width`; row n's first n + 1 sum to 1."""
        places = positions(width, self.position_dim, self.out.weight.device).to(self.out.weight)
        order = torch.arange(width, device=places.device)
        # A row ends with its places, so that the backward half begins at the last; the forward half is all rows' alike.
        before = (width - 1 - order)[:, None]
        forth, back = self.gru(places[(order - before).clamp(min=0)]).chunk(2, dim=-1)
        back = back.gather(1, (order + before).clamp(max=width - 1)[..., None].expand_as(back))
        scores = self.out((forth[-1] + back) / 2).squeeze(-1) / SHARPNESS
        valid = torch.ones(width, width, dtype=torch.bool, device=scores.device).tril()
        return scores.masked_fill(~valid, -torch.inf).softmax(1)


class VSEInfinityImages(nn.Module):
    """Regions of `feature_dim` numbers to `Encoded`: a projection with an MLP beside it, then pooling."""

    def __init__(self, settings: VSEInfinitySettings, feature_dim: int):
        super().__init__()
        dim = settings.dim
        self.projection = nn.Linear(feature_dim, dim)
        self.hidden, self.out = nn.Linear(feature_dim, dim // 2), nn.Linear(dim // 2, dim)
        self.norm = MaskedBatchNorm(dim // 2)
        self.pooling = GeneralizedPooling(settings.position_dim)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, batch: RegionBatch) -> Encoded:
        hidden = self.norm(self.hidden(batch.features), batch.mask).relu()
        projected = self.projection(batch.features) + self.out(hidden)
        return Encoded(
            mask=batch.mask,
            locals=unit(projected),
            contextual=projected,
            pooled=unit(self.pooling(projected, batch.mask))[:, None],
        )


class VSEInfinityCaptions(nn.Module):
    """Words of `width` numbers to `Encoded`: a GRU both ways (not over a transformer's states), then pooling."""

    def __init__(self, settings: VSEInfinitySettings, width: int, ordered: bool):
        super().__init__()
        dim = settings.dim
        self.projection = nn.Linear(width, dim)
        self.forth = None if ordered else GRU(dim, dim)
        self.back = None if ordered else GRU(dim, dim)
        self.pooling = GeneralizedPooling(settings.position_dim)

    def forward(self, words: Tensor, mask: Tensor) -> Encoded:
        projected = self.projection(words)
        contextual = projected
        if self.forth is not None:
            mirrored = _mirror(mask)
            back = self.back(_take(projected, mirrored))
            contextual = (self.forth(projected) + _take(back, mirrored)) / 2
        return Encoded(
            mask=mask,
            locals=unit(projected),
            contextual=contextual,
            pooled=unit(self.pooling(contextual, mask))[:, None],
        )


@BASES.add("vse_infinity")
class VSEInfinity(Base):
    Settings = VSEInfinitySettings

    def __init__(self, settings: VSEInfinitySettings, feature_dim: int, words: Words):
        super().__init__()
        self.words, self.share = words, settings.size_augmentation
        self.images = VSEInfinityImages(settings, feature_dim)
        self.captions = VSEInfinityCaptions(settings, words.width, words.ordered)

    def augmented(self, regions: RegionBatch, words: WordBatch) -> tuple[RegionBatch, WordBatch]:
        """Size augmentation (section 4.3)."""
        if not self.share:
            return regions, words
        return fewer_regions(regions, self.share), noisy_words(words, self.share, self.words)

    def published(self) -> Published:
        pooling = {"gpool.gru.": "pooling.gru.", "gpool.linear.": "pooling.out."}
        return Published(
            images={
                "fc.": "images.projection.",
                "mlp.layers.0.": "images.hidden.",
                "mlp.layers.1.": "images.out.",
                "mlp.bns.0.": "images.norm.",
                **{theirs: f"images.{ours}" for theirs, ours in pooling.items()},
            },
            captions={
                "linear.": "captions.projection.",
                "bert.": "words.encoder.model.",
                **{theirs: f"captions.{ours}" for theirs, ours in pooling.items()},
            },
            unread=("mlp.bns.1.", "bert.pooler.", "bert.embeddings.position_ids"),
        )


def positions(count: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sinusoidal encodings ``[count, dim]`` of the places 0 to ``count - 1`` (Vaswani et al., 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angles = torch.arange(count, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _mirror(mask: Tensor) -> Tensor:
    """Positions ``[B, N]`` that turn the valid part of each sequence round and leave padding where it is."""
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - place, place)


def _take(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[..., None].expand_as(x))
