"""CUSA's uni-modal soft-label alignment (Huang et al., AAAI 2024).

``½ [KL(softmax(S_v / τ_s) ‖ softmax(image-image / τ_v)) + KL(softmax(S_t / τ_s) ‖ softmax(text-text / τ_t))]``, the
model's own cosines taken through a head a modality. Retrieval within a modality is evaluated through these heads. An
image of several views has their mean, beside what they share, as its vector.
"""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from train.encoding import EMBEDDING
from train.losses import LOSSES
from train.losses.loss import Loss, Shape, Side, Step
from train.losses.soft_labels import LearntTemperatureSettings, Temperature, cosines, head, soft_label_kl
from train.precision import unit


class UniModalSettings(LearntTemperatureSettings):
    weight: float = Field(0.5, gt=0)
    one_temperature: bool = Field(False, description="of both modalities; published, each has its own")
    teacher_temperature: float = Field(1.0, gt=0)


@LOSSES.add("usa")
class UniModal(Loss):
    Settings = UniModalSettings
    training_only = True
    needs = frozenset({"teachers"})

    def __init__(self, settings: UniModalSettings, shape: Shape, others: Mapping[str, Loss]):
        super().__init__(settings, shape, others)
        self.images, self.captions = head(shape.embedding), head(shape.embedding)
        self.temperature = Temperature(settings)
        self.caption_temperature = None if settings.one_temperature else Temperature(settings)

    def within(self, side: Side, vectors: Tensor) -> Tensor:
        """Unit vectors ``[B, D + S]`` to compare within a modality, of `Encoding.one_vector`."""
        return unit(getattr(self, side)(vectors))

    @property
    def reads(self) -> frozenset[str]:
        return EMBEDDING

    def forward(self, step: Step) -> Tensor:
        own = [self.within("images", step.images.one_vector), self.within("captions", step.captions.one_vector)]
        of_images = self.temperature()
        temperatures = of_images, of_images if self.caption_temperature is None else self.caption_temperature()
        losses = [
            soft_label_kl(cosines(x, x), cosines(theirs, theirs), temperature, self.options.teacher_temperature)
            for x, theirs, temperature in zip(
                own, (step.teachers.images, step.teachers.captions), temperatures, strict=True
            )
        ]
        return sum(losses) / 2
