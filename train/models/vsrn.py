"""VSRN: visual semantic reasoning (Li et al., ICCV 2019), the base that SelfAlign is added to first.

Regions are projected, reason over their affinity graph, and a GRU gathers them into one vector (sections 3.1 to 3.3);
words are embedded, projected, and a GRU reads them. Padding never enters: not the affinities, the batch norm or the
last state. The caption-generation loss of section 3.4 is not here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.batches import RegionBatch, WordBatch
from train.masking import MaskedBatchNorm
from train.models.encoded import Encoded
from train.settings import BaseSettings


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


class VSRN(nn.Module):
    """Encodes images and captions into `Encoded`, each on its own.

    Parameters
    ----------
    settings : sizes; ``dim`` is D.
    feature_dim : F, the length of a region feature.
    vocabulary_size : number of word ids; 0 is padding.
    """

    def __init__(self, settings: BaseSettings, feature_dim: int, vocabulary_size: int):
        super().__init__()
        dim = settings.dim
        self.region_projection = nn.Linear(feature_dim, dim)
        self.reasoning = nn.ModuleList(GraphReasoning(dim) for _ in range(settings.graph_layers))
        self.region_gru = nn.GRU(dim, dim, batch_first=True)
        self.image_norm = nn.BatchNorm1d(dim)
        self.word_embedding = nn.Embedding(vocabulary_size, settings.word_dim, padding_idx=0)
        self.word_projection = nn.Linear(settings.word_dim, dim)
        self.word_gru = nn.GRU(dim, dim, batch_first=True)
        nn.init.xavier_uniform_(self.region_projection.weight)
        nn.init.uniform_(self.word_embedding.weight[1:], -0.1, 0.1)

    def encode_images(self, batch: RegionBatch) -> Encoded:
        projected = F.normalize(self.region_projection(batch.features), dim=-1)
        x = projected
        for layer in self.reasoning:
            x = layer(x, batch.mask)
        contextual = F.normalize(x, dim=-1)
        states, _ = self.region_gru(contextual)
        return Encoded(
            local=projected,
            contextual=contextual,
            pooled=F.normalize(self.image_norm(_last(states, batch.mask)), dim=-1),
        )

    def encode_captions(self, batch: WordBatch) -> Encoded:
        projected = self.word_projection(self.word_embedding(batch.words))
        states, _ = self.word_gru(projected)
        return Encoded(
            local=F.normalize(projected, dim=-1),
            contextual=states,
            pooled=F.normalize(_last(states, batch.mask), dim=-1),
        )


def _last(states: Tensor, mask: Tensor) -> Tensor:
    """The state ``[B, D]`` at each sequence's last valid position of ``[B, N, D]``."""
    last = mask.sum(1) - 1
    return states[torch.arange(len(states), device=states.device), last]
