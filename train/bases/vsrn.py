"""VSRN: visual semantic reasoning (Li et al., ICCV 2019), the base that SelfAlign is added to first.

Regions are projected, reason over their affinity graph, and a GRU gathers them into one vector (sections 3.1 to 3.3).
Words are projected, and a GRU reads them. The caption generation of section 3.4 is the loss `generation`. Padding never
enters: not the affinities, the batch norm or the last state.
"""

from pydantic import Field
from torch import Tensor, nn

from train.bases import BASES
from train.bases.base import Base, BaseSettings, Published
from train.batches import RegionBatch
from train.encoding import Encoded
from train.masking import MaskedBatchNorm, last_valid
from train.precision import GRU, unit
from train.words import Words

MOST_LAYERS = 1000  # a record of a checkpoint may say anything


class VSRNSettings(BaseSettings):
    dim: int = Field(2048, ge=1, description="D, the joint dimension")
    graph_layers: int = Field(4, ge=0, le=MOST_LAYERS, description="layers of region reasoning")
    unit_regions: bool = Field(False, description="bring projected regions to unit length first (published: COCO)")
    final_norm: bool = Field(True, description="batch norm of the image's last state (published: Flickr30K)")


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
        affinity = affinity * mask[:, None] / mask.sum(1)[:, None, None]
        return self.norm(self.out(affinity @ self.values(x)), mask) + x


class VSRNImages(nn.Module):
    """Regions of `feature_dim` numbers to `Encoded`."""

    def __init__(self, settings: VSRNSettings, feature_dim: int):
        super().__init__()
        dim, self.unit_regions = settings.dim, settings.unit_regions
        self.projection = nn.Linear(feature_dim, dim)
        self.reasoning = nn.ModuleList(GraphReasoning(dim) for _ in range(settings.graph_layers))
        self.gru = GRU(dim, dim)
        self.norm = MaskedBatchNorm(dim) if settings.final_norm else nn.Identity()
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, batch: RegionBatch) -> Encoded:
        projected = self.projection(batch.features)
        locals_ = unit(projected)
        x = locals_ if self.unit_regions else projected
        for layer in self.reasoning:
            x = layer(x, batch.mask)
        states = self.gru(unit(x))
        pooled = unit(self.norm(last_valid(states, batch.mask)))
        return Encoded(mask=batch.mask, locals=locals_, contextual=x, pooled=pooled[:, None])


class VSRNCaptions(nn.Module):
    """Words of `width` numbers to `Encoded`."""

    def __init__(self, settings: VSRNSettings, width: int):
        super().__init__()
        self.projection = nn.Linear(width, settings.dim)
        self.gru = GRU(settings.dim, settings.dim)

    def forward(self, words: Tensor, mask: Tensor) -> Encoded:
        projected = self.projection(words)
        states = self.gru(projected)
        pooled = unit(last_valid(states, mask))
        return Encoded(mask=mask, locals=unit(projected), contextual=states, pooled=pooled[:, None])


@BASES.add("vsrn")
class VSRN(Base):
    Settings = VSRNSettings

    def __init__(self, settings: VSRNSettings, feature_dim: int, words: Words):
        super().__init__()
        self.words = words
        self.images = VSRNImages(settings, feature_dim)
        self.captions = VSRNCaptions(settings, words.width)

    def encode_locals(self, batch: RegionBatch) -> Tensor:
        return unit(self.images.projection(batch.features))

    def published(self) -> Published:
        images = {"fc.": "images.projection.", "img_rnn.": "images.gru.", "bn.": "images.norm."}
        for number in range(len(self.images.reasoning)):
            theirs, ours = f"Rs_GCN_{number + 1}.", f"images.reasoning.{number}."
            images |= {f"{theirs}{name}.": f"{ours}{name}." for name in ("theta", "phi")}
            images |= {f"{theirs}g.": f"{ours}values.", f"{theirs}W.0.": f"{ours}out.", f"{theirs}W.1.": f"{ours}norm."}
        return Published(
            images=images,
            captions={"embed.": "words.embedding.", "local_fc.": "captions.projection.", "rnn.": "captions.gru."},
        )
