"""VSRN: visual semantic reasoning (Li et al., ICCV 2019), the base that SelfAlign is added to first.

Regions are projected, reason over their affinity graph, and a GRU gathers them into one vector (sections 3.1 to 3.3);
words are projected, and a GRU reads them. The caption-generation loss of section 3.4 is in `caption_decoder`. Padding
never enters: not the affinities, the batch norm or the last state.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.batches import RegionBatch
from train.masking import BatchNorm, MaskedBatchNorm
from train.models.encoding import Encoded, Locals
from train.settings import VSRNSettings


class GraphReasoning(nn.Module):
    """``y = BN(W (R g(x))) + x`` with the affinities ``R = theta(x)ᵀ phi(x) / N`` (eq. 2 to 4); BN starts at zero."""

    def __init__(self, dim: int):
        super().__init__()
        self.theta, self.phi, self.values = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = MaskedBatchNorm(dim)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Regions ``[B, R, D]`` with their mask ``[B, R]`` to regions ``[B, R, D]``."""
        affinity = self.theta(x) @ self.phi(x).transpose(1, 2)
        affinity = affinity * (mask[:, None] / mask.sum(1)[:, None, None])
        return self.norm(self.out(affinity @ self.values(x)), mask) + x


class VSRNImages(nn.Module):
    """Regions of `feature_dim` numbers to `Encoded`."""

    def __init__(self, settings: VSRNSettings, feature_dim: int):
        super().__init__()
        dim = settings.dim
        self.projection = nn.Linear(feature_dim, dim)
        self.reasoning = nn.ModuleList(GraphReasoning(dim) for _ in range(settings.graph_layers))
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.norm = BatchNorm(dim)
        nn.init.xavier_uniform_(self.projection.weight)

    def makers(self, locals_: Locals) -> tuple[nn.Module | None, ...]:
        """The parts that make an image's locals of this kind."""
        return (self.projection,) if locals_ == "projected" else (self.projection, self.reasoning)

    def forward(self, batch: RegionBatch) -> Encoded:
        projected = F.normalize(self.projection(batch.features), dim=-1)
        x = projected
        for layer in self.reasoning:
            x = layer(x, batch.mask)
        contextual = F.normalize(x, dim=-1)
        states, _ = self.gru(contextual)
        return Encoded(
            mask=batch.mask,
            locals=projected,
            contextual=contextual,
            pooled=F.normalize(self.norm(_last(states, batch.mask)), dim=-1)[:, None],
        )


class VSRNCaptions(nn.Module):
    """Words of `width` numbers to `Encoded`."""

    def __init__(self, settings: VSRNSettings, width: int):
        super().__init__()
        self.projection = nn.Linear(width, settings.dim)
        self.gru = nn.GRU(settings.dim, settings.dim, batch_first=True)

    def makers(self, locals_: Locals) -> tuple[nn.Module | None, ...]:
        """The parts that make a caption's locals of this kind, beside the words."""
        return (self.projection,) if locals_ == "projected" else (self.projection, self.gru)

    def forward(self, words: Tensor, mask: Tensor) -> Encoded:
        projected = self.projection(words)
        states, _ = self.gru(projected)
        return Encoded(
            mask=mask,
            locals=F.normalize(projected, dim=-1),
            contextual=states,
            pooled=F.normalize(_last(states, mask), dim=-1)[:, None],
        )


def _last(states: Tensor, mask: Tensor) -> Tensor:
    """The state ``[B, D]`` at each sequence's last valid position of ``[B, N, D]``."""
    last = mask.sum(1) - 1
    return states[torch.arange(len(states), device=states.device), last]
