"""ALADIN's student: the final scores learn the teacher's word-region scores (Messina et al., CBMI 2022, section 3.4).

A batch's scores ``[B, B]``, image i against caption j: the teacher's, which gets no gradient, and the student's. Both
are looked at by rows (an image's captions) and by columns (a caption's images).
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from train.encoding import EMBEDDING
from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings, Shape, Step
from train.reached import reached_by


class DistillationSettings(LossSettings):
    mode: Literal["listnet", "mse", "ordinal"] = "listnet"
    scale: float = Field(6.0, gt=0, description="listnet: what the student's scores are multiplied by")
    teacher_scale: float = Field(1.0, gt=0, description="what the teacher's scores are multiplied by")
    teacher: Literal["joint", "frozen"] = Field(
        "joint",
        description="frozen: at start_epoch training begins anew from the best teacher, and nothing that makes its "
        "scores changes",
    )


@LOSSES.add("distillation")
class Distillation(Loss):
    Settings = DistillationSettings
    training_only = True

    def __init__(self, settings: DistillationSettings, shape: Shape, others: Mapping[str, Loss]):
        super().__init__(settings, shape, others)
        self._teacher = (others["alignment"],)  # in a tuple: it has its place among the losses
        self._teacher_parameters: list[nn.Parameter] | None = None
        self.affine = nn.Parameter(torch.tensor([0.5, 0.5])) if settings.mode == "mse" else None
        if settings.teacher == "frozen":
            others["alignment"].end_epoch = self.restart_epoch = settings.start_epoch

    @property
    def reads(self) -> frozenset[str]:
        return EMBEDDING | self._teacher[0].reads

    def forward(self, step: Step) -> Tensor:
        (teacher,) = self._teacher
        with torch.no_grad():
            scores = teacher.scores(step.images, step.captions) * self.options.teacher_scale
        if self.options.mode == "listnet":
            return listnet(scores, step.scores, self.options.scale)
        return ordinal(scores, step.scores) if self.affine is None else affine_mse(scores, step.scores, self.affine)

    def frozen(self, epoch: int, model: nn.Module) -> Iterable[nn.Parameter]:
        """All that makes a frozen teacher's scores."""
        if self.restart_epoch is None or epoch < self.restart_epoch:
            return []
        if self._teacher_parameters is None:
            (teacher,) = self._teacher
            self._teacher_parameters = reached_by(model, lambda pairs: teacher.scores(pairs.images, pairs.captions))
        return self._teacher_parameters


def listnet(teacher: Tensor, student: Tensor, scale: float = 6.0) -> Tensor:
    """Cross-entropy between ``softmax(teacher)`` and ``softmax(scale * student)``; a scalar.

    The mean over rows plus the mean over columns. The published code adds 1e-10 to the student's probabilities; here
    the logarithm is taken of none.
    """
    teacher = teacher.detach()
    return sum(
        -(teacher.softmax(axis) * (scale * student).log_softmax(axis)).sum(axis).mean() for axis in (0, 1)
    )  # fmt: skip


def affine_mse(teacher: Tensor, student: Tensor, affine: Tensor) -> Tensor:
    """Mean squared error of ``affine[0] * student + affine[1]``; `affine` ``[2]`` is learned, from 0.5 and 0.5."""
    return F.mse_loss(affine[0] * student + affine[1], teacher.detach())


def ordinal(teacher: Tensor, student: Tensor, margin: float = 0.2, least: float = 0.1, stride: int = 3) -> Tensor:
    """Hinges on the student's order where the teacher's is clear; a scalar.

    Of two candidates whose teacher's ranks are `stride` apart, the better one's student score should be greater by
    `margin`. Pairs whose better candidate scores below `least` with the teacher don't count. The mean over pairs of
    rows plus that over pairs of columns; 0 where there is none.
    """
    total = student.new_zeros(())
    for axis in (0, 1):
        if teacher.shape[axis] <= stride:
            continue
        ranked, order = teacher.detach().sort(dim=axis)
        ordered = student.gather(axis, order)
        span = ordered.shape[axis] - stride
        hinges = (margin + ordered.narrow(axis, 0, span) - ordered.narrow(axis, stride, span)).clamp(min=0)
        counted = ranked.narrow(axis, stride, span) >= least
        total = total + torch.where(counted, hinges, 0).sum() / counted.sum().clamp(min=1)
    return total
