"""CUSA's cross-modal soft-label alignment (Huang et al., AAAI 2024).

``½ [KL(softmax(S_v / τ_s) ‖ softmax(image-to-text / τ)) + KL(softmax(S_t / τ_s) ‖ softmax(text-to-image / τ))]``, the
cosines of images and captions taken through a head a modality that nothing else uses. An image of several views has
their mean, beside what they share, as its vector.
"""

from collections.abc import Mapping

from pydantic import Field, PositiveFloat
from torch import Tensor

from train.encoding import EMBEDDING
from train.losses import LOSSES
from train.losses.loss import Loss, Shape, Step
from train.losses.soft_labels import LearntTemperatureSettings, Temperature, cosines, head, soft_label_kl


class CrossModalSettings(LearntTemperatureSettings):
    weight: float = Field(0.1, gt=0)
    bounds: tuple[PositiveFloat, PositiveFloat] = (0.10, 0.99)
    teacher_temperature: float = Field(1.0, gt=0)


@LOSSES.add("csa")
class CrossModal(Loss):
    Settings = CrossModalSettings
    training_only = True
    needs = frozenset({"teachers"})

    def __init__(self, settings: CrossModalSettings, shape: Shape, others: Mapping[str, Loss]):
        super().__init__(settings, shape, others)
        self.images, self.captions = head(shape.embedding), head(shape.embedding)
        self.temperature = Temperature(settings)

    def scores(self, step: Step) -> Tensor:
        """``[B, B]``: the cosine of every image with every caption, through the heads."""
        return cosines(self.images(step.images.one_vector), self.captions(step.captions.one_vector))

    @property
    def reads(self) -> frozenset[str]:
        return EMBEDDING

    def forward(self, step: Step) -> Tensor:
        scores = self.scores(step)
        teacher_scores = (cosines(vectors, vectors) for vectors in (step.teachers.images, step.teachers.captions))
        temperature = self.temperature()
        losses = [
            soft_label_kl(logits, teacher, temperature, self.options.teacher_temperature)
            for logits, teacher in zip((scores, scores.T), teacher_scores, strict=True)
        ]
        return sum(losses) / 2
