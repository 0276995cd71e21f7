"""Distillation of word-region scores into dot products: ALADIN (Messina et al., CBMI 2022, section 3.4).

A batch's scores ``[B, B]``, image i against caption j: the teacher's, which gets no gradient, and the student's. Both
are looked at by rows (an image's captions) and by columns (a caption's images).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
