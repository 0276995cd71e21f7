"""CUSA (Huang et al., AAAI 2024): a batch's scores learn how alike uni-modal teachers find its images and its captions.

Three terms on top of any base:

- contrast: InfoNCE whose right answers are all captions of an image;
- CSA: ``½ [KL(S_v ‖ image-to-text scores) + KL(S_t ‖ text-to-image scores)]``, softmax over a row at temperatures;
- USA: the same with the model's own image-image and text-text cosines, through a head for each modality that nothing
  else uses (LayerNorm and a linear layer).

``S_v`` and ``S_t`` are the cosines of the teachers' vectors (`extract.stores.teachers`). An image of several views has
their mean, beside what they share, as its vector in USA; in the other terms a score is the retrieval's own.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.batches import TeacherBatch
from train.losses import shared_info_nce, soft_label_kl
from train.models.encoding import Encoding
from train.precision import sum_dtype
from train.settings import CusaSettings


class Temperature(nn.Module):
    """A learnt temperature that every use brings back into its bounds, so that it is never stuck outside."""

    def __init__(self, start: float, bounds: tuple[float, float]):
        super().__init__()
        self.bounds = bounds
        self.value = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        """The temperature, a scalar."""
        with torch.no_grad():
            self.value.clamp_(*self.bounds)
        return self.value


class SoftLabelAlignment(nn.Module):
    """CUSA's terms, with their heads and temperatures.

    Parameters
    ----------
    dim : length of the final embeddings.
    """

    def __init__(self, settings: CusaSettings, dim: int):
        super().__init__()
        self.settings = settings
        contrast, cross, uni = settings.contrast, settings.cross_modal, settings.uni_modal
        self.contrast_temperature = Temperature(contrast.temperature, contrast.bounds) if contrast.weight else None
        self.cross_temperature = Temperature(cross.temperature, cross.bounds) if cross.weight else None
        self.uni_temperature = Temperature(uni.temperature, uni.bounds) if uni.weight else None
        self.image_head = _head(dim) if uni.weight else None
        self.caption_head = _head(dim) if uni.weight else None

    def forward(
        self, images: Encoding, captions: Encoding, scores: Tensor, same: Tensor, teachers: TeacherBatch
    ) -> dict[str, Tensor]:
        """The weighted terms of B matching pairs; `scores` and `same` ``[B, B]`` as in `RetrievalModel.losses`."""
        settings, terms = self.settings, {}
        if self.contrast_temperature is not None:
            loss = shared_info_nce(scores, self.contrast_temperature(), same)
            terms["cusa_contrast"] = settings.contrast.weight * loss
        taught = [_cosines(teachers.images), _cosines(teachers.captions)]
        if self.cross_temperature is not None:
            temperature = self.cross_temperature()
            losses = [
                soft_label_kl(logits, teacher, temperature, settings.cross_modal.teacher_temperature)
                for logits, teacher in zip((scores, scores.T), taught, strict=True)
            ]
            terms["csa"] = settings.cross_modal.weight * sum(losses) / 2
        if self.uni_temperature is not None:
            temperature = self.uni_temperature()
            own = (self.image_head(_one_vector(images)), self.caption_head(_one_vector(captions)))
            losses = [
                soft_label_kl(_cosines(vectors), teacher, temperature, settings.uni_modal.teacher_temperature)
                for vectors, teacher in zip(own, taught, strict=True)
            ]
            terms["usa"] = settings.uni_modal.weight * sum(losses) / 2
        return terms


def _head(dim: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))


def _one_vector(encoding: Encoding) -> Tensor:
    """``[B, D + S]`` of an `Encoding`, of any number of views."""
    return torch.cat([encoding.pooled.mean(1), encoding.context], dim=-1)


def _cosines(vectors: Tensor) -> Tensor:
    """``[B, B]`` of ``[B, W]``, in float32 at least, autocast or not."""
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(vectors.to(sum_dtype(vectors)), dim=-1)
        return unit @ unit.T
