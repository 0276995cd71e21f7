"""CUSA's contrastive term (Huang et al., AAAI 2024): InfoNCE whose right answers are all captions of an image.

The published code takes it of the cosines through CSA's heads (`reads: heads`), and takes the mean over the batch twice
(`divided`).
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from train.encoding import EMBEDDING
from train.losses import LOSSES
from train.losses.loss import Loss, Shape, Step
from train.losses.soft_labels import LearntTemperatureSettings, Temperature


class CusaContrastSettings(LearntTemperatureSettings):
    temperature: float = Field(0.05, gt=0)
    bounds: tuple[PositiveFloat, PositiveFloat] = (0.01, 0.10)
    reads: Literal["heads", "embedding"] = Field("heads", description="csa's heads, as published, or the final scores")
    divided: bool = Field(True, description="by the number of pairs once more, as published; false: the usual InfoNCE")


@LOSSES.add("cusa_contrast")
class CusaContrast(Loss):
    Settings = CusaContrastSettings
    training_only = True

    def __init__(self, settings: CusaContrastSettings, shape: Shape, others: Mapping[str, Loss]):
        super().__init__(settings, shape, others)
        self.temperature = Temperature(settings)
        self._heads = (others["csa"] if settings.reads == "heads" else None,)  # it has its place among the losses

    @property
    def reads(self) -> frozenset[str]:
        return EMBEDDING

    def forward(self, step: Step) -> Tensor:
        (heads,) = self._heads
        scores = step.scores if heads is None else heads.scores(step)
        loss = shared_info_nce(scores, self.temperature(), step.same)
        return loss / len(scores) if self.options.divided else loss


def shared_info_nce(scores: Tensor, temperature: float | Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE whose right answers are all pairs of the same image, in equal shares; a scalar.

    Parameters
    ----------
    scores ``[B, B]`` : image i against caption j.
    temperature : above 0; a tensor may be learnt.
    same ``[B, B]`` : true where two pairs are of one image, the diagonal included.
    """
    logits = scores / temperature
    share = same.to(logits.dtype) / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2
