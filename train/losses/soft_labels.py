"""What CUSA's losses share (Huang et al., AAAI 2024): the divergence from soft labels, heads, learnt temperatures.

Soft labels are the cosines of uni-modal teachers' vectors: how alike a teacher finds each pair of a batch's items.
"""

from typing import Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from train.losses.loss import LossSettings
from train.precision import sum_dtype, unit, without_autocast


class LearntTemperatureSettings(LossSettings):
    """A learnt temperature: it starts at `temperature` and stays within `bounds`."""

    temperature: float = Field(0.45, gt=0)
    bounds: tuple[PositiveFloat, PositiveFloat] = (0.10, 1.00)

    @model_validator(mode="after")
    def _starts_within_bounds(self) -> Self:
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"bounds are [{low:g}, {high:g}]: the first must be below the second")
        if not low <= self.temperature <= high:
            raise ValueError(f"temperature {self.temperature:g} must lie within bounds, [{low:g}, {high:g}]")
        return self


class Temperature(nn.Module):
    """A learnt temperature that every use brings back into its bounds, so that it is never stuck outside."""

    def __init__(self, settings: LearntTemperatureSettings):
        super().__init__()
        self.bounds = settings.bounds
        self.value = nn.Parameter(torch.tensor(settings.temperature))

    def forward(self) -> Tensor:
        """The temperature, a scalar."""
        with torch.no_grad():
            self.value.clamp_(*self.bounds)
        return self.value


def head(dim: int) -> nn.Module:
    """LayerNorm and a linear layer: what a soft-label loss reads an embedding through."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """``[B, C]`` of ``[B, W]`` and ``[C, W]``, in float32 at least, autocast or not."""
    with without_autocast(x):
        return unit(x) @ unit(y).T


def soft_label_kl(logits: Tensor, teacher: Tensor, tau: float | Tensor, teacher_tau: float | Tensor) -> Tensor:
    """``KL(softmax(teacher / teacher_tau) || softmax(logits / tau))``, row by row, the mean over rows; a scalar.

    Parameters
    ----------
    logits ``[B, B]`` : similarities that learn.
    teacher ``[B, B]`` : the teacher's of the same items; no gradient goes there.
    tau, teacher_tau : temperatures above 0; a tensor `tau` may be learnt.
    """
    dtype = torch.promote_types(sum_dtype(logits), sum_dtype(teacher))
    target = F.log_softmax(teacher.detach().to(dtype) / teacher_tau, dim=1)
    return F.kl_div(F.log_softmax(logits.to(dtype) / tau, dim=1), target, reduction="batchmean", log_target=True)
