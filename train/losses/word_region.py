"""InfoNCE on the all-pairs word-region score, in training only; not in the paper."""

from pydantic import Field
from torch import Tensor

from train.all_pairs import alignment_scores
from train.encoding import FIELD, Kind
from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings, Step
from train.ranking import info_nce


class WordRegionSettings(LossSettings):
    later = frozenset({"locals"})

    temperature: float = Field(0.05, gt=0)
    locals: Kind = Field("projected", description="before or after the base's context")


@LOSSES.add("word_region")
class WordRegion(Loss):
    """The score of an image and a caption: the mean over words of the largest cosine with a region."""

    Settings = WordRegionSettings

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({FIELD[self.options.locals]})

    def forward(self, step: Step) -> Tensor:
        vectors = (side.unit(self.options.locals) for side in (step.images, step.captions))
        scores = alignment_scores(*vectors, step.images.mask, step.captions.mask, "MrAVGw")
        return info_nce(scores, self.options.temperature, step.same)
