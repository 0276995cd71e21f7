"""ALADIN's teacher: triplets on the all-pairs word-region score (Messina et al., CBMI 2022, section 3.2)."""

from pydantic import Field
from torch import Tensor

from train.all_pairs import Aggregation, alignment_scores
from train.encoding import FIELD, Encoding, Kind
from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings, Step
from train.ranking import triplet


class AlignmentSettings(LossSettings):
    margin: float = Field(0.2, gt=0)
    all_negatives_epochs: int = Field(0, ge=0, description="first epochs on all negatives; hardest ones afterwards")
    locals: Kind = Field("contextual", description="before or after the base's context")
    aggregation: Aggregation = Field(
        "MrSw", description="of cosines; MrAVGw knows no length of captions, which can stall MrSw"
    )


@LOSSES.add("alignment")
class Alignment(Loss):
    Settings = AlignmentSettings
    judged_by = "teacher_rsum"

    def locals(self, encoding: Encoding) -> Tensor:
        """The locals ``[B, N, D]`` that are compared."""
        return encoding.locals if self.options.locals == "projected" else encoding.contextual

    def scores(self, images: Encoding, captions: Encoding) -> Tensor:
        """A ``[I, C]``: the teacher's score of every image with every caption."""
        vectors = self.locals(images), self.locals(captions)
        return alignment_scores(*vectors, images.mask, captions.mask, self.options.aggregation)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({FIELD[self.options.locals]})

    def forward(self, step: Step) -> Tensor:
        hardest = step.epoch >= self.options.all_negatives_epochs
        return triplet(self.scores(step.images, step.captions), self.options.margin, step.same, hardest)
