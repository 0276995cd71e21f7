"""CAMERA: context-aware multi-view summarization (Qu et al., ACM Multimedia 2020).

Self-attention gates regions and words (section 3.2). Regions, weighted by where their boxes lie, are summarised into k
views (section 3.3), words into their mean. Padding enters no attention, convolution, batch norm or mean.
"""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from train.bases import BASES
from train.bases.base import Base, BaseSettings, Published
from train.bases.geometry import box_geometry
from train.batches import RegionBatch
from train.encoding import Encoded
from train.masking import MaskedBatchNorm, masked_mean
from train.precision import GRU, unit
from train.words import Words


class CameraSettings(BaseSettings):
    dim: int = Field(2048, ge=16, multiple_of=16, description="D, the joint dimension")
    heads: int = Field(64, ge=1, description="attention heads; they share D evenly")
    views: int = Field(12, ge=1, description="k, vectors of an image")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads can't share {self.dim} dimensions evenly")
        return self


class GatedSelfAttention(nn.Module):
    """Adaptive gating self-attention: ``[g_q, g_k] = sigmoid(FC(FC_q(q) · FC_k(k)))`` weigh query and key."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, width = heads, dim // heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate_query, self.gate_key = nn.Linear(width, width), nn.Linear(width, width)
        self.gate = nn.Linear(width, 2 * width)
        self.norm = MaskedBatchNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``, with its input added; `weights` ``[B, N, D]`` multiply what is attended."""
        attended = x if weights is None else x * weights
        query, key, value = (
            layer(attended).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        gate_query, gate_key = self.gate(self.gate_query(query) * self.gate_key(key)).sigmoid().chunk(2, dim=-1)
        out = F.scaled_dot_product_attention(
            query * gate_query, key * gate_key, value, attn_mask=mask[:, None, None, :]
        )
        out = out.transpose(1, 2).flatten(2)
        return x + self.dropout(self.norm(out, mask))


class Summarization(nn.Module):
    """Weights of k views over regions, by convolutions of seven widths and dilations (eq. 8 and 9)."""

    # (share of D, kernel, dilation)
    BRANCHES = ((8, 1, 1), (16, 3, 1), (16, 3, 2), (16, 3, 3), (16, 5, 1), (16, 5, 2), (16, 5, 3))

    def __init__(self, dim: int, views: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv1d(dim, dim // share, kernel, dilation=dilation, padding=dilation * (kernel // 2))
            for share, kernel, dilation in self.BRANCHES
        )
        self.out = nn.Linear(sum(dim // share for share, *_ in self.BRANCHES), views)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` to ``[B, N, k]``, before any normalisation; padding counts as the zeros around a sequence."""
        x = (x * mask[..., None]).transpose(1, 2)
        return self.out(torch.cat([branch(x).relu() for branch in self.branches], dim=1).transpose(1, 2))


class CameraImages(nn.Module):
    """Regions of `feature_dim` numbers to `Encoded`."""

    def __init__(self, settings: CameraSettings, feature_dim: int):
        super().__init__()
        dim = settings.dim
        self.projection = nn.Linear(feature_dim, dim)
        self.position = nn.Linear(6, dim)
        self.attention = GatedSelfAttention(dim, settings.heads, settings.dropout)
        self.summarization = Summarization(dim, settings.views)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, batch: RegionBatch) -> Encoded:
        projected = unit(self.projection(batch.features))
        positions = self.position(box_geometry(batch.boxes, batch.image_size)).sigmoid()
        contextual = self.attention(projected, batch.mask, positions)
        turned = unit(contextual)
        weights = self.summarization(turned, batch.mask)
        shares = weights.masked_fill(~batch.mask[..., None], -torch.inf).softmax(1)
        return Encoded(
            mask=batch.mask,
            locals=projected,
            contextual=contextual,
            pooled=unit(shares.transpose(1, 2) @ turned),
            view_weights=weights,
        )


class CameraCaptions(nn.Module):
    """Words of `width` numbers to `Encoded`.

    Attention knows no order. The states of a transformer carry it (the paper's BERT); words that are not `ordered`
    are read by a GRU first, after their projection.
    """

    def __init__(self, settings: CameraSettings, width: int, ordered: bool):
        super().__init__()
        dim = settings.dim
        self.projection = nn.Linear(width, dim)
        self.gru = None if ordered else GRU(dim, dim)
        self.attention = GatedSelfAttention(dim, settings.heads, settings.dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(dim, dim))
        self.norm, self.dropout = MaskedBatchNorm(dim), nn.Dropout(settings.dropout)

    def forward(self, words: Tensor, mask: Tensor) -> Encoded:
        projected = unit(self.projection(words))
        x = projected if self.gru is None else self.gru(projected)
        contextual = self.attention(x, mask)
        x = contextual + self.dropout(self.norm(self.mlp(contextual), mask))
        pooled = unit(masked_mean(x, mask))
        return Encoded(mask=mask, locals=projected, contextual=contextual, pooled=pooled[:, None])


@BASES.add("camera")
class Camera(Base):
    Settings = CameraSettings
    reads_boxes = True
    has_views = True

    def __init__(self, settings: CameraSettings, feature_dim: int, words: Words):
        super().__init__()
        self.words = words
        self.images = CameraImages(settings, feature_dim)
        self.captions = CameraCaptions(settings, words.width, words.ordered)

    def encode_locals(self, batch: RegionBatch) -> Tensor:
        return unit(self.images.projection(batch.features))

    def published(self) -> Published:
        def attention(side: str) -> dict[str, str]:
            names = {"bns.0.": "norm.", "att_layers.0.fc_q.": "gate_query.", "att_layers.0.fc_k.": "gate_key."}
            names |= {"att_layers.0.fc_g.": "gate."}
            names |= {f"att_layers.0.linears.{n}.": f"{part}." for n, part in enumerate(("query", "key", "value"))}
            return {f"agsa.{theirs}": f"{side}.attention.{ours}" for theirs, ours in names.items()}

        return Published(
            images={
                "fc.": "images.projection.",
                "position_enc.proj.": "images.position.",
                "mvs.convs_dilate.": "images.summarization.branches.",
                "mvs.convs_fc.": "images.summarization.out.",
                **attention("images"),
            },
            captions={
                "mapping.": "captions.projection.",
                "fc1.": "captions.mlp.0.",
                "fc2.": "captions.mlp.3.",
                "bn.": "captions.norm.",
                **attention("captions"),
            },
            unread=("bert.",),  # frozen: its states are read from the text features
        )
