"""InfoNCE on the final scores: the control that a gain of SelfAlign is to be held against; not in the paper."""

from pydantic import Field
from torch import Tensor

from train.encoding import EMBEDDING
from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings, Step
from train.ranking import info_nce


class ContrastSettings(LossSettings):
    temperature: float = Field(0.1, gt=0)


@LOSSES.add("contrast")
class Contrast(Loss):
    Settings = ContrastSettings

    @property
    def reads(self) -> frozenset[str]:
        return EMBEDDING

    def forward(self, step: Step) -> Tensor:
        return info_nce(step.scores, self.options.temperature, step.same)
