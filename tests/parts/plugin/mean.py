"""Base `mean`: the mean of projected regions, and of projected words."""

from pydantic import Field
from torch import nn
from torch.nn import functional as F

from train.bases import BASES
from train.bases.base import Base, BaseSettings
from train.encoding import Encoded
from train.masking import masked_mean


class MeanSettings(BaseSettings):
    dim: int = Field(32, ge=1)


@BASES.add("mean", version=2)
class Mean(Base):
    Settings = MeanSettings

    def __init__(self, settings, feature_dim, words):
        super().__init__()
        self.words = words
        self.images, self.captions = nn.Linear(feature_dim, settings.dim), nn.Linear(words.width, settings.dim)

    def encode_images(self, batch):
        return self._encoded(self.images(batch.features), batch.mask)

    def encode_captions(self, batch):
        return self._encoded(self.captions(self.words(batch)), batch.mask)

    def _encoded(self, x, mask):
        pooled = F.normalize(masked_mean(x, mask), dim=-1)
        return Encoded(mask=mask, locals=F.normalize(x, dim=-1), contextual=x, pooled=pooled[:, None])
