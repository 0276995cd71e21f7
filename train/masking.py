"""Means and batch norm that padding never enters, so that an embedding doesn't depend on its batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.precision import sum_dtype
from train.processes import sum_over_processes


def ragged_rows(first: np.ndarray, count: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows int64 and mask ``[B, most]`` of B items that have ``count`` rows of a table from ``first`` on.

    Where the mask is false, row 0 stands for what isn't there.
    """
    place = torch.arange(int(count.max()))
    mask = place < torch.from_numpy(count)[:, None]
    return torch.where(mask, torch.from_numpy(first)[:, None] + place, 0), mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean ``[B, D]`` of ``[B, N, D]`` over the valid positions of ``[B, N]``; every row needs one."""
    weights = mask.to(x.dtype) / mask.sum(1, keepdim=True)
    return (x * weights[..., None]).sum(1)


def last_valid(x: Tensor, mask: Tensor) -> Tensor:
    """``[B, D]`` of ``[B, N, D]``: each row's last valid position of ``[B, N]``."""
    return x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the valid positions of the whole batch, that of all processes that train together.

    In training ``mean = sum(x · m) / sum(m)``, and likewise the variance. Padding comes out as zeros.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Normalise ``[..., D]`` over the valid positions of ``[...]``; None means all of them."""
        values = x.to(sum_dtype(x))
        valid = values.new_ones(x.shape[:-1]) if mask is None else mask.to(values.dtype)
        valid = valid[..., None]
        if self.training:
            mean, variance = self._statistics(values, valid)
            scaled = (values - mean) * ((variance + self.eps).rsqrt() * self.weight) + self.bias
        else:
            given = self.running_mean, self.running_var, self.weight, self.bias
            scaled = F.batch_norm(values.flatten(0, -2), *given, eps=self.eps).view_as(values)
        return (scaled * valid).to(x.dtype)

    def _statistics(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        rows = tuple(range(x.dim() - 1))
        total = sum_over_processes(torch.cat([(x * valid).sum(rows), valid.sum(rows)]))
        count = total[-1].detach()
        mean = total[:-1] / count
        variance = sum_over_processes(((x - mean).square() * valid).sum(rows)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(
                    (variance * count / (count - 1).clamp(min=1)).to(self.running_var.dtype), self.momentum
                )
        return mean, variance


def share_momentum(model: nn.Module, parts: int) -> None:
    """Let each of `parts` updates of the running statistics weigh so much that together they weigh one."""
    for norm in _norms(model):
        norm.momentum = 1 - (1 - norm.momentum) ** (1 / parts)


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norm in training normalises as ever, but doesn't move its running statistics."""
    norms = _norms(model)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _norms(model: nn.Module) -> list[MaskedBatchNorm]:
    return [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
