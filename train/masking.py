"""Means and batch norm that padding never enters, so that an embedding doesn't depend on its batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
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
        dtype = sum_dtype(x)
        valid = (x.new_ones(x.shape[:-1], dtype=dtype) if mask is None else mask.to(dtype))[..., None]
        if not self.training:
            given = self.running_mean, self.running_var, self.weight, self.bias
            scaled = F.batch_norm(x.to(dtype).flatten(0, -2), *given, eps=self.eps).view_as(x)
            return (scaled * valid).to(x.dtype)
        output, mean, variance, count = _MaskedBatchNorm.apply(x, valid, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(
                    (variance * count / (count - 1).clamp(min=1)).to(self.running_var.dtype), self.momentum
                )
        return output


class _MaskedBatchNorm(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + eps) · weight + bias`` of ``[..., D]``, zeros where `valid` ``[..., 1]`` is 0.

    Gives mean, variance and count beside it. The gradient needs two sums over all valid positions of all processes
    (Ioffe and Szegedy, ICML 2015, section 3). It is written out: autograd's own makes thrice as many passes.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, valid: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = tuple(range(x.dim() - 1))
        total = sum_over_processes(torch.cat([(x * valid).sum(rows), valid.sum(rows)]))
        mean, count = total[:-1] / total[-1], total[-1]
        centred = (x - mean).mul_(valid)
        variance = sum_over_processes(centred.square().sum(rows)) / count
        inv_std = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, valid, weight, inv_std, count)
        ctx.dtype = x.dtype
        output = (centred * (inv_std * weight)).addcmul_(valid, bias.to(centred.dtype))
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centred, valid, weight, inv_std, count = ctx.saved_tensors
        rows = tuple(range(centred.dim() - 1))
        grad = grad_output * valid
        grad_bias, grad_weight = grad.sum(rows), (grad * centred).sum(rows) * inv_std
        sums = sum_over_processes(torch.stack([grad_bias, grad_weight * inv_std])) / count
        grad.addcmul_(centred, sums[1], value=-1).addcmul_(valid, sums[0], value=-1).mul_(inv_std * weight)
        return grad.to(ctx.dtype), None, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


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
