"""CAMERA: context-aware multi-view summarization (Qu et al., ACM Multimedia 2020).

Regions and words are gated by self-attention (section 3.2); regions, weighted by where their boxes lie, are summarised
into k views (section 3.3), words into their mean. Padding enters no attention, convolution, batch norm or mean.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.batches import RegionBatch
from train.masking import MaskedBatchNorm, masked_mean
from train.models.encoding import Encoded, Locals
from train.settings import CameraSettings


class GatedSelfAttention(nn.Module):
    """Adaptive gating self-attention: ``[g_q, g_k] = sigmoid(FC(FC_q(q) · FC_k(k)))`` weigh query and key."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads can't share {dim} dimensions evenly")
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

    def makers(self, locals_: Locals) -> tuple[nn.Module | None, ...]:
        """The parts that make an image's locals of this kind."""
        return (self.projection,) if locals_ == "projected" else (self.projection, self.position, self.attention)

    def forward(self, batch: RegionBatch) -> Encoded:
        projected = F.normalize(self.projection(batch.features), dim=-1)
        positions = self.position(box_geometry(batch.boxes, batch.image_size)).sigmoid()
        contextual = self.attention(projected, batch.mask, positions)
        weights = self.summarization(contextual, batch.mask)
        shares = weights.masked_fill(~batch.mask[..., None], -torch.inf).softmax(1)
        return Encoded(
            mask=batch.mask,
            locals=projected,
            contextual=contextual,
            pooled=F.normalize(shares.transpose(1, 2) @ contextual, dim=-1),
            view_weights=weights,
        )


class CameraCaptions(nn.Module):
    """Words of `width` numbers to `Encoded`.

    Attention knows no order. The states of a transformer carry it (the paper's BERT); words that are not `ordered`
    are read by a GRU first.
    """

    def __init__(self, settings: CameraSettings, width: int, ordered: bool):
        super().__init__()
        dim = settings.dim
        self.projection = nn.Linear(width, dim)
        self.gru = None if ordered else nn.GRU(dim, dim, batch_first=True)
        self.attention = GatedSelfAttention(dim, settings.heads, settings.dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(dim, dim))

    def makers(self, locals_: Locals) -> tuple[nn.Module | None, ...]:
        """The parts that make a caption's locals of this kind, beside the words."""
        return (self.projection,) if locals_ == "projected" else (self.projection, self.gru, self.attention, self.mlp)

    def forward(self, words: Tensor, mask: Tensor) -> Encoded:
        projected = self.projection(words)
        x = projected if self.gru is None else self.gru(projected)[0]
        contextual = self.mlp(self.attention(x, mask))
        return Encoded(
            mask=mask,
            locals=F.normalize(projected, dim=-1),
            contextual=contextual,
            pooled=F.normalize(masked_mean(contextual, mask), dim=-1)[:, None],
        )


def box_geometry(boxes: Tensor, image_size: Tensor) -> Tensor:
    """(x, y, w, h, w / h, area) of boxes, relative to their image: ``[B, R, 6]``.

    boxes ``[B, R, 4]`` as (x1, y1, x2, y2) and image_size ``[B, 2]`` as (width, height), in pixels; x and y are the
    upper left corner's.
    """
    scaled = boxes / image_size.repeat(1, 2)[:, None]
    corner, sides = scaled[..., :2], scaled[..., 2:] - scaled[..., :2]
    pixels = boxes[..., 2:] - boxes[..., :2]
    ratio = pixels[..., :1] / pixels[..., 1:].clamp(min=1e-6)
    return torch.cat([corner, sides, ratio, sides.prod(-1, keepdim=True)], dim=-1)
