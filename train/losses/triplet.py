"""The base ranking loss: triplets with the hardest negative, summed (VSE++: Faghri et al., BMVC 2018, eq. 6)."""

from pydantic import Field
from torch import Tensor

from train.encoding import EMBEDDING
from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings, Step
from train.ranking import triplet


class TripletSettings(LossSettings):
    margin: float = Field(0.2, gt=0)
    all_negatives_epochs: int = Field(1, ge=0, description="first epochs on all negatives; hardest ones afterwards")


@LOSSES.add("triplet")
class Triplet(Loss):
    Settings = TripletSettings

    @property
    def reads(self) -> frozenset[str]:
        return EMBEDDING

    def forward(self, step: Step) -> Tensor:
        hardest = step.epoch >= self.options.all_negatives_epochs
        return triplet(step.scores, self.options.margin, step.same, hardest)
