"""Loss `spread`: scores of pairs that belong together lie near the margin."""

from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings


class SpreadSettings(LossSettings):
    margin: float = 0.5


@LOSSES.add("spread")
class Spread(Loss):
    Settings = SpreadSettings

    def forward(self, step):
        return (step.scores.diagonal() - self.options.margin).square().mean()
