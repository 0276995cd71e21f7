"""CAMERA's diversity regulariser (Qu et al., ACM Multimedia 2020, eq. 11): keeps the views of an image apart."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings, Step


class DiversitySettings(LossSettings):
    weight: float = Field(0.01, gt=0)


@LOSSES.add("diversity")
class Diversity(Loss):
    Settings = DiversitySettings
    needs = frozenset({"views"})

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"view_weights"})

    def forward(self, step: Step) -> Tensor:
        return diversity(step.images.view_weights, step.images.mask)


def diversity(views: Tensor, mask: Tensor | None = None) -> Tensor:
    """``‖SᵀS − I‖²`` summed over the batch, of weights S ``[B, R, k]``, columns brought to unit length."""
    if mask is not None:
        views = views * mask[..., None]
    views = F.normalize(views, dim=1)
    gram = views.transpose(1, 2) @ views
    return (gram - torch.eye(gram.shape[-1], device=gram.device)).square().sum()
